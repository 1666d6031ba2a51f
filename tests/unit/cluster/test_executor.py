"""Whatever ends in a cluster, each job is generated, stored once, and the same as on one machine."""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster_fakes import CPU, kill_one, on_anything, on_cpu, on_gpu, opener
from lab_cells import Fake, inline, sweep, wanted
from ssd1b.cluster.actor import LowMemoryError, end_of
from ssd1b.cluster.connection import _own_signals, connected, divide
from ssd1b.cluster.executor import ClusterExecutor
from ssd1b.cluster.options import ClusterOptions
from ssd1b.errors import InputError
from ssd1b.jobs.driver import draw_jobs, plan
from ssd1b.jobs.executor import Executor, JobResult
from ssd1b.jobs.job import Job
from ssd1b.jobs.store import DONE, FAILED, Outcome, Store

pytestmark = pytest.mark.enable_socket


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "actors.log"


@contextmanager
def executor(
    nodes, log: Path, seconds: float = 0.0, platform=on_cpu, **options
) -> Iterator[ClusterExecutor[JobResult]]:
    chosen = ClusterOptions(address=nodes.address, **options)
    with connected(nodes.address), closing(ClusterExecutor(chosen, platform, opener(log, seconds))) as made:
        assert isinstance(made, Executor)
        yield made


def stored(jobs: list[Job], folder: Path, runner: Executor[JobResult]) -> dict[str, Outcome]:
    with closing(Store(folder)) as store:
        draw_jobs(plan(jobs, store), store, runner)
        return store.outcomes(job.key for job in jobs)


def test_a_cluster_generates_what_one_machine_does(nodes, log: Path, tmp_path: Path) -> None:
    jobs = wanted(sweep("seed=1-20", "guidance=2,5", "steps=4-7", prompts=("a cube", "a broken one")))
    with executor(nodes, log, 0.2) as cluster:
        assert cluster.platform() == CPU
        found = stored(jobs, tmp_path / "cluster", cluster)
    assert found == stored(jobs, tmp_path / "inline", inline(Fake()))
    assert len(set(log.read_text().split())) == 3, "an actor on each node"


def test_a_killed_actor_or_node_costs_what_it_was_generating(nodes, log: Path, tmp_path: Path) -> None:
    jobs = wanted(sweep("seed=1-8", "steps=4-23"))
    with executor(nodes, log, 0.2) as cluster, ThreadPoolExecutor(1) as thread:
        cluster.load("fake")
        found = thread.submit(stored, jobs, tmp_path / "cluster", cluster)
        for kill in (lambda: kill_one(log), lambda: nodes.kill(0), lambda: kill_one(log)):
            time.sleep(2)
            kill()
            nodes.fill()
        assert not found.done()
        outcomes = found.result()
    assert outcomes == stored(jobs, tmp_path / "inline", inline(Fake()))


def test_a_batch_that_ends_every_actor_fails_and_the_others_do_not(nodes, log: Path, tmp_path: Path) -> None:
    jobs = wanted(sweep("steps=4", prompts=("a deadly one",))) + wanted(sweep("steps=5-9"))
    with executor(nodes, log) as cluster:
        found = stored(jobs, tmp_path / "cluster", cluster)
    deadly, *others = (found[job.key] for job in jobs)
    assert {each.state for each in others} == {DONE}
    assert deadly.state == FAILED
    assert (deadly.error or "").startswith("5 actors ended while they generated this batch: "), deadly.error


