"""Enlarging over HTTP: by AUTOMATIC1111's API and the native one, with the networks of a folder."""

import base64
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import webuiapi
from PIL import Image

from picture_files import as_bytes, smooth
from server_process import Server, finished, serving
from server_workers import Plan
from ssd1b.images import decode_recipe
from ssd1b.recipe import Recipe
from upscaler_files import write_compact

pytestmark = pytest.mark.enable_socket

PICTURE = as_bytes(smooth(24, 16))
TEXT = base64.b64encode(PICTURE).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upscalers")
    (folder / "compact").mkdir()
    write_compact(folder / "compact" / "2x-tiny.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"no network")
    (folder / "4x.pth").write_bytes(b"not listed")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("server")
    with serving(store, Plan(), upscaler_folder=str(folder), device="cpu") as running:
        yield running


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def extras(server: Server, **body: Any) -> requests.Response:
    given = {"image": TEXT, "upscaler_1": "compact/2x-tiny", **body}
    return requests.post(f"{server.url}/sdapi/v1/extra-single-image", json=given, timeout=60)


def upscale(server: Server, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}/v1/upscale", json={"image": TEXT, **body}, timeout=60)


def test_webuiapi_enlarges_images(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    api = webuiapi.WebUIApi(host=host, port=int(port))
    names = [each["name"] for each in api.get_upscalers()]
    assert names == ["None", "Lanczos", "Nearest", "compact/2x-tiny", "damaged"]
    single = api.extra_single_image(image=smooth(24, 16), upscaler_1="compact/2x-tiny", upscaling_resize=3)
    assert single.image.size == (72, 48)
    batch = api.extra_batch_images(
        images=[smooth(24, 16), smooth(8, 8)], upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=2
    )
    assert [each.size for each in batch.images] == [(48, 32), (16, 16)]
    api.session.close()


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({}, (48, 32)),
        ({"upscaler_1": "2x-tiny", "upscaling_resize": 1.5}, (36, 24)),
        ({"upscaler_1": "None", "upscaling_resize": 4}, (24, 16)),
        ({"upscaler_1": "Nearest", "upscaling_resize": None, "codeformer_visibility": 0}, (48, 32)),
        ({"resize_mode": 1, "upscaling_resize_w": 60, "upscaling_resize_h": 60}, (60, 60)),
        ({"resize_mode": 1, "upscaling_resize_w": 60, "upscaling_resize_h": 60, "upscaling_crop": False},
         (90, 60)),
    ],
)  # fmt: skip
def test_sizes_of_automatic1111(server: Server, body: dict[str, Any], size: tuple[int, int]) -> None:
    answer = extras(server, **body)
    assert answer.status_code == 200, answer.text
    assert opened(base64.b64decode(answer.json()["image"])).size == size


def test_an_image_of_the_gallery_is_enlarged_with_its_recipe(server: Server) -> None:
    job = requests.post(
        f"{server.url}/v1/jobs", json={"prompt": "a cube", "steps": 2, "width": 64, "height": 64}, timeout=60
    ).json()
    (image,) = finished(server.url, job["id"])["images"]
    answer = upscale(server, image=image["id"], upscaler="2x-tiny")
    assert answer.headers["content-type"] == "image/png" and opened(answer.content).size == (128, 128)
    recipe = decode_recipe(answer.content)
    assert isinstance(recipe, Recipe) and recipe.settings.prompt == "a cube"
    sent = requests.post(f"{server.url}/v1/uploads", data=PICTURE, timeout=60).json()["id"]
    answer = upscale(server, image=sent, scale=3, format="webp")
    assert answer.headers["content-type"] == "image/webp" and opened(answer.content).size == (72, 48)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"upscaler": "2x-tin"}, 422, "unknown upscaler '2x-tin': did you mean 'compact/2x-tiny'"),
        ({"upscaler": "latent"}, 422, "unknown upscaler of pixels 'latent'"),
        ({"upscaler": "x"}, 422, "'x': allowed: bicubic, compact/2x-tiny, damaged, lanczos, nearest"),
        ({"upscaler": "damaged"}, 422, "damaged.safetensors"),
        ({"upscaler": "../compact/2x-tiny"}, 422, "unknown upscaler"),
        ({"upscaler": "/etc/hostname"}, 422, "unknown upscaler"),
        ({"upscaler": 3}, 422, "upscaler is 3"),
        ({"scale": 0.5}, 422, "scale is 0.5"),
        ({"format": "gif"}, 422, "unknown image format 'gif'"),
        ({"image": "0" * 64}, 404, "there is no upload"),
        ({"image": "0" * 32}, 404, "there is no image"),
        ({"image": base64.b64encode(b"text").decode()}, 422, "not a readable PNG, JPEG or WebP"),
        ({"size": 3}, 422, "unknown field 'size'"),
        ({"image": base64.b64encode(as_bytes(Image.new("1", (4096, 4096)))).decode(), "scale": 16}, 422,
         "would have 65536x65536 pixels"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    server: Server, folder: Path, body: dict[str, Any], status: int, words: str
) -> None:
    answer = upscale(server, **body)
    assert answer.status_code == status and words in answer.json()["error"], answer.text
    assert str(folder) not in answer.text and str(server.options.folder) not in answer.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"gfpgan_visibility": 0.5}, "gfpgan_visibility is not available"),
        ({"upscaler_2": "Lanczos", "extras_upscaler_2_visibility": 1}, "extras_upscaler_2_visibility"),
        ({"resize_mode": 2}, "resize_mode is 2"),
        ({"image": "AAAA"}, "image: not a readable PNG"),
        ({"image": "?"}, "image: image is '?': it is no valid base64"),
        ({"upscaling_resize": 40}, "upscaling_resize is 40"),
    ],
)
def test_what_automatic1111_could_do_is_refused(server: Server, body: dict[str, Any], words: str) -> None:
    answer = extras(server, **body)
    assert answer.status_code == 422 and words in answer.json()["detail"], answer.text


