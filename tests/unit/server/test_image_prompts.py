"""IP-Adapters over HTTP: listed, used by name with a client's picture, by two APIs."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import webuiapi

from image_prompt_files import write_adapter, write_encoder
from picture_files import as_bytes, smooth
from server_process import SMALL, Server, ServerProcess, finished, newest, serving, with_units
from server_workers import Plan
from ssd1b.image_prompts import MOST_IMAGE_PROMPTS
from upscaler_files import write_compact

pytestmark = pytest.mark.enable_socket

PICTURE = base64.b64encode(as_bytes(smooth(64, 48))).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_encoder(tmp_path_factory.mktemp("adapters"))
    write_adapter(folder / "ip-adapter_mini.safetensors", plus=False, seed=0)
    write_adapter(folder / "ip-adapter-plus_mini.safetensors", plus=True, seed=1)
    (folder / "more").mkdir()
    write_adapter(folder / "more" / "other.safetensors", plus=False, seed=2)
    (folder / "damaged.safetensors").write_bytes(b"no adapter")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), Plan(), ip_adapter_folder=str(folder)) as running:
        yield running


def post(server: Server, *prompts: Any, **body: Any) -> requests.Response:
    given = {**SMALL, "image_prompts": prompts, **body}
    return requests.post(f"{server.url}/v1/jobs", json=given, timeout=60)


def test_the_folder_is_listed_with_what_fits(server: Server, folder: Path) -> None:
    answer = requests.get(f"{server.url}/v1/ip-adapters", timeout=60)
    found = {each["name"]: each for each in answer.json()["ip_adapters"]}
    assert {*found} == {"ip-adapter_mini", "ip-adapter-plus_mini", "more/other", "damaged"}
    assert found["ip-adapter_mini"]["models"] == ["mini-ssd-1b"], "through the layer map"
    assert "damaged" in found["damaged"]["error"] and str(folder) not in answer.text


def test_they_are_used_with_a_picture(server: Server) -> None:
    answer = post(
        server, {"adapter": "ip-adapter_mini", "picture": PICTURE, "scale": 0.5, "layers": ["style"]},
        {"adapter": "ip-adapter-plus_mini", "picture": PICTURE, "end": 0.5},
    )  # fmt: skip
    assert answer.status_code == 202, answer.text
    first, second = answer.json()["settings"]["image_prompts"]
    assert (first["adapter"], first["scale"], first["layers"]) == ("ip-adapter_mini", 0.5, ["style"])
    assert second["picture"] == first["picture"] and len(first["picture"]) == 64
    settings = answer.json()["settings"]
    again = post(server, **settings)
    assert again.json()["settings"] == settings, "an answer's settings can be sent again"
    (image,) = finished(server.url, again.json()["id"])["images"]
    file = requests.get(server.url + image["url"], timeout=60).content
    read = requests.post(f"{server.url}/v1/read", data=file, timeout=60).json()
    assert read["settings"]["image_prompts"] == settings["image_prompts"] and read["unreproduced"] == []


@pytest.mark.parametrize(
    ("prompt", "status", "words"),
    [
        ({"adapter": "ip-adapter_min", "picture": PICTURE}, 404, "did you mean 'ip-adapter_mini'"),
        ({"adapter": "/etc/hostname", "picture": PICTURE}, 404, "unknown ip-adapter"),
        ({"adapter": "damaged", "picture": PICTURE}, 422, "damaged.safetensors: "),
        ({"adapter": "ip-adapter_mini"}, 422, "ip-adapter 'ip-adapter_mini' has no picture"),
        ({"adapter": "ip-adapter_mini", "picture": "AAAA"}, 422, "not a readable PNG"),
        ({"adapter": "ip-adapter_mini", "picture": PICTURE, "scale": 11}, 422, "scale is 11"),
        ({"adapter": "ip-adapter_mini", "picture": PICTURE, "layers": ["stile"]}, 422, "mean 'style'"),
        ({"adapter": "ip-adapter_mini", "picture": PICTURE, "encoder": "x"}, 422, "image_prompts 'encoder'"),
        ({"picture": PICTURE}, 422, "list of objects with adapter and picture"),
    ],
)
def test_what_is_wrong_is_said_before_the_job_is_queued(
    server: Server, folder: Path, prompt: Any, status: int, words: str
) -> None:
    answer = post(server, prompt)
    assert answer.status_code == status and words in answer.json()["error"], answer.text
    assert str(folder) not in answer.text and str(server.options.folder) not in answer.text


def test_limits(server: Server, tmp_path: Path) -> None:
    one = {"adapter": "ip-adapter_mini", "picture": PICTURE}
    answer = post(server, *[one] * (MOST_IMAGE_PROMPTS + 1))
    assert f"at most {MOST_IMAGE_PROMPTS}" in answer.json()["error"]
    with serving(tmp_path, Plan()) as plain:
        assert requests.get(f"{plain.url}/v1/ip-adapters", timeout=60).json() == {"ip_adapters": []}
        assert post(plain, one).status_code == 404
    # An image encoder beside the folder is the operator's, but none that clients were given.
    (tmp_path / "adapters").mkdir()
    write_encoder(tmp_path)
    write_adapter(tmp_path / "adapters" / "ip-adapter_mini.safetensors", plus=False, seed=0)
    with serving(tmp_path / "store", Plan(), ip_adapter_folder=str(tmp_path / "adapters")) as other:
        answer = post(other, one)
        assert answer.status_code == 404 and "no image encoder in its folder" in answer.json()["error"]


def test_units_of_automatic1111s_extension(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    api = webuiapi.WebUIApi(host=host, port=int(port))
    assert {"ip-adapter_mini", "mini-control"} <= {*api.controlnet_model_list()}
    assert "ip-adapter-auto" in api.controlnet_module_list()
    unit = webuiapi.ControlNetUnit(
        image=smooth(64, 48), module="ip-adapter-auto", model="ip-adapter_mini", weight=0.6, guidance_end=0.8
    )
    edges = webuiapi.ControlNetUnit(image=smooth(64, 64), model="mini-control")
    api.txt2img(**SMALL, alwayson_scripts={}, controlnet_units=[unit, edges])
    found = newest(server)
    (prompt,), (control,) = found["image_prompts"], found["controls"]
    assert (prompt["adapter"], prompt["scale"], prompt["end"]) == ("ip-adapter_mini", 0.6, 0.8)
    assert control["model"] == "mini-control"
    # Without a picture, that of img2img.
    answer = with_units(
        server, {"module": "ip-adapter_clip_sdxl", "model": "ip-adapter_mini [12345678]"}, way="img2img",
        init_images=[PICTURE],
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    found = newest(server)
    assert found["image_prompts"][0]["picture"] == found["init_image"]
    types = requests.get(f"{server.url}/controlnet/control_types", timeout=60).json()["control_types"]
    assert types["IP-Adapter"]["default_option"] == "ip-adapter-auto"
    assert (
        "ip-adapter_mini" in types["All"]["model_list"] and types["Canny"]["default_model"] == "mini-control"
    )
    assert "ip-adapter_mini" not in types["Canny"]["model_list"]
    api.session.close()


@pytest.mark.parametrize(
    ("unit", "status", "words"),
    [
        ({"module": "ip-adapter_face_id_plus"}, 422, "unknown controlnet module 'ip-adapter_face_id_plus'"),
        ({"model": None}, 422, "controlnet model is None"),
        ({"image": None}, 422, "controlnet image is None"),
        ({"control_mode": 2}, 422, "for an IP-Adapter it is 'balanced'"),
        ({"weight": "much"}, 422, "scale is 'much'"),
        ({"mask": PICTURE}, 422, "controlnet mask is"),
    ],
)
def test_units_that_are_not_available(server: Server, unit: dict[str, Any], status: int, words: str) -> None:
    plain = {"image": PICTURE, "module": "ip-adapter-auto", "model": "ip-adapter_mini"}
    answer = with_units(server, {**plain, **unit})
    assert answer.status_code == status and words in answer.json()["detail"], answer.text


def test_an_image_with_an_ip_adapter_and_an_enlarging_network(tmp_path: Path, folder: Path) -> None:
    """With the miniature."""
    (tmp_path / "upscalers").mkdir()
    write_compact(tmp_path / "upscalers" / "2x.safetensors")
    server = ServerProcess(
        tmp_path / "store",
        "--ip-adapter-folder",
        str(folder),
        "--upscaler-folder",
        str(tmp_path / "upscalers"),
    )
    server.wait()
    try:

        def pixels(**body: Any) -> bytes:
            job = server.ask("POST", "/v1/jobs", {**SMALL, "seed": 3, **body})
            found = finished(server.url, job["id"])
            assert found["state"] == "done", found
            return requests.get(server.url + found["images"][0]["url"], timeout=60).content

        prompt = {"adapter": "ip-adapter_mini", "picture": PICTURE}
        found = [
            pixels(), pixels(image_prompts=[prompt]), pixels(hires_scale=2, hires_upscaler="2x"),
            pixels(hires_scale=2),
        ]  # fmt: skip
        assert len({*found}) == 4
        assert all(str(tmp_path).encode() not in each and str(folder).encode() not in each for each in found)
        assert "Traceback" not in server.log.read_text()
    finally:
        server.process.kill()
        server.process.wait()
