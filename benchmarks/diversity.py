"""Measure how much images of the same caption differ between seeds, of a few-step student and of its teacher.

    python benchmarks/diversity.py STUDENT RESULT.json [--captions 50] [--seeds 4] [--teacher mini-ssd-1b]

Every run draws the same captions of Tabletop from the same noise. Renders of other scenes with the same
captions show how much the captions leave open. RESULT has for each run, as means over captions with 95%
intervals:

- ``features``, ``clip``, ``pixels``: mean distance between the images of a caption, in the judge's features,
  between unit vectors of the miniature's CLIP image encoder, and of pixels as root mean square in units of
  the images' contrast;
- ``place``: of captions with a single solid, the mean distance between its positions in the image, whose
  sides have length 2;
- ``recall``: share of the renders in the manifold of the run's images, in the judge's features;
  ``precision``: the reverse (1904.06991, with 3 neighbours);
- ``right``, ``clean``: what the judge reads.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from ssd1b.evaluate.clip_score import load_image_encoder
from ssd1b.evaluate.distances import covered, diversity
from ssd1b.evaluate.drawing import timed
from ssd1b.evaluate.statistics import by_prompt, difference, estimate
from ssd1b.images import to_pixels
from ssd1b.models.vision import ImageEncoder
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.judge.evaluation import BATCH_SIZE, Case, cases, score
from ssd1b.tabletop.judge.judge import Judge, Reading, load_judge
from ssd1b.tabletop.world.renderer import render_batch
from ssd1b.tabletop.world.scenes import rearranged
from ssd1b.weights.hub import BUILT_IN

REFERENCE = "teacher, 20 steps"
SEED = 1
"""Of the renders."""


def runs(teacher: str, student: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Each run's model and settings by its label; all else is as the model recommends."""
    return {
        **{f"teacher, {steps} steps": (teacher, {"steps": steps}) for steps in (20, 40)},
        **{f"student, {steps} steps": (student, {"steps": steps}) for steps in (1, 2, 4, 8)},
    }


def draw(pipeline: Pipeline, chosen: list[Case], settings: dict[str, Any]) -> NDArray[np.uint8]:
    """Draw all cases."""
    images = []
    with timed(pipeline) as draw_batch:
        for start in range(0, len(chosen), BATCH_SIZE):
            batch = [
                pipeline.settings(case.caption, seed=case.seed, **settings)
                for case in chosen[start : start + BATCH_SIZE]
            ]
            images += [np.asarray(each.image) for each in draw_batch(batch, lambda step: None)]
    return np.stack(images)


def features_of(seen: list[Reading]) -> NDArray[np.float64]:
    """The judge's features of images."""
    return np.stack([each.features for each in seen]).astype(np.float64)


def embeddings(encoder: ImageEncoder, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Unit vectors of images."""
    side = encoder.layout.image_size
    pixels = torch.cat([to_pixels(Image.fromarray(each).resize((side, side))) for each in pictures])
    return F.normalize(encoder(pixels), dim=-1).numpy().astype(np.float64)


def between_pixels(pictures: NDArray[np.uint8], seeds: int) -> Float[np.ndarray, " captions"]:
    """Mean distance between the images of each caption, in units of their contrast."""
    values = pictures.reshape(-1, seeds, pictures[0].size).astype(np.float64)
    return np.array(
        [diversity(each[None])[0] / np.sqrt(each.shape[-1]) / each.std(axis=-1).mean() for each in values]
    )


def places(chosen: list[Case], seen: list[Reading], seeds: int) -> Float[np.ndarray, " captions"]:
    """Mean distance between the positions of a caption's only solid; NaN for several, or if none is seen."""
    points = [
        (each.solids[0].x, each.solids[0].up) if each.solids and len(case.scene.solids) == 1
        else (np.nan, np.nan)
        for case, each in zip(chosen, seen, strict=True)
    ]  # fmt: skip
    return diversity(np.array(points).reshape(-1, seeds, 2))


def measure(
    pictures: NDArray[np.uint8],
    chosen: list[Case],
    seeds: int,
    judge: Judge,
    encoder: ImageEncoder,
    real: NDArray[np.float64],
) -> dict[str, list[float]]:
    """One value of each measure per caption."""
    seen = judge.read(pictures)
    features = features_of(seen)
    scores = [score(case.scene, each) for case, each in zip(chosen, seen, strict=True)]
    found = {
        "features": diversity(features.reshape(-1, seeds, features.shape[-1])),
        "clip": diversity(embeddings(encoder, pictures).reshape(len(chosen) // seeds, seeds, -1)),
        "pixels": between_pixels(pictures, seeds), "place": places(chosen, seen, seeds),
        "recall": by_prompt(covered(real, features), seeds),
        "precision": by_prompt(covered(features, real), seeds),
        "right": by_prompt([each.right for each in scores], seeds),
        "clean": by_prompt([each.clean for each in scores], seeds),
    }  # fmt: skip
    return {name: values.tolist() for name, values in found.items()}


def main() -> None:
    """Measure all runs; what is done is written after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("student")
    parser.add_argument("result", type=Path)
    parser.add_argument("--captions", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--teacher", default="mini-ssd-1b")
    given = parser.parse_args()
    judge, encoder = load_judge(), load_image_encoder(BUILT_IN["mini-ssd-1b"])
    chosen = cases(given.captions, given.seeds)
    rng = np.random.default_rng(SEED)
    renders = [render_batch([rearranged(case.scene, rng) for case in chosen]) for _ in range(2)]
    real = features_of(judge.read(renders[0]))
    pipelines = {name: Pipeline.load(name, device="cpu") for name in (given.teacher, given.student)}
    found: dict[str, Any] = {"captions": given.captions, "seeds": given.seeds, "runs": {}}
    rows = found["runs"]
    todo = {**runs(given.teacher, given.student), "renders": ("", {})}
    for label, (model, settings) in todo.items():
        begin = time.perf_counter()
        pictures = draw(pipelines[model], chosen, settings) if model else renders[1]
        values = measure(pictures, chosen, given.seeds, judge, encoder, real)
        rows[label] = {"settings": settings, "values": values}
        reference = rows[REFERENCE]["values"]
        rows[label]["means"] = {name: estimate(each)._asdict() for name, each in values.items()}
        rows[label]["against_reference"] = {
            name: difference(reference[name], each)._asdict() for name, each in values.items()
        }
        given.result.write_text(json.dumps(found) + "\n")
        means = {name: round(each["mean"], 3) for name, each in rows[label]["means"].items()}
        print(label, means, f"{time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
