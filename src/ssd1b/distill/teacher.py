"""The teacher: the model from which a student learns."""

import torch

from ssd1b.errors import InputError
from ssd1b.layouts import NAMED, ModelLayout, UNetLayout, model_layout
from ssd1b.model import Model
from ssd1b.models.text import TextEncoders
from ssd1b.training.objective import Objective


def find_teacher(name: str, *, offline: bool = False, prediction: str | None = None) -> Model:
    """Find a teacher; arguments are those of ``Model.find``.

    Raises:
        InputError: there is no such model, it is incomplete, or its UNet takes more than latents and text.
    """
    teacher = Model.find(name, offline=offline, prediction=prediction)
    check_teacher(teacher.layout.unet)
    return teacher


def teacher_record(teacher: Model) -> dict[str, str | None]:
    """Return what identifies a teacher in the files of a run."""
    prediction = {} if teacher.prediction is None else {"prediction": teacher.prediction}
    return {"model": teacher.name, "commit": teacher.commit, **prediction}


def objective_of(teacher: Model, text: TextEncoders, device: str, dtype: torch.dtype) -> Objective:
    """Return a student's objective, with its teacher's text encoders and noise schedule."""
    return Objective(text=text, device=device, dtype=dtype, schedule=teacher.info.noise_schedule)


def check_teacher(layout: UNetLayout) -> None:
    """Check that a teacher's UNet takes latents and text only.

    Raises:
        InputError: the UNet embeds the guidance scale, or is for inpainting.
    """
    if layout.inpaints:
        raise InputError(
            "the teacher is for inpainting: only models that generate from text can be distilled"
        )
    if layout.guidance_embed_dim is not None:
        raise InputError(
            "the teacher embeds the guidance scale (LCM): use the model from which it was distilled"
        )


def find_or_describe(name: str) -> tuple[ModelLayout, Model | None]:
    """Return a teacher's layout, and the teacher if it is on disk; nothing is downloaded.

    Raises:
        InputError: neither a model on disk nor a layout of that name.
    """
    try:
        teacher = find_teacher(name, offline=True)
    except InputError:
        if name not in NAMED:
            raise
        return model_layout(name), None
    return teacher.layout, teacher
