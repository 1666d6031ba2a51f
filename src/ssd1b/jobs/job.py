"""A job: one image to generate. Its key is a hash of everything that decides the image."""

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from ssd1b import batching
from ssd1b.diffusion.samplers import SAMPLERS
from ssd1b.execution import DEFAULT, Execution
from ssd1b.inputs import digest_of
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.runtime import dtype_name
from ssd1b.settings import BEFORE, GenerationSettings, Start

DRAWING = 2
"""Version of the image generation. Increment it when the same settings give a different image, so that older
images are not reused.

2: prompts are no longer padded to the longest prompt of their batch.
"""

SETTINGS_FIELDS = tuple(field.name for field in fields(GenerationSettings))

_LATER = {name: before for name, before in BEFORE.items() if name != "feature_reuse"}
"""Settings that are in a key only if they differ from what images had before, whose keys must not change.
``feature_reuse`` is in all keys."""

PIXELS_PER_BATCH = 8 * 128 * 128
"""Small images are batched, because one alone leaves the processor partly idle."""


_encode = json.JSONEncoder(sort_keys=True, default=digest_of).encode
"""As ``json.dumps``, which creates an encoder for each call."""


class Job(NamedTuple):
    """One image to generate.

    Attributes:
        key: see ``make_job``.
        model: the model's name.
        settings: the image's settings.
        batch: jobs with equal values may share a batch; see ``batching.batch_key``.
    """

    key: str
    model: str
    settings: GenerationSettings
    batch: tuple[Hashable, ...]

    @property
    def cost(self) -> int:
        """The estimated number of UNet passes, times the number of pixels; ``Outcome.passes`` is exact."""
        return round(sum(_cost(*each) for each in self.settings.passes))


def _cost(settings: GenerationSettings, start: Start) -> float:
    begin, end = settings.guidance_interval
    guided = 0.0 if settings.guidance_scale == 1 else end - begin
    return evaluations(settings, start) * (1 + guided) * settings.width * settings.height


def evaluations(settings: GenerationSettings, start: Start) -> int:
    """Count the calls of the denoiser in one run of the sampler; each is one UNet pass, or two with guidance.

    Args:
        settings: those of the run, see ``settings.Pass``.
        start: the part of the schedule that is run.
    """
    return SAMPLERS[settings.sampler].evaluations * (start.steps - 1) + 1


def environment(device: torch.device, dtype: torch.dtype, execution: Execution = DEFAULT) -> dict[str, Any]:
    """Describe what decides an image besides its settings and model.

    Args:
        device: only its type matters.
        dtype: number format of the networks.
        execution: how the networks run.
    """
    found = {
        "device": device.type, "dtype": dtype_name(dtype), "ssd1b": version("ssd1b"), "drawing": DRAWING,
    }  # fmt: skip
    return found if execution == DEFAULT else found | {"execution": asdict(execution)}


def make_job(
    model: str,
    settings: GenerationSettings,
    *,
    fingerprint: str,
    tokenizers: Sequence[CLIPTokenizer],
    environment: Mapping[str, Any],
) -> Job:
    """Make the job of an image. Its key is a hash of the settings, the fingerprint and the environment.

    Of files among the settings it depends on the content, not on the path.

    Args:
        model: the model's name, which is not part of the key.
        settings: the image's settings.
        fingerprint: digest of the model's files.
        tokenizers: the tokenizers of the model's text encoders.
        environment: result of the function of that name.
    """
    key = _key(settings, fingerprint, environment)
    return Job(key, model, settings, batching.batch_key(settings, tokenizers))


def seeded_job(
    job: Job, settings: GenerationSettings, *, fingerprint: str, environment: Mapping[str, Any]
) -> Job:
    """Make the job of settings that differ in seeds alone; faster than ``make_job``, which tokenizes."""
    return job._replace(settings=settings, key=_key(settings, fingerprint, environment))


def _key(settings: GenerationSettings, fingerprint: str, environment: Mapping[str, Any]) -> str:
    # As ``dataclasses.asdict``, which copies every value and takes longer than the hash.
    values = {name: getattr(settings, name) for name in SETTINGS_FIELDS}
    for name, before in _LATER.items():
        if values[name] == before:
            del values[name]
    decisive = {"settings": values, "model": fingerprint, **environment}
    return hashlib.sha256(_encode(decisive).encode()).hexdigest()


def batches(jobs: Iterable[Job]) -> list[list[Job]]:
    """Group the jobs of one model into batches, ordered by each batch's first job."""

    def limit(job: Job) -> int:
        width, height = job.settings.final_size
        return batching.batch_limit(job.settings, PIXELS_PER_BATCH // (width * height))

    return batching.batches(jobs, lambda job: job.batch, limit)
