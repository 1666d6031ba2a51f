"""Faults: disconnecting, stalling and hostile clients, full disks, failing devices."""

import base64
import gzip
import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from PIL import Image

from picture_files import as_bytes, smooth
from server_process import Server, connect, exchange, finished, leave, serving
from server_workers import Plan
from ssd1b.server import connections
from ssd1b.server.app import make_app
from ssd1b.server.options import Key
from ssd1b.server.security import OPEN_PATHS, PAGE
from waiting import wait_for

pytestmark = pytest.mark.enable_socket

MODEL = "mini-ssd-1b"
JOB = {"prompt": "a red cube", "steps": 4}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), Plan()) as running:
        yield running


def post(server: Server, path: str = "/v1/jobs", **body: Any) -> requests.Response:
    return requests.post(server.url + path, json=body or JOB, timeout=60)


# Too much at once.


def test_a_burst_beyond_the_queue_is_refused_at_once_and_what_was_accepted_finishes(tmp_path: Path) -> None:
    plan = Plan()
    with serving(tmp_path, plan, max_pending=20) as server, ThreadPoolExecutor(32) as pool:
        plan.gate.clear()
        before = psutil.Process().memory_info().rss
        answers = list(pool.map(lambda seed: post(server, **JOB, seed=seed), range(200)))
        assert psutil.Process().memory_info().rss - before < 100e6
        accepted = [each for each in answers if each.status_code == 202]
        refused = [each for each in answers if each.status_code == 429]
        assert len(accepted) == 20 and len(refused) == 180
        assert all(
            int(each.headers["retry-after"]) >= 1 and each.json()["code"] == "queue_full" for each in refused
        )
        plan.gate.set()  # until now nothing was generated, so no answer waited for an image
        assert {finished(server.url, each.json()["id"])["state"] for each in accepted} == {"done"}


def test_a_client_that_leaves_while_it_waits_is_never_served(tmp_path: Path) -> None:
    plan = Plan()
    with serving(tmp_path, plan) as server:
        plan.gate.clear()
        post(server, prompt="first", steps=4)
        leave(server, "/sdapi/v1/txt2img", "left", steps=4)
        wait_for(lambda: len(requests.get(f"{server.url}/v1/queue", timeout=60).json()) == 1)
        plan.gate.set()
        last = post(server, prompt="last", steps=4).json()["id"]
        assert finished(server.url, last)["state"] == "done"
        assert [prompt for batch in plan.batches for prompt in batch] == ["first", "last"]


def test_a_deadline_is_an_answer_of_its_own(tmp_path: Path) -> None:
    with serving(tmp_path, Plan(seconds=0.2), max_seconds=1.0) as server:
        answer = requests.post(f"{server.url}/v1/images/generations", json=JOB | {"steps": 100}, timeout=60)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline"
        steps = server.plan.steps
        assert finished(server.url, post(server, **JOB | {"steps": 1}).json()["id"])["state"] == "done"
        assert server.plan.steps <= steps + 2  # the batch that was too late stopped


# The device and the process.


def test_a_device_that_fails_is_replaced_and_the_images_are_there(tmp_path: Path) -> None:
    plan = Plan()
    plan.broken["a red cube"] = "CUDA error: an illegal memory access was encountered"
    with serving(tmp_path, plan) as server:
        job = post(server).json()["id"]
        deadline = time.monotonic() + 30
        while len(plan.loads) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        plan.broken.clear()
        answer = finished(server.url, job)
        assert answer["state"] in ("done", "failed") and len(plan.loads) >= 2
        assert finished(server.url, post(server, prompt="another", steps=4).json()["id"])["state"] == "done"


def test_what_failed_can_be_tried_again(tmp_path: Path) -> None:
    plan = Plan()
    plan.broken["a red cube"] = "DefaultCPUAllocator: can't allocate memory"
    with serving(tmp_path, plan) as server:
        job = post(server).json()["id"]
        answer = finished(server.url, job)
        assert answer["state"] == "failed" and "allocate" in answer["error"]
        plan.broken.clear()
        again = requests.post(f"{server.url}/v1/jobs/{job}/retry", timeout=60).json()
        assert finished(server.url, again["id"])["state"] == "done"


