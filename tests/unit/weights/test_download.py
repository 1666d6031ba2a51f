"""Downloads from a hub that really serves: every call is a process of its own, over HTTP on the loopback."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, load_file, save

from hub_client import Call, Done, Resolver
from hub_server import Answer, Hub, digest, serving
from ssd1b.layouts import SSD_1B, VAELayout
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.writing import save_folder, save_single_file
from tiny import tiny
from waiting import wait_for

from .cases import random_weights

pytestmark = pytest.mark.enable_socket

LAYOUT = replace(
    tiny(SSD_1B),
    vae=VAELayout(channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4, scaling_factor=0.5),
    size=64,
)
"""SSD-1B's blocks, small, with a VAE of factor 8."""

UNET = "unet/diffusion_pytorch_model.safetensors"
SHARDS = [f"unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
PICKLE = b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository like segmind/SSD-1B: other formats, code and a single file beside what is wanted."""
    place = tmp_path_factory.mktemp("repository")
    weights, info = random_weights(LAYOUT), ModelInfo(layout=LAYOUT, settings={"steps": 2})
    save_folder(place / "model", info, weights)
    save_single_file(place / "model" / "SSD-1B.safetensors", info, weights)
    found = {
        path.relative_to(place / "model").as_posix(): path.read_bytes()
        for path in (place / "model").rglob("*")
        if path.is_file()
    }
    for name in [name for name in found if "/" in name and name.endswith(".safetensors")]:
        tensors = load_file(place / "model" / name)
        half = {each: tensor.half() for each, tensor in tensors.items()}
        found[name.replace(".safetensors", ".fp16.safetensors")] = save(half, metadata={"format": "pt"})
        found[name.replace(".safetensors", ".bin")] = PICKLE
    code = {name: b"raise SystemExit('code was run')\n" for name in ("distill_sdxl.py", "unet/modeling.py")}
    others = {"README.md": b"# SSD-1B\n", "unet/old.ckpt": PICKLE, "text_encoder/model.onnx": b"onnx"}
    return found | code | others


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(served: Hub) -> dict[str, str]:
    return {
        "HF_ENDPOINT": served.url,
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def resolvers(environment: dict[str, str]) -> Iterator[list[Resolver]]:
    both = [Resolver(environment | {"HF_HUB_DISABLE_XET": "1"}) for _ in range(2)]
    yield both
    for each in both:
        each.close()


@pytest.fixture
def hub(served: Hub, files: dict[str, bytes]) -> Hub:
    served.clear()
    served.push("segmind/SSD-1B", files)
    return served


@pytest.fixture
def resolve(resolvers: list[Resolver], tmp_path: Path) -> Callable[..., Done]:
    """``resolve(model, ...)`` with a cache that is empty at first."""

    def call(model: str = "ssd-1b", **given: Any) -> Done:
        resolvers[0].start(model, tmp_path / "hf/hub", **given)
        return resolvers[0].result()

    return call


@pytest.fixture
def ssd1b(hub: Hub, environment: dict[str, str], tmp_path: Path) -> Callable[..., Call]:
    """``ssd1b("generate", ..., HF_TOKEN=...)`` starts the command with the same cache as ``resolve``."""

    def call(*arguments: str, **given: str) -> Call:
        return Call(tmp_path, arguments, environment | {"HF_HOME": str(tmp_path / "hf")} | given)

    return call


def snapshot(done: Done) -> dict[str, bytes]:
    """The files of the model that a call found."""
    assert (done.code, done.errors) == (0, []), done.err
    folder = Path(done.out.strip())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def refused(done: Done) -> str:
    """The one line of a call that failed as it should."""
    assert done.code == 2, done
    assert "Traceback" not in done.err
    (line,) = done.errors
    return line


def blobs(folder: Path) -> dict[str, bytes]:
    """What the cache holds of contents, by the name under which it is kept."""
    found = (folder / "hf/hub/models--segmind--SSD-1B/blobs").glob("*")
    return {path.name: path.read_bytes() for path in found}


def assert_kept_as_whole(folder: Path, files: dict[str, bytes]) -> None:
    """Nothing half-written is kept: what has the name of a content is that content."""
    known = {digest(name, data): data for name, data in files.items()}
    assert {name: data == known[name] for name, data in blobs(folder).items()} == dict.fromkeys(
        blobs(folder), True
    )


def test_a_model_is_downloaded_drawn_with_and_found_again_offline(ssd1b, hub, files, tmp_path):
    draw = [
        "generate",
        "a cube",
        "--model",
        "ssd-1b",
        "--steps",
        "1",
        "--dtype",
        "fp32",
        "--seed",
        "1",
        "--out",
    ]
    first = ssd1b(*draw, "1.png", HF_TOKEN=TOKEN).wait()
    assert (first.code, first.errors) == (0, []), first.err
    # Of weights one set, no pickle, no code, nothing that is not asked for.
    paths = (each.path.partition("/resolve/")[2] for each in hub.asked("hub HEAD .*/resolve/"))
    assert {path.partition("/")[2] for path in paths if not path.endswith((".json", ".txt"))} == {
        UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
    }  # fmt: skip
    assert_kept_as_whole(tmp_path, files)
    # The token goes to the hub and not to the CDN.
    assert {each.headers.get("authorization") for each in hub.asked("hub .*SSD-1B")} == {f"Bearer {TOKEN}"}
    assert len(hub.asked("cdn GET")) == 4
    assert {each.headers.get("authorization") for each in hub.asked("cdn ")} == {None}
    hub.requests.clear()
    again = ssd1b(*draw, "2.png", HF_HUB_OFFLINE="1").wait()
    assert (again.code, again.errors) == (0, []), again.err
    assert hub.requests == []


def test_without_a_token_none_is_sent(resolve, hub):
    snapshot(resolve(users_token=TOKEN, token=False))
    assert {each.headers.get("authorization") for each in hub.requests} == {None}


def test_half_precision_and_shards(resolve, hub, files):
    assert {name for name in snapshot(resolve(half=True)) if name.endswith(".safetensors")} == {
        name for name in files if name.endswith(".fp16.safetensors")
    }
    tensors = sorted(load(files[UNET]).items())
    halves = [dict(tensors[: len(tensors) // 2]), dict(tensors[len(tensors) // 2 :])]
    places = {name: Path(file).name for file, half in zip(SHARDS, halves, strict=True) for name in half}
    sharded = {name: data for name, data in files.items() if name != UNET}
    sharded |= {
        file: save(half, metadata={"format": "pt"}) for file, half in zip(SHARDS, halves, strict=True)
    }
    sharded[f"{UNET}.index.json"] = json.dumps({"weight_map": places}).encode()
    commit = hub.push("some/shards", sharded)
    hub.on(f"cdn GET .*{digest(SHARDS[1], sharded[SHARDS[1]])}", Answer(status=503))
    assert "the hub has a fault (503)" in refused(resolve("some/shards"))
    assert "the cache lacks unet" in refused(resolve(f"some/shards@{commit}", offline=True))
    done = resolve("some/shards")
    assert set(SHARDS) < snapshot(done).keys()
    assert open_checkpoint(Path(done.out)).family == "ssd-1b"


def test_a_single_file_and_a_bare_network(resolve, hub, files):
    hub.push("some/merge", {"README.md": b"", "merge.safetensors": files["SSD-1B.safetensors"], "a.py": b""})
    for offline in (False, True):
        done = resolve("some/merge", offline=offline)
        assert done.code == 0 and done.out.endswith("/merge.safetensors")
    hub.push("some/vae", {name[4:]: data for name, data in files.items() if name.startswith("vae/")})
    assert snapshot(resolve("some/vae")).keys() == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_a_commit_that_moves_meanwhile(resolve, hub, files):
    old = hub.commit("segmind/SSD-1B", "main")
    moved = files | {UNET: files[UNET][:-1] + b"\x01", "README.md": b"new"}
    hub.on("hub HEAD .*model_index.json", Answer(then=lambda: hub.push("segmind/SSD-1B", moved)))
    done = resolve()
    assert Path(done.out).name == old
    assert snapshot(done)[UNET] == files[UNET]
    assert {each.path.split("/")[4] for each in hub.asked("hub HEAD .*/resolve/")} == {old}
    assert Path(resolve(offline=True).out).name == old
    # The next start finds the new one, and fetches what has changed and nothing else.
    hub.requests.clear()
    assert snapshot(resolve())[UNET] == moved[UNET]
    assert len(hub.asked("cdn GET")) == 1
    assert snapshot(resolve(f"ssd-1b@{old}"))[UNET] == files[UNET]


def test_while_a_new_commit_is_incomplete_the_old_one_is_used_offline(resolve, hub, files):
    old = resolve()
    snapshot(old)
    hub.push("segmind/SSD-1B", files | {UNET: files[UNET][:-1] + b"\x01"})
    hub.on("cdn GET", Answer(status=500), always=True)
    assert resolve() == resolve(offline=True) == old


def test_a_connection_that_is_cut_is_taken_up_again(resolve, hub, files, tmp_path):
    unet = f"cdn GET .*{digest(UNET, files[UNET])}"
    hub.on(unet, Answer(cut=500_000), Answer(cut=300_000), Answer(status=200, body=files[UNET]))
    assert snapshot(resolve())[UNET] == files[UNET]
    first, second, third = (each.headers.get("Range") for each in hub.asked(unet))
    taken_up = [int(each.removeprefix("bytes=").rstrip("-")) for each in (second, third)]
    # The last answer is the whole file, as of a server that knows no ranges.
    assert first is None and 400_000 < taken_up[0] <= 500_000 < taken_up[1] <= 800_000
    assert_kept_as_whole(tmp_path, files)


def test_a_retry_goes_on_with_the_files_that_are_missing(resolve, hub, files, tmp_path):
    hub.on(f"cdn GET .*{digest(UNET, files[UNET])}", *[Answer(cut=0)] * 6)
    line = refused(resolve())
    assert "not in the cache, and the hub could not be used" in line and "complete files are kept" in line
    assert_kept_as_whole(tmp_path, files)
    fetched = [each.path for each in hub.asked("(hub|cdn) GET .*") if "/api/" not in each.path]
    hub.requests.clear()
    assert snapshot(resolve())[UNET] == files[UNET]
    again = [each.path for each in hub.asked("(hub|cdn) GET .*") if "/api/" not in each.path]
    assert {path.rpartition("/")[2] for path in set(fetched) & set(again)} == {digest(UNET, files[UNET])}


HTML = Answer(status=200, body=b"<html>Log in to HotelNet</html>", headers={"Content-Type": "text/html"})

INFORMATION = {
    "gated": (
        Answer(status=403, headers={"X-Error-Code": "GatedRepo"}),
        "access is restricted: accept its terms at",
    ),
    "gated, no token": (Answer(status=401, headers={"X-Error-Code": "GatedRepo"}), "set HF_TOKEN"),
    "private": (Answer(status=401, headers={"X-Error-Code": "RepoNotFound"}), "not on the hub, or private"),
    "no such repository": (Answer(status=404, headers={"X-Error-Code": "RepoNotFound"}), "not on the hub"),
    "wrong token": (
        Answer(status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}),
        "the hub refuses the token: set HF_TOKEN to a valid one, or unset it",
    ),
    "disabled": (
        Answer(status=403, headers={"X-Error-Message": "Access to this resource is disabled."}),
        "the hub refuses access (403)",
    ),
    "bad request": (Answer(status=400), "error: segmind/SSD-1B: "),
    "no page": (Answer(status=404), "does not answer like the hub: check HF_ENDPOINT"),
    "too many requests": (
        Answer(status=429, headers={"Retry-After": "40"}),
        "(429): try again in 40 seconds",
    ),
    "too many, no time": (Answer(status=429, headers={"Retry-After": "soon"}), "(429): try again later"),
    "server's fault": (Answer(status=500), "the hub has a fault (500): try again later"),
    "in maintenance": (Answer(status=503), "the hub has a fault (503): try again later"),
    "a login page": (HTML, "whether the network requires a login"),
    "other JSON": (Answer(status=200, body=b"[1, 2]"), "does not answer like the hub"),
    "empty JSON": (Answer(status=200, body=b"{}"), "does not answer like the hub"),
    "no commit": (
        Answer(status=200, body=b'{"id": "a/b", "siblings": []}'),
        "does not answer like the hub",
    ),
    "a path for a commit": (
        Answer(status=200, body=b'{"id": "a/b", "sha": "../../x", "siblings": []}'),
        "does not answer like the hub",
    ),
    "no answer": (Answer(wait=1.5), "the hub could not be used"),
    "half an answer": (Answer(cut=40), "the hub could not be used"),
    "a redirect in a circle": (
        Answer(status=302, headers={"Location": "/api/models/a/b"}),
        "could not be used",
    ),
}
"""What the hub answers when it is asked about a model, and what the user reads."""


@pytest.mark.parametrize("case", INFORMATION)
def test_what_is_wrong_with_the_hub_is_one_line(resolve, hub, tmp_path, case):
    answer, message = INFORMATION[case]
    hub.on("hub GET /api/models", answer, always=True)
    line = refused(resolve())
    assert message in line and len(line) < 400
    assert blobs(tmp_path) == {}


CONTENT = {
    "gated": ("hub HEAD", Answer(status=403, headers={"X-Error-Code": "GatedRepo"}), "access is restricted"),
    "gated, 401": ("hub HEAD", Answer(status=401, headers={"X-Error-Code": "GatedRepo"}), "accept its terms"),
    "file is gone": (
        "hub HEAD",
        Answer(status=404, headers={"X-Error-Code": "EntryNotFound"}),
        "does not answer",
    ),
    "no commit": ("hub HEAD", Answer(status=200), "does not answer like the hub"),
    "another commit": (
        "hub HEAD",
        Answer(headers={"X-Repo-Commit": "f" * 40}),
        "answered for another commit",
    ),
    "too often": (
        "hub HEAD",
        Answer(status=429, headers={"Retry-After": "1"}),
        "(429): try again in 1 second",
    ),
    "fault": ("hub HEAD", Answer(status=502), "the hub has a fault (502)"),
    "CDN refuses": ("cdn GET", Answer(status=403), "the hub refuses access (403)"),
    "CDN has a fault": ("cdn GET", Answer(status=500), "the hub has a fault (500)"),
    "CDN does not answer": ("cdn GET", Answer(wait=1.5), "the hub could not be used"),
    "CDN is cut at once": ("cdn GET", Answer(cut=0), "the hub could not be used"),
    "truncated": ("cdn GET", Answer(change=lambda data: data[:-9]), "should be of size"),
    "longer": ("cdn GET", Answer(change=lambda data: data + b"more"), "should be of size"),
    "other bytes": ("cdn GET", Answer(change=lambda data: data[:-1] + b"\x7f"), "arrived damaged"),
    "other text": (
        "hub GET .*merges",
        Answer(change=lambda data: b"%" + data[1:]),
        "merges.txt arrived damaged",
    ),
    "another size is claimed": ("hub HEAD", Answer(claim=7), "should be of size 7"),
}
"""What happens while files are fetched, and what the user reads."""


@pytest.mark.parametrize("case", CONTENT)
def test_what_goes_wrong_while_files_are_fetched_keeps_nothing_half(resolve, hub, files, tmp_path, case):
    pattern, answer, message = CONTENT[case]
    hub.on(pattern, answer, always=True)
    line = refused(resolve())
    assert message in line and len(line) < 400
    assert_kept_as_whole(tmp_path, files)
    refused(resolve(offline=True))


def test_a_damaged_file_in_the_cache_is_fetched_anew(resolve, hub, files):
    folder = Path(resolve().out)
    with (folder / UNET).open("r+b") as file:
        file.truncate(100)
    assert snapshot(resolve())[UNET] == files[UNET]


def test_too_small_a_disk_is_noticed_before_anything_is_fetched(resolve, hub, tmp_path):
    hub.on("hub GET /api/models", Answer(claim=10**17))
    line = refused(resolve())
    assert re.search(r"[\d,]{11}\.\d GB, and .+ has [\d,.]+ GB free", line)
    assert hub.asked("hub HEAD") == [] and blobs(tmp_path) == {}


def test_a_disk_that_fills(resolve, hub, files, tmp_path):
    line = refused(resolve(most=len(files[UNET]) // 2))
    assert "cannot write to the cache" in line and "set HF_HOME" in line
    assert_kept_as_whole(tmp_path, files)
    snapshot(resolve())


def test_a_cache_that_cannot_be_written(resolve, hub, tmp_path):
    (tmp_path / "hf").write_text("a file")
    assert "cannot write to the cache" in refused(resolve())


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "HTTP_PROXY"])
def test_nothing_listens(ssd1b, name):
    done = ssd1b("generate", "x", "--model", "ssd-1b", **{name: "http://127.0.0.1:9"}).wait()
    assert "the hub could not be used: [Errno " in refused(done)


def test_without_xet_a_file_that_is_stored_there_comes_over_http(resolve, hub, files):
    hub.on("hub HEAD", Answer(headers={"X-Xet-Hash": "0" * 64}), always=True)
    assert snapshot(resolve())[UNET] == files[UNET]


def test_ctrl_c_ends_at_once_and_leaves_nothing_half(ssd1b, hub, files, tmp_path):
    hub.on(f"cdn GET .*{digest(UNET, files[UNET])}", Answer(wait=40))
    asked = ("generate", "x", "--model", "ssd-1b", "--dtype", "fp32", "--steps", "1")  # not the fp16 files
    call = ssd1b(*asked, HF_HUB_DOWNLOAD_TIMEOUT="60")
    wait_for(lambda: hub.asked(f"cdn GET .*{digest(UNET, files[UNET])}"))
    time.sleep(1)  # until it waits: Python notices a signal only there, or before
    call.interrupt()
    done = call.wait(90)
    assert (done.code, done.err.splitlines()[-1]) == (130, "interrupted"), done.err
    assert_kept_as_whole(tmp_path, files)


def test_two_processes_download_the_same(resolvers, hub, files, tmp_path):
    hub.on("cdn GET", *[Answer(wait=0.2)] * 4)
    for each in resolvers:
        each.start("ssd-1b", tmp_path / "hf/hub")
    first, second = (each.result() for each in resolvers)
    assert snapshot(first) == snapshot(second)
    assert_kept_as_whole(tmp_path, files)


def test_a_repository_without_a_model_and_names_that_lead_out(resolve, hub, tmp_path):
    hub.push("some/text", {"README.md": b"", "pytorch_model.bin": PICKLE})
    assert "some/text: no model_index.json but no safetensors" in refused(resolve("some/text"))
    names = ["../../../out.safetensors", "unet/../x.json", "/tmp/y.txt", "unet/..\\z.json"]
    hub.push("some/evil", {"model_index.json": b"{}", **dict.fromkeys(names, b"")})
    resolve("some/evil")
    found = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert found <= {"model_index.json", "main", "CACHEDIR.TAG", digest("model_index.json", b"{}")}
    assert os.listdir(tmp_path / "hf") == ["hub"] and not Path("/tmp/y.txt").exists()
