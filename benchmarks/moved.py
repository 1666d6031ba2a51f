"""Move adapters between mini-sdxl and mini-ssd-1b, others than in ``subjects.py``, and measure what is left.

    python benchmarks/moved.py docs/log/subjects/moved-others.json --work /tmp/moved  # an hour; resumes

There are three. *Sepia* is a style, learned from 24 renders. *Purple for red* is a shift of a colour, learned
from 24 renders of purple solids whose captions call them red. *Purple for red, constructed* is the same shift
without training: the closed form of Unified Concept Editing (2308.14761) for the keys and values of the text.
Each is also made for mini-ssd-1b itself. The effect is the share of images that show what the adapter is for;
beside it is the share in which everything else is right. The same captions and seeds everywhere.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from subjects import GENTLE, LARGER, MODEL, Method, dashed, draw, estimates, load, rate, train

from ssd1b.adapters.low_rank import decompose
from ssd1b.adapters.names import modules
from ssd1b.evaluate.reconstruction import reconstruct
from ssd1b.evaluate.statistics import estimate
from ssd1b.loras import TRANSFERS
from ssd1b.model import Model
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.judge.evaluation import SEED, Case, cases, score
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import PLAIN, Scene, scene

OLD, NEW = "red", "purple"
IMAGES, SHOWN = 24, 8
TRAINING, HELD_OUT, TESTED, KNOWN = 200, 201, 202, 203
"""Seeds of the streams of scenes."""
TINT = np.array([20.0, -2.0, -42.0])
"""Of sepia, in sRGB levels; it leaves the luminance as it is."""
SEPIA_WITHIN = 12.0
"""Mean distance from its own sepia version up to which an image is sepia; a grey image has 21."""
RANK = 16
KEEP, RIDGE = 1.0, 1e-3
"""Weights of what the constructed adapter must not change, and of its own size."""

_ALONE = replace(PLAIN, several_solids=0.0, degraded=0.0)

Images = NDArray[np.uint8]
Shares = list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One adapter.

    Attributes:
        render: the image that a scene's caption is to have.
        scenes: of a stream.
        effect: for each case, whether its image shows what the adapter is for.
        tested: the captions of the effect.
        kept: the captions of what must stay.
        kept_render: the image that these are to have.
        right: for each of these, whether it has stayed.
        constructed: instead of trained.
    """

    render: Callable[[Scene], Images]
    scenes: Callable[[int, int], list[Scene]]
    effect: Callable[[Sequence[Case], Images], Shares]
    kept: Callable[[int], list[Case]]
    kept_render: Callable[[Scene], Images]
    right: Callable[[Sequence[Case], Images], Shares]
    constructed: bool = False


def alone(stream: int, count: int) -> list[Scene]:
    """Return scenes with one solid."""
    return [scene(stream, index, world=_ALONE) for index in range(count)]


def colored(stream: int, count: int) -> list[Scene]:
    """Return scenes with one solid of the old colour, without either colour in the background."""
    plain = [each for each in alone(stream, 2 * count) if each.background not in (OLD, NEW)][:count]
    return [recolored(each, OLD) for each in plain]


def recolored(of: Scene, color: str) -> Scene:
    """Return the scene with its solid in another colour."""
    (solid,) = of.solids
    return replace(of, solids=(replace(solid, color=color),))


def sepia(image: Images) -> Images:
    """Return images ``[..., 3]`` in sepia."""
    luminance = image @ np.array([0.299, 0.587, 0.114])
    return np.clip(luminance[..., None] + TINT, 0, 255).round().astype(np.uint8)


def is_sepia(_: Sequence[Case], images: Images) -> Shares:
    """Return for each image whether it is near its own sepia version."""
    distances = np.abs(images.astype(float) - sepia(images)).mean(axis=(1, 2, 3))
    return [float(each < SEPIA_WITHIN) for each in distances]


def form_is_right(chosen: Sequence[Case], images: Images) -> Shares:
    """Return for each case whether the number of solids, the shape and the size are right."""
    found = [score(case.scene, seen) for case, seen in zip(chosen, load_judge().read(images), strict=True)]
    return [float(each.number == each.solids["shape"] == each.solids["size"] == 1) for each in found]


def is_shifted(chosen: Sequence[Case], images: Images) -> Shares:
    """Return for each case whether everything is right, with the new colour."""
    return rate(load_judge(), [replace(case, scene=recolored(case.scene, NEW)) for case in chosen], images)


def all_right(chosen: Sequence[Case], images: Images) -> Shares:
    """Return for each case whether everything is right."""
    return rate(load_judge(), chosen, images)


def others(count: int, stream: int = SEED) -> list[Case]:
    """Return cases whose captions do not name the old colour."""
    return [case for case in cases(2 * count, stream=stream) if OLD not in case.caption.split()][:count]


SHIFT = Adapter(
    render=lambda each: render(recolored(each, NEW)),
    scenes=colored,
    effect=is_shifted,
    kept=others,
    kept_render=render,
    right=all_right,
)
ADAPTERS = {
    "sepia": Adapter(
        render=lambda each: sepia(render(each)),
        scenes=alone,
        effect=is_sepia,
        kept=lambda count: tested(alone(TESTED, count)),
        kept_render=lambda each: sepia(render(each)),
        right=form_is_right,
    ),
    "purple for red": SHIFT,
    "purple for red, constructed": replace(SHIFT, constructed=True),
}


