"""Teach the miniature a subject that it has never seen, from twelve images, by each method of fine-tuning.

    python benchmarks/subjects.py docs/log/subjects --work /tmp/subjects  # hours; resumes

There are two subjects: a new shape (octahedron) and a new material (banded). Success is the share of images
in which everything that the caption says is right, by a judge that learned the subjects, too; it is trained
first, and its accuracy is measured on other renders. Captions of the subject are of combinations that the
twelve images do not show. What a method costs the model is its success with captions of other things, by the
judge of the package. All methods generate with the same captions and seeds.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from ssd1b.actions.adapters import Output, convert_adapter
from ssd1b.actions.tabletop import render_dataset
from ssd1b.embeddings import embedding_of
from ssd1b.evaluate.reconstruction import reconstruct
from ssd1b.evaluate.statistics import difference, estimate
from ssd1b.loras import TRANSFERS, lora_of
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.judge.evaluation import BATCH_SIZE, Case, cases, score
from ssd1b.tabletop.judge.judge import Judge, load_judge, widened
from ssd1b.tabletop.miniature.train_judge import FINETUNING, train_judge
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.renderer import render_batch
from ssd1b.tabletop.world.scenes import Scene
from ssd1b.tabletop.world.subjects import SUBJECTS, subject_scene

MODEL, LARGER = "mini-ssd-1b", "mini-sdxl"
IMAGES = 12
TRAINING, HELD_OUT, TESTED, EXAMINED, AGAIN = 100, 101, 102, 103, 104
"""Seeds of the streams of scenes."""
BATCH = 4
SHOWN = 8
PROCESSOR = "processor_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to learn.

    Attributes:
        steps: of the training.
        options: of ``ssd1b finetune``; "SUBJECT" stands for the subject's word.
        prior: "images" that the model generated of single solids, their "prompts" alone, or prompts of
            "scenes" with one and two solids.
        model: which learns.
        strength: of the adapter, when images are generated.
        trained: the method whose adapter it is, if it is not trained for this one.
        transfer: how the adapter is moved to the other miniature, which then generates; None leaves it.
    """

    steps: int
    options: tuple[str, ...]
    prior: str | None = None
    model: str = MODEL
    strength: float = 1.0
    trained: str | None = None
    transfer: str | None = None


LORA = ("--learning-rate", "1e-3")
GENTLE = ("--learning-rate", "3e-4")
FULL = ("--method", "full", "--learning-rate", "1e-4")
WORD = ("--method", "textual-inversion", "--token", "SUBJECT", "--vectors", "4", "--learning-rate", "3e-3")
BEFORE_LARGER = "before, mini-sdxl"
TEACHERS = "LoRA of mini-sdxl at 3e-4, prompts of the class"
METHODS = {
    "LoRA": Method(steps=400, options=LORA),
    "textual inversion": Method(steps=400, options=WORD),
    BEFORE_LARGER: Method(steps=0, options=(), model=LARGER),
    TEACHERS: Method(steps=400, options=GENTLE, prior="prompts", model=LARGER),
    "LoRA, images of the class": Method(steps=400, options=LORA, prior="images"),
    "LoRA, prompts of the class": Method(steps=400, options=LORA, prior="prompts"),
    "LoRA at 3e-4, prompts of the class": Method(steps=400, options=GENTLE, prior="prompts"),
    "LoRA at 3e-4, 300 steps, prompts of scenes at weight 4": Method(
        steps=300, options=(*GENTLE, "--prior-weight", "4"), prior="scenes"
    ),
    "full": Method(steps=400, options=FULL),
    "full, images of the class": Method(steps=400, options=FULL, prior="images"),
    "full, prompts of the class": Method(steps=400, options=FULL, prior="prompts"),
    **{f"LoRA, {steps} steps": Method(steps=steps, options=LORA) for steps in (50, 100, 200, 800, 1600)},
    **{f"full, {steps} steps": Method(steps=steps, options=FULL) for steps in (100, 200)},
}
METHODS.update(
    {
        f"{name}, at {strength}": replace(METHODS[name], strength=strength, trained=name)
        for name in (
            "LoRA",
            "LoRA, prompts of the class",
            "LoRA at 3e-4, prompts of the class",
            "LoRA at 3e-4, 300 steps, prompts of scenes at weight 4",
        )
        for strength in (0.3, 0.5, 0.7)
    }
)
METHODS.update(
    {
        f"{TEACHERS}, moved by {transfer}": replace(METHODS[TEACHERS], transfer=transfer, trained=TEACHERS)
        for transfer in TRANSFERS
    }
)


