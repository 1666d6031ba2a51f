"""A whole step distillation: each stage goes on with the student of the one before."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssd1b.distill.run import Data, StudentFiles, write_model
from ssd1b.distill.steps.lora import start_from, with_lora, write_lora
from ssd1b.distill.steps.methods import METHODS, consistency_grid
from ssd1b.distill.steps.setup import Conditions, Given, Setup
from ssd1b.distill.steps.stages import StepStage
from ssd1b.distill.steps.trajectory import Trajectory
from ssd1b.distill.teacher import objective_of, teacher_record
from ssd1b.errors import InputError
from ssd1b.few_steps import OWN_SETTINGS, STUDENTS, FewSteps
from ssd1b.files import METADATA, expand_path
from ssd1b.layer_map import parameters
from ssd1b.layouts import ModelLayout, UNetLayout
from ssd1b.loras import read_lora
from ssd1b.model import Model
from ssd1b.models.text import Conditioning
from ssd1b.models.unet import UNet
from ssd1b.saving import replacing
from ssd1b.training.batches import LatentBatch
from ssd1b.training.digests import digest_of_modules, digest_of_tensors
from ssd1b.training.kernels import speed_up
from ssd1b.training.loop import run as run_task
from ssd1b.training.objective import Objective
from ssd1b.training.precision import convert_frozen, training_dtype
from ssd1b.training.processes import Group, Processes, check_shares
from ssd1b.training.trained import load_trained_tensors, trained_tensors
from ssd1b.weights.files import read_tensors, write_tensors

GUIDANCE_DIM = 256
"""Width of the embedded guidance scale, as in published latent consistency models."""

LORA_FILE = "lora.safetensors"
"""File in the run's folder with the LoRA, if the stages have a rank."""

_SAMPLING: Mapping[str, Mapping[str, Any]] = {
    "guidance": {},
    "progressive": {"sampler": "ddim", "schedule": "trailing"},
    "lcm": {"sampler": "lcm"},
    "tcd": {"sampler": "tcd"},
    "dmd": {"sampler": "lcm", "schedule": "trailing"},
}
"""How the student of a method is sampled: on the grid that it was trained on."""


def recommended(stage: StepStage, student: Model) -> dict[str, Any]:
    """Return the generation settings of a stage's student, for its model's files.

    A student that embeds the guidance scale gets the middle of the range, another one has it in its weights.
    """
    sampling = dict(_SAMPLING[stage.method])
    if stage.method == "tcd" and stage.ends == "phases":
        sampling["sampler"] = "ddim"
    if stage.method in ("lcm", "tcd"):
        grid = consistency_grid(Trajectory(schedule=student.info.noise_schedule), stage)
        sampling["timesteps"] = ",".join(map(str, grid.tolist()))
    if stage.method != "guidance":
        sampling["steps"] = stage.inference_steps
    scale = sum(stage.scales) / 2 if stage.embeds_guidance else 1.0
    return {**student.info.settings, **sampling, "guidance_scale": scale, "guidance_rescale": 0.0}


def student_kind(stage: StepStage) -> FewSteps:
    """Return what kind of few-step model a stage's student is."""
    return STUDENTS["phases" if stage.method == "tcd" and stage.ends == "phases" else stage.method]


def student_layout(student: Model, stages: Sequence[StepStage]) -> UNetLayout:
    """Return the layout of the trained UNet, which may embed the guidance scale."""
    layout = student.layout.unet
    return replace(layout, guidance_embed_dim=GUIDANCE_DIM) if stages[0].embeds_guidance else layout


