"""LoRAs of the server's folder: listed, used by name and in prompts, swapped, and never named by a path."""

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import webuiapi
from PIL import Image
from safetensors.torch import load_file, save_file

from adapter_files import attention, random_lora, write_lora
from server_process import Server, ServerProcess, finished, serving
from server_workers import Plan
from ssd1b.layouts import model_layout
from ssd1b.loras import MOST, PEFT_CONFIG, PEFT_FILE

pytestmark = pytest.mark.enable_socket

LAYOUT = model_layout("mini-ssd-1b")


def write(path: Path, seed: int = 1, modules: int = 8, **metadata: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = attention(LAYOUT)[:modules]
    return write_lora(path, random_lora(LAYOUT, chosen, seed=seed), LAYOUT, **metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    write(folder / "pixel-art.safetensors", ss_output_name="pixels", ss_tag_frequency={"a": {"8 bit": 3}})
    write(folder / "styles" / "ink.safetensors", 2)
    (folder / "damaged.safetensors").write_bytes(b"no adapter")
    (folder / "notes.txt").write_text("not listed")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("server")
    with serving(store, Plan(), lora_folder=str(folder)) as running:
        yield running


def post(server: Server, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}/v1/jobs", json={"prompt": "a cube", "steps": 4, **body}, timeout=60)


def test_the_folder_is_listed_with_trigger_words_and_what_fits(server: Server, folder: Path) -> None:
    found = {
        each["name"]: each for each in requests.get(f"{server.url}/v1/loras", timeout=60).json()["loras"]
    }
    assert {*found} == {"pixel-art", "styles/ink", "damaged"}
    assert found["pixel-art"]["trigger_words"] == ["8 bit"]
    assert found["pixel-art"]["families"] == {"mini-ssd-1b": "ssd-1b"}
    assert "damaged" in found["damaged"]["error"] and str(folder) not in str(found)


def test_webuiapi_lists_them_and_new_files_are_found_at_once(server: Server, folder: Path) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    api = webuiapi.WebUIApi(host=host, port=int(port))
    listed = {each["name"]: each for each in api.get_loras()}
    assert {*listed} == {"pixel-art", "styles/ink"} and listed["pixel-art"]["alias"] == "pixels"
    assert listed["styles/ink"]["path"] == "styles/ink.safetensors"
    new = write(folder / "new.safetensors", 3)
    assert requests.post(f"{server.url}/sdapi/v1/refresh-loras", timeout=60).json() == {}
    assert "new" in [each["name"] for each in api.get_loras()]
    new.unlink()
    result = api.txt2img(prompt="a cube <lora:pixel-art:1:0.8>", steps=3)
    assert "<lora:pixel-art:1:0.8>" in result.info["infotexts"][0]
    assert 'Lora hashes: "pixel-art: ' in result.info["infotexts"][0]
    assert result.info["prompt"] == "a cube"
    api.session.close()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "a cube <lora:pixel-art:0.5>"}, [("pixel-art", 0.5, 0.5)]),
        ({"prompt": "a cube <lora:ink:0.5:-1>"}, [("styles/ink", -1.0, 0.5)]),
        ({"loras": [{"name": "pixel-art"}]}, [("pixel-art", 1.0, 1.0)]),
        ({"loras": [{"name": "styles/ink", "unet": 2, "text": 0}]}, [("styles/ink", 2.0, 0.0)]),
        (
            {"prompt": "a cube <lora:ink:2>", "loras": [{"name": "pixel-art", "unet": 0.3}]},
            [("pixel-art", 0.3, 0.3), ("styles/ink", 2.0, 2.0)],
        ),
    ],
)
def test_they_are_named_in_jobs_and_prompts(
    server: Server, body: dict[str, Any], expected: list[Any]
) -> None:
    answer = post(server, **body)
    assert answer.status_code == 202, answer.text
    settings = answer.json()["settings"]
    assert settings["prompt"] == "a cube"
    assert [(each["name"], each["unet"], each["text"]) for each in settings["loras"]] == expected
    again = post(server, **settings).json()
    assert again["settings"] == settings, "an answer's settings can be sent again"
    assert finished(server.url, again["id"])["state"] == "done"


