"""Errors as each dialect sends them: status, code, envelope, and whether to try again."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssd1b import errors
from ssd1b.errors import InputError, line
from ssd1b.jobs.queue import CANCELLED, Request
from ssd1b.settings import OPTIONS, SETTINGS

FIELDS: Mapping[str, str] = {
    **{flag: each.name for each in SETTINGS.values() for flag in each.flags},
    **{f"--{name}": name.replace("-", "_") for name, group in OPTIONS.items() if len(group) == 2},
}
"""Fields of the native API by option of the command line; ``--size``, for two settings, is a field, too."""

_QUOTED = re.compile(r"""((?<!\w)'[^']*'|(?<!\w)"[^"]*")""")
_OPTION = re.compile(r"( \()?(--[a-z][a-z0-9-]*)(?(1)\))")


def with_fields(message: str) -> str:
    """Replace the options of settings in a message by fields; those in parentheses are left out.

    What the message quotes, such as a client's own words, stays.
    """

    def field(option: re.Match[str]) -> str:
        found = FIELDS.get(option[2])
        return option[0] if found is None else "" if option[1] else found

    pieces = _QUOTED.split(message)
    return "".join(each if number % 2 else _OPTION.sub(field, each) for number, each in enumerate(pieces))


class QueueFullError(errors.UnavailableError):
    """So many images are waiting that no more are accepted.

    Attributes:
        retry_after: seconds after which there is probably room.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QuotaError(QueueFullError):
    """An API key's images of this hour are used up."""


class DrainingError(errors.UnavailableError):
    """The server is shutting down and accepts no requests."""


class DeadlineError(errors.UnavailableError):
    """A job took longer than the server allows."""


class TooLargeError(InputError):
    """A request's body is larger than its path allows."""


STATUSES: dict[type[InputError], tuple[int, str]] = {
    QuotaError: (429, "quota_exceeded"),
    QueueFullError: (429, "queue_full"),
    DrainingError: (503, "draining"),
    DeadlineError: (504, "deadline"),
    TooLargeError: (413, "too_large"),
    errors.NotFoundError: (404, "not_found"),
    errors.ConflictError: (409, "conflict"),
    errors.UnavailableError: (503, "unavailable"),
    errors.OutOfSpaceError: (507, "out_of_space"),
    errors.FailedError: (500, "failed"),
    InputError: (422, "invalid"),
}
"""Status and code of each class of errors; a subclass stands before its base."""

UNEXPECTED = "unexpected error; see the server's log"

CLASSES = {kind.__name__: kind for kind in STATUSES}

MAX_RETRY_AFTER = 120
"""Seconds, for a full queue. OpenAI's clients do not try again if they are to wait longer."""


def status_of(error: InputError) -> tuple[int, str]:
    """Return the HTTP status and the code of an error."""
    return next(found for kind, found in STATUSES.items() if isinstance(error, kind))


def code_of(request: Request) -> str | None:
    """Return the code of a request's error, as over HTTP; None without one."""
    return None if request.code is None else status_of(raised_again(request))[1]


def raised_again(request: Request) -> InputError:
    """Return the error of a request that failed or was cancelled."""
    if request.state == CANCELLED:
        return errors.ConflictError("the job was cancelled")
    return CLASSES.get(request.code or "", errors.FailedError)(request.error or "the job failed")


def openai_problem(error: InputError, param: str | None = None) -> dict[str, Any]:
    """Return the object that OpenAI's clients read under ``error``."""
    return _openai_problem(*status_of(error), str(error), param)


def _openai_problem(status: int, code: str, message: str, param: str | None) -> dict[str, Any]:
    kind = {429: "rate_limit_error"}.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": line(with_fields(message)), "type": kind, "param": param, "code": code}


def answer(path: str, error: InputError) -> JSONResponse:
    """Answer a request with an error, in the dialect of its path."""
    status, code = status_of(error)
    headers = {}
    if isinstance(error, QueueFullError):
        longest = 3600 if isinstance(error, QuotaError) else MAX_RETRY_AFTER
        headers["Retry-After"] = str(min(max(1, round(error.retry_after)), longest))
    elif isinstance(error, DrainingError):
        headers["Retry-After"] = "10"
    elif status not in (409, 429):
        headers["x-should-retry"] = "false"  # the same request would fail again
    return respond(path, status, code, str(error), headers)


def respond(
    path: str, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Answer a request with a problem, in the dialect of its path."""
    if path.startswith("/v1/images/"):
        problem = _openai_problem(status, code, message, None)
        return JSONResponse({"error": problem}, status if status != 422 else 400, headers)
    if path.startswith(("/sdapi/", "/controlnet/")):
        return JSONResponse({"detail": line(with_fields(message))}, status, headers)
    return JSONResponse({"error": line(with_fields(message)), "code": code}, status, headers)


def too_large(scope: Scope) -> TooLargeError:
    """Return the error of a request whose body is larger than its path allows."""
    return TooLargeError(f"the body is too large: at most {scope[MAX_BODY_SIZE_SCOPE_KEY]} bytes are allowed")


class Explained:
    """ASGI middleware that sends the framework's own errors in the dialect of the path.

    Starlette refuses a body by its announced length, and reports an unexpected exception, in plain text that
    no exception handler can change.

    Args:
        app: answers the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        is_replaced = False

        async def explained(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
                if is_replaced := message["status"] >= 400 and kind.startswith("text/plain"):
                    error = too_large(scope) if message["status"] == 413 else errors.FailedError(UNEXPECTED)
                    await answer(scope["path"], error)(scope, receive, send)
            if not is_replaced:
                await send(message)

        await self._app(scope, receive, explained)
