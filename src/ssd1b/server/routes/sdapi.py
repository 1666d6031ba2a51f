"""AUTOMATIC1111's HTTP API, ``/sdapi/v1``, as far as its clients need it for images from texts and pictures.

Names, defaults and answers are those of ``modules/api/api.py`` and ``models.py`` (Forge dfdcbab). Unknown
fields are ignored, as there; clients rely on it.
"""

import asyncio
import io
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import psutil
from fastapi import APIRouter
from PIL import Image as Images
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HTTPRequest

from ssd1b.automatic1111 import seed_resize
from ssd1b.embeddings import Embedding
from ssd1b.errors import ConflictError, InputError, NotFoundError, prefix_errors, shown, unknown
from ssd1b.images import MAX_FILE_BYTES, decode_recipe
from ssd1b.inputs import SUFFIX
from ssd1b.jobs.queue import RUNNING, Request
from ssd1b.model import Model
from ssd1b.recipe import Recipe, read_parameters, write_parameters
from ssd1b.sampler_names import AUTOMATIC, SAMPLERS, SCHEDULES
from ssd1b.server.masks import from_a1111
from ssd1b.server.routes import controlnet
from ssd1b.server.routes.native import MAX_PICTURES, Client, TheService
from ssd1b.server.routes.waiting import Made, base64_of, finished, made, unless_left
from ssd1b.server.schemas import A1111Problem, problems
from ssd1b.server.service import COUNTS, Service, from_base64
from ssd1b.settings import RANDOM_SEED
from ssd1b.upscalers import A1111_UPSCALER, DEFAULT_UPSCALER, UPSCALERS

NO_UPSCALER = "None"
"""AUTOMATIC1111's name for not enlarging."""

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], responses=problems(A1111Problem))


class TextToImage(BaseModel):
    """A request for images. Every field may be null, which counts as absent."""

    model_config = ConfigDict(extra="allow")

    prompt: str | None = ""
    negative_prompt: str | None = None
    seed: int | None = RANDOM_SEED
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int | None = Field(1, ge=1)
    n_iter: int | None = Field(1, ge=1)
    styles: list[str] | None = None
    infotext: str | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool | None = True
    force_task_id: str | None = None
    subseed: int | None = RANDOM_SEED
    subseed_strength: float | None = Field(0, description="0 to 1: how far the noise is turned to subseed's.")
    seed_resize_from_w: int | None = Field(-1, description="Width of the noise; with seed_resize_from_h.")
    seed_resize_from_h: int | None = -1
    enable_hr: bool | None = Field(False, description="A second pass at a larger size, of txt2img.")
    denoising_strength: float | None = Field(None, description="Of img2img and of the second pass.")
    hr_scale: float | None = 2
    hr_resize_x: int | None = Field(
        0, description="Width of the second pass, instead of hr_scale; 0 follows."
    )
    hr_resize_y: int | None = 0
    hr_upscaler: str | None = Field(None, description="See /upscalers and /latent-upscale-modes.")
    hr_second_pass_steps: int | None = Field(0, description="0 is the number of the first pass.")
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_cfg: float | None = Field(None, description="Guidance of the second pass; 0 is that of the first.")
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""
    script_name: str | None = None
    alwayson_scripts: dict[str, Any] | None = Field(None, description="controlnet, with units in args.")
    init_images: list[str] | None = Field(None, description="For img2img.")


