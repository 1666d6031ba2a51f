"""Styles, wildcards and embeddings over HTTP: listed, used by name, found again, and swapped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import webuiapi
from safetensors.torch import save_file

from server_process import Server, ServerProcess, finished, serving
from server_workers import Plan
from ssd1b.layouts import model_layout

pytestmark = pytest.mark.enable_socket

STYLES = 'name,prompt,negative_prompt\nInk,"ink drawing of {prompt}",photo\nSoft,"soft light",\n'
SMALL = {"steps": 2, "width": 64, "height": 64}


def write_embedding(path: Path, *, seed: int = 0, vectors: int = 2, wider: int = 0) -> Path:
    layout = model_layout("mini-ssd-1b")
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    widths = {"clip_l": layout.text_encoder.hidden_size, "clip_g": layout.text_encoder_2.hidden_size}
    save_file({name: torch.randn(vectors, width + wider) for name, width in widths.items()}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    write_embedding(folder / "embeddings" / "cat-toy.safetensors")
    write_embedding(folder / "embeddings" / "bad" / "deepneg.safetensors", vectors=3)
    write_embedding(folder / "embeddings" / "wide.safetensors", wider=8)
    (folder / "embeddings" / "damaged.safetensors").write_bytes(b"no embedding")
    (folder / "wildcards").mkdir()
    (folder / "wildcards" / "colours.txt").write_text("red\ngreen\nblue\nyellow\n")
    (folder / "styles.csv").write_text(STYLES)
    return folder


def options(folder: Path) -> dict[str, str]:
    return {
        "embedding_folder": str(folder / "embeddings"), "wildcard_folder": str(folder / "wildcards"),
        "styles": str(folder / "styles.csv"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), Plan(), **options(folder)) as running:
        yield running


def post(server: Server, prompt: str, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}/v1/jobs", json={"prompt": prompt, **SMALL, **body}, timeout=60)


def settings(server: Server, prompt: str, **body: Any) -> dict[str, Any]:
    answer = post(server, prompt, **body)
    assert answer.status_code == 202, answer.text
    return answer.json()["settings"]


def test_they_are_listed(server: Server, folder: Path) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    api = webuiapi.WebUIApi(host=host, port=int(port))
    assert api.get_prompt_styles() == [
        {"name": "Ink", "prompt": "ink drawing of {prompt}", "negative_prompt": "photo"},
        {"name": "Soft", "prompt": "soft light", "negative_prompt": ""},
    ]
    found = api.get_embeddings()
    assert {name: each["vectors"] for name, each in found["loaded"].items()} == {
        "cat-toy": 2, "deepneg": 3, "wide": 2
    }  # fmt: skip
    assert [*found["skipped"]] == ["damaged"]
    api.session.close()
    answer = requests.get(f"{server.url}/v1/embeddings", timeout=60)
    rows = {each["name"]: each for each in answer.json()["embeddings"]}
    assert (rows["bad/deepneg"]["word"], rows["bad/deepneg"]["vectors"]) == ("deepneg", 3)
    assert "damaged" in rows["damaged"]["error"] and str(folder) not in answer.text
    styles = requests.get(f"{server.url}/v1/styles", timeout=60).json()["styles"]
    assert [each["name"] for each in styles] == ["Ink", "Soft"]


def test_styles_are_put_around_the_prompt(server: Server) -> None:
    found = settings(server, "a cube", styles=["Ink", "Soft"], negative_prompt="blurry")
    assert found["prompt"] == "ink drawing of a cube, soft light"
    assert found["negative_prompt"] == "blurry, photo"
    assert settings(server, **found) == found, "a prompt is composed once"
    answer = requests.post(
        f"{server.url}/sdapi/v1/txt2img", json={"prompt": "a cone", "styles": ["Ink"], **SMALL}, timeout=60
    ).json()
    assert "ink drawing of a cone\nNegative prompt: photo" in answer["info"].replace("\\n", "\n")
    for path in ("/v1/jobs", "/sdapi/v1/txt2img"):
        wrong = requests.post(f"{server.url}{path}", json={"prompt": "x", "styles": ["Inc"]}, timeout=60)
        assert wrong.status_code == 422 and "unknown style 'Inc': allowed: Ink, Soft" in wrong.text


def test_words_are_drawn_anew_for_each_image_and_by_the_seed(server: Server) -> None:
    job = post(server, "a __colours__ {cube|cone}", count=8, seed=5).json()
    images = finished(server.url, job["id"])["images"]
    prompts = [
        requests.get(f"{server.url}/v1/pictures/{each['id']}/recipe", timeout=60).json()["settings"]["prompt"]
        for each in images
    ]
    assert len({*prompts}) > 3 and all(len(prompt.split()) == 3 for prompt in prompts)
    assert [each["seed"] for each in images] == [*range(5, 13)]
    assert settings(server, "a __colours__ {cube|cone}", seed=7)["prompt"] == prompts[2]
    wrong = post(server, "a __colour__ cube")
    assert wrong.status_code == 404 and "did you mean 'colours'" in wrong.json()["error"]


def test_embeddings_are_used_by_their_words(server: Server) -> None:
    found = settings(server, "a Cat-Toy on a table", negative_prompt="deepneg")
    assert found["embeddings"] == [
        {"name": "bad/deepneg", "word": "deepneg"}, {"name": "cat-toy", "word": "cat-toy"}
    ]  # fmt: skip
    assert settings(server, **found) == found
    other = settings(server, "a <toy>", embeddings=[{"name": "cat-toy", "word": "<toy>"}])
    assert other["embeddings"] == [{"name": "cat-toy", "word": "<toy>"}]
    checked = requests.post(f"{server.url}/v1/check", json={"prompt": "cat-toy", **SMALL}, timeout=60).json()
    assert checked["settings"]["embeddings"] == [{"name": "cat-toy", "word": "cat-toy"}]
    job = post(server, "a cat-toy").json()
    (image,) = finished(server.url, job["id"])["images"]
    file = requests.get(server.url + image["url"], timeout=60).content
    read = requests.post(f"{server.url}/v1/read", data=file, timeout=60).json()
    assert read["settings"]["embeddings"] == [{"name": "cat-toy", "word": "cat-toy"}]
    assert read["unreproduced"] == []


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"prompt": "wide"}, 422, "channels, and this model's text encoder"),
        ({"prompt": "a damaged cube"}, 422, "damaged.safetensors: another file"),
        ({"embeddings": [{"name": "cat-to"}]}, 404, "unknown embedding 'cat-to': did you mean 'cat-toy'"),
        ({"embeddings": [{"name": "/etc/hostname"}]}, 404, "unknown embedding"),
        ({"embeddings": [{"name": "cat-toy", "word": ["x"]}]}, 422, "word is ['x']"),
        ({"embeddings": [{"name": "cat-toy", "word": "a:b"}]}, 422, "none of []()"),
        ({"embeddings": [{"name": "cat-toy", "vectors": 2}]}, 422, "unknown field of embeddings 'vectors'"),
        ({"embeddings": "cat-toy"}, 422, "it must be a list of objects with name and word"),
        ({"styles": "Ink"}, 422, "styles"),
        ({"styles": [3]}, 422, "styles"),
        ({"seed": [3]}, 422, "seed is [3]"),
        ({"negative_prompt": 3}, 422, "negative_prompt is 3"),
    ],
)
def test_what_is_wrong_is_said(
    server: Server, folder: Path, body: dict[str, Any], status: int, words: str
) -> None:
    answer = post(server, **{"prompt": "x", **body})
    assert answer.status_code == status and words in answer.json()["error"], answer.text
    assert str(folder) not in answer.text


def test_words_are_drawn_in_the_prompts_of_the_second_pass(server: Server) -> None:
    texts = {"hires_prompt": "a __colours__ cat-toy", "hires_negative_prompt": "{x|x} deepneg"}
    found = settings(server, "a __colours__ cube", hires_scale=1.25, **texts)
    assert found["hires_prompt"] == f"a {found['prompt'].split()[1]} cat-toy", "the same seed draws"
    assert found["hires_negative_prompt"] == "x deepneg"
    assert {each["word"] for each in found["embeddings"]} == {"cat-toy", "deepneg"}
    refused = post(server, "x", hires_scale=1.25, hires_prompt="a <lora:x:1>")
    assert refused.status_code == 422 and "leave '<lora:x:1>' out of the prompt" in refused.json()["error"]


def test_changed_files_count_at_once(server: Server, folder: Path) -> None:
    (folder / "styles.csv").write_text(STYLES + "New,new {prompt},\n")
    assert settings(server, "a cube", styles=["New"])["prompt"] == "new a cube"
    (folder / "wildcards" / "shapes.txt").write_text("cube\n")
    assert settings(server, "a __shapes__")["prompt"] == "a cube"
    late = write_embedding(folder / "embeddings" / "late.safetensors")
    assert settings(server, "late")["embeddings"] == [{"name": "late", "word": "late"}]
    late.unlink()
    assert settings(server, "late")["embeddings"] == []
    (folder / "styles.csv").write_text("no styles")
    broken = post(server, "a cube")
    assert broken.status_code == 422 and "styles.csv: the first line must name" in broken.json()["error"]
    assert str(folder) not in broken.text
    (folder / "styles.csv").write_text(STYLES)


def test_a_server_without_them_leaves_words_alone(tmp_path: Path) -> None:
    with serving(tmp_path, Plan()) as server:
        assert settings(server, "a {red|green} cat-toy")["prompt"] == "a {red|green} cat-toy"
        assert post(server, "x", styles=["Ink"]).status_code == 422
        assert requests.get(f"{server.url}/sdapi/v1/prompt-styles", timeout=60).json() == []


def test_an_embedding_that_changes_while_its_job_waits_is_one_clear_error(tmp_path: Path) -> None:
    """With the miniature."""
    file = write_embedding(tmp_path / "embeddings" / "toy.safetensors")
    lamp = write_embedding(tmp_path / "embeddings" / "lamp.safetensors", seed=2)
    server = ServerProcess(tmp_path / "store", "--embedding-folder", str(file.parent))
    server.wait()
    try:

        def job(prompt: str, **body: Any) -> dict[str, Any]:
            return server.ask("POST", "/v1/jobs", {"prompt": prompt, "steps": 2, "seed": 3, **body})

        def pixels(job: dict[str, Any]) -> bytes:
            found = finished(server.url, job["id"])
            assert found["state"] == "done", found
            return requests.get(server.url + found["images"][0]["url"], timeout=60).content

        first = pixels(job("a large toy"))
        busy = job("busy", steps=60)
        waiting = job("a large lamp")
        write_embedding(lamp, seed=9)
        write_embedding(file, seed=9)
        found = finished(server.url, waiting["id"])
        assert (found["state"], finished(server.url, busy["id"])["state"]) == ("failed", "done")
        assert found["error"].startswith("lamp.safetensors has changed: its SHA-256 is ")
        assert pixels(job("a large toy")) != first
        assert str(file.parent) not in str(found) and "Traceback" not in server.log.read_text()
    finally:
        server.process.kill()
        server.process.wait()
