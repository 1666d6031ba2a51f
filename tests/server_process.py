"""A server on the loopback, in a thread, with workers that make plain images."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from server_workers import Plan
from ssd1b.server.app import make_app
from ssd1b.server.connections import Connection
from ssd1b.server.options import ServerOptions
from ssd1b.server.service import Service


class Server:
    """A running server.

    Attributes:
        url: where it listens.
        plan: what its workers do.
        service: of its app; lives in the server's thread.
    """

    def __init__(self, folder: Path, plan: Plan, **options: Any) -> None:
        self.plan = plan
        self.options = ServerOptions(store=str(folder), **options)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        self.service = Service(self.options, self.plan.start)
        await self.service.start()
        config = uvicorn.Config(
            make_app(self.service), http=Connection, log_config=None, lifespan="off", access_log=False
        )
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._started.set()
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            await self.service.close()

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(60)

    def stop(self) -> None:
        self.plan.gate.set()
        self.service.draining = True
        self._server.force_exit = self._server.should_exit = True
        self._thread.join(30)


@contextmanager
def serving(folder: Path, plan: Plan | None = None, **options: Any) -> Iterator[Server]:
    """Run a server for the time of a test."""
    server = Server(folder, plan or Plan(), **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