def check_layouts(teacher: ModelLayout, student: ModelLayout) -> None:
    """Check that a teacher can teach a student, by their layouts.

    Raises:
        InputError: latents or prompts of the two differ, or the student is the larger one.
    """
    for what, ours, theirs in (
        ("autoencoders", student.vae, teacher.vae),
        ("text encoders", student.text_encoder, teacher.text_encoder),
        ("text encoders", student.text_encoder_2, teacher.text_encoder_2),
        ("sizes", student.size, teacher.size),
    ):
        if ours != theirs:
            raise InputError(f"{student.name} cannot learn from {teacher.name}: the models have other {what}")
    # The input for a guidance scale, which only a distilled model has, makes none larger.
    large, small = (parameters(replace(each.unet, guidance_embed_dim=None)) for each in (student, teacher))
    if large > small:
        raise InputError(
            f"{student.name} cannot learn from {teacher.name}: it is larger, with {large:,} parameters "
            f"instead of {small:,}; a student is of its teacher's size or smaller"
        )


def check_pair(teacher: Model, student: Model) -> None:
    """Check that a teacher can teach a student.

    Raises:
        InputError: latents, prompts or noise of the two differ, or the student is the larger one.
    """
    check_layouts(teacher.layout, student.layout)
    if _noise(teacher) != _noise(student):
        raise InputError(f"{student.name} cannot learn from {teacher.name}: they have other noise schedules")


def _noise(model: Model) -> tuple[object, ...]:
    schedule = model.info.noise_schedule
    return (
        schedule.num_train_timesteps, schedule.beta_schedule, schedule.beta_start, schedule.beta_end,
        schedule.prediction_type, schedule.rescale_betas_zero_snr,
    )  # fmt: skip


def config_of(teacher: Model, student: Model, data: str, stages: Sequence[StepStage]) -> dict[str, Any]:
    """Return everything that decides a run."""
    return {
        "teachers": [teacher_record(teacher)], "student": teacher_record(student), "data": data,
        "stages": [asdict(each) for each in stages],
    }  # fmt: skip


