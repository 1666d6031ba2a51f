"""What the server answers: errors in the dialect of the path, its limits, and nothing ignored or changed."""

from collections.abc import Iterator

import pytest
import requests

from server_process import Server, exchange, serving
from server_workers import Plan

pytestmark = pytest.mark.enable_socket

JOB = {"prompt": "a red cube", "steps": 4}

GENERATE = ("/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), Plan(), max_steps=50, max_count=8) as running:
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


@pytest.mark.parametrize("path", [*GENERATE, "/v1/read", "/sdapi/v1/png-info", "/nothing"])
def test_a_body_that_is_too_large_is_refused_in_the_dialect_by_its_announcement(
    server: Server, path: str
) -> None:
    answer = requests.post(server.url + path, data=b"", headers={"content-length": "999999999"}, timeout=9)
    assert answer.status_code == 413
    assert "the body is too large: at most " in said(path, answer)


@pytest.mark.parametrize("path", GENERATE)
def test_a_body_that_is_too_large_is_refused_in_the_dialect_while_it_comes(server: Server, path: str) -> None:
    blocks = (b" " * 2**16 for _ in range(17))
    headers = {"content-type": "application/json"}
    answer = requests.post(server.url + path, data=blocks, headers=headers, timeout=9)
    assert answer.status_code == 413
    assert said(path, answer) == "the body is too large: at most 1048576 bytes are allowed"


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
    answer = requests.request(method, server.url + path, timeout=9)
    assert answer.status_code == status and said(path, answer)


@pytest.mark.parametrize("path", GENERATE)
def test_an_unexpected_exception_is_an_error_of_the_dialect(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.service, "settings", fail)
    answer = requests.post(server.url + path, json=JOB, timeout=9)
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
        (b'{"prompt": 7}', "prompt is 7: it must be text"),
        (b'{"prompt": "a", "priority": 99}', "priority is 99: it must be at most 10"),
        (b'{"prompt": "a", "count": "x"}', "count is 'x': it must be a whole number"),
    ],
)
def test_a_malformed_body_is_explained(server: Server, body: bytes, message: str) -> None:
    headers = {"content-type": "application/json"}
    answer = requests.post(f"{server.url}/v1/jobs", data=body, headers=headers, timeout=9)
    assert answer.status_code == 422
    assert said("/v1/jobs", answer).startswith(message)