@pytest.mark.parametrize(
    ("loras", "status", "words"),
    [
        ([{"name": "pixel-rt"}], 404, "unknown lora 'pixel-rt': did you mean 'pixel-art'?"),
        ([{"name": "damaged"}], 422, "damaged.safetensors: another file, or a damaged one"),
        ([{"name": "pixel-art", "unet": 101}], 422, "it must be a number from -100 to 100"),
        ([{"name": "pixel-art", "unet": "much"}], 422, "it must be a number from -100 to 100"),
        ([{"name": "pixel-art", "weight": 1}], 422, "unknown field of loras 'weight'"),
        ([{"unet": 1}], 422, "it must be a list of objects with name, unet and text"),
        ("pixel-art", 422, "it must be a list of objects"),
        ([{"name": "pixel-art"}] * (MOST + 1), 422, f"at most {MOST}"),
        ([{"name": "../../etc/passwd"}], 404, "unknown lora"),
    ],
)
def test_what_is_wrong_is_said_before_the_job_is_queued(
    server: Server, folder: Path, loras: Any, status: int, words: str
) -> None:
    answer = post(server, loras=loras)
    assert answer.status_code == status and words in answer.json()["error"], answer.text
    assert str(folder) not in answer.text


def test_a_few_step_lora_is_listed_with_its_settings_and_jobs_use_and_are_judged_by_them(
    server: Server, folder: Path
) -> None:
    """Its name says nothing, and its metadata are not read from the folder that the process runs in."""
    own = {"sampler": "ddim", "schedule": "trailing", "steps": 3, "guidance_scale": 1.0}
    new = write(folder / "mine.safetensors", 4, ssd1b={"few_steps": "progressive student", "settings": own})
    try:
        listed = requests.get(f"{server.url}/v1/loras", timeout=60).json()["loras"]
        found = {each["name"]: each["few_steps"] for each in listed}
        assert found["pixel-art"] is None
        assert (found["mine"]["kind"], found["mine"]["settings"]) == ("progressive student", own)
        ranges = {each["setting"]: (each["low"], each["high"]) for each in found["mine"]["advice"]}
        assert ranges == {"guidance_scale": (1, 1), "steps": (3, 3)}
        job = post(server, steps=None, loras=[{"name": "mine"}]).json()
        assert own.items() <= job["settings"].items() and job["advice"] == []
        (line,) = post(server, steps=20, loras=[{"name": "mine"}]).json()["advice"]
        assert line == "steps 20: mine is made for exactly 3 (what the student was trained for)"
    finally:
        new.unlink()


def test_keys_that_match_nothing_are_advice(server: Server, folder: Path) -> None:
    new = write(folder / "odd.safetensors", 5)
    tensors = load_file(new)
    save_file(tensors | {"odd": torch.ones(1)}, new)
    try:
        body = {"prompt": "a cube", "steps": 20, "loras": [{"name": "odd"}]}
        checked = requests.post(f"{server.url}/v1/check", json=body, timeout=60).json()
        for advice in (checked["advice"], post(server, **body).json()["advice"]):
            (line,) = advice
            assert line.startswith(
                f"lora odd: 1 of {len(tensors) + 1} keys match nothing in mini-ssd-1b, such"
            )
    finally:
        new.unlink()


def test_a_folder_of_peft_is_named_by_itself(server: Server, folder: Path) -> None:
    peft = folder / "styles" / "chalk"
    write(peft / PEFT_FILE, 6)
    (peft / PEFT_CONFIG).write_text('{"lora_alpha": 2, "r": 2}')
    try:
        listed = requests.get(f"{server.url}/v1/loras", timeout=60).json()["loras"]
        assert "styles/chalk" in [each["name"] for each in listed]
        for body in ({"prompt": "a cube <lora:chalk:1>"}, {"loras": [{"name": "styles/chalk"}]}):
            job = post(server, **body).json()
            assert job["settings"]["loras"] == [{"name": "styles/chalk", "unet": 1.0, "text": 1.0}]
            (image,) = finished(server.url, job["id"])["images"]
        file = requests.get(server.url + image["url"], timeout=60).content
        read = requests.post(f"{server.url}/v1/read", data=file, timeout=60).json()
        assert read["settings"]["loras"] == job["settings"]["loras"] and read["unreproduced"] == []
    finally:
        shutil.rmtree(peft)


