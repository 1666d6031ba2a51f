"""A whole distillation: each stage starts from the student of the one before."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ssd1b.distill.importance import block_importance
from ssd1b.distill.plan import PlannedStage
from ssd1b.distill.teacher import objective_of, teacher_record
from ssd1b.distill.train import distill, student_of
from ssd1b.distill.validation import make_sample_validator
from ssd1b.errors import ConflictError, InputError
from ssd1b.files import named
from ssd1b.layouts import UNetLayout
from ssd1b.model import Model
from ssd1b.models.text import TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.models.vision import IMAGE_ENCODER
from ssd1b.saving import check_renewable, renewing, replacing
from ssd1b.training.batches import Batches, LatentBatch
from ssd1b.training.checkpoints import FOLDER as CHECKPOINTS
from ssd1b.training.digests import digest_of_modules, digest_of_tensors
from ssd1b.training.precision import training_dtype
from ssd1b.training.processes import Group, check_shares, is_visible
from ssd1b.training.records import differences
from ssd1b.training.settings import LoopSettings
from ssd1b.weights.files import read_json, read_tensors, write_json, write_tensors
from ssd1b.weights.keymap import PARTS
from ssd1b.weights.loading import read_part
from ssd1b.weights.vocabulary import VOCABULARY_SIZE
from ssd1b.weights.writing import save_folder, save_single_file

Data = Callable[[VAE, TextEncoders, LoopSettings], Batches[LatentBatch]]
"""Creates the batches of a stage from a teacher's VAE (float32, on the device) and text encoders."""

CONFIG_FILE = "distill.json"
"""File in the run's folder with everything that decides the run."""

IMPORTANCE_FILE = "importance.json"
MODEL_FOLDER, MODEL_FILE = "model", "model.safetensors"
_ENCODING_MINUTES = 7 * 24 * 60.0
EXAMPLES, EXAMPLE_SIZE = 8, 8
"""Number of batches, and of images in each, on which importance is measured."""


class StudentFiles(NamedTuple):
    """The results of a distillation.

    Attributes:
        folder: the model in diffusers' format.
        file: the model as one file, if the format allows it.
        lora: the LoRA that makes the model of the one from which the training started, if that was trained.
    """

    folder: Path
    file: Path | None
    lora: Path | None = None