# Bodies.


@pytest.mark.parametrize(
    "path",
    ["/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/v1/read",
     "/v1/uploads", "/v1/images/edits", "/v1/images/variations"],
)  # fmt: skip
@pytest.mark.parametrize("announced", [True, False])
def test_a_gigabyte_is_refused_and_not_kept(server: Server, path: str, announced: bool) -> None:
    length = b"content-length: 1000000000" if announced else b"transfer-encoding: chunked"
    before = psutil.Process().memory_info().rss
    block = b"x" * 65536 if announced else b"10000\r\n" + b"x" * 65536 + b"\r\n"
    form = path in ("/v1/images/edits", "/v1/images/variations")
    kind = b"multipart/form-data; boundary=b" if form else b"application/json"
    part = b'--b\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n' if form else b""
    begin = part if announced or not part else b"%x\r\n%b\r\n" % (len(part), part)
    answer = b""
    with closing(connect(server)) as client:
        client.settimeout(30)
        client.sendall(
            b"POST "
            + path.encode()
            + b" HTTP/1.1\r\nhost: localhost\r\ncontent-type: "
            + kind
            + b"\r\n"
            + length
            + b"\r\n\r\n"
            + begin
        )
        with suppress(ConnectionError, BrokenPipeError):
            for _ in range(3000):  # 197 MB, if nobody stops it
                client.sendall(block)
        with suppress(ConnectionError, TimeoutError):
            answer = client.recv(65536)
    assert answer == b"" or b" 413 " in answer.splitlines()[0]
    # One limit holds for jobs and another for files.
    assert psutil.Process().memory_info().rss - before < 150e6
    assert requests.get(f"{server.url}/healthz", timeout=60).status_code == 200


def test_a_compressed_body_is_no_json(server: Server) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    answer = requests.post(
        f"{server.url}/v1/jobs", data=bomb, timeout=60,
        headers={"content-encoding": "gzip", "content-type": "application/json"},
    )  # fmt: skip
    assert answer.status_code in (400, 415, 422) and len(answer.text) < 1000


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b'{"prompt": "\\ud800"}', b'{"prompt": "a\\u0000b"}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "steps": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "steps": NaN}', b'{"prompt": "a", "guidance_scale": 1e999}', b'{"prompt": 7}',
        b'{"prompt": "a", "count": -1}', b'{"prompt": "a", "width": 1e9, "height": 1e9}',
        b'{"prompt": "a", "sampler": "' + b"x" * 500_000 + b'"}',
        b'{"prompt": "a", "model": "../../etc/passwd"}',
        b'{"prompt": "a", "preset": "/etc/passwd.toml"}', b'{"prompt": "a", "seed": 18446744073709551616}',
        b'{"prompt": {"a": 1}}', b'{"prompt": "a", "original_size": [[[]]]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/check", "/v1/images/generations", "/sdapi/v1/txt2img"])
def test_no_body_is_an_unexpected_error(server: Server, path: str, body: bytes) -> None:
    answer = requests.post(
        server.url + path, data=body, headers={"content-type": "application/json"}, timeout=60
    )
    # AUTOMATIC1111's dialect and OpenAI's ignore fields that they do not know, so some of these are valid.
    assert answer.status_code in (200, 202, 400, 404, 422), answer.text[:300]
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/json" and len(answer.text) < 2000
        assert "Traceback" not in answer.text


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "file",
    [
        png(60_000, 60_000, zlib.compress(bytes(1000))),
        png(64, 64, zlib.compress(bytes(80_000_000))),
        b"SIMPLE  =                    T" + b" " * 3000,
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a" + bytes(100), bytes(1000), b"",
    ],
)  # fmt: skip
def test_files_that_are_no_pictures_or_bombs_are_refused_within_limits(server: Server, file: bytes) -> None:
    before = psutil.Process().memory_info().rss
    answer = requests.post(f"{server.url}/v1/read", data=file, timeout=60)
    assert answer.status_code == 422 and len(answer.json()["error"]) < 1000
    assert psutil.Process().memory_info().rss - before < 200e6


