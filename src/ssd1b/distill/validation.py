"""Images that a student generates during its training, with the same captions and noise each time."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ssd1b.controls import Control
from ssd1b.model import Model
from ssd1b.models.text import TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.pipeline import Pipeline
from ssd1b.speed.controlling import Controlling
from ssd1b.training.loop import Validate


def make_sample_validator(
    teacher: Model, captions: Sequence[str], vae: VAE, text: TextEncoders, *,
    embeddings: Sequence[str] = (), controls: Sequence[Control] = (), controlling: Controlling | None = None,
) -> Validate:  # fmt: skip
    """Return a validation that generates the captions side by side, with the teacher's recommended settings.

    Args:
        teacher: whose schedule and settings are the student's too.
        captions: each is generated with its index as seed.
        vae: the teacher's, in float32.
        text: the teacher's encoders.
        embeddings: see ``GenerationSettings``.
        controls: one for each caption, or none.
        controlling: has the networks of the controls.
    """

    def validate(student: nn.Module, step: int) -> dict[str, Tensor]:
        assert isinstance(student, UNet)
        pipeline = Pipeline(
            identity=teacher.identity, info=teacher.info, unet=student, vae=vae, text=text,
            device=vae.device, dtype=student.dtype, controlling=controlling,
        )  # fmt: skip
        chosen = [
            pipeline.settings(
                caption, seed=seed, embeddings=list(embeddings), controls=list(controls[seed : seed + 1])
            )
            for seed, caption in enumerate(captions)
        ]
        images = [np.asarray(picture.image) for settings in chosen for picture in pipeline.draw([settings])]
        side_by_side = torch.from_numpy(np.concatenate(images, axis=1))
        return {"drawn": side_by_side.permute(2, 0, 1) / 255}

    return validate
