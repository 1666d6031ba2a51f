"""Presets: named settings with their source, built in or written by users."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import click

from ssd1b.errors import InputError, NotFoundError, prefix_errors, shown, unknown
from ssd1b.few_steps import KINDS
from ssd1b.files import expand_path
from ssd1b.inputs import with_tables
from ssd1b.settings import ARTICLE, CARD, Preset, check_overrides
from ssd1b.table_files import READERS, read_table
from ssd1b.validation import validate

NEGATIVE_PROMPTS: Mapping[str, str] = MappingProxyType({
    "basic": (
        "worst quality, normal quality, low quality, low res, blurry, text, watermark, logo, banner, "
        "extra digits, cropped, jpeg artifacts, signature, username, error, sketch, duplicate, ugly, "
        "monochrome, horror, geometry, mutation, disgusting"
    ),
    "adult-content": "NSFW, nude, censored",
    "realistic-people": (
        "extra fingers, mutated hands, poorly drawn hands, poorly drawn face, mutation, deformed, blurry, "
        "dehydrated, bad anatomy, bad proportions, extra limbs, cloned face, disfigured, gross proportions, "
        "malformed limbs, missing arms, missing legs, extra arms, extra legs, fused fingers, "
        "too many fingers, long neck"
    ),
})  # fmt: skip
"""The article's three lists, verbatim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedPreset:
    """Named trade-off of speed against fidelity.

    Attributes:
        settings: generation settings.
        variants: few-step variants by the names of their models, one of which is used; if there are any, no
            other model has this speed.
        quantized: one of ``execution.QUANTIZATIONS``, unless the user chose another.
        price: measured cost on mini-ssd-1b (docs/guide/speed.md).
    """

    settings: Mapping[str, float]
    price: str
    quantized: str | None = None
    variants: Mapping[str, str] = field(default_factory=dict)


def _cost(time: float, likeness: int, points: float, low: float, high: float) -> str:
    return (
        f"{time:g} of the time, {likeness} dB from the exact image, {points:+g} points of right and clean "
        f"images ({low:+g} to {high:+g})"
    )


SPEEDS: Mapping[str, SpeedPreset] = MappingProxyType({
    "exact": SpeedPreset(settings={"feature_reuse": 0.0}, price="every step computed in full"),
    "balanced": SpeedPreset(
        settings={"feature_reuse": 0.1},
        price=f"on mini-ssd-1b {_cost(0.86, 52, 1.6, -0.4, 3.6)}",
    ),
    "fast": SpeedPreset(
        settings={"feature_reuse": 0.2},
        quantized="auto",
        price=f"on mini-ssd-1b {_cost(0.59, 42, -1.2, -4.2, 1.4)}; in int8, which wider models use "
        f"where it is faster, {_cost(0.52, 41, -0.4, -3.6, 2.8)}",
    ),
    "turbo": SpeedPreset(
        settings={},
        variants={"mini-ssd-1b": "mini-ssd-1b-turbo"},
        price="4 steps of one pass in a distilled variant; on mini-ssd-1b 4 passes instead of 40, -4 points "
        "of right images (-12 to +4), -1 of right and clean ones (-9 to +8)",
    ),
})  # fmt: skip
"""Values of ``--speed``."""

PRESETS: Mapping[str, Preset] = MappingProxyType({
    preset.name: preset
    for preset in (
        Preset(
            name="article-detail",
            source=f"{ARTICLE}: a guidance scale of 12 to 17 (here its middle) for images rich in tiny "
            "details; high quality from 15 to 25 steps; UniPC, Euler and DDPM are highly recommended",
            settings={"guidance_scale": 14.5, "steps": 25, "sampler": "unipc"},
        ),
        Preset(
            name="article-fast",
            source=f"{ARTICLE}: high quality is observed from 15 steps on; UniPC is highly recommended",
            settings={"steps": 15, "sampler": "unipc"},
        ),
        Preset(
            name="model-card",
            source=f"{CARD}: use negative prompting, and a CFG around 9.0; with its example's words",
            settings={"guidance_scale": 9.0, "negative_prompt": "ugly, blurry, poor quality"},
        ),
        Preset(
            name="mini-ssd-1b-tuned",
            source="ssd1b tune, flawless on mini-ssd-1b: 0.604 (0.51 to 0.698) on 96 fresh pairs, +0.302 "
            "(+0.188 to +0.417) against guidance 9, 25 steps, UniPC; 7 of 9 rivals are not distinguishable",
            settings={"guidance_scale": 4.5, "guidance_rescale": 0.35, "steps": 30, "sampler": "unipc"},
        ),
        *(
            Preset(
                name=name,
                source=f"{ARTICLE}: commonly used negative prompts",
                settings={"negative_prompt": negative_prompt},
            )
            for name, negative_prompt in NEGATIVE_PROMPTS.items()
        ),
        *(
            # For files whose names do not tell what they are; of others the settings are found.
            Preset(
                name=re.sub(r"[^a-z0-9]+", "-", kind.name.lower()), source=kind.source,
                settings=dict(kind.settings),
            )
            for kind in KINDS
        ),
    )
})  # fmt: skip


def users_folder() -> Path:
    """Return the folder of the user's presets, which has one file for each, named after the preset."""
    return Path(click.get_app_dir("ssd1b")) / "presets"


def users_files() -> dict[str, Path]:
    """List the files of the user's presets by name."""
    try:
        found = sorted(users_folder().iterdir())
    except OSError:  # no such folder, or not readable
        return {}
    return {path.stem: path for path in found if path.suffix.lower() in READERS}


def load_preset(name: str) -> Preset:
    """Find a preset by name, built in or the user's, or read it from a ``.toml`` or ``.json`` file.

    A file has a table ``settings``, and optionally ``name`` and ``source``:

        name = "crisp"
        source = "sweep of 24 May, 200 pairs"
        [settings]
        guidance_scale = 11
        sampler = "DPM++ 2M Karras"

    Raises:
        InputError: there is no such preset or file, or its content is invalid.
    """
    if name in PRESETS:
        return PRESETS[name]
    users = users_files()
    path = users.get(name) or Path(expand_path(name))
    if path.suffix.lower() not in READERS:
        raise unknown("preset", name, [*PRESETS, *users, "a .toml file", "a .json file"], NotFoundError)
    table = read_table(path)
    with prefix_errors(f"preset {name}"):
        return _from_table(table, path.stem)


def as_toml(preset: Preset) -> str:
    """Format a preset as TOML, as ``load_preset`` reads it.

    Settings that are None are omitted, since TOML has no null: a preset cannot remove a negative prompt.
    """
    import tomli_w

    about = {"name": preset.name, "source": preset.source} if preset.name else {}
    settings = {name: value for name, value in with_tables(preset.settings).items() if value is not None}
    return tomli_w.dumps({**about, "settings": settings})


def _from_table(table: object, default_name: str) -> Preset:
    if not isinstance(table, dict) or not isinstance(table.get("settings"), dict):
        raise InputError(f"it must have a table 'settings', got {shown(table)}")
    found = validate(Preset, {"name": default_name, "source": "", **table})
    check_overrides(found["settings"])  # here, so that the error names the file
    return Preset(**found)