def main() -> None:
    """Train what is missing, generate, read, and write figures and sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, runs and the judge")
    parser.add_argument("--captions", type=int, default=60, help="of the subject; of other things 100")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument(
        "--again", nargs="*", default=[],
        help="methods chosen by their results, to be measured with captions that had no part in the choice",
    )  # fmt: skip
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    base = Pipeline.load(MODEL, device="cpu", offline=True, threads="auto")
    judge = find_judge(given.work / "judge", base)
    result = given.out / "figures.json"
    found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    found.setdefault("judge", accuracy(judge, base))
    for subject in given.subjects:
        prepare(given.work / subject, subject, base)
        for key, methods, tested, others in (
            (subject, given.methods, subject_cases(subject, given.captions, TESTED), cases(100)),
            (f"{subject}, again", given.again, subject_cases(subject, given.captions, AGAIN),
             cases(200, stream=AGAIN)),
        ):  # fmt: skip
            rows: dict[str, Any] = found.setdefault(key, {})
            for name in ["before", *methods] if methods else []:
                if name in rows:
                    continue
                method = METHODS.get(name)
                of = name if method is None else method.trained or name
                run = given.work / subject / "runs" / dashed(of)
                trained = None if method is None else train(method, given.work / subject, run)
                pipeline, settings = (base, {}) if method is None else load(base, method, run)
                images = draw(pipeline, tested, settings)
                row: dict[str, Any] = {
                    "seconds": trained,
                    "processor_seconds": processor_seconds(run),
                    "subject": rate(judge, tested, images),
                    "others": rate(load_judge(), others, draw(pipeline, others, settings)),
                    "validation": validation_losses(run),
                }
                before = rows.get(BEFORE_LARGER if draws_larger(method) else "before", row)
                row["estimates"] = estimates(row, before, ("subject", "others"))
                rows[name] = row
                sheet = np.concatenate(list(images[:SHOWN]), axis=1)
                Image.fromarray(sheet).save(given.out / f"{dashed(f'{key}-{name}')}.png")
                result.write_text(json.dumps(found) + "\n")
                print(key, name, trained, json.dumps(row["estimates"]), flush=True)


def estimates(row: dict[str, Any], before: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Estimate the share of each list of answers, and its change from those before."""
    return {
        name: {
            "share": estimate(row[name])._asdict(),
            "change": difference(before[name], row[name])._asdict(),
        }
        for name in names
    }


def dashed(name: str) -> str:
    """Return a method's name as that of a file."""
    return name.replace(", ", "-").replace(" ", "-")


def find_judge(folder: Path, base: Pipeline) -> Judge:
    """Return a judge that knows the subjects, and train it if it is not in ``folder``."""
    weights = folder / "judge.safetensors"
    if not weights.exists():
        settings = replace(FINETUNING, seed=30)
        made = train_judge(folder, base.vae, start=widened(load_judge()), settings=settings,
                           resume=folder.exists())  # fmt: skip
        save_file(made.state_dict(), weights)
    return load_judge(weights)


def accuracy(judge: Judge, base: Pipeline, count: int = 300) -> dict[str, Any]:
    """Measure the share of images that the judge reads right, on reconstructions of renders."""
    found = {}
    for subject in SUBJECTS:
        scenes = [subject_scene(subject, EXAMINED, number) for number in range(count)]
        found[subject] = estimate(right(judge, scenes, reconstruct(base.vae, render_batch(scenes))))._asdict()
    return found


def right(judge: Judge, scenes: Sequence[Scene], images: NDArray[np.uint8]) -> list[float]:
    """Return for each image whether everything is right."""
    return [score(scene, seen).right for scene, seen in zip(scenes, judge.read(images), strict=True)]


def prepare(folder: Path, subject: str, base: Pipeline) -> None:
    """Render the images to learn and the held-out ones, and let the model generate others for the prior."""
    render_dataset(folder / "data", IMAGES, seed=TRAINING, subject=subject, overwrite=True)
    render_dataset(folder / "held-out", 32, seed=HELD_OUT, subject=subject, overwrite=True)
    if (folder / "class").exists():
        return
    aside = folder / "class.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    chosen = class_cases()
    for number, (case, image) in enumerate(zip(chosen, draw(base, chosen, {}), strict=True)):
        Image.fromarray(image).save(aside / f"{number:03d}.png")
        (aside / f"{number:03d}.txt").write_text(case.caption + "\n")
    aside.rename(folder / "class")


def class_cases() -> list[Case]:
    """Return captions of one solid without a subject, for the prior."""
    alone = [case for case in cases(200, stream=TRAINING) if len(case.scene.solids) == 1]
    return [case for case in alone if case.split == "train"][:48]


