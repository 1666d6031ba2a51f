"""What synchronous APIs have in common: they answer when the images are finished, or the client leaves."""

import asyncio
import base64
import io
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image as Images
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest

from ssd1b.images import Picture, encode_picture
from ssd1b.jobs.queue import DONE, FINISHED, Request
from ssd1b.recipe import Recipe, read_json
from ssd1b.server.errors import DrainingError, raised_again
from ssd1b.server.service import Service

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A finished image, as a synchronous API sends it.

    Attributes:
        id: of the image.
        data: bytes of the file.
        recipe: how it was generated.
    """

    id: str
    data: bytes
    recipe: Recipe


async def finished(http: HTTPRequest, service: Service, request: Request) -> Request:
    """Wait for a request. If the client disconnects before, cancel it.

    Raises:
        InputError: the request failed; or the server shuts down, and the client is to ask again.
        ClientDisconnect: the client left.
    """
    waiting = asyncio.ensure_future(service.wait(request))
    leaving = asyncio.ensure_future(_disconnect(http))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        has_left = leaving.done()
    finally:
        leaving.cancel()
        waiting.cancel()
    if request.state not in FINISHED:
        await service.cancel(request)
        raise ClientDisconnect if has_left else DrainingError("the server is shutting down: try again later")
    if request.state != DONE:
        raise raised_again(request)
    return request


async def unless_left(http: HTTPRequest, work: Awaitable[T]) -> T:
    """Wait for work, which is cancelled if the client disconnects before.

    Raises:
        ClientDisconnect: the client left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _disconnect(http: HTTPRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def made(service: Service, request: Request, format: str = "png", quality: int = 95) -> list[Made]:
    """Read the finished images of a request, in a format of ``images.FORMATS``."""
    files = [(image.id, service.file(image.job.key)) for image in request.done]
    return await asyncio.to_thread(lambda: [_read(id, path, format, quality) for id, path in files])


def _read(id: str, path: Path, format: str, quality: int) -> Made:
    data = path.read_bytes()
    with Images.open(io.BytesIO(data), formats=["PNG"]) as image:
        recipe = read_json(image.info["ssd1b"])
        if format != "png":
            data = encode_picture(Picture(image=image.convert("RGB"), recipe=recipe), format, quality)
    return Made(id=id, data=data, recipe=recipe)


def base64_of(data: bytes) -> str:
    """Encode bytes as base64, without a prefix."""
    return base64.b64encode(data).decode()
