"""The page: its HTML at ``/`` and its scripts and styles under ``/page/``."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from fastapi import APIRouter, Response
from starlette.requests import Request as HTTPRequest

from ssd1b.errors import NotFoundError, shown

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""Content types by ending. They are not taken from the system, whose table may say anything of ``.js``."""

router = APIRouter(include_in_schema=False)


class File(NamedTuple):
    """A file of the page."""

    content: bytes
    media_type: str
    etag: str


@cache
def page_files() -> Mapping[str, File]:
    """Read the page's files, by their path in its folder.

    Only these are served, so no path that a client sends is ever opened.
    """
    return dict(_read(files("ssd1b.server") / "page", ""))


def _read(folder: Traversable, prefix: str) -> Iterator[tuple[str, File]]:
    for each in folder.iterdir():
        if each.is_dir():
            yield from _read(each, f"{prefix}{each.name}/")
        elif media_type := TYPES.get(each.name.rpartition(".")[2]):
            content = each.read_bytes()
            yield (
                prefix + each.name,
                File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"'),
            )


@router.api_route("/", methods=["GET", "HEAD"])
async def index(http: HTTPRequest) -> Response:
    """Return the page."""
    return _answer(http, "index.html")


@router.api_route("/page/{path:path}", methods=["GET", "HEAD"])
async def file(path: str, http: HTTPRequest) -> Response:
    """Return a file of the page."""
    return _answer(http, path)


def _answer(http: HTTPRequest, path: str) -> Response:
    """Answer with a file, or that the browser's copy is the current one."""
    found = page_files().get(path)
    if found is None:
        raise NotFoundError(f"the page has no file {shown(path)}")
    headers = {"cache-control": "no-cache", "etag": found.etag}
    known = [each.strip().removeprefix("W/") for each in http.headers.get("if-none-match", "").split(",")]
    if found.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
