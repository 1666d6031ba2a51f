"""The gallery: finished images, their recipes, and what the user says of them."""

import asyncio
import io
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, Response
from PIL import Image as Images
from pydantic import BaseModel, Field
from starlette.requests import Request as HTTPRequest

from ssd1b.errors import unknown
from ssd1b.images import FORMATS, MAX_FILE_BYTES, decode_recipe, picture_stem
from ssd1b.jobs.queue import Picture, Search
from ssd1b.prompts import unsupported
from ssd1b.recipe import Recipe
from ssd1b.server.routes.native import EXACT, MAX_PICTURES, TheService
from ssd1b.server.routes.waiting import unless_left
from ssd1b.server.schemas import (
    CLIENT_SETTINGS,
    Exact,
    Problem,
    UploadAnswer,
    beyond_clients,
    client_settings,
    problems,
)
from ssd1b.upscalers import DEFAULT_UPSCALER

THUMBNAIL = 256
"""Pixels of a thumbnail's longer side."""

FOREVER = {"cache-control": "private, max-age=31536000, immutable"}

router = APIRouter(prefix="/v1", tags=["pictures"], responses=problems(Problem), dependencies=EXACT)


class PictureAnswer(BaseModel):
    """A finished image."""

    id: str
    job: str
    model: str
    made: float
    favourite: bool
    deleted: bool
    url: str
    thumbnail: str
    settings: dict[str, Any]


class Pictures(BaseModel):
    """Finished images, the newest first."""

    pictures: list[PictureAnswer]
    next: str | None = Field(description="Pass it as `before` for older images; null if there are none.")


class Marks(Exact):
    """What a user says of an image."""

    favourite: bool | None = None
    deleted: bool | None = Field(
        default=None, description="A deleted image is hidden, and removed a day later."
    )


class Upscale(Exact):
    """An image to enlarge."""

    image: str = Field(description="Base64, with or without a data: prefix, or the id of an upload or image.")
    upscaler: str = Field(
        default=DEFAULT_UPSCALER, description="Of /v1/settings; those of latents are for the hires fix only."
    )
    scale: float | None = Field(
        default=None, ge=1, le=16, description="Default: that of the network, otherwise 2."
    )
    format: str | None = Field(default=None, description="png, jpeg or webp. Default: the image's.")


class Read(BaseModel):
    """What was read from an image file."""

    program: str
    prompt: str
    settings: dict[str, Any]
    model: str | None
    unreproduced: list[str] = Field(description="Parts of the image's recipe that ssd1b cannot reproduce.")


@router.get("/pictures", summary="Search images")
async def pictures(
    service: TheService,
    q: Annotated[str, Query(max_length=1000, description="Words of the prompt.")] = "",
    model: str | None = None,
    favourite: bool = False,
    deleted: bool = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[str | None, Query(pattern=r"^[0-9]{1,15}([.][0-9]{1,15})?~[0-9a-f]{1,64}$")] = None,
) -> Pictures:
    """Return finished images, the newest first."""
    search = Search(words=q, model=model, favourite=favourite, deleted=deleted)
    made, _, last = (before or "").partition("~")
    found = await service.pictures(search, limit=limit, before=(float(made), last) if before else None)
    return Pictures(
        pictures=[answer(picture) for picture in found],
        next=f"{found[-1].made!r}~{found[-1].id}" if len(found) == limit else None,
    )


@router.get("/pictures/{id}", response_class=FileResponse, summary="Get an image")
async def file(id: str, service: TheService) -> FileResponse:
    """Return an image as PNG, with its recipe and AUTOMATIC1111's parameters inside."""
    picture = await service.picture(id)
    return FileResponse(
        service.file(picture.key), media_type="image/png", filename=f"{picture_stem(picture.settings)}.png",
        content_disposition_type="inline", headers=FOREVER,
    )  # fmt: skip


@router.get("/pictures/{id}/thumbnail", response_class=Response, summary="Get a small image")
async def thumbnail(id: str, service: TheService) -> Response:
    """Return an image as WebP of at most 256 pixels a side."""
    picture = await service.picture(id)
    data = await asyncio.to_thread(_thumbnail, service.file(picture.key))
    return Response(data, media_type="image/webp", headers=FOREVER)


