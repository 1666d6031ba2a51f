"""What the server answers: errors in the dialect of the path, its limits, and nothing ignored or changed."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from server_process import Server, exchange, serving
from server_workers import Plan

pytestmark = pytest.mark.enable_socket

JOB = {"prompt": "a red cube", "steps": 4}

GENERATE = ("/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"max_steps": 50, "max_count": 8, "max_pixels": 256 * 256}
    with serving(tmp_path_factory.mktemp("server"), Plan(), **limits) as running:
        yield running


def said(path: str, answer: requests.Response) -> str:
    """The message of an error, which has the form of the path's dialect."""
    assert answer.headers["content-type"] == "application/json", answer.text
    body = answer.json()
    if path.startswith("/sdapi/"):
        assert set(body) == {"detail"}
        return body["detail"]
    if path.startswith("/v1/images/"):
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return body["error"]["message"]
    assert set(body) == {"error", "code"}
    return body["error"]


# Errors that arise outside of routes.


@pytest.mark.parametrize(
    "path", [*GENERATE, "/v1/read", "/v1/uploads", "/sdapi/v1/img2img", "/sdapi/v1/png-info", "/nothing"]
)
def test_a_body_that_is_too_large_is_refused_in_the_dialect_by_its_announcement(
    server: Server, path: str
) -> None:
    answer = requests.post(server.url + path, data=b"", headers={"content-length": "999999999"}, timeout=60)
    assert answer.status_code == 413
    assert "the body is too large: at most " in said(path, answer)


LIMITS = {
    "/v1/images/generations": 2**20,
    # Pictures in base64.
    **dict.fromkeys(("/v1/jobs", "/v1/check", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"), 48 * 2**20),
    "/v1/uploads": 64 * 2**20, "/v1/read": 64 * 2**20,
}  # fmt: skip


@pytest.mark.parametrize(("path", "most"), LIMITS.items())
def test_a_body_that_is_too_large_is_refused_in_the_dialect_while_it_comes(
    server: Server, path: str, most: int
) -> None:
    blocks = (b" " * 2**16 for _ in range(most // 2**16 + 1))
    headers = {"content-type": "application/json"}
    answer = requests.post(server.url + path, data=blocks, headers=headers, timeout=60)
    assert answer.status_code == 413
    assert said(path, answer) == f"the body is too large: at most {most} bytes are allowed"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nosuchpath", 404), ("GET", "/nothing", 404), ("GET", "/v1/images/nothing", 404),
        ("GET", "/sdapi/v1/nothing", 404), ("PUT", "/v1/jobs", 405), ("GET", "/v1/images/generations", 405),
        ("GET", "/sdapi/v1/txt2img", 405),
    ],
)  # fmt: skip
def test_unknown_paths_and_methods_are_errors_of_the_dialect(
    server: Server, method: str, path: str, status: int
) -> None:
    answer = requests.request(method, server.url + path, timeout=60)
    assert answer.status_code == status and said(path, answer)


@pytest.mark.parametrize("path", GENERATE)
def test_an_unexpected_exception_is_an_error_of_the_dialect(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.service, "settings", fail)
    answer = requests.post(server.url + path, json=JOB, timeout=60)
    assert answer.status_code == 500
    assert said(path, answer) == "unexpected error; see the server's log"


@pytest.mark.parametrize(
    "sent",
    [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 70_000],
)
def test_what_is_no_request_is_refused_as_json(server: Server, sent: bytes) -> None:
    head, _, body = exchange(server, sent).partition(b"\r\n\r\n")
    assert b" 400 " in head.splitlines()[0] and b"application/json" in head
    assert body.startswith(b'{"error": "no valid HTTP request')


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is no JSON: "),
        (b"[]", "the body must be a JSON object"),
        (b"{}", "prompt is missing"),
        (b'{"promt": "x"}', "prompt is missing: did you mean it by 'promt'?"),
        (b'{"prompt": "x", "cfg": 3, "guidance": 3}', "guidance and guidance_scale are the same setting"),
        (b'{"prompt": "x", "size": "64x64", "width": 64}', "size and width are the same setting"),
        (b'{"prompt": "x", "speed": "turbo"}', "there is no field 'speed': model chooses a few-step variant"),
        (b'{"prompt": "x", "dtype": "fp16"}', "there is no field 'dtype': the server was started with it"),
        (b'{"prompt": "x", "size": 64}', "size is 64: it must be a text like 1024x768"),
        (b'{"prompt": 7}', "prompt is 7: it must be text"),
        (b'{"prompt": "a", "priority": 99}', "priority is 99: it must be at most 10"),
        (b'{"prompt": "a", "count": "x"}', "count is 'x': it must be a whole number"),
    ],
)
def test_a_malformed_body_is_explained(server: Server, body: bytes, message: str) -> None:
    headers = {"content-type": "application/json"}
    answer = requests.post(f"{server.url}/v1/jobs", data=body, headers=headers, timeout=60)
    assert answer.status_code == 422
    assert said("/v1/jobs", answer).startswith(message)


