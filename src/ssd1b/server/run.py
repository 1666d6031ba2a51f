"""The process of the server: its socket, its signals and its log."""

import asyncio
import logging
import os
import signal
import socket
import stat
import sys
import webbrowser
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import uvicorn

from ssd1b.errors import UnavailableError, shown
from ssd1b.files import expand_path, named
from ssd1b.server.app import make_app
from ssd1b.server.connections import Connection
from ssd1b.server.observing import JSONFormatter
from ssd1b.server.options import ServerOptions, bare_host
from ssd1b.server.security import LOOPBACK
from ssd1b.server.service import Service

log = logging.getLogger("ssd1b.server")

FAREWELL = 5
"""Seconds for the last answers to be sent, after all batches are finished."""


class _Server(uvicorn.Server):
    """Stops at the first signal when its work is done, and at the second one at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none: at a signal uvicorn would stop listening, before the batches are finished."""
        yield

    @contextmanager
    def signals(self) -> Generator[None, None, None]:
        """Handle SIGTERM and Ctrl-C while the context lasts."""
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._stop)

        before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _stop(self) -> None:
        if self._service.draining:
            self.force_exit = True
            self._service.hurry()
        else:
            self._service.drain()
            self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        """Answer requests until the batches in progress are finished."""
        await self._service.drained()
        self.should_exit = True


def run(options: ServerOptions, *, open_page: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        options: of the server.
        open_page: open the page in a browser.

    Raises:
        InputError: the address cannot be used, a model does not exist, or the store cannot be opened.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s") if sys.stderr.isatty() else JSONFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    _allow_connections()
    with _service(options) as service, _listen(options.host, options.port) as listener:
        asyncio.run(_serve(service, listener, open_page))


@contextmanager
def _service(options: ServerOptions) -> Generator[Service, None, None]:
    if options.cluster is None:
        yield Service(options)
        return
    from ssd1b.server.replicas import replicas

    with replicas(options, options.cluster) as found:
        yield Service(options, found.start, found.most, found.platform)


async def _serve(service: Service, listener: socket.socket, open_page: bool) -> None:
    options = service.options
    config = uvicorn.Config(
        make_app(service), http=Connection, log_config=None, access_log=False, server_header=False,
        lifespan="off", timeout_keep_alive=30, timeout_graceful_shutdown=FAREWELL,
    )  # fmt: skip
    server = _Server(config, service)
    await service.start()
    with server.signals():
        try:
            host, port = bare_host(options.host), listener.getsockname()[1]
            name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
            log.info("ssd1b serves %s on http://%s:%d", ", ".join(service.models), name, port)
            if host not in LOOPBACK and not service.keys:
                log.warning("everybody who can reach this port may use the server: see --api-key-file")
            if (keys := options.api_key_file) is not None and _is_public(Path(expand_path(keys))):
                log.warning("every user of this machine can read %s: chmod 600 it", named(keys))
            log.info("images are kept in %s; stop with Ctrl-C", named(options.folder))
            if open_page:
                asyncio.get_running_loop().call_later(0.1, webbrowser.open, f"http://{name}:{port}")
            await server.serve(sockets=[listener])
        finally:
            await service.close()


def _is_public(file: Path) -> bool:
    """Whether every user of the machine can read a file. On Windows the mode does not tell."""
    return os.name == "posix" and bool(file.stat().st_mode & stat.S_IROTH)


def _allow_connections() -> None:
    """Open as many files as the system allows; many systems begin with 1024, and each connection is one."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            bare_host(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnavailableError(f"cannot listen on {shown(host)}, port {port}: {reason}") from None
    return listener