@lru_cache(maxsize=1000)  # about 10 KB each; a file never changes
def _thumbnail(path: Path) -> bytes:
    with Images.open(path, formats=["PNG"]) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=80)
    return file.getvalue()


@router.get("/pictures/{id}/recipe", summary="Get an image's description")
async def recipe(id: str, service: TheService) -> PictureAnswer:
    """Return an image's settings and marks."""
    return answer(await service.picture(id))


@router.patch("/pictures/{id}", summary="Mark or delete an image")
async def mark(id: str, marks: Marks, service: TheService) -> PictureAnswer:
    """Mark an image as favourite, delete it, or undo either."""
    return answer(await service.mark(id, favourite=marks.favourite, deleted=marks.deleted))


@router.post("/uploads", status_code=201, max_body_size=MAX_FILE_BYTES, summary="Upload a picture")
async def upload(request: HTTPRequest, service: TheService) -> UploadAnswer:
    """Keep a picture or a mask for jobs, whose `init_image` and `mask` take its id.

    The body is the file: PNG, JPEG or WebP. It is kept as long as an image needs it, and at least an hour.
    """
    file = await service.receive(await request.body())
    width, height = await service.size(file)
    return UploadAnswer(id=file.sha256, width=width, height=height, url=f"/v1/uploads/{file.sha256}")


@router.get("/uploads/{id}", response_class=FileResponse, summary="Get an uploaded picture")
async def uploaded(id: str, service: TheService) -> FileResponse:
    """Return a picture that a client sent."""
    file = await service.upload(id)
    kind = file.path.rpartition(".")[2].replace("jpg", "jpeg")
    return FileResponse(
        service.files.path(file), media_type=f"image/{kind}", filename=file.path,
        content_disposition_type="inline", headers=FOREVER,
    )  # fmt: skip


@router.post("/upscale", max_body_size=MAX_PICTURES, response_class=Response, summary="Enlarge an image")
async def upscale(body: Upscale, http: HTTPRequest, service: TheService) -> Response:
    """Return an enlarged image. Its recipe, or another program's settings, stay in it."""
    data = await service.picture_data("image", body.image)
    if body.format is not None and body.format not in FORMATS:
        raise unknown("image format", body.format, FORMATS)
    work = service.enlarge(data, body.upscaler, body.scale, format=body.format)
    found = await unless_left(http, work)
    return Response(found.data, media_type=f"image/{found.format}")


@router.post("/read", max_body_size=MAX_FILE_BYTES, summary="Read the settings in an image file")
async def read(request: HTTPRequest, service: TheService) -> Read:
    """Read the settings in an image of ssd1b, AUTOMATIC1111, ComfyUI and others.

    The body is the file: PNG, JPEG or WebP.
    """
    found = await asyncio.to_thread(partial(decode_recipe, await request.body()))
    if isinstance(found, Recipe):
        settings, missing = await service.available(found.settings)
        return Read(
            program="ssd1b",
            prompt=settings.pop("prompt"),
            settings=settings,
            model=found.model.name,
            unreproduced=[*missing, *beyond_clients(found.settings)],
        )
    given = found.settings()
    settings = {name: given[name] for name in CLIENT_SETTINGS if given.get(name) is not None}
    return Read(
        program=found.program, prompt=found.prompt, settings=settings, model=found.values.get("Model"),
        unreproduced=[
            *(f"{what}: {piece}" for what, piece in unsupported(found.prompt).items()), *found.unreproduced()
        ],
    )  # fmt: skip


def answer(picture: Picture) -> PictureAnswer:
    """Describe an image."""
    url = f"/v1/pictures/{picture.id}"
    return PictureAnswer(
        id=picture.id, job=picture.request, model=picture.model, made=picture.made,
        favourite=picture.favourite, deleted=picture.deleted, url=url, thumbnail=f"{url}/thumbnail",
        settings=client_settings(picture.settings),
    )  # fmt: skip