BOMBS = [png(side, side, zlib.compress(bytes(1000))) for side in (60_000, 8_000, 5_000)]
"""Pictures of 3.6 gigapixels, of 64 megapixels, and of an allowed size whose pixels are not there."""

SMALL = as_bytes(smooth(64, 64))


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("bomb", BOMBS, ids=len)
@pytest.mark.parametrize("part", ["picture", "mask"])
def test_bombs_are_refused_as_pictures_and_masks_in_every_api(server: Server, bomb: bytes, part: str) -> None:
    picture, mask = (bomb, None) if part == "picture" else (SMALL, bomb)
    before = psutil.Process().memory_info().rss
    texts = {"prompt": "x", "init_image": base64_of(picture), **({"mask": base64_of(mask)} if mask else {})}
    a1111 = {"init_images": [base64_of(picture)], **({"mask": base64_of(mask)} if mask else {})}
    files = {"image": picture, **({"mask": mask} if mask else {})}
    answers = [
        requests.post(f"{server.url}/v1/uploads", data=bomb, timeout=60),
        post(server, **texts),
        post(server, "/v1/check", **texts),
        post(server, "/sdapi/v1/img2img", **a1111),
        requests.post(f"{server.url}/v1/images/edits", files=files, data={"prompt": "x"}, timeout=60),
    ]
    for answer in answers:
        assert answer.status_code in (400, 422) and len(answer.text) < 1000, answer.text
        assert "too large" in answer.text or "damaged" in answer.text
    assert psutil.Process().memory_info().rss - before < 200e6
    assert post(server, **texts | {"init_image": base64_of(SMALL), "mask": None}).status_code == 202


def test_a_huge_mask_is_scaled_and_one_beyond_the_limit_refused(server: Server) -> None:
    mask = Image.new("L", (5000, 5000), 0)
    mask.paste(255, (0, 0, 2500, 5000))
    body = {"prompt": "x", "steps": 4, "init_image": base64_of(SMALL), "mask": base64_of(as_bytes(mask))}
    assert finished(server.url, post(server, **body).json()["id"])["state"] == "done"
    body["mask"] = base64_of(as_bytes(Image.new("1", (6000, 6000), 1)))
    answer = post(server, **body)
    assert answer.status_code == 422 and "at most 33554432 pixels" in answer.json()["error"]


def test_base64_that_is_cut_off_is_one_line(server: Server) -> None:
    for cut in (base64_of(SMALL)[:-5], base64_of(SMALL)[: len(SMALL) // 8 * 4], "=", "data:", ","):
        for name in ("init_image", "mask"):
            answer = post(server, prompt="x", **{"init_image": base64_of(SMALL), name: cut})
            assert answer.status_code == 422 and len(answer.json()["error"]) < 300, answer.text


def test_many_pictures_at_once_take_no_more_memory_than_one(server: Server) -> None:
    large = as_bytes(Image.new("RGB", (4000, 4000), "red"))
    before = psutil.Process().memory_info().rss
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda _: requests.post(f"{server.url}/v1/uploads", data=large, timeout=120).status_code,
                range(16),
            )
        )
    assert {*answers} == {201}
    assert psutil.Process().memory_info().rss - before < 250e6


# Paths, hosts and keys.


