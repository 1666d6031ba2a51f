"""Few-step models and LoRAs: how to recognise one, and the settings and ranges that it was made for.

A file is recognised by what this package wrote into it, then by its name, then by the names that other
trainers wrote into it. Settings of the user's preset and options win over its own.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from ssd1b.errors import InputError
from ssd1b.files import METADATA, read_metadata

_STEPS = re.compile(r"(?<![0-9])([0-9]{1,2})[-_ ]?steps?(?![a-z])")

_GENERIC = re.compile(r"(pytorch_lora_weights|diffusion_pytorch_model|model|unet)([._]fp16)?")
"""Names of files that say nothing: their folder's name does."""

_TITLES = ("modelspec.title", "ss_output_name")
"""Metadata with the name under which a file was published or trained: Stability AI's and kohya's."""

OWN_SETTINGS = (
    "sampler", "schedule", "steps", "timesteps", "gamma", "guidance_scale", "guidance_rescale",
)  # fmt: skip
"""The settings that a file may bring: those of its sampling."""

_LONGEST = 8000
"""Characters of a setting: a thousand timesteps."""

_LONGEST_NAME, _LONGEST_OWN = 255, 2**16
"""Characters of a name, and of this package's metadata, that are read: anybody may have written a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FewSteps:
    """A kind of few-step file.

    Attributes:
        name: as published.
        pattern: is found in the names of its files, in lower case; None finds no name.
        settings: recommended generation settings; the number of steps in a file's name replaces theirs.
        steps: fewest and most steps that make sense.
        exact: a file is made for its own number of steps alone, which is in its name or its metadata.
        guidance: lowest and highest guidance scale that makes sense.
        samplers: that its noise suits; empty if all do.
        source: of the settings.
    """

    name: str
    pattern: re.Pattern[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
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
        own: settings in its metadata, which win over its kind's.
    """

    kind: FewSteps
    file: str
    made_for: int | None = None
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings it was made for."""
        found = dict(self.kind.settings)
        if self.made_for is not None and "timesteps" not in found:
            found["steps"] = self.made_for
        return {**found, **self.own}

    @property
    def steps(self) -> tuple[int, int]:
        """Fewest and most steps that make sense."""
        own = self.own.get("steps", self.made_for)
        return (own, own) if self.kind.exact and own in range(1, 1001) else self.kind.steps

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
    name="LCM with embedded guidance", settings={**_LCM, "guidance_scale": 8.0},
    steps=(2, 8), guidance=(3.0, 15.0), samplers=("lcm", "tcd"),
    source="2310.04378 and model card of latent-consistency/lcm-sdxl",
)  # fmt: skip
"""Recognised by its weights: the UNet embeds the guidance scale."""

KINDS: tuple[FewSteps, ...] = (
    FewSteps(
        name="mini-ssd-1b-turbo", pattern=re.compile("mini-ssd-1b-turbo"),
        settings={**_LCM, "schedule": "trailing"}, steps=(4, 8), samplers=("lcm",),
        source="docs/guide/few-steps.md",
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
        steps=(4, 4), samplers=("lcm",), source=_DMD,
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
"""Published kinds, in the order in which their patterns are tried."""

_STUDENT = "what the student was trained for"

STUDENTS: Mapping[str, FewSteps] = {
    # Only guidance is distilled: any number of steps.
    "guidance": FewSteps(name="guidance student", steps=(1, 1000), source=_STUDENT),
    "progressive": FewSteps(name="progressive student", exact=True, samplers=_TRAILING, source=_STUDENT),
    "lcm": FewSteps(name="LCM student", steps=(2, 8), samplers=("lcm", "tcd"), source=_STUDENT),
    "tcd": FewSteps(name="TCD student", steps=(2, 50), samplers=("tcd", "lcm"), source=_STUDENT),
    "phases": FewSteps(name="PCM student", exact=True, samplers=_TRAILING, source=_STUDENT),
    "dmd": FewSteps(name="DMD student", exact=True, samplers=("lcm",), source=_STUDENT),
}
"""Students of this package by method, "phases" for ``tcd`` with phases. Their files have the settings."""

_NAMED = {each.name: each for each in (*KINDS, *STUDENTS.values(), GUIDANCE_EMBEDDED)}


def recognise(name: str, metadata: Mapping[str, str] | None = None) -> Recognised | None:
    """Recognise a few-step file, or a hub repository by its id.

    Args:
        name: a path, a file's name or an id. Of a path, only the last part counts; the folder's name if the
            file's says nothing.
        metadata: of the file.
    """
    metadata = metadata or {}
    own, text = None, metadata.get(METADATA, "")
    with suppress(ValueError, RecursionError):
        own = json.loads(text) if len(text) <= _LONGEST_OWN else None
    about = own if isinstance(own, dict) else {}
    return _recorded(name, about.get("few_steps"), about.get("settings")) or _named(name, metadata)


def recognise_file(path: str) -> Recognised | None:
    """Recognise the few-step file at a path; by its name alone if it cannot be read."""
    return recognise(path, metadata_of(path))


def metadata_of(path: str) -> Mapping[str, str]:
    """The metadata of a safetensors file; none if it cannot be read, which is reported where it is opened."""
    with suppress(OSError, InputError):
        status = os.stat(path)
        return _metadata(path, status.st_size, status.st_mtime_ns)
    return {}


def recognise_model(
    name: str, *, embeds_guidance: bool, few_steps: str | None = None,
    settings: Mapping[str, Any] | None = None, metadata: Mapping[str, str] | None = None,
) -> Recognised | None:  # fmt: skip
    """Recognise a few-step model by its weights, its files, or its name.

    Args:
        name: see ``recognise``.
        embeds_guidance: whether its UNet takes the guidance scale as an input.
        few_steps: the name of its kind in its files.
        settings: the ones in its files.
        metadata: of its UNet's file.
    """
    if embeds_guidance:
        return Recognised(kind=GUIDANCE_EMBEDDED, file=PurePath(name).name)
    return _recorded(name, few_steps, settings) or _named(name, metadata or {})


@lru_cache(maxsize=256)
def _metadata(path: str, size: int, changed: int) -> Mapping[str, str]:
    found = read_metadata(path)
    return {key: found[key] for key in (METADATA, *_TITLES) if key in found}  # others may be megabytes


def _recorded(name: str, kind: object, settings: object) -> Recognised | None:
    """Recognise what this package wrote; a kind of a later version is none."""
    found = _NAMED.get(kind) if isinstance(kind, str) else None
    if found is None:
        return None
    given = settings if isinstance(settings, dict) else {}
    own = {each: given[each] for each in OWN_SETTINGS if _is_plain(given.get(each))}
    return Recognised(kind=found, file=_stem(name), own=own)


def _is_plain(value: object) -> bool:
    """Whether a value may be a setting's: anybody may have written the file. Ranges are checked later."""
    if isinstance(value, str):
        return len(value) <= _LONGEST and value.isascii() and value.isprintable()
    return isinstance(value, int | float) and abs(value) <= 1e6


def _named(name: str, metadata: Mapping[str, str]) -> Recognised | None:
    stem = _stem(name)
    for text in (stem, *(metadata.get(key, "") for key in _TITLES)):
        lower = text[:_LONGEST_NAME].lower()
        kind = next((each for each in KINDS if each.pattern and each.pattern.search(lower)), None)
        if kind is not None:
            number = _STEPS.search(lower)
            return Recognised(kind=kind, file=stem, made_for=int(number[1]) if number else None)
    return None


def _stem(name: str) -> str:
    path = PurePath(name.partition("@")[0])
    stem = path.name.removesuffix(".safetensors")
    return path.parent.name if _GENERIC.fullmatch(stem.lower()) else stem
