"""``ssd1b distill``: cut a student out of any model of SDXL's family, and train it against that teacher."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd1b.actions import TABLETOP_DATA
from ssd1b.cli.command import RESUME, Command
from ssd1b.cli.messages import notify
from ssd1b.cli.options import ray_options
from ssd1b.cli.paths import OUT_FOLDER, PATH, check_outputs, echo_path, out_option, overwrite_option
from ssd1b.cli.table import columns
from ssd1b.cluster.options import ClusterOptions
from ssd1b.distill.stage_files import read_stage_tables
from ssd1b.distill.steps.names import METHOD_NAMES
from ssd1b.errors import InputError, unknown
from ssd1b.files import expand_path
from ssd1b.numerals import byte_size, duration
from ssd1b.training.settings import LoopSettings
from ssd1b.validation import validate

if TYPE_CHECKING:
    from ssd1b.actions.distill import DistillationPlan
    from ssd1b.actions.steps import StepPlan
    from ssd1b.distill.stages import Stage
    from ssd1b.layer_map import LayerMap


def _needs(given: Mapping[str, Any]) -> tuple[str, ...]:
    if not given["dry_run"]:
        return ("accelerate", "datasets", "ray") if given["ray"] else ("accelerate",)
    return ("matplotlib",) if given["out"] else ()


@click.command("distill", cls=Command, needs=_needs, continues=RESUME)
@click.option("--teacher", metavar="MODEL", required=True, help="A name, folder, safetensors file or hub id.")
@click.option(
    "--student",
    metavar="LAYOUT|MODEL",
    help="ssd-1b, vega, koala-1b, koala-700m, a layout file, or a share of the parameters as 50%. "
    "Default: what the last stage says. With --steps-method, the model that learns. Default: the teacher.",
)
@click.option(
    "--data",
    type=PATH,
    metavar="DATA",
    help=f"Training data: {', '.join(TABLETOP_DATA)}; or captioned images: a folder with .txt files or "
    "metadata.jsonl, WebDataset shards, a Hugging Face dataset on disk.",
)
@click.option("--stages", metavar="NAME|FILE", help="ssd-1b, or a .toml file. Default: a single stage.")
@out_option("Folder of the run: stages, checkpoints, the final model.")
@click.option(
    "--cache",
    type=OUT_FOLDER,
    metavar="FOLDER",
    help="Folder for encoded images, which several runs can share. Default: --out.",
)
@click.option(
    "--steps-method",
    metavar="NAME",
    help=f"{', '.join(METHOD_NAMES)}: cut nothing, and train the student to need few steps without guidance.",
)
@click.option(
    "--inference-steps", type=int, metavar="N", help="Number of steps for which --steps-method trains."
)
@click.option(
    "--rank",
    type=int,
    metavar="N",
    help="With --steps-method: train a LoRA of this rank instead of the whole student.",
)
@click.option("--steps", type=int, help="Optimiser steps of all stages together.")
@click.option("--batch-size", type=int, help="Images per step.")
@click.option("--seed", type=int, help="Seed of data and noise.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed and what it would cost.")
@click.option("--resume", is_flag=True, help="Resume the stage that was interrupted.")
@overwrite_option
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option(
    "--prediction", metavar="NAME", help="Prediction type of the teachers, epsilon or v, if no file says."
)
@ray_options("Train", "process", "processes")
def command(
    teacher: str,
    student: str | None,
    data: str | None,
    stages: str | None,
    out: str | None,
    cache: str | None,
    steps_method: str | None,
    inference_steps: int | None,
    rank: int | None,
    steps: int | None,
    batch_size: int | None,
    seed: int | None,
    dry_run: bool,
    resume: bool,
    overwrite: bool,
    device: str | None,
    offline: bool,
    prediction: str | None,
    cluster: ClusterOptions | None,
) -> None:
    """Cut layers out of a model, and train the remaining ones against the original.

    Each stage removes a part and trains before the next one begins. The student starts with the teacher's
    weights. It learns the noise in the data, the teacher's prediction, and the features of the teacher's
    layers. The model is written to OUT/model in diffusers' format, and to OUT/model.safetensors for other
    programs.

    With --steps-method, nothing is cut: the student, a model of the teacher's size or smaller, learns to
    generate in few steps, and without the second pass of guidance. A file of --stages can name methods, too;
    its stages without one come first, and cut.

    A dry run downloads nothing: if the teacher's weights are not on disk, its layout is enough. With --out it
    writes a diagram of both UNets (layers.png) and the source of each tensor (layers.tsv).

    \b
    Examples:
      ssd1b distill --teacher sdxl --student ssd-1b --dry-run
      ssd1b distill --teacher sdxl --stages ssd-1b --dry-run --out plan
      ssd1b distill --teacher mini-sdxl --student mini-ssd-1b --data tabletop --steps 1000 --out runs/student
      ssd1b distill --teacher mini-sdxl --student 50% --data tabletop --out runs/half
      ssd1b distill --teacher mini-sdxl --student mini-ssd-1b --steps-method lcm --inference-steps 4 --dry-run
    """  # noqa: D301 (\b keeps click from wrapping)
    numbers = {"steps": steps, "batch_size": batch_size, "seed": seed}
    _check(data, out, numbers, dry_run)
    if dry_run and cluster is not None:
        raise InputError("--dry-run estimates for this machine: leave out --ray")

    file, cuts = _step_file(stages)
    if steps_method is not None or file is not None:
        if cluster is not None:
            raise InputError("steps are distilled on one machine, or with torchrun: leave out --ray")
        _steps(
            teacher, student, data, out,
            stages={
                "file": file, "inference_steps": inference_steps, "rank": rank, **numbers,
                **({} if steps_method is None else {"method": steps_method}),
            },
            cuts=cuts and steps_method is None,
            dry_run=dry_run,
            common={
                "cache": cache and Path(cache), "offline": offline, "prediction": prediction,
                "resume": resume, "overwrite": overwrite,
            },
            device=device,
        )  # fmt: skip
        return
    for option, value in (("--inference-steps", inference_steps), ("--rank", rank)):
        if value is not None:
            raise InputError(f"{option} needs --steps-method, or --stages with methods")

    from ssd1b.actions.distill import distill_model, make_stages

    chosen = make_stages(stages, **numbers)
    place = cache or out
    common: dict[str, Any] = {
        "student": student, "cache": None if place is None else Path(place), "device": device
    }  # fmt: skip
    if dry_run:
        _plan_cut(teacher, chosen, data, out, overwrite=overwrite, **common)
        return
    made = distill_model(
        teacher, chosen, str(data), Path(str(out)), offline=offline, prediction=prediction, resume=resume,
        overwrite=overwrite, cluster=cluster, notify=notify, **common,
    )  # fmt: skip
    _echo_paths(made or ())


def _plan_cut(
    teacher: str, stages: "Sequence[Stage]", data: str | None, out: str | None, *, overwrite: bool,
    **common: Any,
) -> "DistillationPlan":  # fmt: skip
    """Print what stages that cut layers would do; with ``out``, also write the layers there."""
    from ssd1b.actions.distill import LAYER_FILES, plan_distillation, write_layers

    check_outputs(out, LAYER_FILES, overwrite=overwrite)
    planned = plan_distillation(teacher, stages, data=data, notify=notify, **common)
    click.echo(_text(planned))
    _echo_paths([] if out is None else write_layers(Path(out), planned, overwrite=overwrite))
    return planned


def _echo_paths(paths: Iterable[Path | None]) -> None:
    for path in paths:
        if path is not None:
            echo_path(path)


def _step_file(stages: str | None) -> tuple[Path | None, bool]:
    """Return the path of a file of stages if some have methods, and whether others before them cut layers."""
    if stages is None or not stages.lower().endswith(".toml"):
        return None, False
    path = Path(expand_path(stages))
    tables = read_stage_tables(path)
    return (path if tables.methods else None), bool(tables.cut)


def _steps(
    teacher: str, student: str | None, data: str | None, out: str | None, *, stages: Mapping[str, Any],
    cuts: bool, dry_run: bool, common: Mapping[str, Any], device: str | None,
) -> None:  # fmt: skip
    from ssd1b.actions.steps import (
        distill_combined,
        distill_steps,
        make_combined_stages,
        make_step_stages,
        plan_steps,
    )

    place: dict[str, Any] = {"device": device, "notify": notify}
    cut, chosen = make_combined_stages(**stages) if cuts else ([], make_step_stages(**stages))
    start: Any = student or teacher
    if dry_run and cut:
        cache = common["cache"] or (out and Path(out))
        planned = _plan_cut(
            teacher,
            cut,
            data,
            out,
            overwrite=common["overwrite"],
            student=student,
            cache=cache,
            device=device,
        )
        click.echo()
        last = planned.stages[-1].stage.layers.student
        start = replace(planned.layout, name="the cut student", unet=last)
    if dry_run:
        click.echo(_steps_text(plan_steps(teacher, start, chosen, **place)))
        return
    if cut:
        made = distill_combined(
            teacher, cut, chosen, str(data), Path(str(out)), student=student, **place, **common
        )
    else:
        made = distill_steps(teacher, start, chosen, str(data), Path(str(out)), **place, **common)
    _echo_paths(made or ())


def _steps_text(plan: "StepPlan") -> str:
    rows = []
    for number, each in enumerate(plan.stages, 1):
        stage, train = each.stage, each.stage.train
        made_for = "" if stage.method == "guidance" else str(stage.inference_steps)
        rows.append([
            f"stage {number}", stage.method, made_for, stage.learns_from, str(train.steps),
            str(train.batch_size), f"{each.macs / 1e9:,.4g}", duration(each.seconds),
        ])  # fmt: skip
    head = ["", "METHOD", "FOR STEPS", "LEARNS FROM", "STEPS", "BATCH", "GMACS PER IMAGE", "TIME"]
    numbered = [f"STAGE {number}" for number in range(1, len(plan.stages) + 1)]
    needs = [each.memory for each in plan.stages]
    memory = [[what, *(byte_size(each[what]) for each in needs)] for what in needs[0]]
    memory.append(["total", *(byte_size(sum(each.values())) for each in needs)])
    total = duration(sum(each.seconds for each in plan.stages))
    return "\n\n".join([
        f"{plan.teacher} ({plan.parameters[0]:,} parameters) teaches {plan.student} ({plan.parameters[1]:,})",
        columns([head, *rows], right=(2, 4, 5, 6, 7)),
        columns([[f"MEMORY, {plan.dtype} on {plan.device}", *numbered], *memory],
                right=range(1, 1 + len(needs))),
        f"time on {plan.device}: {total} at {plan.speed.rate / 1e9:,.3g} GMACs per second, {plan.speed.how}",
    ])  # fmt: skip


def _check(data: str | None, out: str | None, numbers: Mapping[str, int | None], dry_run: bool) -> None:
    """Check the arguments before torch is imported."""
    for name, value in (("--data", data), ("--out", out)):
        if value is None and not dry_run:
            raise InputError(f"missing option {name!r}: only a dry run can do without")
    # A pattern of shards, as a-{000..009}.tar, is no file itself; it is checked when it is opened.
    if data is not None and data not in TABLETOP_DATA and not (Path(data).exists() or data.endswith(".tar")):
        raise unknown("data", data, [*TABLETOP_DATA, "a folder, .tar or .parquet file"])
    given = {name: value for name, value in numbers.items() if value is not None}
    validate(LoopSettings, given, partial=True)


def _text(plan: "DistillationPlan") -> str:
    rows = [["teacher", "", f"{plan.parameters:,}", "100 %", f"{plan.macs / 1e9:,.4g}", "1.00", "", "", ""]]
    for number, each in enumerate(plan.stages, 1):
        train = each.stage.stage.train
        rows.append([
            f"stage {number}", _removed(each.stage.cut), f"{each.parameters:,}",
            f"{100 * each.parameters / plan.parameters:.1f} %", f"{each.macs / 1e9:,.4g}",
            f"{plan.macs / each.macs:.2f}", str(train.steps), str(train.batch_size), duration(each.seconds),
        ])  # fmt: skip
    head = ["", "REMOVES", "PARAMETERS", "SHARE", "GMACS", "FASTER", "STEPS", "BATCH", "TIME"]
    maps = [each.stage.layers for each in plan.stages]
    kept = [
        [name, _spans(range(depth)), *(_spans(each.kept[name]) for each in maps)]
        for name, depth in plan.depths.items()
    ]
    numbered = [f"STAGE {number}" for number in range(1, len(plan.stages) + 1)]
    needs = [each.memory for each in plan.stages]
    memory = [[what, *(byte_size(each[what]) for each in needs)] for what in needs[0]]
    memory.append(["total", *(byte_size(sum(each.values())) for each in needs)])
    total = duration(sum(each.seconds for each in plan.stages))
    size = plan.layout.size
    return "\n\n".join([
        f"{plan.model} at {size}x{size}" + ("" if plan.has_weights else "; its weights are not on disk"),
        columns([head, *rows], right=(2, 3, 4, 5, 6, 7, 8)),
        columns([["BLOCKS KEPT", "TEACHER", *numbered], *kept]),
        columns([[f"MEMORY, {plan.dtype} on {plan.device}", *numbered], *memory],
                right=range(1, 1 + len(needs))),
        f"time on {plan.device}: {total} at {plan.speed.rate / 1e9:,.3g} GMACs per second, {plan.speed.how}",
    ])  # fmt: skip


def _removed(cut: "LayerMap") -> str:
    blocks = cut.teacher.transformer_blocks - cut.student.transformer_blocks
    resnets = sum(".resnets." in name for name in cut.removed)
    parts = [(blocks, "block"), (resnets, "resnet")]
    return ", ".join(f"{number} {what}{'s' * (number > 1)}" for number, what in parts if number) or "nothing"


def _spans(blocks: Sequence[int]) -> str:
    """Write numbers as "0-2 6", none as "-"."""
    starts = [block for block in blocks if block - 1 not in blocks]
    ends = [block for block in blocks if block + 1 not in blocks]
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)) or "-"
