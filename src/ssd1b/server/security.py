"""Which requests are answered at all: by host, origin and API key, before anything of them is read."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ssd1b.server.errors import respond
from ssd1b.server.options import Key, bare_host

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that need no key: probes have none."""

PAGE = re.compile(r"/(page/.*)?")
"""The page's paths. They need no key either: the page asks its user for it, and contains nothing secret."""

_HOST = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(?::([0-9]{0,5}))?")
"""A ``Host`` header: a name, or an address in brackets, and perhaps a port."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Added to every answer."""


class Guard:
    """ASGI middleware that refuses foreign hosts, foreign origins and missing keys.

    A page on another site can make a browser send requests to a server on the loopback, and with a name that
    it resolves to 127.0.0.1 even read the answers (DNS rebinding). So the ``Host`` must be known, and so must
    the ``Origin`` that browsers add.

    Args:
        app: answers what is not refused.
        hosts: names that clients may address the server by, without port; "*" for any.
        keys: API keys by the client's name; empty for a server that anybody may use.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], keys: Mapping[str, Key]) -> None:
        self._app = app
        self._hosts = frozenset(map(bare_host, hosts))
        self._keys = {hashlib.sha256(each.key.encode()).digest(): name for name, each in keys.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refusal(scope)

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in present),
                ]
            await send(message)

        answer: Callable[[Scope, Receive, Any], Awaitable[None]] = refused or self._app
        await answer(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        path: str = scope["path"]
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or not self._is_known(hosts[0].decode("latin-1")):
            return respond(
                path, 421, "unknown_host", "this server is not known by that name: see --allow-host"
            )
        for origin in headers.get(b"origin", []):
            if origin.partition(b"://")[2] != hosts[0]:
                return respond(path, 403, "foreign_origin", "requests from pages of other sites are refused")
        if headers.get(b"sec-fetch-site", [b"none"])[0] not in (b"none", b"same-origin"):
            return respond(path, 403, "foreign_origin", "requests from pages of other sites are refused")
        if self._keys and path not in OPEN_PATHS and not PAGE.fullmatch(path):
            client = self._client(headers.get(b"authorization", []), headers.get(b"x-api-key", []))
            if client is None:
                refusal = respond(
                    path, 401, "unauthorized", "a valid API key is needed: Authorization: Bearer KEY"
                )
                refusal.headers["www-authenticate"] = "Bearer"
                return refusal
            scope["ssd1b.client"] = client
        return None

    def _is_known(self, host: str) -> bool:
        if "*" in self._hosts:
            return True
        found = _HOST.fullmatch(host)
        return found is not None and int(found[2] or 0) < 2**16 and bare_host(found[1]) in self._hosts

    def _client(self, authorizations: list[bytes], keys: list[bytes]) -> str | None:
        """Find whose key it is, in a time that depends on no key."""
        given = b""
        if authorizations:
            scheme, _, value = authorizations[0].partition(b" ")
            given = _basic(value) if scheme.lower() == b"basic" else value.strip()
        given = keys[0] if keys else given
        digest = hashlib.sha256(given).digest()
        found = None
        for known, name in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def _basic(value: bytes) -> bytes:
    """The password of basic authentication, which AUTOMATIC1111's clients send."""
    import base64
    import binascii

    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
