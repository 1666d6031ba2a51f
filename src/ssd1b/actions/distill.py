"""Distill a model: cut layers out of a teacher, and train the student to predict what the teacher does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ssd1b.actions import TABLETOP_DATA
from ssd1b.actions.loading import Notify
from ssd1b.cluster.actor import check_local, choose_platform
from ssd1b.cluster.connection import connected
from ssd1b.cluster.options import ClusterOptions
from ssd1b.cluster.training import train
from ssd1b.distill.cost import Throughput, measure_speed, memory, step_macs
from ssd1b.distill.layer_plot import plot_layers
from ssd1b.distill.plan import PlannedStage, plan, with_target
from ssd1b.distill.run import (
    CONFIG_FILE,
    Data,
    StudentFiles,
    check_run_folder,
    config_of,
    has_run,
    join_processes,
    measure_importance,
    record_config,
    run,
    saved,
)
from ssd1b.distill.stages import Stage, read_stages, with_total_steps
from ssd1b.distill.teacher import find_or_describe, find_teacher
from ssd1b.errors import InputError
from ssd1b.evaluate.cost import unet_macs
from ssd1b.layer_map import parameters, transformers
from ssd1b.layouts import ModelLayout
from ssd1b.model import Model
from ssd1b.runtime import choose_device, dtype_name
from ssd1b.saving import renewing
from ssd1b.tabletop.miniature.train_unet import captioned_latents
from ssd1b.training.data.batches import DataSettings, open_data
from ssd1b.training.precision import training_dtype
from ssd1b.training.processes import report_lost_processes

LAYER_FILES = ("layers.png", "layers.tsv")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """The cost of one planned stage.

    Attributes:
        stage: the plan.
        parameters: of the student's UNet.
        macs: multiply-accumulate operations of the student's forward pass for one image.
        seconds: estimated training time.
        memory: bytes on the device, by purpose.
    """

    stage: PlannedStage
    parameters: int
    macs: int
    seconds: float
    memory: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationPlan:
    """What a distillation would remove, and what it would cost.

    Attributes:
        model: name of the teacher.
        layout: of the teacher.
        has_weights: whether the teacher's weights are on disk.
        parameters: of the teacher's UNet.
        macs: of the teacher's forward pass for one image.
        depths: number of blocks in each of the teacher's transformers, by name.
        stages: in order.
        device: that the estimates are for.
        dtype: number format of the training on that device.
        speed: of the device, as measured.
    """

    model: str
    layout: ModelLayout
    has_weights: bool
    parameters: int
    macs: int
    depths: Mapping[str, int]
    stages: Sequence[StageCost]
    device: str
    dtype: str
    speed: Throughput


def make_stages(
    name: str | None = None, *, steps: int | None = None, batch_size: int | None = None,
    seed: int | None = None,
) -> list[Stage]:  # fmt: skip
    """Read the stages of a distillation, and change their training settings.

    Args:
        name: stages that come with the package, or a ``.toml`` file; None for a single stage.
        steps: optimiser steps of all stages together, distributed in proportion to the stages' own.
        batch_size: images per step.
        seed: of data and noise.

    Raises:
        InputError: there are no such stages, or a setting is out of range.
    """
    stages = [Stage()] if name is None else read_stages(name)
    stages = stages if steps is None else with_total_steps(stages, steps)
    changes = {key: value for key, value in (("batch_size", batch_size), ("seed", seed)) if value is not None}
    return [replace(stage, train=replace(stage.train, **changes)) for stage in stages]


def plan_distillation(
    teacher: str,
    stages: Sequence[Stage],
    *,
    student: str | None = None,
    data: str | None = None,
    cache: Path | None = None,
    device: str | None = None,
    notify: Notify = lambda message: None,
) -> DistillationPlan:
    """Plan a distillation and estimate its cost, without downloading anything.

    Args:
        teacher: a model on disk, or the name of a layout if there are no weights.
        stages: in order.
        student: what the last stage ends with, if it does not say: a layout, or a share as "50%".
        data: as in ``distill_model``; needed only to measure the importance of blocks.
        cache: folder for encoded images.
        device: to estimate for; None for the fastest one.
        notify: called with a message before slow steps.

    Raises:
        InputError: no such teacher, or stages that cannot be cut from it.
    """
    place = str(choose_device(device))
    layout, found = find_or_describe(teacher)
    stages = with_target(stages, student, layout.unet)
    for name in _other_teachers(stages):
        find_or_describe(name)
    measure = None
    if found and data:
        source = open_training_data(data, cache, found)
        measure = partial(_measure, found, source, place, data, notify)
    planned = plan(layout.unet, stages, measure)
    return _estimate(teacher, layout, found, planned, place, notify)


def _measure(teacher: Model, source: Data, device: str, data: str, notify: Notify) -> dict[str, float]:
    notify(f"measuring the importance of the teacher's blocks on {data}")
    return measure_importance(teacher, source, device, source=data)


def _estimate(
    name: str, layout: ModelLayout, teacher: Model | None, planned: Sequence[PlannedStage], device: str,
    notify: Notify,
) -> DistillationPlan:  # fmt: skip
    cells, dtype = layout.size // layout.vae.factor, training_dtype(device)
    macs = unet_macs(layout.unet, cells, cells)
    at_once = max(each.stage.train.batch_size // each.stage.train.micro_batches for each in planned)
    unet = teacher and partial(teacher.network, "unet")
    notify(f"measuring the speed of {device}")
    speed = measure_speed(unet, macs, cells, dtype, device, batch_size=at_once)
    costs = []
    for number, each in enumerate(planned, 1):
        notify(f"estimating the memory of stage {number} of {len(planned)}")
        student, train = each.layers.student, each.stage.train
        student_macs = unet_macs(student, cells, cells)
        costs.append(StageCost(
            stage=each, parameters=parameters(student), macs=student_macs,
            seconds=train.steps * step_macs(macs, student_macs, train.batch_size) / speed.rate,
            memory=memory(each, cells, dtype, device),
        ))  # fmt: skip
    return DistillationPlan(
        model=name, layout=layout, has_weights=teacher is not None, parameters=parameters(layout.unet),
        macs=macs, depths=transformers(layout.unet), stages=costs, device=device,
        dtype=dtype_name(dtype), speed=speed,
    )  # fmt: skip


def write_layers(folder: Path, planned: DistillationPlan, *, overwrite: bool = False) -> list[Path]:
    """Write a diagram of the teacher and the students, and a table of the source of each tensor.

    Returns:
        The paths of ``layers.png`` and ``layers.tsv``.

    Raises:
        InputError: a file cannot be written, or is not ours and ``overwrite`` is False.
    """
    stages = [each.stage for each in planned.stages]
    keys = {"STUDENT": "TEACHER", **stages[-1].layers.keys}
    table = "".join(f"{ours}\t{theirs}\n" for ours, theirs in keys.items()).encode()
    for name, content in zip(LAYER_FILES, (plot_layers(stages), table), strict=True):
        with renewing(folder / name, overwrite=overwrite) as aside:
            aside.write_bytes(content)
    return [folder / name for name in LAYER_FILES]


def distill_model(
    teacher: str,
    stages: Sequence[Stage],
    data: str,
    out: Path,
    *,
    student: str | None = None,
    cache: Path | None = None,
    device: str | None = None,
    offline: bool = False,
    prediction: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    cluster: ClusterOptions | None = None,
    notify: Notify = lambda message: None,
) -> StudentFiles | None:
    """Train a student in stages and write it to ``out/model`` and ``out/model.safetensors``.

    Started by ``torchrun``, each process calls this with the same arguments.

    Args:
        teacher: a model's name.
        stages: in order.
        data: "tabletop" or "tabletop-rich"; or captioned images: a folder, WebDataset shards, or a dataset
            of Hugging Face on disk.
        out: folder of the run.
        student: what the last stage ends with, if it does not say: a layout, or a share as "50%".
        cache: folder for encoded images, which several runs can share; None for ``out``.
        device: to train on; None for the fastest one.
        offline: never use the network.
        prediction: what the teachers predict, "epsilon" or "v", if their files do not say.
        resume: continue the stage that was interrupted.
        overwrite: also replace files of another origin.
        cluster: the Ray cluster to train on; None for this machine, or for the processes of ``torchrun``.
            Model, data and folders must have the same paths on its machines, and ``out`` and ``cache`` must
            be on a disk that all of them share.
        notify: called with a message before slow steps, in the first process of this machine; if the cluster
            has no room; and when its processes are started again.

    Returns:
        The paths of the model; None in all processes of ``torchrun`` except the first one.

    Raises:
        InputError: a model cannot be loaded, the stages cannot be cut from it, the data are unusable, or
            ``out`` holds another run; machines do not share a folder, or have other files or versions.
        LostProcessError: another process ended, or does not answer.
    """
    check_run_folder(out, resume=resume, overwrite=overwrite)
    options: dict[str, Any] = {
        "student": student, "cache": cache, "device": device, "offline": offline, "prediction": prediction,
        "overwrite": overwrite,
    }  # fmt: skip
    if cluster is None:
        return _distill(teacher, stages, data, out, resume=resume, notify=notify, **options)
    # Processes that are started again continue the run.
    work = partial(_distill, teacher, stages, data, out, resume=True, **options)
    minutes = max(each.train.timeout_minutes for each in stages)
    if device == "cpu" and cluster.gpus is None:
        cluster = replace(cluster, gpus=0)
    check_local(cluster, partial(choose_platform, device, None))
    with connected(cluster.address, notify):
        return train(cluster, work, partial(saved, out.absolute()), step_minutes=minutes, notify=notify)


def _distill(
    teacher: str, stages: Sequence[Stage], data: str, out: Path, *, student: str | None, cache: Path | None,
    device: str | None, offline: bool, prediction: str | None, resume: bool, overwrite: bool,
    notify: Notify = lambda message: None,
) -> StudentFiles | None:  # fmt: skip
    """Do what each process does."""
    place = str(choose_device(device))
    group = join_processes(place, [each.train for each in stages])
    with report_lost_processes():
        group.check_same("ssd1b or torch", lambda: (version("ssd1b"), torch.__version__))
        for folder in dict.fromkeys((out, cache or out)):
            group.check_shared(folder)
        find = partial(find_teacher, offline=offline, prediction=prediction)
        found = find(teacher)
        stages = with_target(stages, student, found.layout.unet)
        teachers = {None: found, **{name: find(name) for name in _other_teachers(stages)}}
        source = open_training_data(data, cache or out, found, out=out, resumed=has_run(out))
        measure = partial(measure_importance, found, source, place, source=data, out=out)
        planned = group.decide(partial(plan, found.layout.unet, stages, measure))
        config = config_of(teachers, data, planned)
        group.decide(partial(record_config, out / CONFIG_FILE, config, begun=has_run(out)))
        made = run(
            out, planned, teachers, source, group, device=place, resume=resume, overwrite=overwrite,
            notify=notify if group.first else lambda message: None,
        )  # fmt: skip
        return made if group.first else None


def _other_teachers(stages: Sequence[Stage]) -> list[str]:
    """Return the models that stages learn from instead of the one that is cut."""
    return sorted({each.teacher for each in stages if each.teacher is not None})


def open_training_data(
    name: str, cache: Path | None, teacher: Model, *, out: Path | None = None, resumed: bool = False
) -> Data:
    """Return the function that makes a stage's batches from data by name, see ``distill_model``.

    Args:
        name: of the data.
        cache: folder for encoded images.
        teacher: a model with the VAE and the text encoders of the run.
        out: folder of the run, for the report on the data; None for ``cache``.
        resumed: whether ``out`` contains a run that is continued, which needs the same data.

    Raises:
        InputError: there is no place to keep encoded images, or the model is not of Tabletop.
    """
    if cache is None:
        raise InputError("missing option '--out' or '--cache': encoded images are kept there")
    if name in TABLETOP_DATA:
        if teacher.info.world != "tabletop":
            raise InputError(
                'the teacher does not generate Tabletop images (no "world": "tabletop" in its ssd1b.json): '
                "take other --data"
            )
        return lambda vae, text, train: captioned_latents(vae, text, cache, train, world=TABLETOP_DATA[name])
    settings = DataSettings(path=name, size=teacher.layout.size)
    return lambda vae, text, train: open_data(
        settings, vae=vae, text=text, cache=cache / "encoded", report=(out or cache) / "data.json",
        batch_size=train.batch_size, seed=train.seed, resumed=resumed,
    )  # fmt: skip
