"""Distill steps: a student learns to need few steps, and one pass for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ssd1b.actions.distill import distill_model, make_stages, open_training_data
from ssd1b.actions.loading import Notify
from ssd1b.distill.cost import Throughput, measure_speed
from ssd1b.distill.run import (
    CONFIG_FILE,
    MODEL_FOLDER,
    StudentFiles,
    check_run_folder,
    has_run,
    join_processes,
    record_config,
)
from ssd1b.distill.stages import Stage
from ssd1b.distill.stages import with_total_steps as with_total_steps_cut
from ssd1b.distill.steps.cost import memory, step_macs
from ssd1b.distill.steps.run import LORA_FILE, check_layouts, check_pair, config_of, run
from ssd1b.distill.steps.stages import (
    StepStage,
    check_used,
    checked,
    read_step_stages,
    with_teachers_guidance,
    with_total_steps,
)
from ssd1b.distill.teacher import find_or_describe, find_teacher
from ssd1b.errors import InputError
from ssd1b.evaluate.cost import unet_macs
from ssd1b.layer_map import parameters
from ssd1b.layouts import ModelLayout, family_of
from ssd1b.model import Model
from ssd1b.runtime import choose_device, dtype_name
from ssd1b.saving import check_renewable
from ssd1b.settings import GUIDANCE_DEFAULTS
from ssd1b.training.precision import training_dtype
from ssd1b.training.processes import report_lost_processes

CUT_FOLDER = "cut"
"""Folder in the run's, for the stages that cut layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStageCost:
    """The cost of one stage.

    Attributes:
        stage: its settings.
        macs: multiply-accumulate operations of a training step for one image, on average.
        seconds: estimated training time.
        memory: bytes on the device, by purpose.
    """

    stage: StepStage
    macs: int
    seconds: float
    memory: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """The estimated cost of a step distillation.

    Attributes:
        teacher: name of the teacher.
        student: name of the student.
        parameters: of both UNets, teacher first.
        stages: in order.
        device: that the estimates are for.
        dtype: number format of the training on that device.
        speed: of the device, as measured.
    """

    teacher: str
    student: str
    parameters: tuple[int, int]
    stages: Sequence[StepStageCost]
    device: str
    dtype: str
    speed: Throughput


def make_step_stages(
    file: Path | None = None, *, method: str | None = None, inference_steps: int | None = None,
    rank: int | None = None, steps: int | None = None, batch_size: int | None = None,
    seed: int | None = None,
) -> list[StepStage]:  # fmt: skip
    """Make the stages of a step distillation: one of a method, or those of a file with changes.

    Args:
        file: a ``.toml`` file; None for a single stage of ``method``.
        method: of the single stage.
        inference_steps: number of steps for which the (last) student is made.
        rank: of the LoRA that all stages train; None for what they say.
        steps: optimiser steps of all stages together, distributed in proportion to the stages' own.
        batch_size: images per step.
        seed: of data and noise.

    Raises:
        InputError: the file is invalid, a setting is out of range or has no effect with the method, or both
            or neither of file and method are given.
    """
    if (file is None) == (method is None):
        raise InputError("give --steps-method, or --stages with a file whose stages have methods")
    if file is not None:
        stages = read_step_stages(file)
    else:
        stages = checked([StepStage(method=str(method))])
    if inference_steps is not None:
        check_used(stages[-1].method, ["inference_steps"])
        stages = [*stages[:-1], replace(stages[-1], inference_steps=inference_steps)]
    stages = stages if rank is None else [replace(each, rank=rank) for each in stages]
    stages = stages if steps is None else with_total_steps(stages, steps)
    given = {"batch_size": batch_size, "seed": seed}
    changes = {name: value for name, value in given.items() if value is not None}
    return [replace(each, train=replace(each.train, **changes)) for each in stages]


