"""Evaluate models: on Tabletop with the judge, or on read_captions images with the published metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from ssd1b.actions.loading import AUTO, Loading
from ssd1b.errors import InputError
from ssd1b.evaluate.clip_score import ClipScore
from ssd1b.evaluate.folder import FolderEvaluation, compare_folders, read_captions
from ssd1b.evaluate.folder import evaluate_folder as evaluate_pairs
from ssd1b.evaluate.sheets import contact_sheet
from ssd1b.evaluate.statistics import Estimate
from ssd1b.saving import renewing
from ssd1b.settings import DEFAULT_MODEL, Preset
from ssd1b.tabletop.judge.evaluation import Evaluation, compare, evaluate
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.weights import hub
from ssd1b.weights.files import json_value, write_json

_ON_SHEET = 64

E = TypeVar("E", Evaluation, FolderEvaluation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluations(Generic[E]):
    """Evaluations of one or two models on the same captions and seeds.

    Attributes:
        models: their names.
        evaluations: one for each model.
        captions: one for each image, seeds fastest.
        seeds: images of each caption.
        difference: second model minus the first, paired by caption and seed; empty for a single model.
    """

    models: Sequence[str]
    evaluations: Sequence[E]
    captions: Sequence[str]
    seeds: int
    difference: Mapping[str, Estimate]

    def facts(self) -> dict[str, Any]:
        """Return everything but the images, for JSON."""
        each = zip(self.models, self.evaluations, strict=True)
        return json_value({
            "models": [{"model": model, **evaluation.facts()} for model, evaluation in each],
            "difference": {name: estimate._asdict() for name, estimate in self.difference.items()},
        })  # fmt: skip


def evaluate_tabletop(
    models: Sequence[str] = (DEFAULT_MODEL,),
    loading: Loading = AUTO,
    *,
    captions: int = 500,
    seeds: int = 1,
    judge: Path | None = None,
    preset: Preset | None = None,
    **settings: Any,
) -> Evaluations[Evaluation]:
    """Generate Tabletop captions that no training uses, and let the judge count what is right.

    Args:
        models: one, or two to compare. Each must declare the world "tabletop".
        loading: how they are found and loaded.
        captions: an even number; every second one has a combination that no training image shows.
        seeds: images of each caption, with the seeds from 0.
        judge: weights of another judge.
        preset: settings by name.
        **settings: fields of ``GenerationSettings`` except prompt, seed and size.

    Raises:
        InputError: a model cannot be loaded or does not generate Tabletop images, or a setting is invalid.
    """
    reader = load_judge(judge)
    found = []
    for model in models:
        pipeline = loading.load(model)
        path = hub.resolve(model, offline=True).path
        if pipeline.info.world != "tabletop":
            raise InputError(
                f'{model} does not generate Tabletop images, which the judge reads (no "world": "tabletop" '
                "in its ssd1b.json): give a folder of read_captions images with --data"
            )
        clip = ClipScore.load(path, pipeline.text)
        found.append(
            evaluate(pipeline, reader, clip, captions=captions, seeds=seeds, preset=preset, **settings)
        )
    return Evaluations(
        models=models, evaluations=found, captions=[case.caption for case in found[0].cases], seeds=seeds,
        difference=compare(*found) if len(found) == 2 else {},
    )  # fmt: skip


def evaluate_folder(
    folder: Path,
    models: Sequence[str] = (DEFAULT_MODEL,),
    loading: Loading = AUTO,
    *,
    captions: int | None = None,
    seeds: int = 1,
    preset: Preset | None = None,
    **settings: Any,
) -> Evaluations[FolderEvaluation]:
    """Generate the captions of a folder of images; measure CLIP score, PickScore, FID and KID.

    Args:
        folder: images, each with its caption in a ``.txt`` file of the same stem.
        models: one, or two to compare.
        loading: how they are found and loaded. ``offline`` also applies to the metrics' networks.
        captions: use only the first ones.
        seeds: images of each caption, with the seeds from 0.
        preset: settings by name.
        **settings: fields of ``GenerationSettings`` except prompt and seed.

    Raises:
        InputError: no read_captions images, a model cannot be loaded, or a setting is invalid.
    """
    pairs = read_captions(folder)[:captions]
    found = [
        evaluate_pairs(
            loading.load(model), pairs, seeds=seeds, offline=loading.offline, preset=preset, **settings
        )
        for model in models
    ]
    return Evaluations(
        models=models, evaluations=found, captions=[pair.caption for pair in pairs for _ in range(seeds)],
        seeds=seeds, difference=compare_folders(*found) if len(found) == 2 else {},
    )  # fmt: skip


def write_evaluations(folder: Path, result: Evaluations[Any], *, overwrite: bool = False) -> None:
    """Write ``evaluation.json``, and ``sheet-N.png`` with the first images of model N.

    Raises:
        InputError: a file cannot be written, or is not ours and ``overwrite`` is False.
    """
    with renewing(folder / "evaluation.json", overwrite=overwrite) as aside:
        write_json(aside, result.facts())
    for number, each in enumerate(result.evaluations):
        with renewing(folder / f"sheet-{number}.png", overwrite=overwrite) as aside:
            images = list(islice(each.pictures, _ON_SHEET))
            contact_sheet(images, result.captions[:_ON_SHEET]).save(aside, "PNG")