class ImageToImage(TextToImage):
    """A request for images that start from a picture."""

    init_images: list[str] | None = Field(None, description="One picture: base64, with or without a prefix.")
    resize_mode: int | None = Field(0, description="0 stretches the picture to another size, 1 cuts it.")
    mask: str | None = Field(None, description="White is changed. Base64.")
    mask_blur: float | None = Field(None, ge=0, le=256)
    mask_blur_x: float | None = Field(4, ge=0, le=256)
    mask_blur_y: float | None = Field(4, ge=0, le=256)
    mask_round: bool | None = True
    inpainting_fill: int | None = Field(
        0,
        description="What is under the mask at the start: 0 the colours around it, 1 the picture, 2 noise, "
        "3 nothing.",
    )
    inpaint_full_res: bool | int | None = Field(
        False, description="Generate only what surrounds the mask, at width and height, and put it back."
    )
    inpaint_full_res_padding: int | None = Field(32, ge=0, le=4096, description="Pixels around the mask.")
    inpainting_mask_invert: bool | int | None = 0
    initial_noise_multiplier: float | None = None
    include_init_images: bool | None = False


@router.post("/txt2img", max_body_size=MAX_PICTURES, summary="Generate images")
async def text_to_image(
    body: TextToImage, http: HTTPRequest, service: TheService, client: Client
) -> dict[str, Any]:
    """Generate images and answer when they are there. If the client disconnects, the job is cancelled."""
    _refuse_what_is_missing(body)
    if body.init_images:
        raise InputError("init_images are for img2img: leave them out")
    settings, prompt = _settings(body)
    settings |= _second_pass(body)
    return await _answer(body, http, service, client, prompt, settings)


@router.post("/img2img", max_body_size=MAX_PICTURES, summary="Change an image")
async def image_to_image(
    body: ImageToImage, http: HTTPRequest, service: TheService, client: Client
) -> dict[str, Any]:
    """Generate images from a picture, and answer when they are there.

    Without width and height they are as large as the picture. `denoising_strength` runs as many steps as in
    AUTOMATIC1111: 11 of 20 at 0.5.
    """
    _refuse_what_is_missing(body)
    pictures = body.init_images or []
    if len(pictures) != 1:
        what = f"init_images has {len(pictures)} pictures: send one" if pictures else "Init image not found"
        raise InputError(what) if pictures else NotFoundError(what)
    if body.initial_noise_multiplier not in (None, 1):
        raise InputError("initial_noise_multiplier is not available: leave it out")
    if body.enable_hr:
        raise InputError("enable_hr is for txt2img: leave it out")
    settings, prompt = _settings(body)
    settings |= {
        "strength": _STRENGTH if body.denoising_strength is None else body.denoising_strength,
        "strength_steps": "a1111", "resize_mode": _resize_mode(body.resize_mode or 0),
        **await _pictures(body, service, from_base64("init_images", pictures[0])),
    }  # fmt: skip
    return await _answer(body, http, service, client, prompt, settings)


async def _pictures(body: ImageToImage, service: Service, picture: bytes) -> dict[str, Any]:
    """Receive the picture and the mask of a request."""
    if body.mask is None:
        return {"init_image": await service.receive(picture)}
    fill = body.inpainting_fill or 0
    if not 0 <= fill < len(_FILLS):
        named = ", ".join(f"{number} ({name})" for number, name in enumerate(_FILLS))
        raise InputError(f"inpainting_fill is {shown(fill)}: allowed are {named}")
    blur = (body.mask_blur_x or 0, body.mask_blur_y or 0)
    if body.mask_blur is not None:
        blur = (body.mask_blur, body.mask_blur)
    given = from_base64("mask", body.mask)
    rounded = body.mask_round is not False
    change = partial(from_a1111, invert=bool(body.inpainting_mask_invert), blur=blur, rounded=rounded)
    padding = 32 if body.inpaint_full_res_padding is None else body.inpaint_full_res_padding
    return {
        "init_image": await service.receive(picture), "mask": await service.receive(given, change),
        "mask_content": _FILLS[fill],
        **({"mask_area": "masked", "mask_padding": padding} if body.inpaint_full_res else {}),
    }  # fmt: skip


