"""Published few-step models and LoRAs: how to recognise one, and the settings that it was made for.

Names are those of the published files. Settings of the user's preset and options win over these.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

_STEPS = re.compile(r"(?<![0-9])([0-9]{1,2})[-_ ]?steps?(?![a-z])")

_GENERIC = re.compile(r"(pytorch_lora_weights|diffusion_pytorch_model|model|unet)([._]fp16)?")
"""Names of files that say nothing: their folder's name does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FewSteps:
    """A kind of few-step file.

    Attributes:
        name: as published.
        pattern: is found in the names of its files, in lower case.
        settings: recommended generation settings; the number of steps in a file's name replaces theirs.
        steps: fewest and most steps that make sense.
        exact: a file is made for the number of steps in its name alone.
        guidance: lowest and highest guidance scale that makes sense.
        samplers: that its noise suits.
        source: of the settings.
    """

    name: str
    pattern: re.Pattern[str]
    settings: Mapping[str, Any]
    steps: tuple[int, int] = (1, 8)
    exact: bool = False
    guidance: tuple[float, float] = (1.0, 1.0)
    samplers: tuple[str, ...] = ()
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """A few-step file.

    Attributes:
        kind: what it is.
        file: its name.
        made_for: the number of steps in its name, if any.
    """

    kind: FewSteps
    file: str
    made_for: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings it was made for."""
        found = dict(self.kind.settings)
        if self.made_for is not None and "timesteps" not in found:
            found["steps"] = self.made_for
        return found

    @property
    def note(self) -> str:
        """One line about what was recognised, for the user."""
        chosen = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{self.file} is a few-step model ({self.kind.name}): {chosen} ({self.kind.source})"


def _words(*words: str) -> re.Pattern[str]:
    return re.compile("|".join(rf"(?<![a-z0-9]){word}(?![a-z])" for word in words))


_TRAILING = ("euler", "ddim", "tcd")

_LCM = {"sampler": "lcm", "schedule": "lcm", "steps": 4, "guidance_scale": 1.0}
_DDIM = {"sampler": "ddim", "schedule": "trailing", "steps": 4, "guidance_scale": 1.0}
_EULER = {"sampler": "euler", "schedule": "trailing", "steps": 4, "guidance_scale": 1.0}

_HYPER = "model card of ByteDance/Hyper-SD"
_DMD = "README of DMD2, tianweiy/DMD2"
_PCM = "settings of third-party programs for wangfuyun/PCM_Weights"

GUIDANCE_EMBEDDED = FewSteps(
    name="LCM with embedded guidance", pattern=re.compile(r"(?!)"),
    settings={**_LCM, "guidance_scale": 8.0}, steps=(2, 8), guidance=(3.0, 15.0), samplers=("lcm", "tcd"),
    source="2310.04378 and model card of latent-consistency/lcm-sdxl",
)  # fmt: skip
"""Recognised by its weights: the UNet embeds the guidance scale."""

KINDS: tuple[FewSteps, ...] = (
    FewSteps(
        name="mini-ssd-1b-turbo", pattern=re.compile("mini-ssd-1b-turbo"), settings=_DDIM, steps=(2, 8),
        samplers=_TRAILING, source="docs/guide/few-steps.md",
    ),
    FewSteps(
        name="Hyper-SD with guidance", pattern=re.compile(r"hyper[-_ ]?sd(xl)?.*(?<![a-z])cfg"),
        settings={**_DDIM, "steps": 8, "guidance_scale": 5.0}, steps=(8, 12), exact=True, guidance=(5.0, 8.0),
        samplers=_TRAILING, source=_HYPER,
    ),
    FewSteps(
        name="Hyper-SD, one step, UNet",
        pattern=re.compile(r"hyper[-_ ]?sd(xl)?.*(?<![0-9])1[-_ ]?step.*unet"),
        settings={"sampler": "lcm", "timesteps": "800", "steps": 1, "guidance_scale": 1.0}, steps=(1, 1),
        samplers=("lcm",), source=_HYPER,
    ),
    FewSteps(
        name="Hyper-SD, one step", pattern=re.compile(r"hyper[-_ ]?sd(xl)?.*(?<![0-9])1[-_ ]?step"),
        settings={"sampler": "tcd", "schedule": "lcm", "steps": 1, "gamma": 1.0, "guidance_scale": 1.0},
        samplers=("tcd",), source=_HYPER,
    ),
    FewSteps(
        name="Hyper-SD", pattern=re.compile(r"hyper[-_ ]?sd(xl)?(?![a-z])"), settings=_DDIM, exact=True,
        samplers=_TRAILING, source=_HYPER,
    ),
    FewSteps(
        name="SDXL-Lightning",
        pattern=re.compile(r"(sd)?xl[-_ ]?lightning|lightning[-_ ]?[0-9]+[-_ ]?step"),
        settings=_EULER, exact=True, guidance=(1.0, 1.5), samplers=_TRAILING,
        source="model card of ByteDance/SDXL-Lightning",
    ),
    FewSteps(
        name="DMD2, one step", pattern=re.compile(r"(?<![a-z])dmd2?(?![a-z]).*(?<![0-9])1[-_ ]?step"),
        settings={"sampler": "lcm", "timesteps": "399", "steps": 1, "guidance_scale": 1.0}, steps=(1, 1),
        samplers=("lcm",), source=_DMD,
    ),
    FewSteps(
        name="DMD2", pattern=_words("dmd2?"),
        settings={"sampler": "lcm", "timesteps": "999,749,499,249", "steps": 4, "guidance_scale": 1.0},
        steps=(4, 8), samplers=("lcm",), source=_DMD,
    ),
    FewSteps(
        name="PCM, normal guidance", pattern=re.compile(r"(?<![a-z])pcm(?![a-z]).*normal[-_ ]?cfg"),
        settings={**_DDIM, "guidance_scale": 4.0}, steps=(4, 16), exact=True, guidance=(3.0, 7.0),
        samplers=_TRAILING, source=_PCM,
    ),
    FewSteps(
        name="PCM, like LCM", pattern=re.compile(r"(?<![a-z])pcm(?![a-z]).*lcm[-_ ]?like"), settings=_LCM,
        guidance=(1.0, 2.0), samplers=("lcm", "tcd"), source=_PCM,
    ),
    FewSteps(
        name="PCM", pattern=_words("pcm"), settings=_DDIM, steps=(2, 16), exact=True, guidance=(1.0, 2.0),
        samplers=_TRAILING, source=_PCM,
    ),
    FewSteps(
        name="TCD", pattern=_words("tcd"),
        settings={"sampler": "tcd", "schedule": "lcm", "steps": 4, "gamma": 0.3, "guidance_scale": 1.0},
        steps=(2, 50), samplers=("tcd",), source="README of jabir-zheng/TCD",
    ),
    FewSteps(
        name="LCM", pattern=_words("lcm", "vega-?rt"), settings=_LCM, steps=(2, 8), guidance=(1.0, 2.0),
        samplers=("lcm", "tcd"), source="model card of latent-consistency/lcm-lora-sdxl",
    ),
    FewSteps(
        name="SDXL-Turbo", pattern=re.compile(r"(sd_?)?xl[-_ ]?turbo|turbo[-_ ]?(sd)?xl"),
        settings={**_EULER, "sampler": "euler_ancestral", "steps": 1}, steps=(1, 4),
        samplers=("euler_ancestral", "euler", "lcm"), source="model card of stabilityai/sdxl-turbo",
    ),
)  # fmt: skip
"""In the order in which they are tried."""


def recognise(name: str) -> Recognised | None:
    """Recognise a published few-step file by its name, or a hub repository by its id.

    Args:
        name: a path, a file's name or an id. Of a path, only the last part counts; the folder's name if the
            file's says nothing.
    """
    path = PurePath(name.partition("@")[0])
    stem = path.name.removesuffix(".safetensors")
    if _GENERIC.fullmatch(stem.lower()):
        stem = path.parent.name
    lower = stem.lower()
    kind = next((each for each in KINDS if each.pattern.search(lower)), None)
    if kind is None:
        return None
    number = _STEPS.search(lower)
    return Recognised(kind=kind, file=stem, made_for=int(number[1]) if number else None)


def recognise_model(name: str, *, embeds_guidance: bool) -> Recognised | None:
    """Recognise a few-step model by its weights, or by its name.

    Args:
        name: see ``recognise``.
        embeds_guidance: whether its UNet takes the guidance scale as an input.
    """
    if embeds_guidance:
        return Recognised(kind=GUIDANCE_EMBEDDED, file=PurePath(name).name)
    return recognise(name)