def test_a_run_ends_when_batch_after_batch_is_lost(
    nodes, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssd1b.cluster.executor.MAX_DEATHS", 1)
    jobs = wanted(sweep("steps=4-9", prompts=("a deadly one",)))
    with executor(nodes, log) as cluster:
        with pytest.raises(
            InputError, match=r"^3 batches in a row failed, the last one because 1 actors ended"
        ):
            stored(jobs, tmp_path / "cluster", cluster)


def test_fewer_actors_continue_where_memory_is_short(
    nodes, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssd1b.cluster.executor.end_of", lambda error: LowMemoryError("no room"))
    monkeypatch.setattr("ssd1b.cluster.executor.GROW_SECONDS", 0.0)
    said: list[str] = []
    jobs = wanted(sweep("seed=1-3", "steps=4-9"))
    options = ClusterOptions(address=nodes.address)
    with (
        connected(nodes.address),
        closing(ClusterExecutor(options, on_cpu, opener(log), said.append)) as cluster,
    ):
        found = stored(wanted(sweep(prompts=("a deadly one",))), tmp_path / "cluster", cluster)
        assert [each.state for each in found.values()] == [FAILED]
        found = stored(jobs, tmp_path / "cluster", cluster)
    assert {each.state for each in found.values()} == {DONE}
    kept = ["an actor ended and is not replaced: no room"] * 2
    said = [each for each in said if not each.startswith("waiting")]
    assert said == [*kept, *["an actor ended and is replaced: no room"] * 3], (
        "three actors, of which one is left"
    )


def test_the_memory_that_is_short_is_named() -> None:
    from ray.exceptions import OutOfMemoryError

    text = "Memory on the node (IP: 10.0.0.1, ID: 26d1) was 7.57GB used / 23.54GB limit (0.32)\nRefer to the"
    error = end_of(OutOfMemoryError(f"2 worker(s) were killed due to the node running low on memory. {text}"))
    assert isinstance(error, LowMemoryError)
    assert str(error).startswith("the actor's node is short of memory (7.57GB of 23.54GB used); fewer actors")


def test_models_take_turns(nodes, log: Path, tmp_path: Path) -> None:
    jobs = wanted(sweep("seed=1-5"))
    jobs += [job._replace(key=f"b{job.key}", model="other") for job in jobs]
    with executor(nodes, log) as cluster:
        found = stored(jobs, tmp_path / "cluster", cluster)
    assert len(found) == 10
    assert len(log.read_text().split()) <= 6, "no actor loaded a model twice"


def test_actors_start_on_nodes_that_join_later(
    nodes, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssd1b.cluster.executor.GROW_SECONDS", 0.0)
    nodes.kill(0)
    nodes.kill(0)
    jobs = wanted(sweep("seed=1-8", "steps=4-23"))
    with executor(nodes, log, 0.2) as cluster:
        cluster.platform()
        nodes.fill()
        stored(jobs, tmp_path / "cluster", cluster)
    assert len(set(log.read_text().split())) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"platform": on_gpu}, r"^node \S+: device 'cuda' is not in this machine$"),
        ({"platform": on_anything}, "^some nodes generate on cpu in .*: choose with --device and --dtype$"),
        ({"cpus": 7}, "^an actor needs 7 CPUs and 0 GPUs, but no node of the cluster has more than 1 and 0$"),
    ],
)
def test_nodes_that_do_not_fit_are_one_line(nodes, log: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message), executor(nodes, log, **options) as cluster:
        cluster.platform()
        cluster.load("model")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            cluster.submit("model", []).result()
            time.sleep(0.1)


def test_a_node_without_the_model_is_one_line(nodes, log: Path) -> None:
    message = r"^node \S+: unknown model 'gone'$"
    with executor(nodes, log) as cluster, pytest.raises(InputError, match=message):
        cluster.load("gone")