def _second_pass(body: TextToImage) -> dict[str, Any]:
    """The settings of the hires fix."""
    if not body.enable_hr:
        return {}
    found: dict[str, Any] = {
        "hires_strength": _STRENGTH if body.denoising_strength is None else body.denoising_strength,
        "hires_upscaler": body.hr_upscaler or A1111_UPSCALER,
    }
    if body.hr_resize_x or body.hr_resize_y:
        size = {"hires_width": body.hr_resize_x, "hires_height": body.hr_resize_y}
    else:
        size = {"hires_scale": body.hr_scale or 2}
    others = {
        "hires_steps": body.hr_second_pass_steps, "hires_guidance_scale": body.hr_cfg,
        "hires_prompt": body.hr_prompt, "hires_negative_prompt": body.hr_negative_prompt,
        "hires_sampler": _chosen(body.hr_sampler_name, "use same sampler"),
        "hires_schedule": _chosen(body.hr_scheduler, "use same scheduler"),
    }  # fmt: skip
    return found | {name: value for name, value in {**size, **others}.items() if value}


def _chosen(name: str | None, same: str) -> str | None:
    """A name of a list in which an entry means that of the first pass."""
    return None if name is None or name.lower() in (same, AUTOMATIC) else name


def _resize_mode(number: int) -> str:
    """AUTOMATIC1111's "Just resize" and "Crop and resize"; its other modes add borders, or resize latents."""
    names = {0: "stretch", 1: "crop"}
    if number not in names:
        raise InputError(f"resize_mode is {shown(number)}: allowed are 0 (just resize), 1 (crop and resize)")
    return names[number]