@pytest.mark.parametrize(
    "id",
    ["../../../etc/passwd", "..%2f..%2fqueue.sqlite", "%2e%2e%5cqueue.sqlite", "/etc/passwd", "%00",
     "a" * 5000,     "queue.sqlite", ".", "..%5c", "%ff%fe"],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/v1/pictures/{}", "/v1/pictures/{}/thumbnail", "/v1/uploads/{}", "/v1/jobs/{}", "/page/{}"]
)
def test_a_path_opens_nothing_else(server: Server, path: str, id: str) -> None:
    target = path.replace("{}", id).encode()
    answer = exchange(server, b"GET " + target + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    status = answer.splitlines()[0]
    assert any(code in status for code in (b" 404 ", b" 400 ", b" 405 ", b" 422 ")), answer[:300]
    assert b"root:" not in answer and b"SQLite" not in answer


@pytest.mark.parametrize(
    "headers",
    ["host: evil.example", "host: localhost.evil.example", "host: localhost@evil.example", "host: ",
     "host: localhost:99999", "host: [::1", "host: localhost\r\nhost: localhost",
     "host: localhost\r\norigin: null", "host: localhost\r\norigin: http://evil.example",
     "host: localhost\r\norigin: http://localhost.evil.example", "host: localhost\r\norigin: http://[::1",
     "host: x[::1]",
     "host: localhost\r\nsec-fetch-site: cross-site", "x: y"],
)  # fmt: skip
@pytest.mark.parametrize(
    "request_line", ["GET /v1/jobs", "POST /v1/jobs", "DELETE /v1/jobs/x", "OPTIONS /", "GET /"]
)
def test_foreign_hosts_and_origins_are_refused(server: Server, headers: str, request_line: str) -> None:
    text = f"{request_line} HTTP/1.1\r\n{headers}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    status = exchange(server, text.encode()).splitlines()[0]
    assert status.split()[1] in (b"400", b"403", b"421"), status


def test_every_route_but_probes_and_the_page_needs_a_key(server: Server) -> None:
    guard = make_app(server.service)._app
    keys = {"alice": Key(key="a-key-that-is-long-enough")}
    locked = type(guard)(guard._app, hosts=frozenset({"localhost"}), keys=keys)
    paths = guard._app._app.openapi()["paths"]
    assert len(paths) > 40
    for route in [*paths, "/", "/page/app.js", "/openapi.json", "/docs", "/nothing"]:
        path = route.replace("{id}", "x").replace("{name}", "x")
        scope = {"type": "http", "path": path, "headers": [(b"host", b"localhost")]}
        refusal = locked._refusal(scope)
        is_open = path in OPEN_PATHS or PAGE.fullmatch(path)
        assert (refusal is None) if is_open else (refusal is not None and refusal.status_code == 401), path
        right = keys["alice"].key.encode()
        for header in (
            (b"x-api-key", right),
            (b"authorization", b"Bearer " + right),
            (b"authorization", b"Basic " + base64.b64encode(b"alice:" + right)),
        ):
            assert locked._refusal(scope | {"headers": [(b"host", b"localhost"), header]}) is None, path
        wrong = [(b"host", b"localhost"), (b"x-api-key", b"a-key-that-is-long-enougH")]
        assert is_open or locked._refusal(scope | {"headers": wrong}) is not None


# Connections.


@contextmanager
def impatient(
    monkeypatch: pytest.MonkeyPatch, folder: Path, seconds: float = 1.0, **options: Any
) -> Iterator[Server]:
    monkeypatch.setattr(connections, "PATIENCE", seconds)
    with serving(folder, Plan(), **options) as server:
        yield server


def is_closed(client: socket.socket, seconds: float) -> bool:
    client.settimeout(seconds)
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("path", ["/v1/jobs", "/sdapi/v1/txt2img", "/v1/read"])
def test_a_body_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n"
    head += "content-type: application/json\r\n\r\n{"
    with impatient(monkeypatch, tmp_path) as server, closing(connect(server)) as client:
        client.sendall(head.encode())
        assert is_closed(client, 20)
        time.sleep(0.2)
        assert 'status="500"' not in requests.get(f"{server.url}/metrics", timeout=60).text
    assert "unexpected error" not in caplog.text and "Exception in ASGI" not in caplog.text


def test_a_client_that_leaves_is_no_error_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path, Plan(seconds=0.1)) as server:
        for path in ("/v1/images/generations", "/sdapi/v1/txt2img"):
            with pytest.raises(requests.Timeout):
                requests.post(server.url + path, json=JOB | {"steps": 100}, timeout=0.5)
        deadline = time.monotonic() + 30
        while 'status="499"' not in (text := requests.get(f"{server.url}/metrics", timeout=60).text):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert 'status="500"' not in text
    assert "unexpected error" not in caplog.text and "Exception in ASGI" not in caplog.text