def test_a_server_without_a_folder_has_none(tmp_path: Path) -> None:
    with serving(tmp_path, Plan()) as server:
        assert requests.get(f"{server.url}/v1/loras", timeout=60).json() == {"loras": []}
        assert requests.get(f"{server.url}/sdapi/v1/loras", timeout=60).json() == []
        assert post(server, loras=[{"name": "x"}]).status_code == 404
        assert "this server has no LoRAs" in post(server, prompt="a <lora:x:1>").json()["error"]


def test_they_are_swapped_in_a_running_server_and_a_changed_file_is_one_clear_error(tmp_path: Path) -> None:
    """With the miniature: time of a swap, sixteen at once, files changed and removed while in use."""
    folder = tmp_path / "loras"
    for seed in range(16):
        write(folder / f"lora-{seed}.safetensors", seed, modules=200)
    server = ServerProcess(tmp_path / "store", "--lora-folder", str(folder))
    server.wait()
    try:

        def job(**body: Any) -> dict[str, Any]:
            given = {"prompt": "a large red metal sphere", "steps": 2, "seed": 3, **body}
            return server.ask("POST", "/v1/jobs", given)

        def pixels(job: dict[str, Any]) -> bytes:
            found = finished(server.url, job["id"])
            assert found["state"] == "done", found
            return requests.get(server.url + found["images"][0]["url"], timeout=60).content

        def strong(*numbers: int) -> list[dict[str, Any]]:
            return [{"name": f"lora-{number}", "unet": 0.2} for number in numbers]

        plain = pixels(job())
        first = pixels(job(loras=strong(0)))
        seconds: list[float] = []
        swapped = {plain, first}
        for number in (1, 2, 3):
            begin = time.monotonic()
            swapped.add(pixels(job(loras=strong(number))))
            seconds.append(time.monotonic() - begin)
        assert len(swapped) == 5
        assert min(seconds) < 2, f"swaps, each with an image of two steps, took {seconds} s"
        assert pixels(job(loras=strong(*range(16)))) not in swapped

        # A job that waits while its file is changed: the others are as they were before.
        (folder / "lora-2.safetensors").rename(folder / "away")
        assert "unknown lora" in requests.post(
            f"{server.url}/v1/jobs", json={"prompt": "x", "loras": strong(2)}, timeout=60
        ).json()["error"]  # fmt: skip
        busy = job(steps=40, seed=4)
        changed, removed = (job(loras=strong(number), steps=3, seed=5) for number in (3, 4))
        write(folder / "lora-3.safetensors", 99, modules=200)
        (folder / "lora-4.safetensors").unlink()
        errors = [finished(server.url, each["id"]) for each in (changed, removed)]
        assert [each["state"] for each in errors] == ["failed", "failed"]
        assert errors[0]["error"].startswith("lora-3.safetensors has changed: its SHA-256 is "), errors
        assert "lora-4.safetensors" in errors[1]["error"]
        assert str(folder) not in str(errors) and "Traceback" not in server.log.read_text()
        assert finished(server.url, busy["id"])["state"] == "done"
        for image in server.ask("GET", "/v1/pictures?limit=9")["pictures"]:
            found = requests.get(server.url + image["url"], timeout=60).content
            assert str(folder).encode() not in found, "a recipe names a file without its folder"
        # The next batch without LoRAs has the weights of the model: taking them off left no trace.
        assert colours(pixels(job(prompt="(a large red metal sphere:1)"))) == colours(plain)
    finally:
        server.process.kill()
        server.process.wait()


def colours(file: bytes) -> bytes:
    with Image.open(io.BytesIO(file)) as image:
        return image.tobytes()
