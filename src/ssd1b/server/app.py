"""The ASGI application: routes, errors and limits put together."""

from collections.abc import Mapping
from difflib import get_close_matches
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ssd1b.errors import InputError, shown
from ssd1b.server.errors import Explained, answer, respond, too_large
from ssd1b.server.observing import Observed
from ssd1b.server.routes import controlnet, native, openai, operations, page, pictures, sdapi, settings
from ssd1b.server.schemas import state_limits
from ssd1b.server.security import LOOPBACK, Guard
from ssd1b.server.service import Service
from ssd1b.validation import words

MAX_BODY = 2**20
"""Bytes of a request's body; none of the APIs takes images yet."""


class _App(FastAPI):
    """Its OpenAPI document states the limits of the server."""

    def openapi(self) -> dict[str, Any]:
        """Return the document, which is made once."""
        is_new = self.openapi_schema is None
        document = super().openapi()
        if is_new:
            state_limits(document["components"]["schemas"], self.state.service.options)
        return document


def make_app(service: Service) -> Any:
    """Build the application around a service that was started."""
    options = service.options
    app = _App(
        title="ssd1b", version=version("ssd1b"), max_body_size=MAX_BODY, docs_url=None, redoc_url=None,
        description="Text-to-image with SSD-1B, SDXL and their family.",
    )  # fmt: skip
    app.state.service = service
    app.add_exception_handler(InputError, _explain)
    app.add_exception_handler(RequestValidationError, _explain_body)
    app.add_exception_handler(HTTPException, _explain_http)
    app.add_exception_handler(ClientDisconnect, _gone)
    for routes in (native, pictures, settings, openai, sdapi, controlnet, operations, page):
        app.include_router(routes.router)
    hosts = {"*"} if options.allow_any_host else LOOPBACK | {options.host, *options.allow_host}
    return Observed(Guard(Explained(app), hosts=frozenset(hosts), keys=service.keys), service.metrics)


async def _explain(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    return answer(http.scope["path"], error)


async def _explain_body(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return answer(http.scope["path"], InputError(_sentence(error.errors()[0])))


def _sentence(error: Mapping[str, Any]) -> str:
    """Write a message that says which part of a request is wrong, what was given and what is allowed."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":  # raised by a rule, with a complete message
        return str(context["error"])
    if kind == "json_invalid":
        return f"the body is no JSON: {context['error']} at character {error['loc'][-1]}"
    name = ".".join(str(step) for step in error["loc"] if step not in ("body", "query", "path", "header"))
    if kind == "missing":
        given = error["input"] if isinstance(error["input"], dict) else {}
        near = get_close_matches(name, map(str, given), 1)
        return f"{name or 'the body'} is missing" + (
            f": did you mean it by {shown(near[0])}?" if near else ""
        )
    if not name:
        return "the body must be a JSON object, of content-type application/json"
    return f"{name} is {shown(error['input'])}: {words(error)}"


async def _explain_http(http: Request, error: Exception) -> JSONResponse:
    """Answer what the framework refuses: unknown paths and methods, bodies that are too large or no JSON."""
    assert isinstance(error, HTTPException)
    if error.status_code == 413:
        return answer(http.scope["path"], too_large(http.scope))
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return respond(http.scope["path"], error.status_code, code, str(error.detail), error.headers)


async def _gone(http: Request, error: Exception) -> Response:
    """Record a client that disconnected, with the status that nginx logs for it."""
    return Response(status_code=499)
