"""AUTOMATIC1111's text in its own meaning: its versions, its schedules, and what of it cannot be drawn here.

Sources are ``modules/sd_samplers.py`` (``get_sampler_and_scheduler``), ``sd_samplers_kdiffusion.py``,
``sd_samplers_timesteps.py``, ``sd_samplers_lcm.py`` and ``infotext_utils.py`` of version 1.10.
"""

import re
from collections.abc import Mapping

from ssd1b.errors import InputError, printable, shown
from ssd1b.numerals import whole_number
from ssd1b.sampler_names import AUTOMATIC, SAMPLERS, resolve
from ssd1b.settings import RANDOM_SEED, SEEDS

PROGRAM = "AUTOMATIC1111"

HARMLESS = frozenset({
    "App", "Backend", "Batch count", "Batch pos", "Batch size", "CFG scale", "Created Date", "Hashes",
    "Model", "Negative Template", "Operations", "Pipeline", "Sampler", "Schedule type", "Seed", "Size",
    "Steps", "Template", "Time taken", "User", "Version",
})  # fmt: skip
"""Fields that are read, or that say nothing of how the picture looks. Every other one is not reproduced."""

_NEUTRAL = {"Clip skip": "1", "RNG": "CPU"}
"""Values of other fields that say what is done here anyway."""

_MOST = 24
"""Fields that are named; a text may hold thousands."""

_SCHEDULES_SINCE = (1, 9)
"""The version from which the schedule is a field of its own; until then it was part of the sampler's name."""

_CURVES = ("karras", "exponential")
"""Schedules that, before, only a sampler's name could ask for."""

_VERSION = re.compile(r"(?:.*v)?([0-9]{1,4})\.([0-9]{1,4})(?:[.\-+_].*)?", re.DOTALL)


def version_of(values: Mapping[str, str]) -> tuple[int, int] | None:
    """The version of AUTOMATIC1111, or that Forge is built on: "v1.9.4", "f2.0.1v1.10.1"; None for others."""
    match = _VERSION.fullmatch(values.get("Version", ""))
    return (int(match[1]), int(match[2])) if match else None


def schedule_of(values: Mapping[str, str]) -> str | None:
    """The schedule that a text asks for, in AUTOMATIC1111's meaning.

    "Automatic", or nothing since version 1.9, is the sampler's own there. A sampler's name that carries a
    schedule ("DPM++ 2M Karras") wins over the field, and DDIM and UniPC heed neither.

    Returns:
        A name for ``sampler_names.resolve_schedule``, or None where the text leaves it to the reader.
    """
    stated = values.get("Schedule type")
    try:
        sampler, carried = resolve(values.get("Sampler", ""))
    except InputError:  # whoever uses the sampler says what is wrong with it
        return stated
    names, version = SAMPLERS[sampler], version_of(values)
    if version is not None and names.fixed_schedule:
        return names.schedule
    if stated is None:
        return None if carried or version is None else _unstated(names.schedule, version)
    if carried is not None:
        return carried
    return names.schedule if stated.strip().lower() == AUTOMATIC else stated


def _unstated(default: str, version: tuple[int, int]) -> str:
    return "normal" if version < _SCHEDULES_SINCE and default in _CURVES else default


def unreproduced(values: Mapping[str, str], program: str = PROGRAM) -> list[str]:
    """Say what of a picture is not drawn again, a phrase for each cause.

    Args:
        values: of the text.
        program: that wrote it.
    """
    fields = [name for name in values if name not in HARMLESS and values[name].strip() != _NEUTRAL.get(name)]
    named = [printable(name[:40]) for name in fields[:_MOST] if name != "RNG"]
    more = [f"{len(fields) - _MOST} more fields"] if len(fields) > _MOST else []
    absent = [
        f"the {name.lower()}, which the text does not give (the model's own is used)"
        for name in ("Steps", "Size")
        if name not in values
    ]
    return [*named, *more, *_noise(values, program), *absent, *_seed(values.get("Seed"))]


def _noise(values: Mapping[str, str], program: str) -> list[str]:
    """AUTOMATIC1111 draws noise on the GPU unless its text says "RNG: CPU"."""
    source = values.get("RNG", "").strip()
    if source == "CPU":
        return []
    if source:
        return [f"noise from {shown(source)} (here it is the CPU's, which differs)"]
    is_other = program != PROGRAM or ("Version" in values and version_of(values) is None)
    return [] if is_other else ["noise from a GPU, as no RNG is named (here it is the CPU's, which differs)"]


def _seed(text: str | None) -> list[str]:
    if text is None:
        return ["the seed, which is not in the text (a random one is taken)"]
    try:
        seed = whole_number(text.strip())
    except InputError:  # refused where it is used
        return []
    if seed == RANDOM_SEED:
        return ["the seed, which is -1 (a random one is taken)"]
    if seed >= SEEDS:
        return [
            f"the seed {shown(seed)}, unless its noise is the CPU's (there, {seed % SEEDS} gives the same)"
        ]
    return []
