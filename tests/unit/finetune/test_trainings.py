"""Trainings with masks, a class and a prior at once: killed and resumed, in parts, in processes."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from killing import kill_often, kills_in_child
from ssd1b.finetune.layers import adapt
from ssd1b.finetune.networks import Networks, prepare
from ssd1b.finetune.prior import Preservation, loss_terms, without_adapters
from ssd1b.finetune.settings import KINDS, FinetuneSettings, make_settings
from ssd1b.layouts import ControlNetLayout, encoder_of
from ssd1b.models.controlnet import ControlNet
from ssd1b.models.text import Conditioning
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import UNetInputs
from ssd1b.training import loop
from ssd1b.training.batches import LatentBatch, Share, cut
from ssd1b.training.loop import train
from ssd1b.training.objective import Example, Objective
from ssd1b.training.processes import Processes
from ssd1b.training.task import Learner
from ssd1b.training.trained import trained_parameters
from tiny import DRAWABLE, inputs

METHODS = (*KINDS, "full", "controlnet")
TOGETHER = ("lora", "dora", "controlnet")
"""Methods for two processes: an adapter beside its module, one that changes the weight, another network."""

OBJECTIVE = Objective(text=None, device="cpu", dtype=torch.float32)
STEPS, BATCH = 4, 2
LAST = f"checkpoints/step-{STEPS:08d}.safetensors"


def settings(method: str, parts: int = 1) -> FinetuneSettings:
    kind: dict[str, Any] = {"kind": method, "rank": 2} if method in KINDS else {"method": method}
    if method == "controlnet":
        kind["data.controls"] = "edges"
    loop_settings = {
        "steps": STEPS, "batch_size": BATCH, "micro_batches": parts, "learning_rate": 1e-3, "warmup_steps": 2,
        "checkpoint_steps": 2, "log_steps": 1,
    }  # fmt: skip
    named = {f"train.{name}": value for name, value in loop_settings.items()}
    return make_settings(None, {"data.path": "x", **kind, **named}, size=64)


class Pairs:
    """A batch of the subject with masks, and one of its class without, by the step; both with controls."""

    def __getitem__(self, step: int) -> tuple[LatentBatch, LatentBatch]:
        with torch.random.fork_rng():
            torch.manual_seed(step)
            return self._one(torch.rand(BATCH, 1, 8, 8)), self._one(None)

    def _one(self, weights: Tensor | None) -> LatentBatch:
        few = inputs(DRAWABLE.unet, 8, 8)
        text = Conditioning(*(torch.randn(BATCH, *each.shape[1:]) for each in few[2:4]))
        latents, captions = torch.randn(BATCH, 4, 8, 8), torch.rand(BATCH) < 0.7
        controls = torch.randint(0, 256, (BATCH, 1, 64, 64), dtype=torch.uint8)
        return LatentBatch(latents, text, few.time_ids, captions, weights, controls)


def prepared(method: str) -> tuple[nn.Module, Preservation | None]:
    torch.manual_seed(0)
    unet = UNet(DRAWABLE.unet).eval()
    if method == "controlnet":
        control = ControlNet(ControlNetLayout(encoder=encoder_of(unet.layout)))
        control.copy_encoder(unet)
        networks = Networks(unet, None, {}, control)
        prepare(networks, settings(method))
        return networks, None
    if method == "full":
        before: Any = copy.deepcopy(unet).requires_grad_(False)
        unet.requires_grad_(True)
    else:
        adapt(unet, settings(method))
        before = partial(as_it_was, unet)
    return unet, Preservation(Conditioning(*inputs(DRAWABLE.unet, 8, 8)[2:4]), before)


def as_it_was(unet: UNet, *given: Tensor) -> Tensor:
    with without_adapters(unet):
        return unet(*given)


def learn(method: str, out: Path, parts: int = 1) -> dict[str, Tensor]:
    model, preservation = prepared(method)

    def loss(module: Any, batch: Any) -> dict[str, Tensor]:
        if method == "controlnet":
            own, _ = batch
            return loss_terms(OBJECTIVE, module.predictor(own.controls, torch.float32), own, None, 0.5)
        return loss_terms(OBJECTIVE, module, batch, preservation, 0.5)

    trained = train(model, Pairs(), loss, settings(method, parts).train, out, resume=True, label="test")
    return {name: each.detach() for name, each in trained_parameters(trained).items()}


def in_process(share: Share, start: int, stop: int, weights: object = ()) -> Iterator[list[Any]]:
    return (share[step] for step in range(start, stop))


def killed_often(folder: str) -> None:
    """The work of the next test's child process."""
    loop._read_ahead = in_process
    for method in METHODS:
        learn(method, Path(folder) / method / "whole")
        kill_often(partial(learn, method), Path(folder) / method / "cut", LAST)


