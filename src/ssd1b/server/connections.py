"""TCP connections: those that send no request, or do not read their answer, are closed."""

import asyncio
import socket
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 30.0
"""Seconds after which a connection is closed whose client acknowledges nothing or does not read. One without
a complete request is closed after one to two times as long."""

_ANSWERING: Final = object()


class Connection(H11Protocol):
    """An HTTP connection that is closed when its client neither asks nor reads.

    uvicorn's own time limit begins after the first answer, and ends with the first byte of the next request.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the connection."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer.family in (socket.AF_INET, socket.AF_INET6):
            _let_system_close(peer)
        self._seen: Any = self.cycle
        self._clock = self.loop.call_later(PATIENCE, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        self._clock.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self.cycle is self._seen:  # no request was completed since the last look
            self.transport.close()
            return
        self._seen = self.cycle if waits else _ANSWERING
        self._clock = self.loop.call_later(PATIENCE, self._look)


def _let_system_close(peer: Any) -> None:
    """Have the system notice peers that are gone without a word, and on Linux those that do not read."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(PATIENCE * 1000))
    if hasattr(socket, "TCP_KEEPIDLE"):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, round(PATIENCE))
