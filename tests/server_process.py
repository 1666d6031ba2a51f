"""Servers on the loopback: in a thread with workers that make plain images, or a process with a model."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import uvicorn

from server_workers import Plan
from ssd1b.server.app import make_app
from ssd1b.server.connections import Connection
from ssd1b.server.options import ServerOptions
from ssd1b.server.service import Service
from waiting import wait_for


class Server:
    """A running server.

    Attributes:
        url: where it listens.
        plan: what its workers do.
        service: of its app; lives in the server's thread.
    """

    def __init__(self, folder: Path, plan: Plan, **options: Any) -> None:
        self.plan = plan
        self.options = ServerOptions(store=str(folder), **{"workers": 1} | options)
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


def exchange(server: Server, text: bytes, *, seconds: float = 30) -> bytes:
    """Send bytes, and return what comes until the server closes or says no more."""
    with closing(connect(server)) as client:
        client.settimeout(seconds)
        client.sendall(text)
        answer = b""
        with suppress(TimeoutError):
            while block := client.recv(65536):
                answer += block
    return answer


def leave(server: Server, path: str, prompt: str, steps: int) -> None:
    """Post a request that waits for its image, and close the connection when its job is there."""
    address = urlsplit(server.url)
    with closing(HTTPConnection(address.hostname or "", address.port)) as client:
        body = json.dumps({"prompt": prompt, "steps": steps})
        client.request("POST", path, body, {"content-type": "application/json"})
        wait_for(lambda: prompt in states(server.url))


def states(url: str) -> dict[str, str]:
    """Return the states of the newest jobs of a server, by their prompts."""
    return {job["prompt"]: job["state"] for job in requests.get(f"{url}/v1/jobs", timeout=60).json()["jobs"]}


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0))


class ServerProcess:
    """``ssd1b serve`` on a port of its own, with only files that are on this machine.

    Args:
        folder: its store.
        options: further ones.
        key: the API key that ``ask`` sends.
        threads: of each worker; None for the server's own choice.

    Attributes:
        url: where it listens.
        folder: its store.
        process: the running one.
    """

    def __init__(self, folder: Path, *options: str, key: str = "", threads: int | None = 1) -> None:
        self.folder = folder
        self._options, self._key, self._environment = list(options), key, dict(os.environ)
        if threads is not None:
            self._options = ["--threads", str(threads), *options]
            self._environment["OMP_NUM_THREADS"] = str(threads)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.begin()

    def begin(self) -> None:
        """Start the process; again on the same port if it was stopped."""
        self.log = self.folder.parent / f"{self.folder.name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ssd1b", "serve", "--store", str(self.folder), "--port",
                 str(self._port), "--offline", *self._options],
                stderr=log, env=self._environment,
            )  # fmt: skip

    def wait(self, seconds: float = 120) -> None:
        """Wait until the server listens."""
        deadline = time.monotonic() + seconds
        while self.url not in self.log.read_text():
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def stop(self, signal_: int = signal.SIGTERM) -> int:
        """End the process, and return its exit code."""
        self.process.send_signal(signal_)
        return self.process.wait()

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Use the API as another client would."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", "x-api-key": self._key}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


def finished(url: str, job: str) -> dict[str, Any]:
    """Wait until a job of a server has ended, and return its answer."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{url}/v1/jobs/{job}", timeout=60) as response:
            answer = json.load(response)
        if answer["state"] in ("done", "failed", "cancelled"):
            return answer
        time.sleep(0.02)
    raise AssertionError(answer)


SMALL = {"prompt": "a cube", "steps": 2, "width": 64, "height": 64}
"""A job that is soon done."""


def with_units(server: Server, *units: Any, way: str = "txt2img", **body: Any) -> requests.Response:
    """Generate through AUTOMATIC1111's API with units of its ControlNet extension."""
    scripts = {"ControlNet": {"args": units}}
    return requests.post(
        f"{server.url}/sdapi/v1/{way}", json={**SMALL, "alwayson_scripts": scripts, **body}, timeout=60
    )


def newest(server: Server) -> dict[str, Any]:
    """Return the settings of the newest job."""
    return requests.get(f"{server.url}/v1/jobs?limit=1", timeout=60).json()["jobs"][0]["settings"]
