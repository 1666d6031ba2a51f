"""Render Tabletop as training data or as a sheet, and examine the judge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ssd1b.actions.loading import Loading, Progress, silent
from ssd1b.errors import InputError, unknown
from ssd1b.evaluate.sheets import contact_sheet
from ssd1b.evaluate.statistics import Estimate
from ssd1b.saving import renewing, writing
from ssd1b.tabletop.judge.examination import CLEAN_WORLD, PLAIN, Examination, Renderer, examine, through_vae
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.tabletop.judge.plots import calibration_plot, confusion_plot
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.gallery import side_by_side
from ssd1b.tabletop.world.renderer import render, render_batch
from ssd1b.tabletop.world.scenes import WORLDS, Split, scene
from ssd1b.tabletop.world.subjects import SUBJECTS, subject_scene
from ssd1b.weights.files import write_json

LOCAL = Loading(offline=True)


def render_dataset(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    split: Split = "train",
    world: str = "plain",
    subject: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> None:
    """Render scenes as PNG files of 128x128 pixels, each with its exact caption in a ``.txt`` file.

    Args:
        folder: for the files, created if necessary.
        count: number of images.
        seed: of the scenes; trainings use 0 to 5.
        split: "held_out" for combinations that no training image shows.
        world: "plain", or "rich" for more solids, patterns and lighting.
        subject: a key of ``subjects.SUBJECTS``, which no training image shows: each image has one solid with
            it, of the plain world and the split "train".
        overwrite: replace files of the same name.
        progress: shows the number of images rendered.

    Raises:
        InputError: a file is in the way, or cannot be written.
    """
    if subject is not None and (split, world) != ("train", "plain"):
        raise InputError("subject needs the split train and the world plain")
    if subject is not None and subject not in SUBJECTS:
        raise unknown("subject", subject, SUBJECTS)
    with progress("render", count) as advance:
        for index in range(count):
            if subject is not None:
                each = subject_scene(subject, seed, index)
            else:
                each = scene(seed, index, split=split, world=WORLDS[world])
            stem = f"{subject or split}-{seed}-{index:06d}"
            with writing(folder / f"{stem}.png", overwrite=overwrite) as aside:
                Image.fromarray(render(each)).save(aside, "PNG")
            with writing(folder / f"{stem}.txt", overwrite=overwrite) as aside:
                aside.write_text(full_caption(each) + "\n", encoding="utf-8")
            advance(1)


def scene_sheet(
    count: int,
    *,
    seed: int = 0,
    split: Split = "train",
    world: str = "plain",
    model: str | None = None,
    loading: Loading = LOCAL,
    progress: Progress = silent,
) -> Image.Image:
    """Render a sheet of scenes with their captions.

    Args:
        count: number of scenes.
        seed: as in ``render_dataset``, likewise ``split`` and ``world``.
        split: "train" or "held_out".
        world: "plain" or "rich".
        model: add what this model's autoencoder reconstructs of each render, and what the model generates
            from its caption.
        loading: how the model is found and loaded.
        progress: shows the number of scenes rendered.

    Raises:
        InputError: the model cannot be loaded.
    """
    scenes = [scene(seed, index, split=split, world=WORLDS[world]) for index in range(count)]
    if model is not None:
        return side_by_side(loading.load(model), scenes)
    renders = []
    with progress("render", count) as advance:
        for each in scenes:
            renders.append(render(each))
            advance(1)
    return contact_sheet(renders, [full_caption(each) for each in scenes])


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReport:
    """Examinations of the judge.

    Attributes:
        clean: by view, on renders none of which is spoiled.
        spoiled: by view, on renders a quarter of which are spoiled.
    """

    clean: Mapping[str, Examination]
    spoiled: Mapping[str, Examination]

    def accuracy(self) -> dict[str, dict[str, Estimate]]:
        """Return the accuracy of each answer, by view and question."""
        found = {}
        for view, each in self.spoiled.items():
            found[view] = each.accuracy()
            found[f"{view}, none spoiled"] = self.clean[view].accuracy()
        return found


def examine_judge(
    count: int = 1000, *, judge: Path | None = None, model: str | None = None, loading: Loading = LOCAL
) -> JudgeReport:
    """Let the judge read fresh renders of known scenes.

    Args:
        count: number of renders of each kind.
        judge: weights of another judge.
        model: also read the renders after they went through this model's autoencoder.
        loading: how the model is found and loaded.

    Raises:
        InputError: the judge or the model cannot be loaded.
    """
    reader = load_judge(judge)
    views: dict[str, Renderer] = {"renders": render_batch}
    if model is not None:
        views[f"through {model}"] = through_vae(loading.load(model).vae)
    spoiled, clean = {}, {}
    for name, view in views.items():
        look = partial(examine, reader, count, view)
        spoiled[name] = look(world=PLAIN, label=name)
        clean[name] = look(world=CLEAN_WORLD, label=f"{name}, none spoiled")
    return JudgeReport(clean=clean, spoiled=spoiled)


def report_files(views: int) -> list[str]:
    """Return the names of the files that ``write_judge_report`` writes for a number of views."""
    return ["examination.json", "calibration.png", *(f"confusion-{number}.png" for number in range(views))]


def write_judge_report(folder: Path, report: JudgeReport, *, overwrite: bool = False) -> None:
    """Write the accuracies as JSON, a calibration plot, and a confusion plot for each view.

    Raises:
        InputError: a file cannot be written, or is not ours and ``overwrite`` is False.
    """
    table = {
        view: {question: each._asdict() for question, each in answers.items()}
        for view, answers in report.accuracy().items()
    }

    def text(path: Path) -> None:
        write_json(path, table)

    def png(plot: Callable[[Any], bytes], data: Any) -> Callable[[Path], object]:
        return lambda path: path.write_bytes(plot(data))

    writers = [text, png(calibration_plot, report.spoiled)]
    writers += [png(confusion_plot, each) for each in report.spoiled.values()]
    for name, write in zip(report_files(len(report.spoiled)), writers, strict=True):
        with renewing(folder / name, overwrite=overwrite) as aside:
            write(aside)
