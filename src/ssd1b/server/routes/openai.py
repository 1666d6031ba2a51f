"""OpenAI's images API: ``/v1/images/generations``.

The wire format is that of the official Python client (openai 3, ``types/image_*``). Our own settings may be
added as fields. Fields without a meaning here, such as ``quality``, and null values are ignored; unknown ones
are refused, because they may be typing mistakes.
"""

import io
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image as Images
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from ssd1b.errors import InputError, unknown
from ssd1b.jobs.queue import DONE, FINISHED, Request
from ssd1b.server.errors import openai_problem, raised_again
from ssd1b.server.routes.native import Client, TheService
from ssd1b.server.routes.waiting import Made, base64_of, finished, made
from ssd1b.server.schemas import CLIENT_SETTINGS, OpenAIProblem, problems
from ssd1b.server.service import Service
from ssd1b.settings import read_size

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
                found |= {} if value is None else {name: value}
            elif field not in WITHOUT_MEANING:
                raise unknown("parameter", field, [*CLIENT_SETTINGS, *ALIASES, *type(self).model_fields])
        if self.size not in (None, "auto"):
            found |= read_size(self.size)
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
    request = await _submitted(service, body, client, idempotency_key)
    format = body.output_format or "png"
    quality = 95 if body.output_compression is None else body.output_compression
    if body.stream:
        events = _events(service, request, format, quality, body.partial_images or 0)
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


@router.post("/edits", summary="Edit images")
@router.post("/variations", summary="Vary images")
async def not_yet() -> None:
    """Refuse, because images are not accepted as input yet."""
    raise InputError("this server does not take images as input yet: use /v1/images/generations")


async def _submitted(service: Service, body: Generation, client: str, idempotency: str | None) -> Request:
    default = service.default
    model = body.model or default
    if model not in service.models and model.startswith(HOSTED):
        model = default
    if body.background == "transparent":
        raise InputError("background is 'transparent': allowed are 'opaque' and 'auto'")
    settings = service.settings(model, body.prompt, body.preset, body.given())
    return await service.submit(
        model, settings, count=body.n or 1, client=client, dialect="openai", idempotency=idempotency
    )


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
    service: Service, request: Request, format: str, quality: int, partial: int
) -> AsyncIterator[bytes]:
    """Stream previews at even distances, then each image."""
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
                            "type": "image_generation.partial_image", "partial_image_index": sent,
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
                "type": "image_generation.completed", "b64_json": base64_of(image.data),
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
    import json

    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()
