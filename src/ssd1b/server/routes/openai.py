"""OpenAI's images API: ``/v1/images/generations``, ``/v1/images/edits`` and ``/v1/images/variations``.

The wire format is that of the official Python client (openai 3, ``types/image_*``). Our own settings may be
added as fields; in a form, numbers are written as text, and lists as JSON. Fields without a meaning here,
such as ``quality``, and null values are ignored; unknown ones are refused: they may be typing mistakes.
"""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image as Images
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from ssd1b.decoding import MAX_FILE_BYTES
from ssd1b.errors import InputError, shown, unknown
from ssd1b.files import disk_error
from ssd1b.images import decode_recipe
from ssd1b.jobs.queue import DONE, FINISHED, Request
from ssd1b.numerals import number, whole_number
from ssd1b.recipe import Recipe
from ssd1b.server.errors import openai_problem, raised_again
from ssd1b.server.masks import from_transparency
from ssd1b.server.routes.native import Client, TheService
from ssd1b.server.routes.waiting import Made, base64_of, finished, made
from ssd1b.server.schemas import CLIENT_SETTINGS, OpenAIProblem, problems
from ssd1b.server.service import Service
from ssd1b.settings import SETTINGS, read_size

router = APIRouter(prefix="/v1/images", tags=["OpenAI"], responses=problems(OpenAIProblem))

HOSTED = ("dall-e", "gpt-image", "chatgpt-image")
"""How the names of OpenAI's own models begin. Some clients send them to any server: the default is used."""

WITHOUT_MEANING = frozenset({
    "quality", "style", "user", "moderation", "input_fidelity", "metadata", "safety_identifier",
})  # fmt: skip
"""Fields of OpenAI's API that are accepted and ignored."""

ALIASES = {
    "num_inference_steps": "steps", "cfg_scale": "guidance_scale", "sampler_name": "sampler",
    "scheduler": "schedule",
}  # fmt: skip
"""Other names of settings that clients of local servers send."""


class Generation(BaseModel):
    """A request for images. Every field but the prompt may be null, which counts as absent."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(
        description="What to generate.", examples=["a large red metal sphere on a blue background"]
    )
    model: str | None = None
    n: int | None = Field(default=None, ge=1)
    size: str | None = Field(default=None, description="WIDTHxHEIGHT, or auto for the model's own.")
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="Quality of JPEG and WebP."
    )
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    background: str | None = None
    preset: str | None = None

    def given(self) -> dict[str, Any]:
        """The settings that were given, by our names.

        Raises:
            InputError: a field is unknown, as OpenAI's server says, too.
        """
        found: dict[str, Any] = {}
        for field, value in (self.model_extra or {}).items():
            name = ALIASES.get(field, field)
            if name in CLIENT_SETTINGS:
                if value is not None and name in found:
                    raise InputError(f"{field} says what another field says, too: leave one of them out")
                found |= {} if value is None else {name: value}
            elif field not in WITHOUT_MEANING:
                raise unknown("parameter", field, [*CLIENT_SETTINGS, *ALIASES, *type(self).model_fields])
        if self.size not in (None, "auto"):
            size = read_size(self.size)
            if any(found.get(name, side) != side for name, side in size.items()):
                raise InputError(
                    f"size is {shown(self.size)}, and width or height say something else: omit one"
                )
            found |= size
        if self.partial_images and not self.stream:
            raise InputError("partial_images needs stream")
        return found


@router.post("/generations", summary="Generate images", response_model=None)
async def generations(
    body: Generation,
    http: HTTPRequest,
    service: TheService,
    client: Client,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Generate images and answer when they are there, or stream them with previews."""
    request = await _submitted(service, body, body.given(), client, idempotency_key)
    return await _answer(http, service, request, body, "image_generation")


