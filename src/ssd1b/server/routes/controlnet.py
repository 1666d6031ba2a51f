"""The API of AUTOMATIC1111's extension for ControlNets: ``/controlnet``, and ``alwayson_scripts.controlnet``.

Names and defaults are those of ``scripts/api.py``, ``scripts/external_code.py`` and
``internal_controlnet/args.py`` of sd-webui-controlnet (1.1.455).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter

from ssd1b.controls import MOST
from ssd1b.edges import HIGH, LOW
from ssd1b.errors import InputError, shown, unknown
from ssd1b.inputs import InputFile
from ssd1b.server.routes.native import TheService
from ssd1b.server.schemas import A1111Problem, problems
from ssd1b.server.service import Service, from_base64
from ssd1b.settings import GenerationSettings

router = APIRouter(prefix="/controlnet", tags=["AUTOMATIC1111"], responses=problems(A1111Problem))

SCRIPT = "controlnet"
"""Name of the script, in small letters."""

NONE = "none"

_VERSION = 2
"""Of the extension's API, since its units are named as here."""

_MODES = ("balanced", "my prompt is more important", "controlnet is more important")
"""By their numbers. The last one is our ``guess``."""

_RESIZE_MODES = {"just resize": "stretch", "crop and resize": "crop", "resize and fill": None}
"""By their numbers; None is not available."""

_OLD_RESIZE_MODES = {
    "scale to fit (inner fit)": "crop and resize", "inner fit (scale to fit)": "crop and resize",
    "envelope (outer fit)": "resize and fill", "outer fit (shrink to fit)": "resize and fill",
}  # fmt: skip

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "mask": (), "mask_image": (), "effective_region_mask": (), "advanced_weighting": (), "batch_images": (),
    "ipadapter_input": (), "loopback": (), "inpaint_crop_input_image": (True,), "guidance": (1,),
    "input_mode": ("simple",), "union_control_type": ("Unknown",),
    "hr_option": ("Both", "HiresFixOption.BOTH", 0),
}  # fmt: skip
"""Fields that would change the image, and the values beside null, false and empty that do not."""

_MODULES = (NONE, "canny")

_IP_ADAPTER_MODULES = ("ip-adapter-auto", "ip-adapter_clip_sdxl", "ip-adapter_clip_sdxl_plus_vith")
"""Image encoders; here the one that belongs to the IP-Adapter is used, as with the first."""

_IP_ADAPTER = "ip-adapter"
"""Prefix of IP-Adapter modules and models."""


class Units(NamedTuple):
    """The units of a request, as ``Service.settings`` takes them; controls have ``resize_mode``, too."""

    controls: list[dict[str, Any]]
    image_prompts: list[dict[str, Any]]


async def units_of(scripts: Mapping[str, Any], service: Service, picture: InputFile | None) -> Units:
    """Read the units of a request, and check their pictures.

    Args:
        scripts: ``alwayson_scripts`` of the request.
        service: of the app.
        picture: that an image starts from, which a unit without one follows.

    Raises:
        InputError: a unit has another form, or a value that is not available.
    """
    found = Units([], [])
    for unit in _units(scripts):
        if unit.get("enabled", True) in (False, None):
            continue
        if str(unit.get("module") or "").lower().startswith(_IP_ADAPTER):
            found.image_prompts.append(await _image_prompt(unit, service, picture))
        else:
            found.controls.append(await _control(unit, service, picture))
    return found


