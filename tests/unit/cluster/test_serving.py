"""A replica is to a server what its own processes are: results, progress, cancellation, and how it ends."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster_fakes import on_cpu
from ssd1b.cluster.actor import LowMemoryError
from ssd1b.cluster.connection import Share
from ssd1b.cluster.options import ClusterOptions
from ssd1b.cluster.serving import ClusterWorker
from ssd1b.errors import ConflictError, InputError, UnavailableError
from ssd1b.files import hash_file
from ssd1b.jobs.session import CancelledError, Progress
from ssd1b.jobs.store import DONE
from ssd1b.model import Model
from ssd1b.pipeline import Pipeline
from ssd1b.server.options import ServerOptions
from ssd1b.server.replicas import Replicas, replicas
from ssd1b.settings import GenerationSettings, resolve_settings
from waiting import wait_for

pytestmark = pytest.mark.enable_socket

MODEL = "mini-ssd-1b"
LOADING: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "offline": True, "threads": 1}
SHARE = Share(cpus=1.0, gpus=0.0, actors=1)


def settings(steps: int = 4, seed: int = 0) -> GenerationSettings:
    return resolve_settings(
        "a large red metal sphere", family="ssd-1b",
        model_defaults={"seed": seed, "width": 128, "height": 128}, preset=None, steps=steps,
    )  # fmt: skip


@contextmanager
def replica(report: Callable[[Progress], object], choose: Any = on_cpu, model: str = MODEL) -> Iterator[Any]:
    found = ClusterWorker(SHARE, choose, model, LOADING, report)
    yield found
    found.close()


def test_a_replica_generates_reports_and_cancels(nodes) -> None:
    progress: list[Progress] = []
    with replica(progress.append) as worker:
        assert worker.load().result() == 0
        (result,) = worker.submit([settings()]).result.result()
        (alone,) = Pipeline.load(MODEL, **LOADING).draw([settings()])
        assert result.outcome.state == DONE and result.file is not None
        assert alone.image.tobytes() == _pixels(result.file)
        progress.clear()
        worker.show_previews(True)
        batch = worker.submit([settings(steps=150)])
        wait_for(lambda: any(each.preview for each in progress))
        worker.cancel(batch)
        with pytest.raises(CancelledError):
            batch.result.result(60)
        assert {each.batch for each in progress} == {2} and progress[-1].step < 150
        assert worker.submit([settings(steps=2)]).result.result()[0].outcome.state == DONE
        killed = worker.submit([settings(steps=150)])
        wait_for(lambda: progress[-1].batch == 4)
        _kill_replicas()
        with pytest.raises(
            UnavailableError, match=r"^the process of the model 'mini-ssd-1b' ended unexpectedly$"
        ):
            killed.result.result(60)
        assert not worker.is_alive


def _pixels(file: bytes) -> bytes:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        return image.tobytes()


def _kill_replicas() -> None:
    for process in psutil.process_iter(["cmdline"]):
        if "ray::Replica" in " ".join(process.info["cmdline"] or []):
            process.kill()


def test_a_replica_that_ends_without_work_is_noticed(nodes) -> None:
    with replica(lambda progress: None) as worker:
        worker.load().result(60)
        assert worker.is_alive
        _kill_replicas()
        wait_for(lambda: not worker.is_alive)


def test_a_replica_that_ends_because_memory_is_short_says_so(nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd1b.cluster.serving.end_of", lambda error: LowMemoryError("no room"))
    with replica(lambda progress: None) as worker:
        worker.load().result(60)
        running = worker.submit([settings(steps=150)])
        _kill_replicas()
        with pytest.raises(UnavailableError, match=r"^the process of the model .* ended because no room$"):
            running.result.result(60)


def test_a_model_that_cannot_be_loaded_names_the_node(nodes) -> None:
    with replica(lambda progress: None, model="gone") as worker:
        with pytest.raises(InputError, match=r"^node \S+: unknown model 'gone'"):
            worker.load().result(60)


def test_a_server_knows_what_its_replicas_generate_on(nodes, tmp_path: Path) -> None:
    options = ServerOptions(store=str(tmp_path), offline=True, dtype="bf16", ray=nodes.address)
    with replicas(options, ClusterOptions(address=nodes.address)) as found:
        assert isinstance(found, Replicas)
        assert found.most == 3
        assert [str(each) for each in found.platform] == ["cpu", "torch.bfloat16"]


def test_replicas_must_agree_with_the_server(nodes) -> None:
    from ssd1b.cluster.actor import Platform
    from ssd1b.server.replicas import _check

    digest = Model.find(MODEL, offline=True).digest(hash_file)
    right = partial(_check, Platform("cpu", "float32"), on_cpu, MODEL, digest, True, None)
    assert right() == on_cpu()
    for wrong, message in (
        (partial(_check, Platform("cuda", "float32"), on_cpu, MODEL, digest, True, None), "generates on cpu"),
        (partial(_check, on_cpu(), on_cpu, MODEL, "0" * 64, True, None), "are not those of the server's"),
    ):
        with replica(lambda progress: None, wrong) as worker:
            loaded: Future[int] = worker.load()
            with pytest.raises(ConflictError, match=rf"^node \S+: .*{message}"):
                loaded.result(60)


def test_a_share_needs_an_address() -> None:
    with pytest.raises(InputError, match=r"^ray_gpus needs ray, the address of a cluster$"):
        _ = ServerOptions(ray_gpus=0.5).cluster