async def _answer(
    body: TextToImage,
    http: HTTPRequest,
    service: Service,
    client: str,
    prompt: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Submit a request, wait for its images, and send them."""
    override = body.override_settings or {}
    model = _find_model(service, str(override.get("sd_model_checkpoint") or service.checkpoint))
    units = await controlnet.units_of(body.alwayson_scripts or {}, service, settings.get("init_image"))
    if units.controls:
        settings["resize_mode"] = (
            controlnet.resize_mode(units.controls, settings.get("resize_mode")) or "crop"
        )
        settings["controls"] = [
            {name: value for name, value in unit.items() if name != "resize_mode"} for unit in units.controls
        ]
    if units.image_prompts:
        settings["image_prompts"] = units.image_prompts
    count = (body.batch_size or 1) * (body.n_iter or 1)
    complete = await service.settings(
        model, prompt, None, settings, styles=body.styles or (), count=count, counted=COUNTS["sdapi"]
    )
    await controlnet.check_fitting(units.controls, service, complete[0])
    request = await service.submit(model, complete, client=client, dialect="sdapi")
    try:
        await finished(http, service, request)
    except ConflictError:  # interrupted: the client gets what there is, as from AUTOMATIC1111
        if not request.done:
            raise
    images = await made(service, request)
    sent = [] if body.send_images is False else [base64_of(image.data) for image in images]
    echo = body.model_dump(mode="json", include=set(type(body).model_fields))  # clients send passwords, too
    if isinstance(body, ImageToImage) and not body.include_init_images:
        echo |= {"init_images": None, "mask": None}
    echo["alwayson_scripts"] = {}  # its pictures
    return {"images": sent, "parameters": echo, "info": json.dumps(_info(request, images, service))}


_STRENGTH = 0.75
"""Of a request that has none, as in AUTOMATIC1111."""

_FILLS = ("fill", "original", "noise", "nothing")
"""Names of ``canvas.MASK_CONTENTS`` by ``inpainting_fill``."""

_MISSING = (
    "tiling", "restore_faces", "refiner_checkpoint", "firstpass_image", "s_churn",
)  # fmt: skip
"""Fields that would change the image, unless they are false, null, zero or empty."""


def _refuse_what_is_missing(body: TextToImage) -> None:
    """Refuse what would change the image and cannot be done."""
    fields = {**dict(body), **(body.model_extra or {})}
    wanted = [name for name in _MISSING if fields.get(name)]
    if wanted:
        raise InputError(f"{wanted[0]} is not available yet: leave it out")
    scripts = body.alwayson_scripts or {}
    used = [name for name, each in scripts.items() if each and name.lower() != controlnet.SCRIPT]
    if body.script_name or used:
        name = body.script_name or used[0]
        raise InputError(f"Script not found: {shown(name)}: this server has none")


def _settings(body: TextToImage) -> tuple[dict[str, Any], str]:
    """The settings and the prompt of a request: its fields, over those of its ``infotext``."""
    found: dict[str, Any] = {}
    prompt = ""
    if body.infotext:
        parameters = read_parameters(body.infotext)
        found, prompt = parameters.settings(), parameters.prompt
    given = body.model_fields_set
    sampler = body.sampler_name or body.sampler_index
    if sampler and sampler.lower() != AUTOMATIC:
        found["sampler"] = sampler
    if body.scheduler and body.scheduler.lower() != AUTOMATIC:
        found["schedule"] = body.scheduler
    values = {
        "guidance_scale": body.cfg_scale,
        "steps": body.steps,
        "width": body.width,
        "height": body.height,
    }
    found |= {name: value for name, value in values.items() if value is not None}
    if body.seed is not None and ("seed" in given or "seed" not in found):
        found["seed"] = body.seed
    if body.subseed_strength:
        seed = RANDOM_SEED if body.subseed is None else body.subseed
        found |= {"variation_strength": body.subseed_strength, "variation_seed": seed}
    found |= seed_resize(body.seed_resize_from_w or 0, body.seed_resize_from_h or 0)
    # As in AUTOMATIC1111, an empty negative prompt is none.
    if body.negative_prompt:
        found["negative_prompt"] = body.negative_prompt
    return found, body.prompt or prompt


def _find_model(service: Service, name: str) -> str:
    """The model that a client calls by its title, name, file name or hash."""
    if name in service.models:
        return name
    for each, model in service.models.items():
        digest = service.digest(each)
        if name in (_title(service, each), *_file_names(each, model), digest, digest[:10]):
            return each
    raise unknown("model", name, service.models, NotFoundError)


def _file_names(name: str, model: Model) -> tuple[str, str]:
    """A model's file name, with and without suffix; its own name for a LoRA, which has another one's file."""
    return (name, name) if model.own else (model.path.name, model.path.stem)


def _title(service: Service, name: str) -> str:
    return f"{name} [{service.digest(name)[:10]}]"


def _info(request: Request, images: list[Made], service: Service) -> dict[str, Any]:
    first = images[0].recipe.settings
    return {
        "prompt": first.prompt, "all_prompts": [image.recipe.settings.prompt for image in images],
        "negative_prompt": first.negative_prompt or "",
        "all_negative_prompts": [image.recipe.settings.negative_prompt or "" for image in images],
        "seed": first.seed, "all_seeds": [image.recipe.settings.seed for image in images],
        "subseed": first.variation_seed, "subseed_strength": first.variation_strength,
        "all_subseeds": [image.recipe.settings.variation_seed for image in images],
        "width": first.width, "height": first.height, "sampler_name": SAMPLERS[first.sampler].a1111,
        "cfg_scale": first.guidance_scale, "steps": first.steps, "batch_size": len(images),
        "restore_faces": False, "face_restoration_model": None, "sd_model_name": request.model,
        "sd_model_hash": service.digest(request.model)[:10], "sd_vae_name": None, "sd_vae_hash": None,
        "seed_resize_from_w": first.seed_resize_width or -1,
        "seed_resize_from_h": first.seed_resize_height or -1, "denoising_strength": first.strength,
        "extra_generation_params": {}, "index_of_first_image": 0,
        "infotexts": [write_parameters(image.recipe) for image in images], "styles": [],
        "job_timestamp": _timestamp(request), "clip_skip": 1,
        "is_using_inpainting_conditioning": False, "version": f"ssd1b {images[0].recipe.ssd1b_version}",
    }  # fmt: skip


def _timestamp(request: Request) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.localtime(request.created))


@router.get("/progress", summary="Progress of the current job")
async def progress(service: TheService, client: Client, skip_current_image: bool = False) -> dict[str, Any]:
    """Report the progress of the caller's oldest job, or of the oldest one of all."""
    request = _current(service, client)
    if request is None:
        state = {
            "skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0,
            "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0,
        }  # fmt: skip
        return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}
    steps = request.images[0].job.settings.total_steps
    finished_images = len(request.images) - len(request.left)
    share = (finished_images + request.step / steps * bool(request.left)) / len(request.images)
    state = {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": request.id,
        "job_count": len(request.images), "job_no": finished_images, "sampling_step": request.step,
        "job_timestamp": _timestamp(request), "sampling_steps": steps,
    }  # fmt: skip
    preview = None if skip_current_image or request.preview is None else base64_of(_png(request.preview))
    return {
        "progress": min(0.99, max(0.01, share)), "eta_relative": service.eta(request) or 0.0, "state": state,
        "current_image": preview, "textinfo": None,
    }  # fmt: skip


