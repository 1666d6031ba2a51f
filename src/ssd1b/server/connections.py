"""TCP connections: those that send no request, or do not read their answer, are closed."""

import asyncio
import json
import socket
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 30.0
"""Seconds after which a connection is closed whose client acknowledges nothing or does not read. One without
a complete request is closed after one to two times as long."""

LEAST_BODY = 2**15
"""Bytes of a body that must come in ``PATIENCE`` seconds."""

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
        self._received = 0
        self._clock = self.loop.call_later(PATIENCE, self._look)

    def data_received(self, data: bytes) -> None:
        """Count the bytes."""
        self._received += len(data)
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read, as JSON. Its path is unknown, and so is its dialect."""
        problem = {"error": "no valid HTTP request, or its headers are too large", "code": "bad_request"}
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        events = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=json.dumps(problem).encode()),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(each) or b"" for each in events))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        self._clock.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        cycle, received, self._received = self.cycle, self._received, 0
        waits = cycle is None or cycle.response_complete
        reads = not waits and cycle.more_body
        stalls = waits or (reads and received < LEAST_BODY)
        if stalls and cycle is self._seen:  # no progress since the last look
            self.transport.close()
            return
        self._seen = cycle if waits or reads else _ANSWERING
        self._clock = self.loop.call_later(PATIENCE, self._look)


def _let_system_close(peer: Any) -> None:
    """Have the system notice peers that are gone without a word, and on Linux those that do not read."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(PATIENCE * 1000))
    if hasattr(socket, "TCP_KEEPIDLE"):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(PATIENCE)))
