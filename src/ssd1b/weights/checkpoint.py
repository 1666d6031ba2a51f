"""Description of a model on disk: networks, layouts, and the location of each tensor; nothing is loaded."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from ssd1b import sampler_names
from ssd1b.diffusion.schedule import NoiseSchedule
from ssd1b.errors import InputError, prefix_errors, shown
from ssd1b.layouts import (
    NAMED,
    ControlNetLayout,
    IPAdapterLayout,
    ModelLayout,
    T2IAdapterLayout,
    TextLayout,
    UNetLayout,
    VAELayout,
    VisionLayout,
    family_of,
)
from ssd1b.numerals import counted
from ssd1b.weights.files import first_few
from ssd1b.weights.fitting import check_fit, check_unet
from ssd1b.weights.keymap import PARTS
from ssd1b.weights.prediction import VELOCITY, check_agreement
from ssd1b.weights.stored import StoredTensor

Layout = (
    UNetLayout | VAELayout | TextLayout | ControlNetLayout | T2IAdapterLayout | VisionLayout | IPAdapterLayout
)

SDXL_SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
"""stable-diffusion-xl-base-1.0's configuration, the default for files without one."""

SETTINGS_FILE = "ssd1b.json"
"""Default settings and world in a model's folder: {"settings": {...}, "world": "..."}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One network of a model: its layout, and its tensors by their names in published diffusers folders."""

    layout: Layout
    tensors: dict[str, StoredTensor]

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def size_in_bytes(self) -> int:
        """Size of the tensors in the file."""
        return sum(prod(tensor.shape) * tensor.dtype.itemsize for tensor in self.tensors.values())

    @property
    def dtypes(self) -> dict[torch.dtype, int]:
        """Number of tensors by number format, the most frequent first."""
        return dict(Counter(tensor.dtype for tensor in self.tensors.values()).most_common())

    @property
    def dtype(self) -> torch.dtype:
        """The most frequent number format, or float16 for 8-bit floats, which have no arithmetic."""
        most = next(iter(self.dtypes))
        return most if most.itemsize > 1 else torch.float16

    @property
    def half_dtype(self) -> torch.dtype:
        """The 16-bit format of all tensors, so that they can stay in the mapped file, or else float16."""
        return self.dtype if len(self.dtypes) == 1 and self.dtype.itemsize == 2 else torch.float16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """Everything about a model other than its networks.

    Attributes:
        scheduler: diffusers' ``scheduler_config.json``.
        tokenizers: folders of the model's own tokenizers by text encoder; CLIP's is used for the others.
        force_zeros_for_empty_prompt: whether no prompt means zeros instead of the embedding of "".
        settings: default generation settings; not validated here.
        world: name of the world the model was trained on, for metrics that use its ground truth; None for a
            general model.
        few_steps: name of the kind of few-step model in ``few_steps``; None for others, and for those whose
            files do not say.
    """

    scheduler: dict[str, Any] = field(default_factory=SDXL_SCHEDULER.copy)
    tokenizers: dict[str, Path] = field(default_factory=dict)
    force_zeros_for_empty_prompt: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    world: str | None = None
    few_steps: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelInfo(ModelMetadata):
    """Everything about a complete model except its weights."""

    layout: ModelLayout

    @property
    def family(self) -> str:
        """Name in ``layouts.UNETS`` that decides advice and default guidance; "sdxl" if unknown."""
        return family_of(self.layout.unet) or "sdxl"

    @cached_property
    def noise_schedule(self) -> NoiseSchedule:
        """The noise schedule that the model was trained with."""
        return NoiseSchedule.from_config(self.scheduler)

    @property
    def defaults(self) -> dict[str, Any]:
        """Recommended settings: training size, the scheduler's sampler, and those in the model's files."""
        size = {"width": self.layout.size, "height": self.layout.size}
        return {"sampler": self.noise_schedule.sampler, **size, **self.settings}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(ModelMetadata):
    """A model on disk, or a part of one.

    Attributes:
        path: the folder or file.
        format: readable description of the format.
        parts: the networks, by their names in ``keymap.PARTS``; a bare UNet has only ``unet``.
        size: side in pixels of the square images the model was trained on.
        unused_tensors: names of tensors that no network needs.
        prediction: what the UNet predicts, in diffusers' terms, by the source that declares it.
    """

    path: Path
    format: str
    parts: dict[str, Part]
    size: int = 1024
    unused_tensors: tuple[str, ...] = ()
    prediction: dict[str, str] = field(default_factory=dict)

    def part(self, part: str) -> Part:
        """Return one network.

        Raises:
            InputError: the model does not have it.
        """
        if part not in self.parts:
            raise InputError(f"{self.path}: it has no {part}, only {first_few(self.parts)}")
        return self.parts[part]

    @property
    def unet(self) -> UNetLayout | None:
        """The UNet's layout, if there is a UNet."""
        layout = self.parts["unet"].layout if "unet" in self.parts else None
        assert layout is None or isinstance(layout, UNetLayout)
        return layout

    @property
    def name(self) -> str:
        """Name of the published UNet with exactly this layout; "custom" if there is none."""
        plain = self.unet and replace(self.unet, guidance_embed_dim=None)
        return next((name for name, known in NAMED.items() if known == plain), "custom")

    @property
    def family(self) -> str | None:
        """See ``layouts.family_of``; None without a UNet."""
        return self.unet and family_of(self.unet)

    @property
    def info(self) -> ModelInfo:
        """The model without its weights.

        Raises:
            InputError: networks are missing, or do not fit together.
        """
        if self.unet:
            check_unet(self.unet, str(self.path))
        missing = [part for part in PARTS if part not in self.parts]
        if missing:
            has, lacks = ", ".join(self.parts), ", ".join(missing)
            raise InputError(f"{self.path}: not a complete model: it has {has} but no {lacks}")
        unet, vae, text, text_2 = (self.parts[part].layout for part in PARTS)
        assert isinstance(unet, UNetLayout) and isinstance(vae, VAELayout)
        assert isinstance(text, TextLayout) and isinstance(text_2, TextLayout)
        check_fit(unet, vae, text, text_2, str(self.path))
        check_agreement(self.prediction, str(self.path))
        with prefix_errors(str(self.path)):
            NoiseSchedule.from_config(self.scheduler)
        layout = ModelLayout(
            name=self.name, unet=unet, vae=vae, text_encoder=text, text_encoder_2=text_2, size=self.size
        )
        metadata = {entry.name: getattr(self, entry.name) for entry in fields(ModelMetadata)}
        return ModelInfo(layout=layout, **metadata)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about anything unusual in the model."""
        found = []
        if self.unet and self.unet.guidance_embed_dim is not None:
            found.append("the UNet embeds the guidance scale (LCM distillation) and needs no second pass")
        if self.unet and self.unet.in_channels != self.unet.out_channels:
            purpose = "for inpainting" if self.unet.inpaints else "such as for editing"
            found.append(f"the UNet takes {self.unet.in_channels} channels, {purpose}")
        found += _scheduler_notes(self.scheduler)
        for name, part in self.parts.items():
            found += _format_notes(name, part)
        if self.unused_tensors:
            names = first_few(self.unused_tensors)
            found.append(f"{counted(len(self.unused_tensors), 'tensor')} not needed and ignored: {names}")
        return tuple(found)


def _scheduler_notes(scheduler: Mapping[str, Any]) -> Iterator[str]:
    if scheduler.get("prediction_type") == VELOCITY:
        yield "the UNet predicts the velocity (v-prediction)"
    elif scheduler.get("rescale_betas_zero_snr"):
        yield "trained to zero terminal SNR, but not declared as v-prediction: try --prediction v"
    name = scheduler.get("_class_name")
    if nearest := sampler_names.nearest_of_class(name):
        yield f"{shown(name)} is not available; {nearest} is used instead"


def _format_notes(name: str, part: Part) -> Iterator[str]:
    if len(part.dtypes) > 1:
        names = first_few(str(dtype).removeprefix("torch.") for dtype in part.dtypes)
        yield f"{name} mixes number formats: {names}"
    elif any(dtype.itemsize == 1 for dtype in part.dtypes):
        yield f"{name} is stored in 8-bit floats"
    if scaled := sum(tensor.scale is not None for tensor in part.tensors.values()):
        yield f"{name} has scales for {scaled} tensors (scaled fp8)"
