"""Evaluate models: on Tabletop with the judge, or on captioned images with the published metrics."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from ssd1b.actions.cluster import cluster_executor
from ssd1b.actions.loading import AUTO, Loading, check_model
from ssd1b.cluster.actor import Open, Platform, choose_platform
from ssd1b.cluster.executor import ClusterExecutor
from ssd1b.cluster.options import ClusterOptions
from ssd1b.errors import ConflictError, InputError, UnavailableError, shown
from ssd1b.evaluate.clip_score import ClipScore
from ssd1b.evaluate.drawing import Drawn, timed
from ssd1b.evaluate.folder import FolderEvaluation, compare_folders, read_captions
from ssd1b.evaluate.folder import evaluate_folder as evaluate_pairs
from ssd1b.evaluate.sheets import contact_sheet
from ssd1b.evaluate.statistics import Estimate
from ssd1b.execution import DEFAULT
from ssd1b.files import hash_file
from ssd1b.jobs.captions import draw_captions
from ssd1b.jobs.executor import Executor, Inline, Render
from ssd1b.model import Model
from ssd1b.pipeline import Pipeline
from ssd1b.runtime import DTYPES, choose_device
from ssd1b.saving import renewing
from ssd1b.settings import DEFAULT_MODEL, Preset
from ssd1b.speed.backends import resolve_auto
from ssd1b.tabletop.judge.evaluation import BATCH_SIZE, Evaluation, cases, compare, evaluate
from ssd1b.tabletop.judge.judge import load_judge
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
    chosen = cases(captions, seeds)
    tasks = [(case.caption, case.seed) for case in chosen]
    load = lru_cache(maxsize=1)(Loading.load)  # the same pipeline generates and measures, on one machine
    found = []
    with _studio(models, loading, load) as studio:
        for name in models:
            model = studio.find(name)
            if model.info.world != "tabletop":
                raise InputError(
                    f'{name} does not generate Tabletop images, which the judge reads (no "world": '
                    '"tabletop" in its ssd1b.json): give a folder of captioned images with --data'
                )
            pipeline = load(studio.here, name)
            clip = ClipScore.load(model.path, pipeline.text)
            drawn = draw_captions(
                model, studio.executor, tasks, batch_size=BATCH_SIZE, preset=preset, **settings
            )
            found.append(evaluate(chosen, list(drawn), pipeline, reader, clip, seeds=seeds))
    return Evaluations(
        models=models, evaluations=found, captions=[case.caption for case in chosen], seeds=seeds,
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
        InputError: no captioned images, a model cannot be loaded, or a setting is invalid.
    """
    pairs = read_captions(folder)[:captions]
    tasks = [(pair.caption, seed) for pair in pairs for seed in range(seeds)]
    found = []
    with _studio(models, loading) as studio:
        device = choose_device(studio.here.device)
        for name in models:
            model = studio.find(name)
            drawn = draw_captions(model, studio.executor, tasks, batch_size=1, preset=preset, **settings)
            found.append(
                evaluate_pairs(pairs, list(drawn), model.layout, device=device, offline=loading.offline)
            )
    return Evaluations(
        models=models, evaluations=found, captions=[caption for caption, _ in tasks], seeds=seeds,
        difference=compare_folders(*found) if len(found) == 2 else {},
    )  # fmt: skip


class _Studio(NamedTuple):
    """Where images are generated.

    Attributes:
        executor: generates them.
        find: finds a model by its name, without its weights.
        here: how networks that measure are loaded on this machine.
    """

    executor: Executor[Drawn]
    find: Callable[[str], Model]
    here: Loading


@contextmanager
def _studio(
    models: Sequence[str], loading: Loading, load: Callable[[Loading, str], Pipeline] = Loading.load
) -> Generator[_Studio, None, None]:
    """Generate on this machine, with pipelines from ``load``, or on the cluster of ``loading``."""
    if loading.cluster is not None:
        for name in models:
            check_model(name)  # now, because a cluster takes half a minute to start
        with _on_cluster(loading.cluster, loading) as studio:
            yield studio
        return
    dtype = DTYPES[choose_platform(loading.device, loading.dtype).dtype]
    with closing(Inline(lambda name: timed(load(loading, name)))) as inline:
        yield _Studio(inline, partial(loading.find, dtype=dtype), loading)


@contextmanager
def _on_cluster(options: ClusterOptions, loading: Loading) -> Generator[_Studio, None, None]:
    @cache
    def find(name: str) -> Model:
        return loading.find(name, DTYPES[executor.platform().dtype])

    def open_there(name: str, there: Loading) -> Open[Drawn]:
        model, (device, dtype) = find(name), executor.platform()
        # Here, because nodes with other processors would resolve it differently.
        execution = resolve_auto(there.execution, model.layout.unet, torch.device(device), DTYPES[dtype])
        return partial(_open, name, model.digest(hash_file), replace(there, execution=execution))

    executor: ClusterExecutor[Drawn]
    with cluster_executor(options, loading, open_there) as executor:
        yield _Studio(executor, find, _here(loading, executor.platform()))


def _open(name: str, digest: str, loading: Loading) -> AbstractContextManager[Render[Drawn]]:
    """Load a model on a node of a cluster."""
    pipeline = loading.load(name)
    if loading.find(name, pipeline.dtype).digest(hash_file) != digest:
        raise ConflictError(f"the files of {shown(name)} are not those of the driver's machine")
    return timed(pipeline)


def _here(loading: Loading, platform: Platform) -> Loading:
    """Return the options of the nodes if this machine can generate as they do, otherwise the defaults."""
    here = replace(loading, cluster=None)
    with suppress(UnavailableError):  # a driver may lack the device
        if choose_platform(loading.device, loading.dtype) == platform:
            return here
    return replace(here, device=None, dtype=None, execution=DEFAULT)


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
