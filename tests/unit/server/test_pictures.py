"""Pictures that clients send: received, shared, kept as long as needed; and no client can name a file."""

import asyncio
import base64
import hashlib
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from picture_files import as_bytes, smooth
from server_process import Server, finished, serving
from server_workers import Plan
from ssd1b.decoding import read_source
from ssd1b.inputs import InputFile
from ssd1b.server.files import KEPT, Files
from ssd1b.server.schemas import CLIENT_SETTINGS, FILE_SETTINGS
from ssd1b.settings import SETTINGS, resolve_settings
from upscaler_files import write_compact

pytestmark = pytest.mark.enable_socket

PICTURE = as_bytes(smooth(64, 64))
LOCAL = [name for name, each in SETTINGS.items() if each.local]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), Plan()) as running:
        yield running


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def upload(server: Server, data: bytes = PICTURE) -> requests.Response:
    return requests.post(f"{server.url}/v1/uploads", data=data, timeout=60)


def post(server: Server, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}/v1/jobs", json={"prompt": "a cube", "steps": 4, **body}, timeout=60)


def uploads(server: Server) -> Path:
    return server.options.folder / "uploads"


# No paths.


def test_only_listed_settings_of_files_are_the_clients() -> None:
    assert {*FILE_SETTINGS} == {*LOCAL}
    assert {*CLIENT_SETTINGS} == {*SETTINGS} - ({*LOCAL} - {*FILE_SETTINGS})