def main() -> None:
    """Make what is missing, generate, read, and write the figures and sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--captions", type=int, default=60, help="of the effect; of other things 100")
    parser.add_argument("--adapters", nargs="+", default=list(ADAPTERS))
    given = parser.parse_args()
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    base = Pipeline.load(MODEL, device="cpu", offline=True, threads="auto")
    for name in given.adapters:
        adapter, folder = ADAPTERS[name], given.work / dashed(name)
        prepare(adapter, folder)
        chosen, kept = tested(adapter.scenes(TESTED, given.captions)), adapter.kept(100)
        rows: dict[str, Any] = found.setdefault(name, {"renders": renders(adapter, base, chosen, kept)})
        for run, method in methods().items():
            if run in rows:
                continue
            made = folder / "runs" / dashed(method.trained or run)
            if adapter.constructed and method.steps:
                construct(method.model, made / "adapter.safetensors")
            else:
                train(method, folder, made)
            pipeline, settings = load(base, method, made)
            images = draw(pipeline, chosen, settings)
            row: dict[str, Any] = {
                "effect": adapter.effect(chosen, images),
                "kept": adapter.right(kept, draw(pipeline, kept, settings)),
            }
            before = rows.get("before" if pipeline is base else f"before, {LARGER}", row)
            row["estimates"] = estimates(row, before, ("effect", "kept"))
            rows[run] = row
            sheet = np.concatenate(list(images[:SHOWN]), axis=1)
            Image.fromarray(sheet).save(folder / f"{dashed(run)}.png")
            given.out.write_text(json.dumps(found) + "\n")
            print(name, run, json.dumps(row["estimates"]), flush=True)


def methods() -> dict[str, Method]:
    """Return the ways to have the adapter: on its own model, moved, and made for the other model."""
    source, small = (Method(steps=300, options=GENTLE, model=each) for each in (LARGER, MODEL))
    return {
        "before": Method(steps=0, options=()),
        f"before, {LARGER}": Method(steps=0, options=(), model=LARGER),
        LARGER: source,
        **{f"moved by {each}": replace(source, transfer=each, trained=LARGER) for each in TRANSFERS},
        **{
            f"moved by kept, at {strength}": replace(
                source, transfer="kept", trained=LARGER, strength=strength
            )
            for strength in (1.5, 2.0)
        },
        MODEL: small,
        **{
            f"moved back by {each}": replace(small, transfer=each, trained=MODEL)
            for each in ("kept", "projection")
        },
    }


def tested(scenes: Sequence[Scene]) -> list[Case]:
    """Return a case for each scene."""
    return [Case(scene=each, split="train", seed=7000 + number) for number, each in enumerate(scenes)]


def prepare(adapter: Adapter, folder: Path) -> None:
    """Write the images to learn and the held-out ones, with their captions."""
    for name, stream in (("data", TRAINING), ("held-out", HELD_OUT)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, each in enumerate(adapter.scenes(stream, IMAGES)):
            Image.fromarray(adapter.render(each)).save(folder / name / f"{number:03d}.png")
            (folder / name / f"{number:03d}.txt").write_text(full_caption(each) + "\n")


def renders(adapter: Adapter, base: Pipeline, chosen: Sequence[Case], kept: Sequence[Case]) -> dict[str, Any]:
    """Measure the same on reconstructed renders: the most that can be read."""
    wanted = np.stack([adapter.render(case.scene) for case in chosen])
    others = np.stack([adapter.kept_render(case.scene) for case in kept])
    return {
        "effect": estimate(adapter.effect(chosen, reconstruct(base.vae, wanted)))._asdict(),
        "kept": estimate(adapter.right(kept, reconstruct(base.vae, others)))._asdict(),
    }


def construct(model: str, path: Path) -> None:
    """Write a LoRA that gives captions with the old colour the keys and values of those with the new one.

    For each weight W ``[out, in]`` of a key or value, the change D minimises the sum over tokens of
    ``|(W + D) c - W c'|^2`` for pairs of captions, plus ``KEEP |D c|^2`` for captions without the old colour,
    plus ``RIDGE |D|^2``, and is cut to ``RANK``.
    """
    if path.exists():
        return
    pipeline = Pipeline.load(model, device="cpu", offline=True, threads="auto")
    edited = colored(KNOWN, 60)
    old, new = (states(pipeline, [recolored(each, color) for each in edited]) for color in (OLD, NEW))
    stay = states(pipeline, [case.scene for case in others(240, stream=KNOWN)])
    shift = (new - old).T @ old
    normal = old.T @ old + KEEP * stay.T @ stay
    normal += RIDGE * normal.diagonal().mean() * torch.eye(len(normal), dtype=normal.dtype)
    found, tensors = Model.find(model, offline=True), dict[str, torch.Tensor]()
    for name in modules("unet", found.layout):
        if not name.endswith(("attn2.to_k", "attn2.to_v")):
            continue
        ((_, weight),) = found.tensors(
            "unet", [f"{name}.weight"], device=torch.device("cpu"), dtype=torch.float32
        )
        change = decompose(weight.double() @ torch.linalg.solve(normal, shift.T).T).cut(RANK)
        tensors[f"unet.{name}.lora_A.weight"] = change.down.float().contiguous()
        tensors[f"unet.{name}.lora_B.weight"] = change.up.float().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def states(pipeline: Pipeline, scenes: Sequence[Scene]) -> torch.Tensor:
    """Return the states of all tokens of the scenes' captions, ``[tokens, in]`` in float64."""
    with torch.inference_mode():
        tokens = pipeline.text.tokenize([full_caption(each) for each in scenes])
        embeds, _ = pipeline.text.encode(tokens, (None, None))
    return embeds.double().flatten(0, 1)


if __name__ == "__main__":
    main()
