"""``ssd1b distill``: a smaller student cut out of any model of SDXL's kind, and trained beside it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd1b.cli.command import Command
from ssd1b.cli.paths import OUT_FOLDER, PATH, check_outputs, echo_path, overwrite_option
from ssd1b.cli.table import byte_size, columns
from ssd1b.errors import InputError, unknown
from ssd1b.saving import renewing
from ssd1b.training.settings import LoopSettings
from ssd1b.validation import validate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ssd1b.distill.plan import PlannedStage
    from ssd1b.distill.run import Data
    from ssd1b.distill.stages import Stage
    from ssd1b.layouts import ModelLayout
    from ssd1b.model import Model

TABLETOP = {"tabletop": "plain", "tabletop-rich": "rich"}
"""Names of data that are rendered, with the world of each."""

_LAYERS = ("layers.png", "layers.tsv")


def _needs(given: "Mapping[str, Any]") -> tuple[str, ...]:
    if not given["dry_run"]:
        return ("accelerate",)
    return ("matplotlib",) if given["out"] else ()


@click.command("distill", cls=Command, needs=_needs)
@click.option("--teacher", metavar="MODEL", required=True, help="A name, folder, safetensors file or hub id.")
@click.option(
    "--student",
    metavar="LAYOUT",
    help="ssd-1b, vega, koala-1b, koala-700m, a layout file, or a share of the parameters as 50%. "
    "Default: what the stages end with.",
)
@click.option(
    "--data",
    type=PATH,
    metavar="DATA",
    help=f"What to learn from: {', '.join(TABLETOP)}; or captioned pictures: a folder with .txt files or "
    "metadata.jsonl, WebDataset shards, a Hugging Face dataset on disk.",
)
@click.option("--stages", metavar="NAME|FILE", help="ssd-1b, or a .toml file. Default: a single stage.")
@click.option(
    "--out", type=OUT_FOLDER, metavar="FOLDER", help="Where stages, checkpoints and at last the model go."
)
@click.option(
    "--cache",
    type=OUT_FOLDER,
    metavar="FOLDER",
    help="Where encoded pictures are kept, for several runs. Default: --out.",
)
@click.option("--steps", type=int, help="Of the optimiser, all stages together.")
@click.option("--batch-size", type=int, help="Pictures a step.")
@click.option("--seed", type=int, help="Of data and noise.")
@click.option("--dry-run", is_flag=True, help="Tell what would be removed and what it would cost.")
@click.option("--resume", is_flag=True, help="Go on with the stage that was stopped.")
@overwrite_option
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option(
    "--prediction", metavar="NAME", help="What the teachers predict, epsilon or v, where no file says it."
)
def command(
    teacher: str,
    student: str | None,
    data: str | None,
    stages: str | None,
    out: str | None,
    cache: str | None,
    steps: int | None,
    batch_size: int | None,
    seed: int | None,
    dry_run: bool,
    resume: bool,
    overwrite: bool,
    device: str | None,
    offline: bool,
    prediction: str | None,
) -> None:
    """Cut layers out of a model, and train what is left beside it until it draws as well as it can.

    Stages remove a part each and train before the next one does. The student begins with the teacher's
    weights, learns the noise in the data, the teacher's guess at it, and what the teacher's layers say. The
    model is written to OUT/model in diffusers' format, and to OUT/model.safetensors for other programs.

    A dry run downloads nothing: of a model that is not at hand its layout is enough. With --out it draws both
    UNets (layers.png) and lists which tensor comes from which (layers.tsv).

    \b
    Examples:
      ssd1b distill --teacher sdxl --student ssd-1b --dry-run
      ssd1b distill --teacher sdxl --stages ssd-1b --dry-run --out plan
      ssd1b distill --teacher mini-sdxl --student mini-ssd-1b --data tabletop --steps 1000 --out runs/student
      ssd1b distill --teacher mini-sdxl --student 50% --data tabletop --out runs/half
    """  # noqa: D301 (\b keeps click from wrapping)
    _check(data, out, {"steps": steps, "batch_size": batch_size, "seed": seed}, dry_run)
    changes = {"batch_size": batch_size, "seed": seed}
    asked = _stages(stages, steps, {name: value for name, value in changes.items() if value is not None})
    if dry_run:
        _plan(teacher, student, asked, data, out, cache, device, overwrite)
    else:
        _run(
            teacher, student, asked, str(data), Path(str(out)), cache, device, resume, offline, prediction,
            overwrite,
        )  # fmt: skip


def _check(data: str | None, out: str | None, numbers: dict[str, int | None], dry_run: bool) -> None:
    """Find what is wrong with the arguments before torch is imported."""
    for name, value in (("--data", data), ("--out", out)):
        if value is None and not dry_run:
            raise InputError(f"missing option {name!r}: only a dry run can do without")
    # A pattern of shards, as a-{000..009}.tar, is no file itself; what is wrong with it shows later.
    if data is not None and data not in TABLETOP and not (Path(data).exists() or data.endswith(".tar")):
        raise unknown("data", data, [*TABLETOP, "a folder, .tar or .parquet file"])
    given = {name: value for name, value in numbers.items() if value is not None}
    validate(LoopSettings, given, partial=True)


def _stages(name: str | None, steps: int | None, changes: dict[str, int]) -> "list[Stage]":
    from ssd1b.distill.stages import Stage, read_stages, with_total_steps

    stages = [Stage()] if name is None else read_stages(name)
    stages = stages if steps is None else with_total_steps(stages, steps)
    return [replace(stage, train=replace(stage.train, **changes)) for stage in stages]


def _plan(
    model: str, student: str | None, asked: "list[Stage]", data: str | None, out: str | None,
    cache: str | None, device: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Tell what would be done."""
    from ssd1b.distill.plan import plan, with_target
    from ssd1b.distill.run import measure_importance
    from ssd1b.distill.teacher import find_or_describe
    from ssd1b.runtime import choose_device

    place = str(choose_device(device))
    check_outputs(out, _LAYERS, overwrite=overwrite)
    layout, teacher = find_or_describe(model)
    asked = with_target(asked, student, layout.unet)
    for name in _other_teachers(asked):
        find_or_describe(name)
    measure = None
    if teacher and data:
        source = _data(data, cache or out, layout)
        measure = partial(measure_importance, teacher, source, place, source=data)
    planned = plan(layout.unet, asked, measure)
    click.echo(_costs(model, layout, planned, place, teacher))
    if out is not None:
        _show_layers(Path(out), planned, overwrite=overwrite)