PATHS: list[Any] = [
    "/etc/hostname", "../queue.sqlite", "~/.bashrc", ["/etc/hostname"], "a" * 64, "b" * 32,
    {"sha256": "0" * 64, "path": "/etc/hostname"}, [{"name": "/etc/hostname"}], [{"name": "../x"}],
    [{"file": {"sha256": "0" * 64, "path": "/etc/hostname"}}], 7, [[[]]], "data:image/png;base64,",
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/check", "/v1/images/generations"])
@pytest.mark.parametrize("name", LOCAL)
def test_no_client_makes_a_server_open_a_path(server: Server, path: str, name: str) -> None:
    for value in PATHS:
        body = {"prompt": "a cube", "init_image": text(PICTURE), name: value}
        with opening() as opened:
            answer = requests.post(server.url + path, json=body, timeout=60)
        assert answer.status_code in (400, 404, 422), answer.text
        assert not [each for each in opened if "hostname" in each or "bashrc" in each]
        assert len(answer.text) < 1000 and str(server.options.folder) not in answer.text


@contextmanager
def opening() -> Iterator[list[str]]:
    """The files that this process opens in the context."""
    found: list[str] = []
    listening = True

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and listening:
            found.append(str(arguments[0]))

    sys.addaudithook(note)  # for the rest of the process
    yield found
    listening = False


# Uploads.


def test_a_picture_is_uploaded_once_and_given_back(server: Server) -> None:
    first = upload(server)
    assert first.status_code == 201
    digest = hashlib.sha256(PICTURE).hexdigest()
    assert first.json() == {"id": digest, "width": 64, "height": 64, "url": f"/v1/uploads/{digest}"}
    assert upload(server).json() == first.json()
    given = requests.get(server.url + first.json()["url"], timeout=60)
    assert given.content == PICTURE and given.headers["content-type"] == "image/png"
    assert [each.name for each in uploads(server).iterdir()].count(f"{digest}.png") == 1
    photo = as_bytes(smooth(48, 32), "JPEG")
    given = requests.get(server.url + upload(server, photo).json()["url"], timeout=60)
    assert given.headers["content-type"] == "image/jpeg"
    assert requests.get(f"{server.url}/v1/uploads/{'0' * 64}", timeout=60).status_code == 404


@pytest.mark.parametrize("way", ["upload", "base64", "data", "gallery"])
def test_a_job_takes_a_picture_in_each_way(server: Server, way: str) -> None:
    if way == "gallery":
        (image,) = finished(server.url, post(server, prompt="the first", seed=7).json()["id"])["images"]
        given, size = image["id"], 64
    else:
        size = 64
        given = {
            "upload": lambda: upload(server).json()["id"], "base64": lambda: text(PICTURE),
            "data": lambda: f"data:image/png;base64,{text(PICTURE)}",
        }[way]()  # fmt: skip
    answer = post(server, prompt=f"from {way}", init_image=given, strength=0.5)
    assert answer.status_code == 202, answer.text
    settings = answer.json()["settings"]
    assert len(settings["init_image"]) == 64 and (settings["width"], settings["height"]) == (size, size)
    assert (settings["strength"], answer.json()["steps"]) == (0.5, 2)
    job = finished(server.url, answer.json()["id"])
    assert job["state"] == "done"
    found = requests.get(server.url + job["images"][0]["url"], timeout=60).content
    assert str(server.options.folder).encode() not in found
    # What a picture's settings say can be sent again: the same image, not generated twice.
    again = post(server, **settings).json()
    assert finished(server.url, again["id"])["state"] == "done"


def test_a_mask_is_checked_before_the_job_is_queued(server: Server) -> None:
    grey = Image.new("L", (64, 64), 0)
    black = text(as_bytes(grey))
    grey.paste(255, (0, 0, 32, 64))
    good, wide = text(as_bytes(grey)), text(as_bytes(grey.resize((128, 64))))
    for mask, message in ((black, "black everywhere"), (wide, "same aspect ratio")):
        answer = post(server, init_image=text(PICTURE), mask=mask)
        assert answer.status_code == 422 and message in answer.json()["error"], answer.text
        assert str(server.options.folder) not in answer.text
    assert post(server, mask=good).json()["error"].startswith("mask needs init_image")
    assert (
        finished(server.url, post(server, init_image=text(PICTURE), mask=good).json()["id"])["state"]
        == "done"
    )


def test_a_check_says_how_many_steps_a_strength_means(server: Server) -> None:
    body = {"prompt": "a cube", "steps": 20, "strength": 0.5, "init_image": upload(server).json()["id"]}
    for rule, steps in (("diffusers", 10), ("a1111", 11), ("comfyui", 20)):
        answer = requests.post(f"{server.url}/v1/check", json={**body, "strength_steps": rule}, timeout=60)
        assert answer.json()["steps"] == steps


# How long they are kept.


def test_a_picture_is_kept_as_long_as_an_image_needs_it(tmp_path: Path) -> None:
    with serving(tmp_path, Plan()) as server:
        mine, unused = upload(server).json()["id"], upload(server, as_bytes(smooth(32, 32))).json()["id"]
        job = finished(server.url, post(server, init_image=mine).json()["id"])
        service = server.service

        def purge() -> None:
            asyncio.run_coroutine_threadsafe(
                service._ledger.keep(service._purge), service._scheduler._loop
            ).result(30)

        def kept() -> set[str]:
            return {path.stem for path in uploads(server).iterdir()} - {"notes"}

        purge()
        assert kept() == {mine, unused}
        (uploads(server) / ".cut-off.partial").write_bytes(b"a killed process left this")
        (uploads(server) / "notes.txt").write_text("the operator's")
        for path in uploads(server).iterdir():
            os.utime(path, (time.time() - KEPT - 1,) * 2)
        purge()
        assert kept() == {mine}, "the gallery has an image that was made from it"
        requests.delete(f"{server.url}/v1/jobs/{job['id']}", timeout=60).raise_for_status()
        purge()
        assert kept() == {mine}, "the image can be restored for a day"
        service._ledger._keeper.submit(service._ledger.queue.purge, time.time() + 1).result()
        purge()
        assert kept() == set()
        answer = post(server, init_image=mine)
        assert answer.status_code == 404 and "send the picture again" in answer.json()["error"]
        assert (uploads(server) / "notes.txt").exists()


def test_a_second_pass_has_the_servers_limits(tmp_path: Path) -> None:
    with serving(tmp_path, Plan(), max_pixels=128 * 128, max_steps=10) as server:
        small = {"width": 64, "height": 64}
        assert post(server, **small, hires_scale=2).status_code == 202
        for more in ({"hires_scale": 3}, {"hires_width": 1024}, {"hires_scale": 2, "hires_steps": 11}):
            answer = post(server, **small, **more)
            assert answer.status_code == 422, answer.text
            assert answer.json()["error"].startswith("second pass: ")


def test_a_retry_without_its_picture_is_one_clear_error(tmp_path: Path) -> None:
    plan = Plan()
    plan.broken["a cube"] = "no memory"
    with serving(tmp_path, plan) as server:
        job = finished(server.url, post(server, init_image=text(PICTURE)).json()["id"])
        assert job["state"] == "failed"
        for path in uploads(server).iterdir():
            path.unlink()
        answer = requests.post(f"{server.url}/v1/jobs/{job['id']}/retry", timeout=60)
        assert answer.status_code == 404 and "send the picture again" in answer.json()["error"]


def test_clients_pictures_have_a_limit_together(tmp_path: Path) -> None:
    with serving(tmp_path, Plan(), max_uploads=0.001) as server:
        noise = [random.Random(seed).randbytes(400 * 400 * 3) for seed in range(4)]  # 480 kB each
        answers = [upload(server, as_bytes(Image.frombytes("RGB", (400, 400), each))) for each in noise]
        sent = [each.status_code for each in answers]
        assert sent == [201, 201, 507, 507]
        assert answers[-1].json()["code"] == "out_of_space" and "1 MB" in answers[-1].json()["error"]
        assert sum(path.stat().st_size for path in uploads(server).iterdir()) <= 1e6


def test_settings_are_located_for_the_worker_and_named_for_everybody_else(tmp_path: Path) -> None:
    files = Files(tmp_path, {"loras": tmp_path / "loras", "hires_upscaler": tmp_path / "upscalers"})
    (tmp_path / "uploads").mkdir()
    kept = files.keep(hashlib.sha256(PICTURE).hexdigest(), PICTURE)
    assert kept.path == f"{kept.sha256}.png"
    mine = tmp_path / "operator.png"
    mine.write_bytes(PICTURE)
    plain = resolve_settings("x", family="sdxl", model_defaults={"seed": 1}, preset=None)
    assert files.located(plain) is plain
    settings = replace(plain, init_image=kept, strength=0.5, width=64, height=64)
    located = files.located(settings)
    assert located.init_image and located.init_image.path == str(tmp_path / "uploads" / kept.path)
    assert files.unlocated(located).init_image.path == kept.path  # type: ignore[union-attr]
    assert read_source(located.init_image, None, located.layout).picture.size == (64, 64)
    # A preset of the operator may name any file of the machine.
    own = replace(settings, init_image=InputFile.of(mine, most=10**6))
    for moved in (files.unlocated(own), files.located(own)):
        assert moved.init_image and moved.init_image.path == str(mine)
    files.touch_all(own)
    # Beside a picture, the file of a network, which is in its own folder.
    (tmp_path / "upscalers" / "deep").mkdir(parents=True)
    write_compact(tmp_path / "upscalers" / "deep" / "2x.safetensors")
    large = replace(plain, hires_scale=1.5, hires_upscaler=files.upscaler("2x"))
    named = files.unlocated(large)
    assert str(named.hires_upscaler) == "deep/2x.safetensors" and files.located(named) == large
    assert files.located(named).hires_upscaler.path == large.hires_upscaler.path  # type: ignore[union-attr]