def _units(scripts: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    script = next((each for name, each in scripts.items() if name.lower() == SCRIPT), None) or {}
    units = script.get("args") or [] if isinstance(script, dict) else script
    units = [units] if isinstance(units, dict) else units
    if not isinstance(units, list) or not all(isinstance(each, dict) for each in units):
        raise InputError(f"controlnet has args {shown(units)}: it must be a list of objects")
    return units


async def _picture(unit: dict[str, Any], service: Service, picture: InputFile | None) -> InputFile:
    """Receive the picture of a unit; refuse what would change the image and is not available."""
    for name, neutral in _NEUTRAL.items():
        if (value := unit.get(name)) and value not in neutral:
            raise InputError(f"controlnet {name} is {shown(value)}: it is not available, leave it out")
    image = unit.get("image") or unit.get("input_image")
    if isinstance(image, dict):
        if image.get("mask"):
            raise InputError("controlnet image has a mask: it is not available, leave it out")
        image = image.get("image")
    if isinstance(image, str) and image:
        return await service.receive(from_base64("controlnet image", image))
    if image or picture is None:
        raise InputError(f"controlnet image is {shown(image)}: it must be a picture in base64")
    return picture


async def _image_prompt(unit: dict[str, Any], service: Service, picture: InputFile | None) -> dict[str, Any]:
    """Read a unit of an IP-Adapter. How its picture is resized has no effect: its middle is cut out."""
    if (module := str(unit["module"]).lower()) not in _IP_ADAPTER_MODULES:
        raise unknown("controlnet module", module, [*_MODULES, *_IP_ADAPTER_MODULES])
    mode = unit.get("control_mode")
    if mode is not None and _numbered("control_mode", mode, _MODES) != _MODES[0]:
        raise InputError(f"controlnet control_mode is {shown(mode)}: for an IP-Adapter it is {_MODES[0]!r}")
    return {
        "adapter": _model(unit.get("model")), "picture": await _picture(unit, service, picture),
        **_numbers(unit),
    }  # fmt: skip


def _numbers(unit: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "scale": unit.get("weight", 1.0), "start": unit.get("guidance_start", 0.0),
        "end": unit.get("guidance_end", 1.0),
    }  # fmt: skip


async def _control(unit: dict[str, Any], service: Service, picture: InputFile | None) -> dict[str, Any]:
    received, mode = await _picture(unit, service, picture), unit.get("control_mode")
    if unit.get("guess_mode") and mode is None:
        mode = 2
    chosen = _numbered("control_mode", 0 if mode is None else mode, _MODES)
    if chosen == _MODES[1]:
        raise InputError(
            f"controlnet control_mode is {shown(mode)}: allowed are {_MODES[0]!r} and {_MODES[2]!r}"
        )
    resizing = unit.get("resize_mode", 1)
    return {
        "model": _model(unit.get("model")), "picture": received,
        "preprocess": _module(unit), "guess": chosen == _MODES[2], **_numbers(unit),
        "resize_mode": 1 if resizing is None else resizing,
    }  # fmt: skip


def _numbered(field: str, given: Any, names: Sequence[str]) -> str:
    """Read a name, or its number, of a list."""
    if isinstance(given, int) and 0 <= given < len(names):
        return names[given]
    name = str(given).strip().lower()
    name = _OLD_RESIZE_MODES.get(name, name)
    if name not in names:
        raise unknown(f"controlnet {field}", str(given), names)
    return name


def _module(unit: Mapping[str, Any]) -> str:
    given = unit.get("module") or NONE
    module = str(given).lower()
    if module not in _MODULES:
        raise unknown("controlnet module", str(given), [*_MODULES, *_IP_ADAPTER_MODULES])
    for name, ours in {"threshold_a": LOW, "threshold_b": HIGH}.items():
        value = unit.get(name)
        if module == "canny" and value not in (None, -1, ours):
            raise InputError(f"controlnet {name} is {shown(value)}: canny has {ours} here, send it or -1")
    return module


def _model(given: Any) -> str:
    """The name of a network, which clients may send with a hash in brackets, or as the name of its file."""
    if not isinstance(given, str) or given.lower() in ("", NONE):
        raise InputError(f"controlnet model is {shown(given)}: name one of /controlnet/model_list")
    return given.partition(" [")[0].removesuffix(".safetensors")


def resize_mode(controls: Sequence[Mapping[str, Any]], default: str | None) -> str | None:
    """The one way to fit pictures of another shape: that of the request, or else of its first unit."""
    names = (
        _RESIZE_MODES[_numbered("resize_mode", each["resize_mode"], [*_RESIZE_MODES])] for each in controls
    )
    return default or next((name for name in names if name is not None), None)


async def check_fitting(
    controls: Sequence[Mapping[str, Any]], service: Service, settings: GenerationSettings
) -> None:
    """Check that pictures of another shape than the image are to be fitted as all of the image's are.

    Raises:
        InputError: one is to be fitted in another way.
    """
    for control in controls:
        given = control["resize_mode"]
        name = _numbered("resize_mode", given, [*_RESIZE_MODES])
        width, height = await service.size(control["picture"])
        shape = width * settings.height / (height * settings.width)
        if _RESIZE_MODES[name] != settings.resize_mode and abs(shape - 1) > _SAME_SHAPE:
            ours = next(each for each, mode in _RESIZE_MODES.items() if mode == settings.resize_mode)
            raise InputError(
                f"controlnet resize_mode is {shown(given)}: for a picture of another shape {ours!r} is "
                f"available here ({width}x{height} for {settings.width}x{settings.height})"
            )


_SAME_SHAPE = 0.02
"""Largest relative difference of two shapes that count as one, since sides are rounded."""


@router.get("/version", summary="Version of the API")
async def version() -> dict[str, int]:
    """Return the version of the extension's API."""
    return {"version": _VERSION}


@router.get("/model_list", summary="ControlNets and T2I-Adapters")
async def model_list(service: TheService, update: bool = True) -> dict[str, list[str]]:
    """List the networks that fit the chosen model, IP-Adapters last."""
    return {"model_list": await _models(service)}


async def _models(service: Service) -> list[str]:
    return [
        name for name, facts in (await service.controls()).items()
        if not isinstance(facts, InputError) and service.checkpoint in facts.models
    ] + await _ip_adapters(service)  # fmt: skip


async def _ip_adapters(service: Service) -> list[str]:
    return [
        name for name, models in (await service.ip_adapters()).items()
        if not isinstance(models, InputError) and service.checkpoint in models
    ]  # fmt: skip


async def _all_modules(service: Service) -> list[str]:
    return [*_MODULES, *(_IP_ADAPTER_MODULES if await _ip_adapters(service) else ())]


@router.get("/module_list", summary="Preprocessors")
async def module_list(service: TheService, alias_names: bool = False) -> dict[str, Any]:
    """List the preprocessors."""
    modules = await _all_modules(service)
    detail = {name: {"model_free": False, "sliders": []} for name in modules}
    return {"module_list": modules, "module_detail": detail}


@router.get("/control_types", summary="Preprocessors and networks by kind")
async def control_types(service: TheService) -> dict[str, Any]:
    """List preprocessors and networks that go together."""
    models, adapters = await _models(service), await _ip_adapters(service)
    controls = [name for name in models if name not in adapters]
    edges = [name for name in controls if "canny" in name.lower() or name == "mini-control"]
    kinds = {
        "All": _kind(await _all_modules(service), models),
        "Canny": _kind(_MODULES, controls, "canny", *edges[:1]),
    }
    if adapters:
        kinds["IP-Adapter"] = _kind(_IP_ADAPTER_MODULES, adapters, _IP_ADAPTER_MODULES[0], adapters[0])
    return {"control_types": kinds}


def _kind(
    modules: Sequence[str], models: Sequence[str], module: str = NONE, model: str = "None"
) -> dict[str, Any]:
    """Describe units of a kind: their preprocessors and networks, and which are chosen at first."""
    return {
        "module_list": [*modules], "model_list": ["None", *models], "default_option": module,
        "default_model": model,
    }  # fmt: skip


@router.get("/settings", summary="Number of units")
async def settings() -> dict[str, int]:
    """Return how many units a request may have."""
    return {"control_net_unit_count": MOST}