def run(
    out: Path, teacher: Model, student: Model, stages: Sequence[StepStage], data: Data, group: Group, *,
    device: str = "cpu", resume: bool = False, overwrite: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> StudentFiles:  # fmt: skip
    """Train stage after stage, then write the student with the other networks of the student's model.

    A finished stage leaves ``stage-N/student.safetensors`` and is not run again. With several processes, each
    calls this; the first one encodes the data and writes. Of stages with a rank, the LoRA is written, too.

    Args:
        out: folder of the run.
        teacher: gives the targets.
        student: where the training starts: a model of its own size and weights.
        stages: in order; their guidance is set.
        data: makes each stage's batches.
        group: the processes of the run.
        device: to train on.
        resume: continue the stage that was stopped.
        overwrite: as ``write_model``.
        notify: called with a message before slow steps.

    Raises:
        InputError: the models do not fit together, or a training fails.
    """
    check_pair(teacher, student)
    layout = student_layout(student, stages)

    def trained(number: int) -> UNet:
        unet = _starting(student, layout, replace(stages[0], start_lora=None))
        load_trained_tensors(unet, read_tensors(_weights(out / f"stage-{number}")))
        return unet

    for stage in stages:
        check_shares(stage.train, group.count)
    for number, stage in enumerate(stages, 1):
        folder = out / f"stage-{number}"
        if not group.decide(_weights(folder).exists):
            before = None if number == 1 else trained(number - 1)
            _train(
                folder, stage, teacher, student, layout, before, data, group, device, notify, resume=resume
            )

    def finish() -> StudentFiles:
        unet, file = trained(len(stages)), out / LORA_FILE
        settings, kind = recommended(stages[-1], student), student_kind(stages[-1]).name
        if stages[0].rank is not None:
            dtype = student.checkpoint.part("unet").dtype
            about = {"few_steps": kind, "settings": {
                name: settings[name] for name in OWN_SETTINGS if settings.get(name) is not None
            }}  # fmt: skip
            write_lora(file, unet, student.layout, dtype, {METADATA: json.dumps(about)}, overwrite=overwrite)
            unet = student.with_loras([read_lora(str(file))]).network("unet")
        made = write_model(out, unet, student, settings=settings, few_steps=kind, overwrite=overwrite)
        return made if stages[0].rank is None else made._replace(lora=file)

    return group.decide(finish)


def _train(
    folder: Path, stage: StepStage, teacher: Model, student: Model, layout: UNetLayout, before: UNet | None,
    data: Data, group: Group, device: str, notify: Callable[[str], None], *, resume: bool,
) -> None:  # fmt: skip
    dtype = training_dtype(device)
    text = student.text_encoders(partial(student.network, device=device, dtype=dtype))
    vae = student.network("vae", device=device, dtype=torch.float32)
    objective = objective_of(teacher, text, device, dtype)
    batches = group.first_before_others(partial(data, vae, text, stage.train))
    group.check_same("the training data", lambda: digest_of_tensors({"latents": batches[0].latents}))
    taught = teacher.network("unet") if stage.learns_from == "teacher" else before
    assert taught is not None
    group.check_same(f"the UNet of {teacher.name}", partial(digest_of_modules, [taught], ""))
    learning = _starting(student, layout, stage) if before is None else copy.deepcopy(before)
    critic = None
    if stage.method == "dmd":
        source = teacher if stage.critic == "teacher" else student
        critic = _copied(source.network("unet"), source.layout.unet).float().requires_grad_(True)
    frozen = copy.deepcopy(taught).to(device, dtype).requires_grad_(False).eval()
    learners = [each.to(device) for each in (learning, critic) if each is not None]
    convert_frozen(learning, dtype)
    if device == "cpu":
        speed_up(frozen, learners, dtype, stage.train, notify)
    processes = Processes(torch.device(device), stage.train)
    task = METHODS[stage.method](Setup(
        student=learning, teacher=frozen, critic=critic,
        given=_given(objective, force_zeros=student.info.force_zeros_for_empty_prompt),
        trajectory=Trajectory(schedule=teacher.info.noise_schedule), stage=stage, processes=processes,
        dtype=dtype, guidance_dim=layout.guidance_embed_dim,
    ))  # fmt: skip
    run_task(task, batches, stage.train, processes, folder, resume=resume, label=stage.method)
    first = next(iter(task.learners.values()))
    group.decide(partial(_write, folder, first.averaged()))


def _given(objective: Objective, *, force_zeros: bool) -> Callable[[LatentBatch], Given]:
    """Make the function that encodes a batch; every image is learned with its caption."""

    def given(batch: LatentBatch) -> Given:
        embeds, pooled = objective.encode(batch.text)
        empty = Conditioning(torch.zeros_like(embeds), torch.zeros_like(pooled))
        if not force_zeros:
            assert objective.text is not None
            nothing = objective.encode(objective.text.tokenize([""]))
            empty = Conditioning(nothing.embeds.expand_as(embeds), nothing.pooled.expand_as(pooled))
        time_ids = batch.time_ids.to(objective.device).float()
        clean = batch.latents.to(objective.device).float()
        return Given(clean, Conditions(embeds, pooled, time_ids), Conditions(*empty, time_ids))

    return given


def _starting(student: Model, layout: UNetLayout, stage: StepStage) -> UNet:
    """Return what is trained, before the training: the whole student in float32, or a LoRA beside it."""
    unet = _copied(student.network("unet"), layout).float().requires_grad_(True)
    if stage.rank is None:
        return unet
    unet = with_lora(unet, stage.rank, stage.train.seed)
    if stage.start_lora is not None:
        start_from(unet, Path(expand_path(stage.start_lora)), student.layout)
    return unet


def _copied(unet: UNet, layout: UNetLayout) -> UNet:
    """Copy a UNet into a layout that may embed the guidance scale, at first without effect."""
    with torch.device("meta"):
        copy = UNet(layout)
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    if layout.guidance_embed_dim is not None and unet.layout.guidance_embed_dim is None:
        width = layout.levels[0].channels
        weights["time_embedding.cond_proj.weight"] = torch.zeros(width, layout.guidance_embed_dim)
    copy.load_state_dict(weights, assign=True)
    return copy


def _weights(folder: Path) -> Path:
    return folder / "student.safetensors"


def _write(folder: Path, student: nn.Module) -> None:
    with replacing(_weights(folder)) as aside:
        write_tensors(aside, trained_tensors(student), {})