def test_a_store_that_vanishes_is_the_servers_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan()
    with serving(tmp_path / "store", plan) as server:
        plan.gate.clear()
        job = post(server).json()["id"]
        while not plan.batches:
            time.sleep(0.01)
        shutil.rmtree(tmp_path / "store")
        plan.gate.set()
        found = finished(server.url, job)
        assert (found["state"], found["code"]) == ("failed", "unavailable")
        assert found["error"] == "the server cannot write to its store"
        assert str(tmp_path) in caplog.text, "the log names the file"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\nx: "])
def test_a_connection_without_a_request_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    with impatient(monkeypatch, tmp_path) as server, closing(connect(server)) as client:
        client.sendall(sent)
        assert is_closed(client, 20)


def test_a_request_that_takes_long_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with impatient(monkeypatch, tmp_path, 0.3) as server:
        server.plan.seconds = 0.5
        answer = requests.post(f"{server.url}/v1/images/generations", json=JOB, timeout=60)
        assert answer.status_code == 200


def test_many_idle_connections_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = 1500
    with ExitStack() as stack, impatient(monkeypatch, tmp_path, 3.0) as server:
        idle = [stack.enter_context(closing(connect(server))) for _ in range(many)]
        answer = requests.get(f"{server.url}/healthz", timeout=30)
        assert answer.status_code == 200
        assert sum(is_closed(client, 30) for client in idle) == many


