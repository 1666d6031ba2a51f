"""Interpretation of AUTOMATIC1111's text: versions, schedules, and what cannot be reproduced here.

Sources are ``modules/sd_samplers.py`` (``get_sampler_and_scheduler``), ``sd_samplers_kdiffusion.py``,
``sd_samplers_timesteps.py``, ``sd_samplers_lcm.py`` and ``infotext_utils.py`` of version 1.10.
"""

import re
from collections.abc import Mapping
from typing import Any

from ssd1b.errors import InputError, printable, shown
from ssd1b.numerals import whole_number
from ssd1b.sampler_names import AUTOMATIC, SAMPLERS, resolve
from ssd1b.settings import HIRES_SETTINGS, RANDOM_SEED, SEEDS, SETTINGS, SIDE_MULTIPLE
from ssd1b.upscalers import A1111_UPSCALER, DEFAULT_UPSCALER, resolve_upscaler

PROGRAM = "AUTOMATIC1111"

HARMLESS = frozenset({
    "App", "Backend", "Batch count", "Batch pos", "Batch size", "CFG scale", "Created Date", "Hashes",
    "Model", "Negative Template", "Operations", "Pipeline", "Sampler", "Schedule type", "Seed",
    "Seed resize from", "Size",
    "Steps", "Template", "Time taken", "User", "Variation seed",
    "Variation seed strength", "Version",
})  # fmt: skip
"""Fields that are read, or that do not affect the image. All others are not reproduced."""

_HIRES = {"Hires upscale", "Hires resize"}
"""Fields of which images with a second pass have one."""

_OF_HIRES = {each.a1111 for name, each in SETTINGS.items() if name in HIRES_SETTINGS}
"""Fields that are read if there is a second pass."""

SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")

_NEUTRAL = {"Clip skip": "1", "RNG": "CPU"}
"""Values of other fields that have no effect here."""

_MOST = 24
"""Maximum number of fields listed; a text may have thousands."""

_SCHEDULES_SINCE = (1, 9)
"""First version with a field for the schedule, which was part of the sampler's name before."""

_CURVES = ("karras", "exponential")
"""Schedules that earlier versions used only if the sampler's name had them."""

_VERSION = re.compile(r"(?:.*v)?([0-9]{1,4})\.([0-9]{1,4})(?:[.\-+_].*)?", re.DOTALL)


def version_of(values: Mapping[str, str]) -> tuple[int, int] | None:
    """Parse AUTOMATIC1111's version, or the one Forge is based on ("v1.9.4", "f2.0.1v1.10.1"), or None."""
    match = _VERSION.fullmatch(values.get("Version", ""))
    return (int(match[1]), int(match[2])) if match else None


def schedule_of(values: Mapping[str, str]) -> str | None:
    """Find the schedule that AUTOMATIC1111 used for a text.

    "Automatic", and since version 1.9 a missing schedule, mean the sampler's own. A schedule in the sampler's
    name ("DPM++ 2M Karras") takes precedence over the field, and DDIM and UniPC ignore both.

    Returns:
        A name for ``sampler_names.resolve_schedule``, or None if the text does not determine it.
    """
    field = values.get("Schedule type")
    try:
        sampler, named = resolve(values.get("Sampler", ""))
    except InputError:  # reported where the sampler is used
        return field
    names, version = SAMPLERS[sampler], version_of(values)
    if version is not None and names.fixed_schedule:
        return names.schedule
    if field is None:
        if named or version is None:
            return None
        return "normal" if version < _SCHEDULES_SINCE and names.schedule in _CURVES else names.schedule
    if named is not None:
        return named
    return names.schedule if field.strip().lower() == AUTOMATIC else field