# The limits of this server.


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/jobs", {"steps": 2000}, "steps is 2000: it must be a whole number from 1 to 50 (this server's"),
        ("/v1/jobs", {"steps": 0}, "steps is 0: it must be a whole number from 1 to 50 (this server's"),
        ("/v1/check", {"steps": 51}, "steps is 51: it must be a whole number from 1 to 50"),
        ("/v1/images/generations", {"steps": 51}, "steps is 51: it must be a whole number from 1 to 50"),
        ("/sdapi/v1/txt2img", {"steps": 51}, "steps is 51: it must be a whole number from 1 to 50"),
        ("/v1/jobs", {"width": 4096}, "width is 4096: it must be a multiple of 8 from 64 to 1024"),
        ("/v1/images/generations", {"size": "4096x64"}, "width is 4096: it must be a multiple of 8 from 64"),
        ("/v1/jobs", {"width": 264, "height": 256}, "size is 264x256: this server allows at most 65536"),
        ("/v1/jobs", {"count": 2000}, "count is 2000: this server allows 1 to 8 images"),
        ("/v1/jobs", {"timesteps": "1000,500,300,100"}, "timesteps begin with 1000: the model's are 0"),
        ("/v1/check", {"count": 9}, "count is 9: this server allows 1 to 8 images"),
        ("/v1/images/generations", {"n": 2000}, "n is 2000: this server allows 1 to 8 images"),
        ("/sdapi/v1/txt2img", {"batch_size": 3, "n_iter": 3}, "batch_size * n_iter is 9: this server allows"),
    ],
)  # fmt: skip
def test_a_refusal_states_the_limits_of_this_server(
    server: Server, path: str, body: dict[str, Any], message: str
) -> None:
    answer = requests.post(server.url + path, json=JOB | body, timeout=60)
    assert answer.status_code in (400, 422)
    assert said(path, answer).startswith(message)


def test_settings_and_documentation_state_the_limits_of_this_server(server: Server) -> None:
    found = requests.get(f"{server.url}/v1/settings", timeout=60).json()["settings"]
    highest = {each["name"]: each["high"] for each in found}
    assert (highest["steps"], highest["width"], highest["height"]) == (50, 1024, 1024)
    schemas = requests.get(f"{server.url}/openapi.json", timeout=60).json()["components"]["schemas"]
    properties = {model: schemas[model]["properties"] for model in ("JobBody", "Generation", "TextToImage")}
    stated = {
        model: {name: each["maximum"] for name, each in fields.items() if "maximum" in each}
        for model, fields in properties.items()
    }
    images = {"steps": 50, "width": 1024, "height": 1024}
    assert images.items() <= stated["JobBody"].items() and stated["JobBody"]["count"] == 8
    assert stated["Generation"] == {"n": 8}
    assert stated["TextToImage"] == {**images, "batch_size": 8, "n_iter": 8}
    assert "65536 pixels" in properties["JobBody"]["width"]["description"]