async def _answer(
    http: HTTPRequest, service: Service, request: Request, body: Generation, kind: str
) -> Response:
    """Answer when the images are there, or stream them.

    Args:
        http: the client's request.
        service: of the app.
        request: what was submitted.
        body: of the client's request.
        kind: how the types of events begin.
    """
    format = body.output_format or "png"
    quality = 95 if body.output_compression is None else body.output_compression
    if body.stream:
        events = _events(service, request, format, quality, body.partial_images or 0, kind)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"cache-control": "no-store"}
        )
    await finished(http, service, request)
    images = await made(service, request, format, quality)
    return JSONResponse({
        "created": int(time.time()), "background": "opaque", "output_format": format, "quality": "auto",
        "size": _size(request), "usage": _usage(service, request),
        "data": [_datum(image, http, body.response_format) for image in images],
    })  # fmt: skip


MAX_FORM = 2 * MAX_FILE_BYTES + 2**20
"""Bytes of a form: a picture, a mask, and texts."""

REPAINTED = 1.0
"""Strength of an edit with a mask: what is transparent is painted anew."""

WITHOUT_PROMPT = "a picture"
"""Prompt of a variation of a picture that has no recipe, which names the prompt."""


def _form_of(*required: str, mask: bool) -> dict[str, Any]:
    """Document a form: two files, and the fields of ``Generation`` as texts."""
    file = {"type": "string", "format": "binary"}
    schema = Generation.model_json_schema()
    properties = {"image": file, **({"mask": file} if mask else {}), **schema["properties"]}
    form = {"type": "object", "properties": properties, "required": list(required)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


@router.post(
    "/edits", max_body_size=MAX_FORM, summary="Edit an image", response_model=None,
    openapi_extra=_form_of("image", "prompt", mask=True),
)  # fmt: skip
async def edits(
    http: HTTPRequest,
    service: TheService,
    client: Client,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Generate images from a picture: all of it, or what is transparent in a mask.

    `strength` says how much changes, from 0 to 1: 0.6 by default, and 1 with a mask. Without `size`, images
    are as large as the picture.
    """
    texts, files = await _form(http)
    image, mask = _only(files, "image"), _only(files, "mask") if "mask" in files else None
    body = _validated(texts)
    given = body.given()
    given["init_image"] = await service.receive(image)
    if mask is not None:
        given = {"strength": REPAINTED, **given, "mask": await service.receive(mask, from_transparency)}
    request = await _submitted(service, body, given, client, idempotency_key)
    return await _answer(http, service, request, body, "image_edit")


@router.post(
    "/variations", max_body_size=MAX_FORM, summary="Vary an image", response_model=None,
    openapi_extra=_form_of("image", mask=False),
)  # fmt: skip
async def variations(
    http: HTTPRequest,
    service: TheService,
    client: Client,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Generate images from a picture at strength 0.6, or another `strength`.

    The prompt is the one of the picture's recipe, if it has one. It can be given as `prompt`.
    """
    texts, files = await _form(http)
    image = _only(files, "image")
    texts.setdefault("prompt", await asyncio.to_thread(_prompt_of, image))
    body = _validated(texts)
    given = {**body.given(), "init_image": await service.receive(image)}
    request = await _submitted(service, body, given, client, idempotency_key)
    return await _answer(http, service, request, body, "image_edit")


async def _form(http: HTTPRequest) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """Read a form: its texts, those of our settings as values, and its files, several under one name.

    Raises:
        InputError: it is none, or a text is no value of its setting.
        HTTPException: it is damaged, or too large.
    """
    if not http.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InputError("the body must be of content-type multipart/form-data, with the picture as image")
    texts: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    try:
        async with http.form(max_files=32, max_fields=200, max_part_size=2**20) as form:
            for field, value in form.multi_items():
                if isinstance(value, str):
                    texts[field] = _value(ALIASES.get(field, field), value)
                else:
                    files.setdefault(field.removesuffix("[]"), []).append(await value.read())
    except OSError as error:  # large files are received on disk
        raise disk_error("the server cannot receive the files", error) from error
    return texts, files


def _value(name: str, text: str) -> Any:
    """Read a setting in a form."""
    if name not in CLIENT_SETTINGS:
        return text
    kind = SETTINGS[name].kind
    try:
        if kind is int:
            return whole_number(text)
        if kind is float:
            return number(text)
        return json.loads(text) if kind is tuple else text
    except (ValueError, RecursionError):
        what = "a whole number" if kind is int else "a number" if kind is float else "a list in JSON"
        raise InputError(f"{name} is {shown(text)}: it must be {what}") from None


def _only(files: Mapping[str, list[bytes]], name: str) -> bytes:
    found = files.get(name, [])
    if len(found) != 1:
        what = f"has {len(found)} files: this server takes one" if found else "is missing: send it as a file"
        raise InputError(f"{name} {what}")
    return found[0]


def _validated(texts: Mapping[str, Any]) -> Generation:
    try:
        return Generation.model_validate(texts)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _prompt_of(picture: bytes) -> str:
    try:
        found = decode_recipe(picture)
    except InputError:
        return WITHOUT_PROMPT
    prompt = found.settings.prompt if isinstance(found, Recipe) else found.prompt
    return prompt if prompt.strip() else WITHOUT_PROMPT


async def _submitted(
    service: Service, body: Generation, given: Mapping[str, Any], client: str, idempotency: str | None
) -> Request:
    default = service.default
    model = body.model or default
    if model not in service.models and model.startswith(HOSTED):
        model = default
    if body.background == "transparent":
        raise InputError("background is 'transparent': allowed are 'opaque' and 'auto'")
    settings = await service.settings(model, body.prompt, body.preset, given, count=body.n or 1, counted="n")
    return await service.submit(model, settings, client=client, dialect="openai", idempotency=idempotency)


def _datum(image: Made, http: HTTPRequest, response_format: str | None) -> dict[str, Any]:
    seed = image.recipe.settings.seed
    if response_format == "url":
        return {"url": str(http.base_url.replace(path=f"/v1/pictures/{image.id}")), "seed": seed}
    return {"b64_json": base64_of(image.data), "seed": seed}


def _size(request: Request) -> str:
    width, height = request.images[0].job.settings.final_size
    return f"{width}x{height}"


def _usage(service: Service, request: Request) -> dict[str, Any]:
    prompt = request.images[0].job.settings.prompt
    text = max(len(each.ids(prompt)) for each in service.model(request.model).tokenizers)
    return {
        "input_tokens": text, "output_tokens": 0, "total_tokens": text,
        "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
    }  # fmt: skip


async def _events(
    service: Service, request: Request, format: str, quality: int, partial: int, kind: str
) -> AsyncIterator[bytes]:
    """Stream previews at even distances, then each image, as events whose types begin with a kind."""
    common = {
        "background": "opaque", "created_at": int(time.time()), "output_format": format, "quality": "auto",
        "size": _size(request),
    }  # fmt: skip
    try:
        async with service.listen(request, previews=partial > 0) as listener:
            sent, last = 0, None
            if request.state not in FINISHED:
                async for _ in listener.changes():
                    due = request.step * (partial + 1) >= request.images[0].job.settings.total_steps * (
                        sent + 1
                    )
                    if sent < partial and due and request.preview is not None and request.preview is not last:
                        last = request.preview
                        yield _event({
                            "type": f"{kind}.partial_image", "partial_image_index": sent,
                            "b64_json": base64_of(_converted(last, format)), **common,
                        })  # fmt: skip
                        sent += 1
                    if request.state in FINISHED:
                        break
        if request.state != DONE:
            yield _event({"error": openai_problem(raised_again(request))})
            return
        for image in await made(service, request, format, quality):
            yield _event({
                "type": f"{kind}.completed", "b64_json": base64_of(image.data),
                "seed": image.recipe.settings.seed, "usage": _usage(service, request), **common,
            })  # fmt: skip
    finally:
        if request.state not in FINISHED:  # the client left
            await service.cancel(request)


def _converted(jpeg: bytes, format: str) -> bytes:
    if format == "jpeg":
        return jpeg
    file = io.BytesIO()
    with Images.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        image.save(file, format.upper())
    return file.getvalue()


def _event(data: Mapping[str, Any]) -> bytes:
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()
