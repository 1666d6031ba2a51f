"""Two processes on this machine, started by torchrun, learn what one does.

Weights after eight steps agree to 1e-5: the order in which a gradient's parts are summed is all that differs.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssd1b.errors import ConflictError, InputError, LostProcessError
from ssd1b.models.attention import TransformerBlock
from ssd1b.saving import claim_folder
from ssd1b.training import loop, processes
from ssd1b.training.batches import Share
from ssd1b.training.loop import train
from ssd1b.training.processes import Group, Loss, report_lost_processes
from ssd1b.training.settings import LoopSettings

Batch = dict[str, Tensor]

SETTINGS = LoopSettings(
    steps=8, batch_size=8, micro_batches=2, learning_rate=1e-2, warmup_steps=2, decay_steps=2,
    checkpoint_steps=2, log_steps=8, ema_decay=0.9, timeout_minutes=2.0,
)  # fmt: skip
PLAIN = replace(SETTINGS, seed=1)
RUNS = {
    "ddp": replace(SETTINGS, muon_rate=1e-2),
    "ddp, four parts, adafactor": replace(SETTINGS, micro_batches=4, optimizer="adafactor"),
    "fsdp": replace(SETTINGS, fsdp=True),
    "fsdp, no average": replace(SETTINGS, fsdp=True, ema_decay=0.0, gradient_checkpointing=True),
}
ALONE: dict[str, dict[str, Tensor]] = {}
"""What one process learns in each of ``RUNS``; ``together`` fills it."""

HALF = 6
"""Steps after which a run of one process is gone on with by two."""


class Numbers:
    def __getitem__(self, step: int) -> Batch:
        return {"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(step))}


class Network(nn.Module):
    """A block that FSDP shards by itself, a frozen layer, and, as in SDXL's text encoder, an unused one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.first = nn.Linear(4, 16)
        self.block = TransformerBlock(8, head_dim=4, context_channels=8)
        self.last = nn.Linear(8, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        # Two tokens: with one, attention has nothing to choose, and the gradients of its queries and keys are
        # rounding errors, which differ from machine to machine and which Adam makes large.
        tokens = self.first(self.frozen(x)).unflatten(1, (2, 8))
        return self.last(self.block(tokens, tokens).mean(dim=1))


def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    noisy = batch["x"] + torch.randn_like(batch["x"])
    return {"loss": (model(noisy) - batch["x"]).square().mean()}


def noiseless(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {"loss": (model(batch["x"]) - batch["x"]).square().mean()}


def at_step(step: int, rank: int, happens: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Loss:
    """A loss with which something happens in one process at one step."""

    def eventful(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        terms = loss(model, batch)
        mine = Numbers()[step]["x"][4 * rank : 4 * rank + 4]
        return happens(terms) if batch["x"].equal(mine) else terms

    return eventful


def learn(out: Path, settings: LoopSettings, asked: Loss = loss, *, resume: bool = False) -> nn.Module:
    return train(Network(), Numbers(), asked, settings, out, resume=resume, label="test")


def in_process(share: Share, start: int, stop: int, weights: object = ()) -> Iterator[list[Batch]]:
    return (share[step] for step in range(start, stop))


def work(out: Path) -> None:
    """What each of the two processes does."""
    loop._read_ahead = in_process
    rank = int(os.environ["RANK"])

    def kept(name: str, model: nn.Module) -> None:
        save_file(model.state_dict(), out / f"{name}.{rank}.safetensors")

    for name, settings in RUNS.items():
        kept(name, learn(out / name, settings))
        kept(f"{name}, gone on", learn(out / f"{name}, half", settings, resume=True))
    kept("whole batch", learn(out / "whole batch", PLAIN, noiseless))

    def stop(terms: dict[str, Tensor]) -> dict[str, Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        return terms

    try:
        learn(out / "stopped", SETTINGS, at_step(4, 1, stop))
    except KeyboardInterrupt:
        (out / f"stopped.{rank}").touch()

    kept(
        "poisoned",
        learn(out / "poisoned", SETTINGS, at_step(4, 1, lambda terms: {"loss": terms["loss"] * torch.nan})),
    )

    try:
        learn(out / "uneven", replace(SETTINGS, micro_batches=1))
    except InputError as error:
        (out / f"uneven.{rank}").write_text(str(error))

    agree(out, rank)

    def hang(terms: dict[str, Tensor]) -> dict[str, Tensor]:
        while not (out / "hanging").exists():
            time.sleep(0.1)
        return terms

    try:
        with report_lost_processes():
            learn(out / "hung", replace(SETTINGS, timeout_minutes=0.1), at_step(4, 1, hang))
    except LostProcessError as error:
        if rank == 0:
            (out / "hanging").write_text(str(error))
        raise


def agree(out: Path, rank: int) -> None:
    """What processes do between training steps, as if each was on its own machine."""
    processes.VISIBLE_SECONDS = 0.5
    group = Group("cpu", step_minutes=1.0, wait_minutes=1.0)

    def refuse() -> int:
        raise ConflictError(f"refused by {rank}")

    def error(do: Callable[[], object]) -> str:
        try:
            return f"no error: {do()}"
        except InputError as caught:
            return f"{type(caught).__name__}: {caught}"

    found = {
        "decided": group.decide(lambda: rank),
        "refused": error(lambda: group.decide(refuse)),
        "gathered": group.gather(rank),
        "filled": group.first_before_others(lambda: (out / "cache").exists() or (out / "cache").touch()),
        "same": error(lambda: group.check_same("the data", lambda: 7)),
        "different": error(lambda: group.check_same("the data", lambda: rank)),
        "shared": error(lambda: group.check_shared(out / "shared")),
        "not shared": error(lambda: group.check_shared(out / f"disk of {rank}")),
    }
    (out / f"agreed.{rank}").write_text(json.dumps(found))


def one_process(out: Path, settings: LoopSettings, asked: Loss = loss) -> dict[str, Tensor]:
    return learn(out, replace(settings, fsdp=False), asked).state_dict()


@pytest.fixture(autouse=True, scope="module")
def read_in_process() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_read_ahead", in_process)
        yield


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, read_in_process: None) -> tuple[Path, int]:
    """The folder in which two processes did everything, and how they ended."""
    out = tmp_path_factory.mktemp("together")
    for name, settings in RUNS.items():
        ALONE[name] = one_process(out / f"{name}, half", settings)
        for path in (out / f"{name}, half/checkpoints").iterdir():
            if int(path.stem.removeprefix("step-")) > HALF:
                path.unlink()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*torchrun, __file__, str(out)], timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    return out, ended.returncode


def assert_near(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_does(together: tuple[Path, int], name: str) -> None:
    for rank in range(2):
        assert_near(load_file(together[0] / f"{name}.{rank}.safetensors"), ALONE[name])


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_go_on_with_what_one_began(together: tuple[Path, int], name: str) -> None:
    assert_near(load_file(together[0] / f"{name}, gone on.0.safetensors"), ALONE[name])


def test_one_process_goes_on_with_what_two_began(together: tuple[Path, int], tmp_path: Path) -> None:
    folder = together[0] / "fsdp/checkpoints"
    cut = tmp_path / "cut/checkpoints"
    claim_folder(tmp_path / "cut")
    cut.mkdir()
    (cut / "step-00000006.safetensors").write_bytes((folder / "step-00000006.safetensors").read_bytes())
    gone_on = learn(tmp_path / "cut", SETTINGS, resume=True).state_dict()
    assert_near(gone_on, ALONE["fsdp"])


def test_two_processes_learn_what_one_does_from_the_batch_as_a_whole(
    together: tuple[Path, int], tmp_path: Path
) -> None:
    alone = one_process(tmp_path, replace(PLAIN, micro_batches=1), noiseless)
    assert_near(load_file(together[0] / "whole batch.0.safetensors"), alone)


def test_a_signal_to_one_process_ends_all_with_a_checkpoint_of_the_same_step(
    together: tuple[Path, int],
) -> None:
    out, _ = together
    assert (out / "stopped.0").exists() and (out / "stopped.1").exists()
    saved = sorted(path.name for path in (out / "stopped/checkpoints").iterdir())
    assert saved[-1] == "step-00000005.safetensors"
    assert_near(learn(out / "stopped", SETTINGS, resume=True).state_dict(), ALONE["fsdp"])


def test_poison_in_one_process_is_followed_by_none(together: tuple[Path, int]) -> None:
    out, _ = together
    first, second = (load_file(out / f"poisoned.{rank}.safetensors") for rank in range(2))
    assert all(tensor.isfinite().all() and tensor.equal(second[name]) for name, tensor in first.items())
    row = json.loads((out / "poisoned/log.jsonl").read_text().splitlines()[-1])
    assert row["skipped"] == 1


@pytest.mark.parametrize("name", RUNS)
def test_frozen_parameters_stay_as_they_were_and_are_not_saved(together: tuple[Path, int], name: str) -> None:
    trained = load_file(together[0] / f"{name}.0.safetensors")
    for key, tensor in Network().frozen.state_dict().items():
        assert trained[f"frozen.{key}"].equal(tensor)
    kept = load_file(together[0] / name / "checkpoints/step-00000008.safetensors")
    assert kept and not [key for key in kept if "frozen" in key]


def test_only_the_first_process_writes(together: tuple[Path, int]) -> None:
    assert len((together[0] / "ddp/log.jsonl").read_text().splitlines()) == 1


def test_parts_that_cannot_be_shared_are_an_error(together: tuple[Path, int]) -> None:
    message = "2 processes cannot share 1 micro_batches evenly: set micro_batches to a multiple of 2"
    assert (together[0] / "uneven.1").read_text() == message


def test_the_first_process_decides_for_all(together: tuple[Path, int]) -> None:
    first, second = (json.loads((together[0] / f"agreed.{rank}").read_text()) for rank in range(2))
    assert first["filled"] is None and second["filled"] is True, "the others find what the first wrote"
    for name in ("decided", "gathered", "refused", "different"):
        assert first[name] == second[name]
    assert first["decided"] == 0 and first["gathered"] == [0, 1]
    assert first["refused"] == "ConflictError: refused by 0"


def test_machines_that_differ_are_named(together: tuple[Path, int]) -> None:
    found = json.loads((together[0] / "agreed.1").read_text())
    here = socket.gethostname()
    assert found["same"] == found["shared"] == "no error: None"
    assert found["different"] == f"ConflictError: {here}: the data differs from that on {here}"
    assert found["not shared"].startswith(f"NotFoundError: {here}: ")
    assert "choose one on a disk that all machines share" in found["not shared"]
    assert not [*(together[0] / "shared").iterdir()], "nothing is left behind"


def test_a_process_that_hangs_is_named_and_ends_the_run(together: tuple[Path, int]) -> None:
    out, code = together
    message = (out / "hanging").read_text()
    assert (
        message.startswith("another process of this training ended or does not answer")
        and "Ranks 1" in message
    )
    assert code != 0


if __name__ == "__main__":
    work(Path(sys.argv[1]))
