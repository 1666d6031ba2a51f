"""What there is to set: the table of settings with ranges, advice, presets, and what was measured."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ssd1b.advice import FULL_SIZE, SIZES, advised
from ssd1b.embeddings import words_of
from ssd1b.inputs import InputFile
from ssd1b.model import Model
from ssd1b.models.text import chunk_count
from ssd1b.presets import PRESETS
from ssd1b.sampler_names import AUTOMATIC, SAMPLERS, SCHEDULES
from ssd1b.server.errors import with_fields
from ssd1b.server.routes.native import EXACT, MAX_PICTURES, TheService
from ssd1b.server.schemas import (
    CLIENT_SETTINGS,
    AdviceAnswer,
    JobBody,
    Problem,
    advice_answers,
    client_settings,
    problems,
)
from ssd1b.server.service import Service
from ssd1b.settings import GUIDANCE_DEFAULTS, RANGES, SETTINGS
from ssd1b.upscalers import UPSCALERS
from ssd1b.validation import Range

router = APIRouter(prefix="/v1", tags=["settings"], responses=problems(Problem), dependencies=EXACT)


class SettingAnswer(BaseModel):
    """A setting."""

    name: str
    kind: str
    default: Any
    low: float | None = None
    high: float | None = None
    multiple_of: int | None = None
    help: str


class NameAnswer(BaseModel):
    """A sampler, a schedule or an upscaler."""

    name: str
    label: str = Field(description="As AUTOMATIC1111 calls it.")


class PresetAnswer(BaseModel):
    """Settings under a name."""

    name: str
    source: str = Field(description="Where it comes from, or what was measured.")
    settings: dict[str, Any]


class Point(BaseModel):
    """A measured value of a setting."""

    value: float
    mean: float
    low: float = Field(description="Begin of the 95% confidence interval.")
    high: float


class Curve(BaseModel):
    """How a metric depends on a setting."""

    setting: str
    metric: str
    source: str
    points: list[Point]


class ModelSettings(BaseModel):
    """What holds for one model."""

    family: str
    defaults: dict[str, Any]
    sizes: list[tuple[int, int]] = Field(description="Recommended sizes, width first.")
    advice: list[AdviceAnswer]
    samplers: list[str] = Field(description="Recommended samplers; empty if any will do.")
    curves: list[Curve]


class SettingsAnswer(BaseModel):
    """Everything that can be set."""

    settings: list[SettingAnswer]
    samplers: list[NameAnswer]
    schedules: list[NameAnswer]
    upscalers: list[NameAnswer] = Field(description="Of the hires fix.")
    presets: list[PresetAnswer]
    models: dict[str, ModelSettings]
    max_pixels: int
    max_steps: int
    max_count: int


class Checked(BaseModel):
    """What a job would be."""

    settings: dict[str, Any]
    advice: list[str]
    tokens: int
    chunks: int = Field(description="75 tokens each; the image attends to all of them.")
    steps: int = Field(description="Denoising steps that run; with init_image, those that strength leaves.")
    passes: int = Field(description="Estimated UNet passes of one image.")
    ahead: int = Field(description="Images that are waiting now.")


@router.get("/settings", summary="List settings, presets and advice")
async def settings(service: TheService) -> SettingsAnswer:
    """Return the settings with their ranges, and for each model its defaults, advice and measurements."""
    options = service.options
    return SettingsAnswer(
        settings=[_setting(name, options.ranges) for name in CLIENT_SETTINGS],
        samplers=[NameAnswer(name=name, label=each.a1111) for name, each in SAMPLERS.items()],
        schedules=[
            NameAnswer(name=AUTOMATIC, label="Automatic"),
            *(NameAnswer(name=name, label=each[0]) for name, each in SCHEDULES.items()),
        ],
        upscalers=[
            *(NameAnswer(name=name, label=each.a1111 or name) for name, each in UPSCALERS.items()),
            *(NameAnswer(name=name, label=name) for name in service.files.names("hires_upscaler")),
        ],
        presets=[
            PresetAnswer(name=each.name, source=each.source, settings=dict(each.settings))
            for each in PRESETS.values()
        ],
        models={
            name: _model(service, name, model) for name, model in service.models.items()
        },
        max_pixels=options.max_pixels, max_steps=options.max_steps, max_count=options.max_count,
    )  # fmt: skip


def _model(service: Service, name: str, model: Model) -> ModelSettings:
    side, family = model.layout.size, model.info.family
    wanted = advised(family, model.few_steps)
    return ModelSettings(
        family=family, defaults={"guidance_scale": GUIDANCE_DEFAULTS[family], **service.defaults(name)},
        sizes=list(SIZES) if side == FULL_SIZE else [(side, side)],
        advice=advice_answers(wanted), samplers=list(wanted.samplers), curves=_curves(name),
    )  # fmt: skip


def _setting(name: str, ranges: Mapping[str, Range]) -> SettingAnswer:
    setting = SETTINGS[name]
    allowed = ranges.get(name) or RANGES.get(name)
    bounds: dict[str, Any] = (
        {} if allowed is None
        else {"low": allowed.low, "high": allowed.high, "multiple_of": allowed.multiple_of}
    )  # fmt: skip
    default = setting.default if isinstance(setting.default, int | float | str | tuple) else None
    kind = "picture" if setting.kind is InputFile else setting.kind.__name__
    return SettingAnswer(name=name, kind=kind, default=default, help=with_fields(setting.help), **bounds)


@cache
def _curves(model: str) -> list[Curve]:
    """The measurements that the package has of a built-in model."""
    file = files("ssd1b.data") / "evidence" / f"{model}.json"
    if (not model.isidentifier() and not model.replace("-", "_").isidentifier()) or not file.is_file():
        return []
    return [Curve(**each) for each in json.loads(file.read_text())]


@router.post("/check", max_body_size=MAX_PICTURES, summary="Check a job without running it")
async def check(body: JobBody, service: TheService) -> Checked:
    """Complete the settings of a job and say what to expect."""
    name = body.model or service.default
    model = service.model(name)
    found, *_ = await service.settings(
        name, body.prompt, body.preset, body.given(), styles=body.styles or (), count=body.count
    )
    return Checked(
        settings=client_settings(found),
        advice=service.advice(name, found, body.given()),
        tokens=max(len(each.ids(found.prompt)) for each in model.tokenizers),
        chunks=chunk_count(model.tokenizers, [found.prompt], words_of(found.embeddings)),
        steps=found.start.steps, passes=service.passes(name, found), ahead=len(service.waiting()),
    )  # fmt: skip