def measure_importance(
    teacher: Model, data: Data, device: str, *, source: str, out: Path | None = None
) -> dict[str, float]:
    """Measure the importance of the teacher's blocks on data; with ``out``, store it there and reuse it.

    Args:
        teacher: whose UNet is measured.
        data: see ``run``.
        device: to compute on.
        source: name of the data.
        out: folder of the run.
    """
    of = {**teacher_record(teacher), "data": source}
    path = out and out / IMPORTANCE_FILE
    if path and path.exists() and (remembered := read_json(path))["of"] == of:
        return remembered["blocks"]
    dtype = training_dtype(device)
    text = teacher.text_encoders(partial(teacher.network, device=device, dtype=dtype))
    objective = objective_of(teacher, text, device, dtype)
    settings = LoopSettings(steps=EXAMPLES, batch_size=EXAMPLE_SIZE, learning_rate=1e-4, decay_steps=0)
    batches = data(teacher.network("vae", device=device, dtype=torch.float32), text, settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        examples = [objective(batches[step]).inputs for step in range(EXAMPLES)]
    found = block_importance(teacher.network("unet").to(device, dtype), examples)
    if path:
        with renewing(path) as aside:
            write_json(aside, {"of": of, "blocks": found})
    return found


def check_run_folder(out: Path, *, resume: bool, overwrite: bool = False) -> None:
    """Check that ``out`` contains no run, or one to resume, and nothing else under a result's name.

    Raises:
        InputError: there is a run and ``resume`` is False, or a file that no run wrote is in the way.
    """
    if has_run(out) and not resume:
        raise ConflictError(
            f"{out} already contains a run: continue it with --resume, or name another folder"
        )
    for name in (MODEL_FOLDER, MODEL_FILE, IMPORTANCE_FILE, *([] if has_run(out) else [CONFIG_FILE])):
        check_renewable(out / name, overwrite=overwrite)


def record_config(path: Path, config: Mapping[str, Any], *, begun: bool) -> None:
    """Write a run's configuration, or check it against that of the run being resumed.

    Args:
        path: the file, in the run's folder.
        config: everything that decides the run.
        begun: whether training began; a run whose data were unusable leaves only its configuration.

    Raises:
        InputError: the folder contains a run with another configuration.
    """
    plain = json.loads(json.dumps(config))
    if not begun:
        with renewing(path) as aside:
            write_json(aside, {**plain, "ssd1b_version": version("ssd1b")})
        return
    if other := differences(plain, read_json(path), f"the run in {named(path.parent)}"):
        raise ConflictError(f"{other}: a run is continued with its own settings; or name another folder")


def has_run(out: Path) -> bool:
    """Return whether training began in ``out``; a run whose data were unusable leaves only its plan."""
    return (out / CONFIG_FILE).exists() and any(out.glob("stage-*"))


def saved(out: Path) -> list[str]:
    """Return the names of what a run could continue from: finished stages and checkpoints."""
    patterns = ("stage-*/student.safetensors", f"stage-*/{CHECKPOINTS}/*.safetensors")
    return sorted(str(path.relative_to(out)) for pattern in patterns for path in out.glob(pattern))


def config_of(
    teachers: Mapping[str | None, Model], data: str, planned: Sequence[PlannedStage]
) -> dict[str, Any]:
    """Return the configuration of a run, with the kept blocks of each transformer."""
    stages = [
        asdict(each.stage) | {"layout": asdict(each.layers.student), "kept": each.layers.kept}
        for each in planned
    ]
    models = {name: teacher_record(each) for name, each in teachers.items()}
    return {"teachers": [*models.values()], "data": data, "stages": stages}


def run(
    out: Path, planned: Sequence[PlannedStage], teachers: Mapping[str | None, Model], data: Data,
    group: Group, *, device: str = "cpu", resume: bool = False, overwrite: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> StudentFiles:  # fmt: skip
    """Cut and train stage after stage, then write the student with the other networks of its last teacher.

    A finished stage leaves ``stage-N/student.safetensors`` and is not run again. With several
    processes, each calls this; the first one encodes the data and writes.

    Args:
        out: folder of the run.
        planned: the stages.
        teachers: by the name in a stage; None is the teacher of stages that name none.
        data: makes each stage's batches.
        group: the processes of the run.
        device: to train on.
        resume: continue the stage that was stopped.
        overwrite: as ``write_model``.
        notify: called with a message before slow steps.

    Raises:
        InputError: teachers have different layouts, or a training fails.
    """
    layout = planned[0].layers.teacher
    for each in teachers.values():
        if each.layout.unet != layout:
            raise InputError(
                f"{each.name} and {teachers[None].name} have different layouts: teachers must have the same"
            )
    for each in planned:
        check_shares(each.stage.train, group.count)
    for number, each in enumerate(planned, 1):
        folder = out / f"stage-{number}"
        if not group.decide(_weights(folder).exists):
            teacher = teachers[each.stage.teacher]
            unet = teacher.network("unet")
            group.check_same(f"the UNet of {teacher.name}", partial(digest_of_modules, [unet], ""))
            before = unet if number == 1 else _load_student(each.cut.teacher, out / f"stage-{number - 1}")
            student = student_of(before, each.cut).float()
            _train(folder, each, unet, student, teacher, data, group, notify, device=device, resume=resume)
    last = planned[-1]

    def finish() -> StudentFiles:
        student = _load_student(last.layers.student, out / f"stage-{len(planned)}")
        return write_model(out, student, teachers[last.stage.teacher], overwrite=overwrite)

    return group.decide(finish)


def join_processes(device: str, trains: Sequence[LoopSettings]) -> Group:
    """Join the other processes of the run, before anything is moved to their devices.

    They wait for the first one to encode images for as long as that takes.
    """
    minutes = max(each.timeout_minutes for each in trains)
    return Group(torch.device(device).type, step_minutes=minutes, wait_minutes=_ENCODING_MINUTES)


def _train(
    folder: Path, planned: PlannedStage, unet: UNet, student: UNet, teacher: Model, data: Data,
    group: Group, notify: Callable[[str], None], *, device: str, resume: bool,
) -> None:  # fmt: skip
    stage = planned.stage
    dtype = training_dtype(device)
    text = teacher.text_encoders(partial(teacher.network, device=device, dtype=dtype))
    vae = teacher.network("vae", device=device, dtype=torch.float32)
    objective = objective_of(teacher, text, device, dtype)
    batches = group.first_before_others(partial(data, vae, text, stage.train))
    group.check_same("the training data", lambda: digest_of_tensors({"latents": batches[0].latents}))
    trained = distill(
        folder, unet, student.to(device), planned.layers, batches, objective,
        settings=stage.train, weights=stage.weights, level=stage.features, resume=resume, notify=notify,
        validate=make_sample_validator(teacher, stage.captions, vae, text) if stage.captions else None,
    )  # fmt: skip
    group.decide(partial(_write_student, folder, trained))


def _write_student(folder: Path, student: UNet) -> None:
    with replacing(_weights(folder)) as aside:
        write_tensors(aside, student.state_dict(), {})


def write_model(
    out: Path, student: UNet, teacher: Model, *, settings: Mapping[str, Any] | None = None,
    few_steps: str | None = None, text: Mapping[str, nn.Module] | None = None, overwrite: bool = False,
) -> StudentFiles:  # fmt: skip
    """Write the student with its teacher's other networks, tokenizers, scheduler and settings.

    A model that this function wrote there earlier is replaced; with ``overwrite`` so is any other file, but
    never a folder. ``settings`` replace the teacher's recommended ones, ``few_steps`` its kind of few-step
    model, ``text`` its text encoders.

    Returns:
        ``out/model`` in diffusers' format, and ``out/model.safetensors`` with the original names. There is no
        single file if the vocabulary is not CLIP's, for which the format has no place.
    """
    info = replace(teacher.info, layout=replace(teacher.layout, unet=student.layout))
    if settings is not None:
        info = replace(info, settings=dict(settings), few_steps=few_steps)
    parts = {part: read_part(teacher.checkpoint, part) for part in PARTS if part != "unet"}
    for part, network in {"unet": student, **(text or {})}.items():
        dtype = teacher.checkpoint.part(part).dtype
        parts[part] = {name: tensor.to("cpu", dtype) for name, tensor in network.state_dict().items()}
    made = _student_files(out, teacher)
    with renewing(made.folder) as aside:
        save_folder(aside, info, parts)
        images = teacher.path / IMAGE_ENCODER
        if images.is_dir():
            shutil.copytree(images, aside / IMAGE_ENCODER)
    if made.file is not None:
        with renewing(made.file, overwrite=overwrite) as aside:
            save_single_file(aside, info, parts)
    return made


def _student_files(out: Path, teacher: Model) -> StudentFiles:
    layout = teacher.layout
    clip = {layout.text_encoder.vocab_size, layout.text_encoder_2.vocab_size} == {VOCABULARY_SIZE}
    return StudentFiles(out / MODEL_FOLDER, out / MODEL_FILE if clip else None)


def _weights(folder: Path) -> Path:
    return folder / "student.safetensors"


def _load_student(layout: UNetLayout, folder: Path) -> UNet:
    is_visible(_weights(folder))
    with torch.device("meta"):
        unet = UNet(layout)
    unet.load_state_dict(read_tensors(_weights(folder)), assign=True)
    return unet