def test_every_kind_of_run_that_is_killed_ends_bit_by_bit_as_if_it_had_not_been(tmp_path: Path) -> None:
    assert kills_in_child(__file__, f"killed_often({str(tmp_path)!r})") >= len(METHODS)
    for method in METHODS:
        whole, resumed = (load_file(tmp_path / method / name / LAST) for name in ("whole", "cut"))
        assert whole.keys() == resumed.keys()
        assert all(resumed[name].equal(each) for name, each in whole.items()), method
        earlier = load_file(tmp_path / method / "cut" / LAST.replace("4.", "2."))
        moved = [not resumed[name].equal(earlier[name]) for name in earlier if ".weights." in f".{name}"]
        assert any(moved), "a resumed adapter still learns"
        rows = [json.loads(line) for line in (tmp_path / method / "cut/log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "each step is counted once"


class Noiseless(Objective):
    """An objective without random numbers, which differ between micro-batches."""

    def __call__(self, batch: LatentBatch) -> Example:
        assert isinstance(batch.text, Conditioning)
        given = UNetInputs(
            batch.latents, torch.full((len(batch.latents),), 500.0), *batch.text, batch.time_ids
        )  # fmt: skip
        weights = batch.has_caption.float() + batch.latents[:, 0, 0, 0].square()
        return Example(given, 1 - batch.latents, weights, batch.cell_weights)


NOISELESS = Noiseless(text=None, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_micro_batches_have_the_gradient_of_the_batch_whatever_its_images_weigh(method: str) -> None:
    """The mean is over the whole batch: no part is divided by its own weights."""
    chosen = settings(method).train
    gradients = {}
    for count in (1, BATCH):
        unet, _ = prepared(method)
        parts = replace(chosen, micro_batches=count)
        learner = Learner(
            unet, lambda module, batch: loss_terms(NOISELESS, module, batch, None, 0.5), parts,
            Processes(torch.device("cpu"), parts),
        )  # fmt: skip
        terms = learner._add_gradients(0, [cut(Pairs()[3], index, count) for index in range(count)])
        gradients[count] = {
            name: each.grad for name, each in trained_parameters(unet).items() if each.grad is not None
        }
        gradients[count]["terms"] = torch.stack([terms[name] for name in ("loss", "prior", "subject")])
    for name, each in gradients[1].items():
        torch.testing.assert_close(gradients[BATCH][name], each, rtol=1e-4, atol=1e-6)


def test_a_mask_decides_where_the_loss_counts() -> None:
    own, _ = Pairs()[0]
    example = NOISELESS(own)
    off = own._replace(cell_weights=None)
    half = torch.ones(BATCH, 1, 8, 8)
    half[..., 4:] = 0
    errors = {}
    for name, changed in (("left", half), ("right", 1 - half), ("all", None)):
        batch = off._replace(cell_weights=changed)
        terms = loss_terms(NOISELESS, lambda *given: torch.zeros_like(given[0]), batch, None, 1.0)
        errors[name] = terms["loss"]
    torch.testing.assert_close(errors["left"] + errors["right"], errors["all"])
    by_hand = (example.target[..., :4].square().sum((1, 2, 3)) / 256 * example.weights).mean()
    torch.testing.assert_close(errors["left"], by_hand)


def work(out: Path) -> None:
    """What each of two processes does."""
    loop._read_ahead = in_process
    for method in TOGETHER:
        save_file(learn(method, out / method, 2), out / f"{method}.{os.environ['RANK']}.safetensors")


def test_two_processes_train_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_read_ahead", in_process)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    folders = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(
        [*torchrun, __file__, str(tmp_path)], timeout=600, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    for method in TOGETHER:
        alone = learn(method, tmp_path / f"{method} alone", 2)
        before = dict(trained_parameters(prepared(method)[0]))
        for rank in range(2):
            together = load_file(tmp_path / f"{method}.{rank}.safetensors")
            assert together.keys() == alone.keys()
            for name, each in alone.items():
                torch.testing.assert_close(together[name], each, rtol=0, atol=1e-5)
        assert any(not alone[name].equal(each) for name, each in before.items()), "it learns"


if __name__ == "__main__":
    work(Path(sys.argv[1]))
