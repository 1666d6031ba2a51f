"""A log line and a measurement for every HTTP request."""

import json
import logging
import time
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssd1b.errors import printable
from ssd1b.server.metrics import Metrics

log = logging.getLogger("ssd1b.http")


class JSONFormatter(logging.Formatter):
    """One JSON object for each line; fields come from ``extra={"fields": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }  # fmt: skip
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _client(scope: Scope) -> str:
    return scope.get("ssd1b.client") or (scope["client"] or [""])[0]


class Observed:
    """ASGI middleware that gives every request an id, logs it, and measures how long its answer took.

    Args:
        app: answers the requests.
        metrics: of the server.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id, begin, status = uuid4().hex, time.perf_counter(), 499  # 499: the client left before the answer
        scope["ssd1b.request_id"] = id

        async def identified(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, identified)
        except Exception:
            status = 500
            log.exception("unexpected error", extra={"fields": {"request": id}})
            raise
        finally:
            seconds = time.perf_counter() - begin
            # The path of the route, so that ids do not become labels without end.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.http.labels(scope["method"], route, status).observe(seconds)
            fields: dict[str, Any] = {
                "request": id, "method": scope["method"], "path": printable(scope["path"])[:200],
                "status": status, "seconds": round(seconds, 4), "client": _client(scope),
            }  # fmt: skip
            log.info("%(method)s %(path)s %(status)s %(seconds).3fs", fields, extra={"fields": fields})