# Nothing is ignored, but by the dialects whose clients send more than is known.


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("GET", "/v1/jobs?stat=done", None, "query parameter 'stat': did you mean 'state'?"),
        ("GET", "/v1/jobs?state=don", None, "state.0 is 'don': it must be 'queued', 'running', 'done', '"),
        ("POST", "/v1/jobs?steps=4", JOB, "query parameter 'steps': allowed: none"),
        ("GET", "/v1/jobs/{job}/events?preview=1", None, "query parameter 'preview': did you mean"),
        ("GET", "/v1/events?preview=true", None, "query parameter 'preview': did you mean"),
        ("GET", "/v1/pictures?favorite=true", None, "query parameter 'favorite': did you mean 'favourite'"),
        ("GET", "/v1/settings?model=x", None, "query parameter 'model': allowed: none"),
        ("POST", "/v1/jobs", {"stepz": 4}, "setting 'stepz': did you mean 'steps'?"),
        ("POST", "/v1/jobs", {"prioritiy": 4}, "setting 'prioritiy': did you mean 'priority'?"),
        ("PATCH", "/v1/jobs/{job}", {"priorty": 1}, "field 'priorty': did you mean 'priority'?"),
        ("PATCH", "/v1/pictures/x", {"favorite": True}, "field 'favorite': did you mean 'favourite'?"),
    ],
)  # fmt: skip
def test_unknown_names_are_refused_with_the_nearest(
    server: Server, method: str, path: str, body: Any, message: str
) -> None:
    job = requests.post(f"{server.url}/v1/jobs", json=JOB, timeout=60).json()["id"]
    sent = JOB | body if method == "POST" else body
    answer = requests.request(method, server.url + path.replace("{job}", job), json=sent, timeout=60)
    assert answer.status_code == 422
    assert said(path, answer).removeprefix("unknown ").startswith(message)


@pytest.mark.parametrize("path", ["/v1/models", "/sdapi/v1/options", "/healthz", "/"])
def test_other_clients_may_send_parameters_that_are_unknown(server: Server, path: str) -> None:
    assert requests.get(f"{server.url}{path}?user=alice", timeout=60).status_code == 200


# Seeds.


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_a_seed_is_the_same_in_every_answer(server: Server, seed: int) -> None:
    body = {**JOB, "seed": seed}
    answers = {path: requests.post(server.url + path, json=body, timeout=30).json() for path in GENERATE}
    native, openai, sdapi = answers.values()
    info = json.loads(sdapi["info"])
    image = native["images"][0]
    recipe = requests.get(f"{server.url}/v1/pictures/{image['id']}/recipe", timeout=60).json()
    found = [
        native["settings"]["seed"], image["seed"], openai["data"][0]["seed"], info["seed"],
        *info["all_seeds"], sdapi["parameters"]["seed"], recipe["settings"]["seed"],
    ]  # fmt: skip
    assert found == [seed] * 7
    assert f"Seed: {seed}," in info["infotexts"][0]


def test_seeds_of_a_job_begin_anew_after_the_largest(server: Server) -> None:
    body = {**JOB, "seed": 2**32 - 1, "count": 3}
    images = requests.post(f"{server.url}/v1/jobs", json=body, timeout=60).json()["images"]
    assert [each["seed"] for each in images] == [2**32 - 1, 0, 1]


@pytest.mark.parametrize("path", [*GENERATE, "/v1/check"])
@pytest.mark.parametrize("seed", [2**32, 2**53 + 1, 2**64, -2, 1.5])
def test_a_seed_beyond_32_bits_is_refused_and_not_reduced(server: Server, path: str, seed: float) -> None:
    answer = requests.post(server.url + path, json={**JOB, "seed": seed}, timeout=60)
    assert answer.status_code in (400, 422)
    assert said(path, answer).startswith(f"seed is {seed}: it must be a whole number")


def test_a_larger_seed_of_another_programs_image_is_reported(server: Server) -> None:
    file = io.BytesIO()
    text = PngInfo()
    text.add_text("parameters", f"a red cube\nSteps: 4, Sampler: Euler, Seed: {2**53 + 1}, Size: 64x64")
    Image.new("RGB", (64, 64)).save(file, "PNG", pnginfo=text)
    found = requests.post(f"{server.url}/v1/read", data=file.getvalue(), timeout=60).json()
    assert found["settings"]["seed"] == 1, "the lowest 32 bits"
    assert any(f"the seed {2**53 + 1}" in each for each in found["unreproduced"])
