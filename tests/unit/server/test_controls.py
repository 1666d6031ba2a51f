"""ControlNets and T2I-Adapters over HTTP: listed, used by name with a client's picture, by two APIs."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import webuiapi
from safetensors.torch import save_file

from picture_files import as_bytes, smooth
from server_process import SMALL, Server, ServerProcess, finished, newest, serving, with_units
from server_workers import Plan
from ssd1b.controls import BUILT_IN, MOST, STEMS
from ssd1b.layouts import T2IAdapterLayout, model_layout
from ssd1b.models.t2i_adapter import T2IAdapter

pytestmark = pytest.mark.enable_socket

SQUARE, WIDE = (base64.b64encode(as_bytes(smooth(*size))).decode() for size in ((64, 64), (128, 64)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controls")
    network = BUILT_IN["mini-control"] / STEMS[0]
    (folder / "edges" / "blue-first").mkdir(parents=True)
    shutil.copy(network, folder / "edges" / "canny.safetensors")
    shutil.copy(network, folder / "edges" / "blue-first" / STEMS[0])
    config = {"_class_name": "ControlNetModel", "controlnet_conditioning_channel_order": "bgr"}
    (folder / "edges" / "blue-first" / "config.json").write_text(json.dumps(config))
    (folder / "damaged.safetensors").write_bytes(b"no network")
    widths = [each.channels for each in model_layout("mini-ssd-1b").unet.levels]
    for name, factor in {"sketch": 1, "large": 2}.items():
        channels = tuple(factor * each for each in (*widths, widths[-1]))
        adapter = T2IAdapter(T2IAdapterLayout(channels=channels, depth=1, picture_channels=1))
        save_file(adapter.state_dict(), folder / f"{name}.safetensors")
    (folder / "notes.txt").write_text("not listed")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("server")
    with serving(store, Plan(), control_folder=str(folder)) as running:
        yield running


def post(server: Server, *controls: Any, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}/v1/jobs", json={**SMALL, "controls": controls, **body}, timeout=60)


def test_the_folder_is_listed_with_what_fits(server: Server, folder: Path) -> None:
    answer = requests.get(f"{server.url}/v1/controls", timeout=60).json()
    found = {each["name"]: each for each in answer["controls"]}
    mine = ["mini-ssd-1b"]
    assert {name: each["models"] for name, each in found.items()} == {
        "mini-control": mine, "edges/canny": mine, "edges/blue-first": mine, "sketch": mine, "large": [],
        "damaged": [],
    }  # fmt: skip
    assert (found["sketch"]["kind"], found["edges/canny"]["kind"]) == ("t2i_adapter", "controlnet")
    assert "damaged" in found["damaged"]["error"] and str(folder) not in str(answer)
    assert answer["preprocessors"] == ["none", "canny"]


def test_several_are_used_by_name_and_the_answer_can_be_sent_again(server: Server, folder: Path) -> None:
    upload = requests.post(f"{server.url}/v1/uploads", data=base64.b64decode(WIDE), timeout=60).json()["id"]
    given = [
        {"model": "mini-control", "picture": SQUARE},
        {"model": "blue-first", "picture": upload, "scale": 0.5, "start": 0.1, "end": 0.9,
         "preprocess": "canny", "guess": True},
        {"model": "sketch", "picture": f"data:image/png;base64,{SQUARE}"},
    ]  # fmt: skip
    answer = post(server, *given, prompt="three")
    assert answer.status_code == 202, answer.text
    settings = answer.json()["settings"]
    assert [each["model"] for each in settings["controls"]] == ["mini-control", "edges/blue-first", "sketch"]
    assert settings["controls"][1] == {**given[1], "model": "edges/blue-first"}
    job = finished(server.url, answer.json()["id"])
    assert job["state"] == "done" and str(folder) not in str(job)
    assert post(server, **settings).json()["settings"] == settings
    # The file has them all for the next one, too.
    file = requests.get(server.url + job["images"][0]["url"], timeout=60).content
    assert str(folder).encode() not in file and b'"order": "bgr"' in file
    read = requests.post(f"{server.url}/v1/read", data=file, timeout=60).json()
    assert read["unreproduced"] == []
    models = [each["model"] for each in read["settings"]["controls"]]
    assert models[2] == "sketch" and {*models[:2]} <= {"mini-control", "edges/blue-first"}


@pytest.mark.parametrize(
    ("control", "status", "words"),
    [
        ({"model": "edges/cany", "picture": SQUARE}, 404, "did you mean 'edges/canny'"),
        ({"model": "../edges", "picture": SQUARE}, 404, "unknown control"),
        ({"model": "/etc/passwd", "picture": SQUARE}, 404, "unknown control"),
        ({"model": "large", "picture": SQUARE}, 422, "large.safetensors: its features have"),
        ({"model": "damaged", "picture": SQUARE}, 422, "damaged.safetensors"),
        ({"model": "sketch", "picture": SQUARE, "guess": True}, 422, "guess is for ControlNets"),
        ({"model": "mini-control"}, 422, "control 'mini-control' has no picture"),
        ({"model": "mini-control", "picture": "/etc/passwd"}, 422, "no valid base64"),
        ({"model": "mini-control", "picture": "0" * 64}, 404, "there is no upload"),
        ({"model": "mini-control", "picture": SQUARE, "scale": 11}, 422, "scale is 11"),
        ({"model": "mini-control", "picture": SQUARE, "scale": "much"}, 422, "scale is 'much'"),
        ({"model": "mini-control", "picture": SQUARE, "start": 1}, 422, "must be less than end"),
        ({"model": "mini-control", "picture": SQUARE, "preprocess": "cany"}, 422, "did you mean 'canny'"),
        ({"model": "mini-control", "picture": SQUARE, "weight": 1}, 422, "field of controls 'weight'"),
        ({"picture": SQUARE}, 422, "list of objects with model and picture"),
        ("mini-control", 422, "list of objects with model and picture"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_the_job_is_queued(
    server: Server, folder: Path, control: Any, status: int, words: str
) -> None:
    answer = post(server, control)
    assert answer.status_code == status and words in answer.json()["error"], answer.text
    assert str(folder) not in answer.text and str(server.options.folder) not in answer.text


def test_limits(server: Server, tmp_path: Path) -> None:
    one = {"model": "mini-control", "picture": SQUARE}
    assert f"at most {MOST}" in post(server, *[one] * (MOST + 1)).json()["error"]
    odd = post(server, {"model": "sketch", "picture": SQUARE}, width=72)
    assert "multiples of 16" in odd.json()["error"]
    with serving(tmp_path, Plan()) as plain:
        listed = requests.get(f"{plain.url}/v1/controls", timeout=60).json()["controls"]
        assert [each["name"] for each in listed] == ["mini-control"]
        assert post(plain, one).status_code == 202


# AUTOMATIC1111's extension.


def test_webuiapi_lists_and_uses_them(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    api = webuiapi.WebUIApi(host=host, port=int(port))
    assert api.controlnet_version() == 2
    listed = ["mini-control", "edges/blue-first", "edges/canny", "sketch"]
    assert sorted(api.controlnet_model_list()) == sorted(listed)
    assert api.controlnet_module_list() == ["none", "canny"]
    unit = webuiapi.ControlNetUnit(image=smooth(64, 64), model="edges/canny", weight=0.5, guidance_end=0.8)
    # Its default for alwayson_scripts is one object for all calls.
    result = api.txt2img(**SMALL, alwayson_scripts={}, controlnet_units=[unit])
    assert result.image.size == (64, 64) and result.parameters["alwayson_scripts"] == {}
    (control,) = newest(server)["controls"]
    assert (control["model"], control["scale"], control["end"]) == ("edges/canny", 0.5, 0.8)
    # Without a picture a unit follows the one that the image starts from.
    unit = webuiapi.ControlNetUnit(model="mini-control", control_mode=2)
    api.img2img(images=[smooth(64, 64)], **SMALL, alwayson_scripts={}, controlnet_units=[unit])
    settings = newest(server)
    assert settings["controls"][0]["picture"] == settings["init_image"] and settings["controls"][0]["guess"]
    api.has_controlnet = True  # then it always sends the script
    api.txt2img(**SMALL, alwayson_scripts={})
    assert newest(server)["controls"] == []
    api.session.close()


@pytest.mark.parametrize("unit", [
    {"input_image": SQUARE, "model": "mini-control [0123abcd]"},
    {"image": f"data:,{SQUARE}", "model": "mini-control", "control_mode": 0, "resize_mode": 2},
    {"image": {"image": SQUARE, "mask": None}, "model": "mini-control.safetensors", "module": None},
    {"image": SQUARE, "model": "mini-control", "module": "Canny", "threshold_a": -1, "threshold_b": 200},
    {"image": WIDE, "model": "mini-control", "resize_mode": "Just Resize", "pixel_perfect": True},
    {"image": WIDE, "model": "mini-control", "resize_mode": "Scale to Fit (Inner Fit)", "lowvram": True},
])  # fmt: skip
def test_units_of_other_clients(server: Server, unit: dict[str, Any]) -> None:
    answer = with_units(server, unit, {"enabled": False, "model": "unknown"})
    assert answer.status_code == 200, answer.text
    settings = newest(server)
    (control,) = settings["controls"]
    assert control["model"] == "mini-control"
    assert control["preprocess"] == ("canny" if unit.get("module") else "none")
    assert settings["resize_mode"] == ("stretch" if unit.get("resize_mode") == "Just Resize" else "crop")


@pytest.mark.parametrize(
    ("unit", "status", "words"),
    [
        ({"model": "mini-contro"}, 404, "did you mean 'mini-control'"),
        ({"model": "None"}, 422, "controlnet model is 'None': name one of /controlnet/model_list"),
        ({"image": None}, 422, "controlnet image is None: it must be a picture in base64"),
        ({"image": "AAAA"}, 422, "not a readable PNG"),
        ({"module": "depth_midas"}, 422, "unknown controlnet module 'depth_midas'"),
        ({"module": "canny", "threshold_a": 64}, 422, "controlnet threshold_a is 64: canny has 100 here"),
        ({"control_mode": "My prompt is more important"}, 422, "controlnet control_mode is"),
        ({"control_mode": "Balancd"}, 422, "did you mean 'balanced'"),
        ({"image": WIDE, "resize_mode": 2}, 422, "controlnet resize_mode is 2: for a picture of another"),
        ({"mask": SQUARE}, 422, "controlnet mask is"),
        ({"hr_option": "High res only"}, 422, "controlnet hr_option is 'High res only'"),
        ({"weight": -1}, 422, "scale is -1"),
    ],
)
def test_what_is_not_available_is_refused_in_a_line(
    server: Server, unit: dict[str, Any], status: int, words: str
) -> None:
    answer = with_units(server, {"image": SQUARE, "model": "mini-control", **unit})
    assert answer.status_code == status and words in answer.json()["detail"], answer.text
    assert "\n" not in answer.json()["detail"] and len(answer.text) < 500


def test_a_request_may_have_no_other_scripts_and_the_lists_are_as_clients_ask(server: Server) -> None:
    scripts = {"ADetailer": {"args": [{"ad_model": "x"}]}}
    answer = with_units(server, alwayson_scripts=scripts)
    assert answer.status_code == 422 and "Script not found: 'ADetailer'" in answer.json()["detail"]
    for args in ("x", [1]):
        scripts = {"controlnet": {"args": args}}
        answer = with_units(server, alwayson_scripts=scripts)
        assert answer.status_code == 422 and "list of objects" in answer.json()["detail"]
    kinds = requests.get(f"{server.url}/controlnet/control_types", timeout=60).json()["control_types"]
    assert kinds["Canny"]["default_option"] == "canny" and "sketch" in kinds["All"]["model_list"]
    url = f"{server.url}/controlnet/module_list?alias_names=true"
    assert {*requests.get(url, timeout=60).json()["module_detail"]} == {"none", "canny"}
    answer = requests.get(f"{server.url}/controlnet/settings", timeout=60).json()
    assert answer == {"control_net_unit_count": MOST}
    assert "controlnet" in requests.get(f"{server.url}/sdapi/v1/scripts", timeout=60).json()["txt2img"]
    assert "detail" in requests.get(f"{server.url}/controlnet/nothing", timeout=60).json()


def test_the_miniature_follows_a_picture_over_http(tmp_path: Path, folder: Path) -> None:
    """With the model: a control changes the image, and a network that changes while in use is one error."""
    own = tmp_path / "controls"
    shutil.copytree(folder, own)
    server = ServerProcess(tmp_path / "store", "--control-folder", str(own))
    server.wait()
    try:

        def job(**body: Any) -> dict[str, Any]:
            return server.ask("POST", "/v1/jobs", {**SMALL, "seed": 3, **body})

        control = {"model": "edges/canny", "picture": SQUARE, "preprocess": "canny"}
        jobs = [job(), job(controls=[control]), job(controls=[control, {**control, "model": "sketch"}])]
        done = [finished(server.url, each["id"]) for each in jobs]
        assert [each["state"] for each in done] == ["done"] * 3, done
        files = {requests.get(server.url + each["images"][0]["url"], timeout=60).content for each in done}
        assert len(files) == 3 and not any(str(tmp_path).encode() in each for each in files)
        busy, late = job(steps=40, seed=4), job(controls=[control], seed=5)
        shutil.copy(own / "sketch.safetensors", own / "edges" / "canny.safetensors")
        failed = finished(server.url, late["id"])
        assert failed["state"] == "failed" and "canny.safetensors has changed" in failed["error"]
        assert str(tmp_path) not in failed["error"]
        assert finished(server.url, busy["id"])["state"] == "done"
    finally:
        server.process.kill()
        server.process.wait()