def _png(jpeg: bytes) -> bytes:
    file = io.BytesIO()
    with Images.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _current(service: Service, client: str) -> Request | None:
    found = service.unfinished(client) or service.unfinished()
    return min(found, key=lambda each: each.state != RUNNING, default=None)


@router.post("/interrupt", summary="Cancel the caller's job")
async def interrupt(service: TheService, client: Client) -> dict[str, Any]:
    """Cancel the caller's oldest job. Jobs of other clients continue."""
    mine = [each for each in service.unfinished(client) if each.dialect == "sdapi"]
    if mine:
        await service.cancel(min(mine, key=lambda each: each.state != RUNNING))
    return {}


@router.post("/skip", summary="Cancel the caller's job")
async def skip(service: TheService, client: Client) -> None:
    """Cancel the caller's oldest job, as ``interrupt``."""
    await interrupt(service, client)


@router.get("/options", summary="Options")
async def options(service: TheService) -> dict[str, Any]:
    """Return the options that clients read: the model that is used by default."""
    return {
        "sd_model_checkpoint": _title(service, service.checkpoint),
        "sd_checkpoint_hash": service.digest(service.checkpoint),
        "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1, "samples_format": "png", "outdir_samples": "",
        "return_grid": False, "live_previews_enable": True,
    }  # fmt: skip


@router.post("/options", summary="Change options")
async def change_options(body: dict[str, Any], service: TheService) -> None:
    """Choose the model for requests that name none. Everything else is accepted and ignored."""
    if name := body.get("sd_model_checkpoint"):
        service.checkpoint = _find_model(service, str(name))


@router.get("/samplers", summary="Samplers")
async def samplers() -> list[dict[str, Any]]:
    """List the samplers by AUTOMATIC1111's names."""
    return [{"name": each.a1111, "aliases": [name], "options": {}} for name, each in SAMPLERS.items()]


@router.get("/schedulers", summary="Schedules")
async def schedulers() -> list[dict[str, Any]]:
    """List the schedules."""
    rows = [{"name": AUTOMATIC, "label": "Automatic"}]
    rows += [{"name": name, "label": names[0]} for name, names in SCHEDULES.items()]
    return [{**row, "aliases": None, "default_rho": -1, "need_inner_model": False} for row in rows]


@router.get("/sd-models", summary="Models")
async def sd_models(service: TheService) -> list[dict[str, Any]]:
    """List the models."""
    return [_sd_model(service, name, model) for name, model in service.models.items()]


def _sd_model(service: Service, name: str, model: Model) -> dict[str, Any]:
    digest = service.digest(name)
    return {
        "title": _title(service, name), "model_name": name, "hash": digest[:10], "sha256": digest,
        "filename": _file_names(name, model)[0], "config": None,
    }  # fmt: skip