def test_a_node_with_another_version_is_one_line(nodes, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd1b.cluster.executor.version", lambda name: "0.0.1")
    with (
        pytest.raises(InputError, match=r"^node \S+: ssd1b \S+ is installed, and 0\.0\.1 on this machine$"),
        executor(nodes, log) as cluster,
    ):
        cluster.platform()


def test_an_error_of_ray_ends_the_run_and_never_hangs(
    nodes, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with executor(nodes, log) as cluster:
        cluster.load("fake")

        def refuse(*arguments: object) -> None:
            raise RuntimeError("the head is gone")

        monkeypatch.setattr("ssd1b.cluster.executor.start", refuse)  # in place of the actor that ended
        running = cluster.submit("fake", [job.settings for job in wanted(sweep(prompts=("a deadly one",)))])
        with pytest.raises(InputError, match=r"^RuntimeError: the head is gone$"):
            running.result(60)


def test_a_run_that_is_stopped_says_nothing_of_its_actors(nodes, log: Path) -> None:
    said: list[str] = []
    options = ClusterOptions(address=nodes.address)
    with (
        connected(nodes.address),
        closing(ClusterExecutor(options, on_cpu, opener(log, 5.0), said.append)) as cluster,
    ):
        cluster.load("fake")
        running = cluster.submit("fake", [job.settings for job in wanted(sweep("seed=1"))])
        assert not wait([running], 1).done
    assert isinstance(running.exception(), InputError), "its batch ends too"
    assert not any("ended" in each for each in said), said


def test_a_waiting_driver_says_what_for(nodes, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd1b.cluster.executor.PATIENCE", 0.1)
    said: list[str] = []
    options = ClusterOptions(address=nodes.address)
    with (
        connected(nodes.address),
        closing(ClusterExecutor(options, on_cpu, opener(log), said.append)) as cluster,
    ):
        cluster.platform()
    assert said == ["waiting for actors with 1 CPU and 0 GPUs each"]


def test_the_share_of_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(*nodes: dict[str, float], **options: float) -> tuple[float, float, int]:
        monkeypatch.setattr("ssd1b.cluster.connection._nodes", lambda: iter(nodes))
        found = divide(ClusterOptions(address="auto", **options))
        return found.cpus, found.gpus, found.actors

    head, small, large = {"memory": 1.0}, {"CPU": 4.0}, {"CPU": 8.0}
    gpus = {"CPU": 16.0, "GPU": 8.0}
    assert share(head, small, large) == (4, 0, 3)
    assert share(head, small, large, cpus=1) == (1, 0, 12)
    assert share(head, large, gpus) == (1, 1, 8)
    assert share(head, large, gpus, gpus=0.5) == (1, 0.5, 16)
    assert share(head, large, gpus, gpus=0) == (8, 0, 3)
    assert share(head, large, gpus, actors=2) == (1, 1, 2)
    assert share(head, large, gpus=1, actors=2) == (1, 1, 2), "an autoscaler may add the nodes"
    with pytest.raises(InputError, match=r"^an actor needs 1 CPU and 1 GPU, but no node of the cluster has"):
        divide(ClusterOptions(address="local", gpus=1, actors=2))  # to which no node will be added
    monkeypatch.setattr("ssd1b.cluster.connection._nodes", lambda: iter([{"CPU": 2.0}]))
    with pytest.raises(
        InputError, match=r"^this machine has room for 2 actors with 1 CPU and 0 GPUs each, not for 3"
    ):
        divide(ClusterOptions(address="local", cpus=1, actors=3))


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "localhost:nothing", "no such host:6379", "127.0.0.1:99999999"]
)
def test_a_cluster_that_is_not_there_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(InputError, match=f"^cannot reach the Ray cluster '{address}': "), connected(address):
        pass


@pytest.mark.parametrize("address", ["auto", "local", "10.0.0.1:6379"])
def test_the_cluster_that_was_found_is_named_and_a_local_one_leaves_no_folder(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    folders: list[Path] = []

    def init(**options: str) -> object:
        calls.append(options["address"])
        folders.extend(Path(options[each]) for each in options if each == "_temp_dir")
        if interrupted:
            raise KeyboardInterrupt
        return SimpleNamespace(address_info={"gcs_address": "10.0.0.1:6379"})

    interrupted = False
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr("ssd1b.cluster.connection._check_reachable", lambda address: None)
    said: list[str] = []
    with connected(address, said.append):
        assert all(folder.is_dir() for folder in folders)
    assert calls == [address, "shutdown"]
    assert said == ["using the Ray cluster at 10.0.0.1:6379"] * (address == "auto")
    assert len(folders) == (address == "local"), "the folder of another's cluster stays"
    interrupted = True
    with pytest.raises(KeyboardInterrupt), connected(address):
        pass
    assert not any(folder.exists() for folder in folders)


def test_signals_keep_their_handlers() -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with _own_signals():
        for each in before:
            signal.signal(each, lambda number, frame: None)
    assert {each: signal.getsignal(each) for each in before} == before


def test_a_server_that_is_not_ray_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        answered = pool.submit(answer)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match="the server there is not Ray"), connected(address):
            pass
        answered.result()


@pytest.mark.parametrize("make", [
    lambda: ClusterOptions(address="ray://head:10001"), lambda: ClusterOptions(address="head"),
    lambda: ClusterOptions(address="auto", gpus=1.5), lambda: ClusterOptions(address="auto", actors=0),
    lambda: ClusterOptions(address="local", cpus=4096),
])  # fmt: skip
def test_options_are_checked_before_anything_is_started(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()
