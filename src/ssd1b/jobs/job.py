"""A job: one picture to draw. Its key is the hash of everything that decides the picture."""

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from ssd1b import batching
from ssd1b.diffusion.samplers import SAMPLERS
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.runtime import dtype_name
from ssd1b.settings import GenerationSettings

DRAWING = 2
"""Raised whenever the same settings start to draw a different picture, so that older pictures are not reused.

2: a picture is no longer padded to the longest prompt of its batch.
"""

PIXELS_PER_BATCH = 8 * 128 * 128
"""Small pictures leave a processor idle when they are drawn one by one."""


class Job(NamedTuple):
    """One picture to draw.

    Attributes:
        key: see ``make_job``.
        model: the model's name.
        settings: of the picture.
        batch: jobs whose values are equal may be drawn in one batch; see ``batching.batch_key``.
    """

    key: str
    model: str
    settings: GenerationSettings
    batch: tuple[Hashable, ...]

    @property
    def cost(self) -> int:
        """The estimated number of UNet passes, times the number of pixels; ``Outcome.passes`` is exact."""
        settings = self.settings
        start, end = settings.guidance_interval
        guided = 0.0 if settings.guidance_scale == 1 else end - start
        return round(self.evaluations * (1 + guided) * settings.width * settings.height)

    @property
    def evaluations(self) -> int:
        """How often the sampler calls the denoiser; each call is one UNet pass, or two with guidance."""
        return SAMPLERS[self.settings.sampler].evaluations * (self.settings.steps - 1) + 1


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What decides a picture beside its settings and its model.

    Args:
        device: only its kind counts.
        dtype: number format of the networks.
    """
    number = dtype_name(dtype)
    return {"device": device.type, "dtype": number, "ssd1b": version("ssd1b"), "drawing": DRAWING}


def make_job(
    model: str,
    settings: GenerationSettings,
    *,
    fingerprint: str,
    tokenizers: Sequence[CLIPTokenizer],
    environment: Mapping[str, Any],
) -> Job:
    """Describe a picture to draw. Its key is the hash of the settings, the fingerprint and the environment.

    Args:
        model: the model's name, which is not part of the key.
        settings: of the picture.
        fingerprint: digest of the model's files.
        tokenizers: of the model's text encoders.
        environment: see the function of that name.
    """
    decisive = {"settings": asdict(settings), "model": fingerprint, **environment}
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return Job(key, model, settings, batching.batch_key(settings, tokenizers))


def batches(jobs: Iterable[Job]) -> list[list[Job]]:
    """Divide the jobs of one model into batches, ordered by each batch's first job."""

    def limit(job: Job) -> int:
        settings = job.settings
        return batching.batch_limit(settings, PIXELS_PER_BATCH // (settings.width * settings.height))

    return batching.batches(jobs, lambda job: job.batch, limit)