@router.get("/loras", summary="LoRAs")
async def loras(service: TheService) -> list[dict[str, Any]]:
    """List the LoRAs of the server's folder that can be used. The path is below the folder."""
    return [
        {
            "name": name, "alias": facts.metadata.get("ss_output_name") or name, "path": f"{name}{SUFFIX}",
            "metadata": {**facts.metadata, "trigger_words": list(facts.trigger_words)},
        }
        for name, facts in (await service.loras()).items()
        if not isinstance(facts, InputError)
    ]  # fmt: skip


@router.get("/upscalers", summary="Upscalers")
async def upscalers(service: TheService) -> list[dict[str, Any]]:
    """List the upscalers of pixels, also the networks of the server's folder."""
    plain = [NO_UPSCALER, *(each.a1111 for each in UPSCALERS.values() if each.a1111 and not each.latent)]
    names = {**dict.fromkeys(plain), **{name: name for name in service.files.names("hires_upscaler")}}
    return [
        {"name": name, "model_name": model, "model_path": None, "model_url": None, "scale": 4}
        for name, model in names.items()
    ]


class Extras(BaseModel):
    """Options for upscaling existing images."""

    model_config = ConfigDict(extra="allow")

    resize_mode: int | None = Field(0, description="0 enlarges by upscaling_resize, 1 to a size.")
    upscaling_resize: float | None = Field(2, ge=1, le=16)
    upscaling_resize_w: int | None = Field(512, ge=1)
    upscaling_resize_h: int | None = Field(512, ge=1)
    upscaling_crop: bool | None = Field(True, description="Cut to the size, if the shape is another one.")
    upscaler_1: str | None = Field(NO_UPSCALER, description="See /upscalers.")


class ExtraImage(Extras):
    """One image."""

    image: str = Field(description="Base64, with or without a data: prefix.")


class FileData(BaseModel):
    """An image of several."""

    data: str = Field(description="Base64, with or without a data: prefix.")
    name: str | None = None


class ExtraImages(Extras):
    """Several images."""

    imageList: list[FileData] = Field(min_length=1, max_length=64)


@router.post("/extra-single-image", max_body_size=MAX_PICTURES, summary="Enlarge an image")
async def extra_single_image(body: ExtraImage, http: HTTPRequest, service: TheService) -> dict[str, str]:
    """Enlarge an image. Its recipe, or another program's settings, stay in it."""
    (image,) = await unless_left(http, _enlarged(body, {"image": body.image}, service))
    return {"html_info": "", "image": image}


@router.post("/extra-batch-images", max_body_size=MAX_PICTURES, summary="Enlarge images")
async def extra_batch_images(body: ExtraImages, http: HTTPRequest, service: TheService) -> dict[str, Any]:
    """Enlarge several images, one after the other."""
    given = {f"imageList.{number}": each.data for number, each in enumerate(body.imageList)}
    return {"html_info": "", "images": await unless_left(http, _enlarged(body, given, service))}


async def _enlarged(body: Extras, images: Mapping[str, str], service: Service) -> list[str]:
    """Enlarge images, which are given by the names of their fields; both are base64."""
    extra = body.model_extra or {}
    if wanted := [name for name in _MISSING_EXTRAS if extra.get(name)]:
        raise InputError(f"{wanted[0]} is not available: leave it out")
    upscaler, scale, options = body.upscaler_1 or NO_UPSCALER, body.upscaling_resize or 2, dict[str, Any]()
    if body.resize_mode not in (None, 0, 1):
        raise InputError(f"resize_mode is {shown(body.resize_mode)}: allowed are 0 (by), 1 (to)")
    if upscaler == NO_UPSCALER:
        upscaler, scale = DEFAULT_UPSCALER, 1
    elif body.resize_mode == 1:
        size = (body.upscaling_resize_w or 512, body.upscaling_resize_h or 512)
        options = {"cover": size, "crop": body.upscaling_crop is not False}
    answer: list[str] = []
    for name, text in images.items():
        with prefix_errors(name):
            found = await service.enlarge(
                from_base64(name, text), upscaler, float(scale), format="png", **options
            )
        answer.append(base64_of(found.data))
    return answer


