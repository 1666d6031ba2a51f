"""A stage: the student begins as a part of its teacher, learns from it, and leaves it as it was."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ssd1b.distill.features import LEVELS
from ssd1b.distill.losses import Weights
from ssd1b.distill.teacher import find_teacher, objective_of
from ssd1b.distill.train import distill, student_of
from ssd1b.errors import InputError
from ssd1b.layer_map import LayerMap
from ssd1b.layouts import SDXL_MINI, SSD_1B_MINI
from ssd1b.models.text import TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.tabletop.miniature.assemble import _companions
from ssd1b.training import kernels
from ssd1b.training.batches import LatentBatch
from ssd1b.training.objective import Objective
from ssd1b.training.settings import LoopSettings
from ssd1b.weights import hub

LAYERS = LayerMap.between(SSD_1B_MINI, SDXL_MINI)
SETTINGS = LoopSettings(
    steps=1, batch_size=2, learning_rate=1e-3, decay_steps=0, warmup_steps=0, ema_decay=0.0, log_steps=1
)


@pytest.fixture(autouse=True)
def do_not_compile(read_in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)


@pytest.fixture(scope="module")
def text() -> TextEncoders:
    return _companions(Path(), hub.resolve("mini-sdxl", offline=True).path).text


@dataclass(frozen=True)
class Same:
    """The same batch at every step."""

    text: TextEncoders

    def __getitem__(self, step: int) -> LatentBatch:
        generator = torch.Generator().manual_seed(0)
        return LatentBatch(
            latents=torch.randn(2, 4, 16, 16, generator=generator),
            text=self.text.tokenize(["a red cube", "a small blue cone"]),
            time_ids=torch.tensor([[128, 128, 0, 0, 128, 128]] * 2),
            has_caption=torch.tensor([True, False]),
        )


def teacher() -> UNet:
    torch.manual_seed(1)
    return UNet(SDXL_MINI)


def run(out: Path, text: TextEncoders, **changes: object) -> UNet:
    first = teacher()
    given = {"settings": SETTINGS, "weights": Weights()} | changes
    objective = Objective(text=text, device="cpu", dtype=torch.float32)
    return distill(out, first, student_of(first, LAYERS), LAYERS, Same(text), objective, **given)  # type: ignore[arg-type]


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_student_is_cut_out_and_shares_no_memory() -> None:
    first = teacher()
    student = student_of(first, LAYERS)
    assert student.layout == SSD_1B_MINI
    cut, whole = student.state_dict(), first.state_dict()
    for key, source in LAYERS.keys.items():
        assert cut[key].equal(whole[source]) and cut[key].data_ptr() != whole[source].data_ptr()
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_trains_and_tells_its_terms(tmp_path: Path, text: TextEncoders, level: str) -> None:
    student = run(tmp_path, text, level=level)
    told = {name for name in rows(tmp_path)[0] if name.startswith("feature/")}
    assert told == {f"feature/{name}" for name in LEVELS[level](LAYERS)}
    before = student_of(teacher(), LAYERS).state_dict()
    assert any(not tensor.equal(before[name]) for name, tensor in student.state_dict().items())


def test_the_teacher_is_left_as_it_was_and_no_hook_stays(tmp_path: Path, text: TextEncoders) -> None:
    first = teacher()
    student = student_of(first, LAYERS)
    objective = Objective(text=text, device="cpu", dtype=torch.float32)
    distill(tmp_path, first, student, LAYERS, Same(text), objective, settings=SETTINGS, weights=Weights())
    left = first.state_dict()
    for name, tensor in teacher().state_dict().items():
        assert left[name].equal(tensor)
    assert not any(module._forward_hooks for module in (*first.modules(), *student.modules()))


def test_a_student_that_learns_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    found = find_teacher("mini-sdxl", offline=True)
    text = found.text_encoders(partial(found.network, dtype=torch.float32))
    first = found.network("unet").float()
    objective = objective_of(found, text, "cpu", torch.float32)
    settings = replace(SETTINGS, steps=12, learning_rate=1e-4)

    @torch.no_grad()
    def away(student: UNet) -> float:
        torch.manual_seed(3)
        inputs = [objective(Same(text)[0]).inputs for _ in range(4)]
        return sum(float((student(*each) - first(*each)).square().mean()) for each in inputs)

    student = student_of(first, LAYERS)
    before = away(student)
    learned = distill(
        tmp_path, first, student, LAYERS, Same(text), objective, settings=settings,
        weights=Weights(task=0.0, output=1.0, features=1.0),
    )  # fmt: skip
    assert away(learned) < 0.8 * before


def test_gradients_are_clipped(tmp_path: Path, text: TextEncoders) -> None:
    """Cut down to far less than AdamW's epsilon, they move nothing."""
    settings = replace(SETTINGS, max_grad_norm=1e-13, weight_decay=0.0)
    student = run(tmp_path, text, settings=settings)
    before = student_of(teacher(), LAYERS).state_dict()
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
    assert rows(tmp_path)[0]["grad_norm"] > 1e-3


def test_a_map_of_other_layouts_is_an_error(tmp_path: Path, text: TextEncoders) -> None:
    same = LayerMap.between(SDXL_MINI, SDXL_MINI)
    objective = Objective(text=text, device="cpu", dtype=torch.float32)
    with pytest.raises(InputError, match="layer map"):
        distill(
            tmp_path, teacher(), student_of(teacher(), LAYERS), same, Same(text), objective,
            settings=SETTINGS, weights=Weights(),
        )  # fmt: skip
    with pytest.raises(InputError, match="layer map"):
        student_of(UNet(SSD_1B_MINI), LAYERS)
    with pytest.raises(InputError, match="did you mean 'layer'"):
        run(tmp_path, text, level="layers")
