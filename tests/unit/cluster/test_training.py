"""A training on a cluster gives what ``torchrun`` gives, whatever ends."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from picture_files import smooth
from ssd1b.actions.distill import distill_model, make_stages
from ssd1b.cluster import training
from ssd1b.cluster.options import ClusterOptions
from ssd1b.errors import ConflictError, FailedError, InputError, LostProcessError, NotFoundError
from ssd1b.training import loop
from training_fakes import STEPS, count, refuse, saved, stages_toml
from waiting import wait_for

pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray Train imports Ray Data
]


def train(nodes, work: Callable[[], Any], folder: Path, **options: Any) -> Any:
    chosen = ClusterOptions(address=nodes.address, actors=2, cpus=1.0, **options)
    return training.train(chosen, work, partial(saved, folder), step_minutes=2.0, notify=lambda message: None)


def soon(condition: Callable[[], object], do: Callable[[], object]) -> None:
    def wait() -> None:
        wait_for(condition, seconds=200)
        do()

    threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Processes that were started in the background inherit that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_after_a_step(nodes, interruptible, tmp_path: Path) -> None:
    soon(lambda: len(saved(tmp_path)) > 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(nodes, partial(count, tmp_path, 0.5), tmp_path)
    assert 1 < len(saved(tmp_path)) < STEPS
    assert len((tmp_path / "ids.0").read_text().split()) == 1


def test_what_one_process_lacks_ends_the_training_with_its_line(nodes, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"^node {socket.gethostname()}: no such model: 'gone'$"):
        train(nodes, partial(refuse, 1), tmp_path)


def test_another_version_on_a_node_is_an_error() -> None:
    message = r"^node \S+: ssd1b \S+ is installed, and 9\.9 on the driver's machine$"
    with pytest.raises(ConflictError, match=message):
        training._take_part({"ssd1b": "9.9", "board": None})


def test_half_a_gpu_is_refused(nodes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--ray-gpus is 0\.5: a training process takes one GPU or none"):
        train(nodes, partial(count, tmp_path), tmp_path, gpus=0.5)


def test_a_training_that_fails_again_and_again_without_progress_ends() -> None:
    ray_train = import_module("ssd1b.cluster.ray_train")
    progress: list[int] = []
    messages: list[str] = []
    failures = ray_train.Failures(lambda: list(progress), messages.append)
    lost, cause = LostProcessError("another process ended"), RuntimeError("out of memory")
    for _ in range(2 * ray_train.MAX_FAILURES):
        failures.after_exception(None, {0: lost, 1: cause})
        assert messages.pop().endswith("after a process ended: RuntimeError: out of memory\n")
        progress.append(1)
    for _ in range(ray_train.MAX_FAILURES - 1):
        failures.after_exception(None, {0: cause})
    with pytest.raises(FailedError, match="failed 3 times without a new checkpoint: RuntimeError: out of"):
        failures.after_exception(None, {0: cause})


def test_torch_listens_on_the_loopback_only(monkeypatch) -> None:
    ray_train = import_module("ssd1b.cluster.ray_train")
    rendezvous = import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(rendezvous, "TCPStore", rendezvous.TCPStore)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    ray_train.listen_on_loopback()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store, *_ = next(rendezvous.rendezvous(f"tcp://127.0.0.1:{port}?rank=0&world_size=1"))
    listening = [each.laddr for each in psutil.Process().net_connections() if each.status == "LISTEN"]
    assert [each.ip for each in listening if each.port == port] == ["127.0.0.1"]
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_a_distillation_is_that_of_one_process_although_one_is_killed(
    nodes, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nn.Module, "compile", lambda module: None)  # as on the nodes
    Path("stages.toml").write_text(stages_toml("mini-ssd-1b", 6))
    for number in range(2):
        Path("pictures").mkdir(exist_ok=True)
        smooth(128, 128, seed=number).save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text(f"cloud number {number}")
    stages = make_stages("stages.toml")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as on the nodes: sums of several threads are rounded otherwise
    distill_model("mini-sdxl", stages, "pictures", Path("one"), device="cpu")
    torch.set_num_threads(threads)

    def kill_a_process() -> None:
        trainers = [each for each in psutil.process_iter() if each.name().startswith("ray::RayTrainWo")]
        max(trainers, key=lambda each: each.pid).kill()

    soon(Path("ray/stage-1/checkpoints/step-00000002.safetensors").exists, kill_a_process)
    cluster = ClusterOptions(address=nodes.address, actors=2, cpus=1.0)
    capsys.readouterr()
    made = distill_model("mini-sdxl", stages, "pictures", Path("ray"), device="cpu", cluster=cluster)
    assert made is not None and made.folder == Path("ray/model")
    one, other = (Path(out, "stage-1/student.safetensors").read_bytes() for out in ("one", "ray"))
    assert one == other
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("training in 2 processes") == 2, lines
    assert any(line.startswith("continuing from the last checkpoint, after a process ") for line in lines)
    assert not loop.stop_requested.is_set()