_MISSING_EXTRAS = ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility")
"""Fields that would change the image, unless they are 0."""


@router.get("/latent-upscale-modes", summary="Latent upscale modes")
async def latent_upscale_modes() -> list[dict[str, str]]:
    """List the upscalers of latents."""
    return [{"name": each.a1111} for each in UPSCALERS.values() if each.latent and each.a1111]


@router.get("/embeddings", summary="Embeddings")
async def embeddings(service: TheService) -> dict[str, Any]:
    """List the embeddings of the server's folder by their words, and those that cannot be used."""
    answer: dict[str, Any] = {"loaded": {}, "skipped": {}}
    for name, each in (await service.embeddings()).items():
        used = isinstance(each, Embedding)
        answer["loaded" if used else "skipped"][each.word if used else name] = {
            "step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": None,
            "vectors": each.vectors if used else None,
        }  # fmt: skip
    return answer


@router.get("/prompt-styles", summary="Prompt styles")
async def prompt_styles(service: TheService) -> list[dict[str, str]]:
    """List the styles of the server's file."""
    return [asdict(each) for each in service.styles()]


@router.get("/scripts", summary="Scripts")
async def scripts() -> dict[str, list[str]]:
    """List the scripts."""
    return {"txt2img": [controlnet.SCRIPT], "img2img": [controlnet.SCRIPT]}


def _nothing(path: str, what: str) -> None:
    async def nothing() -> list[Any]:
        return []

    nothing.__doc__ = f"List the {what}: none."
    router.add_api_route(path, nothing, methods=["GET"], summary=what.capitalize(), name=what)


for _path, _what in {
    "/sd-vae": "VAEs", "/sd-modules": "modules",
    "/hypernetworks": "hypernetworks",
    "/face-restorers": "face restorers", "/realesrgan-models": "Real-ESRGAN models",
    "/script-info": "script descriptions", "/extensions": "extensions",
}.items():  # fmt: skip
    _nothing(_path, _what)


@router.post("/refresh-checkpoints", summary="Does nothing")
@router.post("/refresh-vae", summary="Does nothing")
@router.post("/refresh-loras", summary="Does nothing: new files are found at once")
@router.post("/refresh-embeddings", summary="Does nothing")
@router.post("/unload-checkpoint", summary="Does nothing")
@router.post("/reload-checkpoint", summary="Does nothing")
async def refresh() -> dict[str, Any]:
    """Do nothing: models are found at the start, and loaded and unloaded as needed."""
    return {}


class Info(BaseModel):
    """An image whose settings are asked for."""

    image: str = Field(description="Base64, with or without a data: prefix.")


@router.post("/png-info", max_body_size=2 * MAX_FILE_BYTES, summary="Read the settings in an image")
async def png_info(body: Info) -> dict[str, Any]:
    """Read the settings in an image, in AUTOMATIC1111's words."""
    data = from_base64("image", body.image)
    try:
        found = await asyncio.to_thread(decode_recipe, data)
    except InputError as error:
        if "no recipe" not in str(error):
            raise
        return {"info": "", "items": {}, "parameters": {}}
    if isinstance(found, Recipe):
        text = write_parameters(found)
        found = read_parameters(text)
    else:
        text = ""
    values = {"Prompt": found.prompt, "Negative prompt": found.negative_prompt or "", **found.values}
    return {"info": text, "items": {"parameters": text}, "parameters": values}


@router.get("/memory", summary="Memory")
async def memory(service: TheService) -> dict[str, Any]:
    """Report the memory of the machine."""
    ram = psutil.virtual_memory()
    return {
        "ram": {"free": ram.available, "used": ram.used, "total": ram.total},
        "cuda": {"error": "unavailable"},
    }


@router.get("/cmd-flags", summary="Flags")
async def flags() -> Mapping[str, Any]:
    """Return no flags: paths of the server are nobody's business."""
    return {}