def hires_of(values: Mapping[str, str]) -> dict[str, Any]:
    """Read the size and the upscaler of the second pass; empty if the image has none.

    "Hires resize" has a 0 for a side that follows from the other. A network such as ESRGAN is replaced by
    the default upscaler, and ``unreproduced`` says so.

    Raises:
        InputError: the size is not one.
    """
    if not _HIRES & values.keys():
        return {}
    found: dict[str, Any] = {"hires_upscaler": _upscaler_of(values) or DEFAULT_UPSCALER}
    if "Hires resize" not in values:
        return found
    size = SIZE.fullmatch(values["Hires resize"])
    if size is None or not (int(size[1]) or int(size[2])):
        raise InputError(
            f"Hires resize is {shown(values['Hires resize'])}: it must be like 1024x768 or 1024x0"
        )
    width, height = int(size[1]), int(size[2])
    if (first := SIZE.fullmatch(values.get("Size", ""))) and int(first[1]) and int(first[2]):
        width, height = (
            width or height * int(first[1]) // int(first[2]),
            height or width * int(first[2]) // int(first[1]),
        )
    sides = {"hires_width": width, "hires_height": height}
    return found | {name: side // SIDE_MULTIPLE * SIDE_MULTIPLE for name, side in sides.items() if side}


def seed_resize_of(values: Mapping[str, str]) -> dict[str, int]:
    """Read the size whose noise is in the middle of the image's, rounded down to cells; empty without one.

    Raises:
        InputError: the size is not one.
    """
    if (text := values.get("Seed resize from")) is None:
        return {}
    if (size := SIZE.fullmatch(text.strip())) is None:
        raise InputError(f"Seed resize from is {shown(text)}: it must be like 1024x768")
    return seed_resize(int(size[1]), int(size[2]))


def seed_resize(width: int, height: int) -> dict[str, int]:
    """Make the settings of "resize seed from", whose sides are rounded down to cells; 0 and less is none."""
    sides = {"seed_resize_width": width, "seed_resize_height": height}
    return {name: side // SIDE_MULTIPLE * SIDE_MULTIPLE for name, side in sides.items() if side > 0}


def _upscaler_of(values: Mapping[str, str]) -> str | None:
    """Find the upscaler of a text; None if it is not available."""
    try:
        return resolve_upscaler(values.get("Hires upscaler", A1111_UPSCALER))
    except InputError:
        return None


def unreproduced(values: Mapping[str, str], program: str = PROGRAM) -> list[str]:
    """List what of an image cannot be reproduced, a phrase for each cause.

    Args:
        values: fields of the text.
        program: the program that wrote it.
    """
    read = HARMLESS | (_OF_HIRES if _HIRES & values.keys() else set())
    fields = [name for name in values if name not in read and values[name].strip() != _NEUTRAL.get(name)]
    named = [printable(name[:40]) for name in fields[:_MOST] if name != "RNG"]
    more = [f"{len(fields) - _MOST} more fields"] if len(fields) > _MOST else []
    absent = [
        f"the {name.lower()}, which the text does not contain (the model's default is used)"
        for name in ("Steps", "Size")
        if name not in values
    ]
    upscaler = (
        [f"the upscaler {shown(values['Hires upscaler'])} (here it is {DEFAULT_UPSCALER})"]
        if _HIRES & values.keys() and _upscaler_of(values) is None
        else []
    )
    return [*named, *more, *_noise(values, program), *absent, *upscaler, *_seed(values.get("Seed"))]


def _noise(values: Mapping[str, str], program: str) -> list[str]:
    """Describe the source of the noise: AUTOMATIC1111 uses the GPU unless its text has "RNG: CPU"."""
    source = values.get("RNG", "").strip()
    if source == "CPU":
        return []
    if source:
        return [f"noise from {shown(source)} (here it is the CPU's, which differs)"]
    is_other = program != PROGRAM or ("Version" in values and version_of(values) is None)
    return [] if is_other else ["noise from a GPU, as no RNG is named (here it is the CPU's, which differs)"]


def _seed(text: str | None) -> list[str]:
    if text is None:
        return ["the seed, which is not in the text (a random one is used)"]
    try:
        seed = whole_number(text.strip())
    except InputError:  # refused where it is used
        return []
    if seed == RANDOM_SEED:
        return ["the seed, which is -1 (a random one is used)"]
    if seed >= SEEDS:
        return [
            f"the seed {shown(seed)}, unless its noise is the CPU's (there, {seed % SEEDS} gives the same)"
        ]
    return []