def make_combined_stages(
    file: Path, *, inference_steps: int | None = None, rank: int | None = None, steps: int | None = None,
    batch_size: int | None = None, seed: int | None = None,
) -> tuple[list[Stage], list[StepStage]]:  # fmt: skip
    """Make the stages of a file that first cut layers, then distill steps.

    Arguments are those of ``make_step_stages``; ``steps`` is the total of both.

    Raises:
        InputError: see there, and ``distill.make_stages``.
    """
    cut = make_stages(str(file), batch_size=batch_size, seed=seed)
    few = make_step_stages(file, inference_steps=inference_steps, rank=rank, batch_size=batch_size, seed=seed)
    if steps is None:
        return cut, few
    own, others = (sum(each.train.steps for each in stages) for stages in (cut, few))
    share = min(max(1, steps * own // (own + others)), max(1, steps - 1))
    return with_total_steps_cut(cut, share), with_total_steps(few, max(1, steps - share))


def plan_steps(
    teacher: str, student: str | ModelLayout, stages: Sequence[StepStage], *, device: str | None = None,
    notify: Notify = lambda message: None,
) -> StepPlan:  # fmt: skip
    """Estimate the cost of a step distillation, without downloading anything.

    Args:
        teacher: a model on disk, or the name of a layout if there are no weights.
        student: the same; or the layout of a student that is still to be cut.
        stages: in order.
        device: to estimate for; None for the fastest one.
        notify: called with a message before slow steps.

    Raises:
        InputError: there is no such teacher or student, or they do not fit together.
    """
    place = str(choose_device(device))
    dtype = training_dtype(place)
    layout, found = find_or_describe(teacher)
    smaller, started = (student, None) if isinstance(student, ModelLayout) else find_or_describe(student)
    check_layouts(layout, smaller)
    if found and started:
        check_pair(found, started)
    family = family_of(layout.unet) or "sdxl"
    guidance = _recommended_guidance(found) if found else GUIDANCE_DEFAULTS[family]
    stages = with_teachers_guidance(list(stages), guidance)
    cells = smaller.size // smaller.vae.factor
    macs = _macs(layout, cells), _macs(smaller, cells)
    at_once = max(each.train.batch_size // each.train.micro_batches for each in stages)
    notify(f"measuring the speed of {place}")
    unet = found and partial(found.network, "unet")
    speed = measure_speed(unet, macs[0], cells, dtype, place, batch_size=at_once)
    costs: list[StepStageCost] = []
    for number, each in enumerate(stages, 1):
        notify(f"estimating the memory of stage {number} of {len(stages)}")
        per_image = step_macs(each, *macs)
        images = each.train.steps * each.train.batch_size
        costs.append(StepStageCost(
            stage=each, macs=per_image, seconds=images * per_image / speed.rate,
            memory=memory(each, layout.unet, smaller.unet, cells, dtype, place),
        ))  # fmt: skip
    return StepPlan(
        teacher=teacher, student=student if isinstance(student, str) else student.name,
        parameters=(parameters(layout.unet), parameters(smaller.unet)),
        stages=costs, device=place, dtype=dtype_name(dtype), speed=speed,
    )  # fmt: skip


def _macs(layout: ModelLayout, cells: int) -> int:
    return unet_macs(layout.unet, cells, cells)


def distill_steps(
    teacher: str, student: str, stages: Sequence[StepStage], data: str, out: Path, *,
    cache: Path | None = None, device: str | None = None, offline: bool = False,
    prediction: str | None = None, resume: bool = False, overwrite: bool = False,
    notify: Notify = lambda message: None,
) -> StudentFiles | None:  # fmt: skip
    """Train a student that needs few steps, and write it to ``out/model`` and ``out/model.safetensors``.

    If the stages have a rank, the LoRA is in ``out/lora.safetensors``, and merged into the model.

    Started by ``torchrun``, each process calls this with the same arguments.

    Args:
        teacher: a model's name. It may be larger than the student.
        student: the model from which the student starts, such as the teacher itself.
        stages: in order.
        data: as in ``distill.distill_model``.
        out: folder of the run.
        cache: folder for encoded images, which several runs can share; None for ``out``.
        device: to train on; None for the fastest one.
        offline: never use the network.
        prediction: what both models predict, "epsilon" or "v", if their files do not say.
        resume: continue the stage that was interrupted.
        overwrite: also replace files of another origin.
        notify: called with a message before slow steps, in the first process.

    Returns:
        The paths of the model; None in all processes of ``torchrun`` except the first one.

    Raises:
        InputError: a model cannot be loaded, the two do not fit together, the data are unusable, or ``out``
            holds another run.
        LostProcessError: another process ended, or does not answer.
    """
    check_run_folder(out, resume=resume, overwrite=overwrite)
    if stages[0].rank is not None:
        check_renewable(out / LORA_FILE, overwrite=overwrite)
    place = str(choose_device(device))
    group = join_processes(place, [each.train for each in stages])
    with report_lost_processes():
        group.check_same("ssd1b or torch", lambda: (version("ssd1b"), torch.__version__))
        for folder in dict.fromkeys((out, cache or out)):
            group.check_shared(folder)
        taught, started = (
            find_teacher(name, offline=offline, prediction=prediction) for name in (teacher, student)
        )
        check_pair(taught, started)
        stages = with_teachers_guidance(list(stages), _recommended_guidance(taught))
        source = open_training_data(data, cache or out, started, out=out, resumed=has_run(out))
        config: dict[str, Any] = config_of(taught, started, data, stages)
        group.decide(partial(record_config, out / CONFIG_FILE, config, begun=has_run(out)))
        made = run(
            out,
            taught,
            started,
            stages,
            source,
            group,
            device=place,
            resume=resume,
            overwrite=overwrite,
            notify=notify if group.first else lambda message: None,
        )
        return made if group.first else None


def distill_combined(
    teacher: str, cut: Sequence[Stage], stages: Sequence[StepStage], data: str, out: Path, *,
    student: str | None = None, cache: Path | None = None, resume: bool = False, overwrite: bool = False,
    **options: Any,
) -> StudentFiles | None:  # fmt: skip
    """Cut a student out of the teacher, in ``out/cut``, then distill its steps, as ``distill_steps``.

    The same teacher teaches both. Other arguments are those of ``distill.distill_model`` and
    ``distill_steps``.

    Args:
        teacher: a model's name.
        cut: stages that cut layers.
        stages: stages with a method.
        data: training data.
        out: folder of the run.
        student: what the last stage of ``cut`` ends with, if it does not say.
        cache: folder for encoded images; None for ``out``.
        resume: continue the stage that was interrupted.
        overwrite: also replace files of another origin.
        options: device, offline, prediction and notify.
    """
    check_run_folder(out, resume=resume, overwrite=overwrite)  # not only after hours
    common: dict[str, Any] = {
        "cache": cache or out, "resume": resume, "overwrite": overwrite, **options
    }  # fmt: skip
    distill_model(teacher, cut, data, out / CUT_FOLDER, student=student, **common)
    return distill_steps(teacher, str(out / CUT_FOLDER / MODEL_FOLDER), stages, data, out, **common)


def _recommended_guidance(teacher: Model) -> float:
    return float(teacher.info.settings.get("guidance_scale", GUIDANCE_DEFAULTS[teacher.info.family]))