def test_a_reader_that_stalls_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with impatient(monkeypatch, tmp_path, 2.0) as server, closing(socket.socket()) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        stalled.connect(("127.0.0.1", urlsplit(server.url).port))
        stalled.sendall(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        before = psutil.Process().memory_info().rss
        jobs = [
            post(server, prompt=f"{number} " + 100 * "word ", steps=4).json()["id"] for number in range(20)
        ]
        assert {finished(server.url, job)["state"] for job in jobs} == {"done"}
        assert psutil.Process().memory_info().rss - before < 100e6


# The disk.


def test_a_full_disk_is_an_answer_and_the_server_goes_on_when_there_is_space(
    disk_of: Callable[[str], Path],
) -> None:
    small_disk = disk_of("8m")
    with serving(small_disk / "store", Plan()) as server:
        assert finished(server.url, post(server).json()["id"])["state"] == "done"
        ballast = small_disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        answers = [post(server, prompt=f"cube {number}", steps=4) for number in range(20)]
        assert {each.status_code for each in answers} <= {202, 507}
        states = [finished(server.url, each.json()["id"]) for each in answers if each.status_code == 202]
        assert all(each["state"] in ("done", "failed") for each in states)
        listed = requests.get(f"{server.url}/v1/jobs?limit=100", timeout=60).json()["jobs"]
        assert {each["state"] for each in listed} <= {"done", "failed"}, "also those whose end is not on disk"
        assert not requests.get(f"{server.url}/v1/jobs?state=running", timeout=60).json()["jobs"]
        waited = requests.post(f"{server.url}/v1/images/generations", json=JOB | {"seed": 99}, timeout=60)
        assert waited.status_code == 507, waited.text
        assert requests.get(f"{server.url}/healthz", timeout=60).status_code == 200
        ballast.unlink()
        for seed in (99, 100):
            assert finished(server.url, post(server, **JOB, seed=seed).json()["id"])["state"] == "done"


def test_a_store_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # permissions do not hold for root: a read-only disk does
        place = tmp_path / "readonly"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs the right to mount a disk")
    else:
        place = tmp_path / "closed"
        place.mkdir(mode=0o500)
    try:
        command = [sys.executable, "-m", "ssd1b", "serve", "--store", str(place / "store"), "--port", "0"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        subprocess.run(["umount", str(place)], check=False, capture_output=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1 and "read" in ended.stderr.lower()


# Deletion.


def test_a_job_is_deleted_with_its_images_which_can_be_restored(server: Server) -> None:
    job = post(server, prompt="to be deleted", steps=4).json()["id"]
    (image,) = finished(server.url, job)["images"]
    assert requests.delete(f"{server.url}/v1/jobs/{job}", timeout=60).status_code == 204
    listed = [each["id"] for each in requests.get(f"{server.url}/v1/jobs", timeout=60).json()["jobs"]]
    found = requests.get(f"{server.url}/v1/pictures", params={"q": "deleted"}, timeout=60).json()["pictures"]
    assert job not in listed and found == []
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/retry"), ("DELETE", "")):
        assert requests.request(method, f"{server.url}/v1/jobs/{job}{path}", timeout=60).status_code == 404
    requests.patch(f"{server.url}/v1/pictures/{image['id']}", json={"deleted": False}, timeout=60)
    listed = [each["id"] for each in requests.get(f"{server.url}/v1/jobs", timeout=60).json()["jobs"]]
    assert job in listed
    assert requests.get(f"{server.url}/v1/jobs/{job}", timeout=60).json()["images"][0]["url"]
    assert requests.delete(f"{server.url}/v1/jobs/nosuchjob", timeout=60).status_code == 404


def test_an_unfinished_job_that_is_deleted_is_cancelled(tmp_path: Path) -> None:
    plan = Plan()
    with serving(tmp_path, plan) as server:
        plan.gate.clear()
        job = post(server).json()["id"]
        assert requests.delete(f"{server.url}/v1/jobs/{job}", timeout=60).status_code == 204
        assert requests.get(f"{server.url}/v1/queue", timeout=60).json() == []
        assert requests.get(f"{server.url}/v1/jobs/{job}", timeout=60).status_code == 404
        plan.gate.set()


def test_the_idempotency_key_of_a_deleted_job_can_be_used_again(server: Server) -> None:
    def submit(seed: int) -> str:
        answer = requests.post(
            f"{server.url}/v1/jobs", json={**JOB, "seed": seed}, headers={"idempotency-key": "k"}, timeout=60
        )
        return answer.json()["id"]

    first = submit(1)
    (image,) = finished(server.url, first)["images"]
    assert submit(1) == first
    requests.delete(f"{server.url}/v1/jobs/{first}", timeout=60)
    second = submit(2)
    assert finished(server.url, second)["state"] == "done" and second != first
    requests.patch(f"{server.url}/v1/pictures/{image['id']}", json={"deleted": False}, timeout=60)
    assert finished(server.url, first)["state"] == "done" and submit(2) == second


def test_jobs_are_listed_after_their_images_were_removed_for_good(tmp_path: Path) -> None:
    with serving(tmp_path, Plan()) as server:
        jobs = [post(server, prompt=f"cube {number}", steps=4).json()["id"] for number in range(2)]
        images = [finished(server.url, job)["images"][0]["id"] for job in jobs]
        requests.patch(f"{server.url}/v1/pictures/{images[0]}", json={"deleted": True}, timeout=60)
        ledger = server.service._ledger
        ledger._keeper.submit(ledger.queue.purge, time.time() + 1).result()
        listed = requests.get(f"{server.url}/v1/jobs", timeout=60).json()["jobs"]
        assert [each["id"] for each in listed] == [jobs[1]]
        assert requests.get(f"{server.url}/v1/jobs/{jobs[0]}", timeout=60).status_code == 404
