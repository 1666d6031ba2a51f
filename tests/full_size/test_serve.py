"""SSD-1B at its published size behind the server, on random weights, in little memory."""

import multiprocessing
from pathlib import Path

import psutil
import pytest
import requests

from full_size.test_full_size import write_model
from server_process import ServerProcess

pytestmark = [pytest.mark.full_size, pytest.mark.enable_socket]

MEMORY = 12e9
"""Bytes that server and worker may take at most."""


def test_every_dialect_generates_at_512_in_low_memory(tmp_path: Path) -> None:
    model = tmp_path / "ssd-1b"
    writer = multiprocessing.get_context("spawn").Process(target=write_model, args=(model, "ssd-1b"))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    server = ServerProcess(tmp_path / "store", "--model", str(model), "--memory", "low", "--threads", "2")
    try:
        server.wait(600)
        body = {"prompt": "a lighthouse at dusk", "steps": 2, "seed": 1}
        openai = requests.post(
            f"{server.url}/v1/images/generations", json=body | {"size": "512x512"}, timeout=1800
        )
        assert openai.status_code == 200 and openai.json()["size"] == "512x512", openai.text[:500]
        sized = body | {"width": 512, "height": 512}
        a1111 = requests.post(f"{server.url}/sdapi/v1/txt2img", json=sized | {"seed": 2}, timeout=1800)
        assert a1111.status_code == 200 and len(a1111.json()["images"]) == 1, a1111.text[:500]
        job = server.ask("POST", "/v1/jobs", sized | {"seed": 3})
        with requests.get(f"{server.url}/v1/jobs/{job['id']}/events", stream=True, timeout=1800) as events:
            assert b'"state":"done"' in b"".join(events.iter_content())
        processes = [root := psutil.Process(server.process.pid), *root.children(recursive=True)]
        assert sum(each.memory_info().rss for each in processes) < MEMORY
        assert [each["id"] for each in server.ask("GET", "/v1/models")["data"]] == ["ssd-1b"]
    finally:
        assert server.stop() == 0