def subject_cases(subject: str, count: int, stream: int) -> list[Case]:
    """Return captions of the subject that are not among those of the images to learn."""
    known = {full_caption(subject_scene(subject, TRAINING, number)) for number in range(IMAGES)}
    scenes = [subject_scene(subject, stream, number) for number in range(2 * count)]
    new = [each for each in scenes if full_caption(each) not in known][:count]
    return [Case(scene=each, split="train", seed=5000 + number) for number, each in enumerate(new)]


def train(method: Method, folder: Path, run: Path) -> float:
    """Run ``ssd1b finetune``, unless it has run, and return its seconds."""
    seconds = run / "seconds"
    if not method.steps:
        return 0.0
    if seconds.exists():
        return float(seconds.read_text())
    shutil.rmtree(run, ignore_errors=True)
    prior: list[str] = []
    if method.prior == "images":
        prior = ["--prior", str(folder / "class")]
    elif method.prior == "prompts":
        prior = [word for case in class_cases()[:16] for word in ("--prior-prompt", case.caption)]
    elif method.prior == "scenes":
        scenes = [case for case in cases(200, stream=TRAINING) if case.split == "train"]
        prior = [word for case in scenes[:64] for word in ("--prior-prompt", case.caption)]
    settings = run.with_suffix(".toml")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("[train]\nvalidation_steps = 50\n")
    command = [
        sys.executable, "-m", "ssd1b", "finetune", "--model", method.model, "--data", str(folder / "data"),
        "--validation", str(folder / "held-out"), "--file", str(settings), "--steps", str(method.steps),
        "--batch-size", str(BATCH), "--seed", "0", "--out", str(run), "--offline", *prior,
        *(each.replace("SUBJECT", folder.name) for each in method.options),
    ]  # fmt: skip
    begin, begun = time.perf_counter(), _processor()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - begin
    seconds.write_text(str(took))
    (run / PROCESSOR).write_text(str(_processor() - begun))
    return took


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def processor_seconds(run: Path) -> float | None:
    """Return the processor's seconds of a training, which other work on the machine changes less."""
    return float((run / PROCESSOR).read_text()) if (run / PROCESSOR).exists() else None


def load(base: Pipeline, method: Method, run: Path) -> tuple[Pipeline, dict[str, Any]]:
    """Return the pipeline that draws with a run's result, and the settings that use it."""
    if "full" in method.options:
        return Pipeline.load(str(run / "model"), device="cpu", offline=True, threads="auto"), {}
    if "textual-inversion" in method.options:
        word = run.parents[1].name
        return base, {"embeddings": (embedding_of(run / f"{word}.safetensors", word),)}
    if method.transfer:
        to, origin = (MODEL, LARGER) if method.model == LARGER else (LARGER, MODEL)
        moved = Output(path=str(run / f"{method.transfer}.safetensors"), overwrite=True)
        convert_adapter(
            str(run / "adapter.safetensors"),
            moved,
            to=to,
            teacher=None if method.transfer == "name" else origin,
            transfer=method.transfer,
            partial=True,
        )
        pipeline = base if to == MODEL else Pipeline.load(LARGER, device="cpu", offline=True, threads="auto")
        return pipeline, {"loras": (lora_of(moved.path, unet=method.strength),)}
    loras = {"loras": (lora_of(run / "adapter.safetensors", unet=method.strength),)} if method.steps else {}
    if draws_larger(method):
        return Pipeline.load(LARGER, device="cpu", offline=True, threads="auto"), loras
    return base, loras


def draws_larger(method: Method | None) -> bool:
    """Whether the larger miniature generates a method's images."""
    return method is not None and method.model == LARGER and method.transfer is None


def draw(pipeline: Pipeline, chosen: Sequence[Case], settings: dict[str, Any]) -> NDArray[np.uint8]:
    """Generate the image of each case with the model's default settings."""
    images: list[NDArray[np.uint8]] = []
    for start in range(0, len(chosen), BATCH_SIZE):
        part = chosen[start : start + BATCH_SIZE]
        batch = [pipeline.settings(case.caption, seed=case.seed, **settings) for case in part]
        images += [np.asarray(each.image) for each in pipeline.draw(batch)]
    return np.stack(images)


def rate(judge: Judge, chosen: Sequence[Case], images: NDArray[np.uint8]) -> list[float]:
    """Return for each case whether everything is right."""
    return right(judge, [case.scene for case in chosen], images)


def validation_losses(run: Path) -> dict[int, float]:
    """Return the loss on held-out images by step."""
    log = run / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}


if __name__ == "__main__":
    main()