def test_the_hires_fix_takes_the_networks_of_the_folder(server: Server) -> None:
    body = {"prompt": "a cube", "steps": 2, "width": 64, "height": 64}
    for path, given in {
        "/v1/jobs": {"hires_scale": 1.5, "hires_upscaler": "2x-tiny"},
        "/sdapi/v1/txt2img": {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "compact/2x-tiny"},
    }.items():
        answer = requests.post(server.url + path, json={**body, **given}, timeout=60)
        assert answer.status_code in (200, 202), answer.text
        newest = requests.get(f"{server.url}/v1/jobs?limit=1", timeout=60).json()["jobs"][0]
        assert newest["settings"]["hires_upscaler"] == "compact/2x-tiny"
        again = requests.post(f"{server.url}/v1/check", json=newest["settings"], timeout=60).json()
        assert again["settings"] == newest["settings"], "an answer's settings can be sent again"
    (image,) = finished(server.url, newest["id"])["images"]
    file = requests.get(server.url + image["url"], timeout=60).content
    recipe = decode_recipe(file)
    assert isinstance(recipe, Recipe) and str(recipe.settings.hires_upscaler) == "2x-tiny.safetensors"
    read = requests.post(f"{server.url}/v1/read", data=file, timeout=60).json()
    assert read["settings"]["hires_upscaler"] == "compact/2x-tiny" and read["unreproduced"] == []
    listed = requests.get(f"{server.url}/v1/settings", timeout=60).json()["upscalers"]
    assert {"name": "compact/2x-tiny", "label": "compact/2x-tiny"} in listed


@pytest.mark.parametrize("value", ["/etc/hostname", "2x.safetensors", {"sha256": "0" * 64, "path": "/x"}, 7])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/check", "/v1/images/generations", "/sdapi/v1/txt2img"])
def test_no_path_of_a_request_is_an_upscaler(server: Server, path: str, value: Any) -> None:
    body = {"prompt": "x", "hires_scale": 1.5, "hires_upscaler": value}
    if path.startswith("/sdapi"):
        body = {"prompt": "x", "enable_hr": True, "hr_upscaler": value}
    answer = requests.post(server.url + path, json=body, timeout=60)
    assert answer.status_code in (400, 404, 422), answer.text
    assert "upscaler" in answer.text


def test_the_process_ends_with_its_client_and_starts_again(server: Server) -> None:
    assert extras(server).status_code == 200
    with pytest.raises(requests.Timeout):
        requests.post(
            f"{server.url}/v1/upscale", timeout=0.3,
            json={"image": base64.b64encode(as_bytes(Image.new("RGB", (3000, 3000)))).decode(),
                  "upscaler": "2x-tiny"},
        )  # fmt: skip
    before = time.monotonic()
    while server.service.upscaling._waiting and time.monotonic() - before < 30:
        time.sleep(0.05)
    assert time.monotonic() - before < 5, "it ended before the image was enlarged"
    assert extras(server).status_code == 200
    with ThreadPoolExecutor(3) as pool:
        assert [each.status_code for each in pool.map(lambda _: extras(server), range(3))] == [200] * 3


def test_limits(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, Plan(), upscaler_folder=str(folder), max_seconds=1.0) as hasty:
        server_side = hasty.service.upscaling
        late = upscale(hasty, upscaler="2x-tiny")  # the process takes longer to start
        assert late.status_code == 504 and "took longer than 1 seconds" in late.json()["error"]
        server_side._most = 0
        full = upscale(hasty)
        assert full.status_code == 429 and "0 images wait" in full.json()["error"]
        assert int(full.headers["retry-after"]) >= 1