def _other_teachers(stages: "list[Stage]") -> list[str]:
    """Name the models that stages learn from in place of the one that is cut."""
    return sorted({each.teacher for each in stages if each.teacher is not None})


def _run(
    model: str, student: str | None, asked: "list[Stage]", data: str, out: Path, cache: str | None,
    device: str | None, resume: bool, offline: bool, prediction: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Do it."""
    from ssd1b.distill.plan import plan, with_target
    from ssd1b.distill.run import (
        check_run_folder,
        config_of,
        join_processes,
        measure_importance,
        record_config,
        run,
    )
    from ssd1b.distill.teacher import find_teacher
    from ssd1b.runtime import choose_device

    place = str(choose_device(device))
    check_run_folder(out, resume=resume, overwrite=overwrite)
    together = join_processes(place)
    find = partial(find_teacher, offline=offline, prediction=prediction)
    teacher = find(model)
    layout = teacher.layout
    asked = with_target(asked, student, layout.unet)
    teachers = {None: teacher, **{name: find(name) for name in _other_teachers(asked)}}
    source = _data(data, cache or out, layout)
    measure = partial(measure_importance, teacher, source, place, source=data, out=out)
    with together.main_process_first():  # importance is measured once
        planned = plan(layout.unet, asked, measure)
    with together.main_process_first():
        record_config(out, config_of(teachers, data, planned))
    made = run(out, planned, teachers, source, device=place, resume=resume, overwrite=overwrite)
    for path in (made.folder, made.file):
        if path is not None and together.is_main_process:
            echo_path(path)


def _data(name: str, cache: str | Path | None, layout: "ModelLayout") -> "Data":
    """Where each stage's batches come from."""
    if cache is None:
        raise InputError("missing option '--out' or '--cache': pictures, once encoded, are kept there")
    kept = Path(cache)
    if name in TABLETOP:
        return _tabletop(name, kept, layout)

    from ssd1b.training.data.batches import DataSettings, open_data

    settings = DataSettings(path=name, size=layout.size)
    return lambda vae, text, train: open_data(
        settings, vae=vae, text=text, cache=kept / "encoded", report=kept / "data.json",
        batch_size=train.batch_size, seed=train.seed,
    )  # fmt: skip


def _tabletop(name: str, cache: Path, layout: "ModelLayout") -> "Data":
    from ssd1b.tabletop.miniature.train_unet import captioned_latents
    from ssd1b.tabletop.world.views import SIZE

    if layout.size != SIZE:
        raise InputError(
            f"the teacher draws {layout.size}x{layout.size}; pictures of Tabletop are {SIZE}x{SIZE}"
        )
    return lambda vae, text, settings: captioned_latents(vae, text, cache, settings, world=TABLETOP[name])


def _costs(
    name: str,
    layout: "ModelLayout",
    planned: "Sequence[PlannedStage]",
    device: str,
    teacher: "Model | None",
) -> str:
    from ssd1b.distill.cost import measure_speed, memory, step_macs
    from ssd1b.distill.layer_map import parameters
    from ssd1b.evaluate.cost import unet_macs
    from ssd1b.runtime import dtype_name
    from ssd1b.training.precision import training_dtype

    cells, dtype = layout.size // layout.vae.factor, training_dtype(device)
    whole, macs = parameters(layout.unet), unet_macs(layout.unet, cells, cells)
    at_once = max(each.stage.train.batch_size // each.stage.train.micro_batches for each in planned)
    unet = teacher and partial(teacher.network, "unet")
    speed = measure_speed(unet, macs, cells, dtype, device, batch_size=at_once)

    rows = [["teacher", "", f"{whole:,}", "100 %", f"{macs / 1e9:,.4g}", "1.00", "", "", ""]]
    needs, total = [], 0.0
    for number, each in enumerate(planned, 1):
        own, train = each.layers.student, each.stage.train
        count, own_macs = parameters(own), unet_macs(own, cells, cells)
        seconds = train.steps * step_macs(macs, own_macs, train.batch_size) / speed.rate
        total += seconds
        rows.append([
            f"stage {number}", _removed(each), f"{count:,}", f"{100 * count / whole:.1f} %",
            f"{own_macs / 1e9:,.4g}", f"{macs / own_macs:.2f}", str(train.steps), str(train.batch_size),
            _duration(seconds),
        ])  # fmt: skip
        needs.append(memory(each, cells, dtype, device))
    head = ["", "REMOVES", "PARAMETERS", "SHARE", "GMACS", "FASTER", "STEPS", "BATCH", "TIME"]
    numbered = [f"STAGE {number}" for number in range(1, len(planned) + 1)]
    memory_head = [f"MEMORY, {dtype_name(dtype)} on {device}", *numbered]
    kept = [[each, *row] for each, row in _kept(planned).items()]
    memories = [[what, *(byte_size(each[what]) for each in needs)] for what in needs[0]]
    memories.append(["total", *(byte_size(sum(each.values())) for each in needs)])
    return "\n\n".join([
        f"{name} at {layout.size}x{layout.size}" + ("" if teacher else "; its weights are not at hand"),
        columns([head, *rows], right=(2, 3, 4, 5, 6, 7, 8)),
        columns([["BLOCKS THAT STAY", "TEACHER", *numbered], *kept]),
        columns([memory_head, *memories], right=range(1, 1 + len(needs))),
        f"time on {device}: {_duration(total)} for {speed.rate / 1e9:,.3g} GMACs a second, {speed.how}",
    ])  # fmt: skip


def _removed(planned: "PlannedStage") -> str:
    """What a stage takes out, in numbers."""
    from ssd1b.distill.layer_map import transformers

    before, after = (sum(transformers(each).values()) for each in (planned.cut.teacher, planned.cut.student))
    resnets = sum(".resnets." in name for name in planned.cut.removed)
    parts = [(before - after, "block"), (resnets, "resnet")]
    return ", ".join(f"{number} {what}{'s' * (number > 1)}" for number, what in parts if number) or "nothing"


def _kept(planned: "Sequence[PlannedStage]") -> dict[str, list[str]]:
    """Which blocks the teacher and each stage's student have, by transformer, in the teacher's counting."""
    from ssd1b.distill.layer_map import transformers

    depths = transformers(planned[0].layers.teacher)
    return {
        name: [_spans(range(depth)), *(_spans(each.layers.kept[name]) for each in planned)]
        for name, depth in depths.items()
    }


def _spans(blocks: "Sequence[int]") -> str:
    """Write numbers as "0-2 6", none as "-"."""
    starts = [block for block in blocks if block - 1 not in blocks]
    ends = [block for block in blocks if block + 1 not in blocks]
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)) or "-"


def _duration(seconds: float) -> str:
    units = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    name, size = next((each for each in units if seconds >= 2 * each[1]), units[-1])
    return f"{seconds / size:.3g} {name}"


def _show_layers(folder: Path, planned: "Sequence[PlannedStage]", *, overwrite: bool) -> None:
    from ssd1b.distill.layer_plot import plot_layers

    picture = plot_layers(planned)
    keys = planned[-1].layers.keys
    with renewing(folder / _LAYERS[0], overwrite=overwrite) as aside:
        aside.write_bytes(picture)
    with renewing(folder / _LAYERS[1], overwrite=overwrite) as aside:
        lines = [f"{ours}\t{theirs}\n" for ours, theirs in {"STUDENT": "TEACHER", **keys}.items()]
        aside.write_text("".join(lines), encoding="utf-8")
    for name in _LAYERS:
        echo_path(folder / name)
