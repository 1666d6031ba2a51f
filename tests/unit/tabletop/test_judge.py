"""The judge: the truth it learns is where the solids are, and it says what its network answers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ssd1b.evaluate.reconstruction import reconstruct
from ssd1b.models.vae import VAE
from ssd1b.tabletop.judge.judge import (
    GRID,
    PICTURE_ANSWERS,
    SOLID_ANSWERS,
    SUBJECT_ANSWERS,
    Answers,
    Judge,
    cell_of,
    load_judge,
    readings,
    widened,
)
from ssd1b.tabletop.miniature.assemble import _vae, train_part
from ssd1b.tabletop.miniature.train_judge import (
    SETTINGS,
    SHARPENED,
    SOFTENED,
    Renders,
    refocused,
    train_judge,
    truth,
)
from ssd1b.tabletop.world.degradations import DEGRADATIONS
from ssd1b.tabletop.world.renderer import in_picture, render, render_batch
from ssd1b.tabletop.world.scenes import Scene, scene
from ssd1b.weights import hub

PLAIN = [replace(scene(4, index), degradation=None) for index in range(40)]


def certain(scenes: list[Scene]) -> Answers:
    """What a network would say that knows the truth."""
    told = truth(scenes)
    place = told["place"].clone()
    place[:, 0] = place[:, 0] * 20 - 10

    def logits(name: str, answers: tuple[str, ...]) -> torch.Tensor:
        return 20.0 * torch.nn.functional.one_hot(told[name].clamp(min=0), len(answers)).movedim(-1, 1)

    return Answers(
        place,
        {name: logits(name, answers) for name, answers in SOLID_ANSWERS.items()},
        {name: logits(name, answers) for name, answers in PICTURE_ANSWERS.items()},
        torch.zeros(len(scenes), 3),
    )


def test_the_middle_of_a_solid_is_where_its_pixels_are() -> None:
    for shown in PLAIN:
        for solid in shown.solids:
            alone = replace(shown, solids=(solid,))
            pictures = [
                render(replace(alone, solids=(replace(solid, color=color, material="rubber"),))).astype(int)
                for color in ("white", "black")
            ]
            rows, columns = np.nonzero(abs(pictures[0] - pictures[1]).max(axis=2) > 60)
            row, column, right, up = cell_of(solid)
            assert (column + 0.5 + right) * 8 == pytest.approx((columns.min() + columns.max() + 1) / 2, abs=5)
            assert (row + 0.5 - up) * 8 == pytest.approx((rows.min() + rows.max() + 1) / 2, abs=7)


def test_what_is_read_off_the_truth_is_the_scene() -> None:
    for shown, reading in zip(PLAIN, readings(certain(PLAIN)), strict=True):
        assert reading.background == shown.background and reading.degradation is None
        seen = sorted(reading.solids, key=lambda one: one.x)
        solids = sorted(shown.solids, key=lambda solid: solid.x)
        assert len(seen) == len(solids)
        for one, solid in zip(seen, solids, strict=True):
            assert one.answers == {name: getattr(solid, name) for name in SOLID_ANSWERS}
            assert (one.x, one.up) == pytest.approx(in_picture(solid), abs=1e-5)
            assert one.depth == pytest.approx(solid.depth)
            assert min(one.chances.values()) > 0.99


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_the_truth_asks_only_what_can_be_seen(degradation: str) -> None:
    told = truth([replace(PLAIN[0], degradation=degradation)])
    assert PICTURE_ANSWERS["degradation"][told["degradation"][0]] == degradation
    colors = degradation not in ("monochrome", "sketch", "cropped")
    assert bool((told["color"] >= 0).any()) == colors
    assert (told["background"][0] >= 0) == (degradation not in ("monochrome", "sketch"))
    assert bool((told["shape"] >= 0).any()) == (degradation != "cropped")


def test_two_solids_never_share_a_cell() -> None:
    for index in range(2000):
        cells = [cell_of(solid)[:2] for solid in scene(4, index).solids]
        assert len(set(cells)) == len(cells)
        assert all(0 <= value < GRID for cell in cells for value in cell)


def test_reading_in_batches_is_reading_one_by_one() -> None:
    torch.manual_seed(0)
    judge = Judge().requires_grad_(False).eval()
    pictures = np.stack([render(shown) for shown in PLAIN[:5]])
    together, alone = judge.read(pictures, batch_size=5), judge.read(pictures, batch_size=2)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.features, other.features, rtol=1e-4, atol=1e-5)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="128 x 128"):
        Judge().read(np.zeros((1, 64, 64, 3), np.uint8))


def test_some_pictures_are_softer_some_sharper_and_none_is_another() -> None:
    rng = np.random.default_rng(0)
    picture = render(PLAIN[0])

    def detail(shown: np.ndarray) -> float:
        return float(np.abs(np.diff(shown.astype(float), axis=1)).mean())

    shown = [refocused(picture, rng) for _ in range(300)]
    change = np.array([detail(each) / detail(picture) for each in shown])
    assert (change < 0.999).mean() == pytest.approx(SOFTENED, abs=0.08)
    assert (change > 1.001).mean() == pytest.approx(SHARPENED, abs=0.08)
    assert max(np.abs(each.astype(float) - picture).mean() for each in shown) < 4


@pytest.fixture(scope="module")
def vae() -> VAE:
    return _vae(Path(), hub.resolve("mini-sdxl", offline=True).path)


def test_half_of_the_pictures_went_through_the_autoencoder(vae: VAE) -> None:
    count = 8
    shown = Renders(vae=vae, batch_size=count, seed=5)[0].pixels.permute(0, 2, 3, 1).numpy()
    renders = render_batch([scene(5, index) for index in range(count)])
    half = count // 2
    np.testing.assert_array_equal(shown[:half], reconstruct(vae, renders[:half]))
    assert (shown[half:] == renders[half:]).all(axis=(1, 2, 3)).any()


def test_a_trained_judge_is_gone_on_with(tmp_path: Path, read_in_process: None) -> None:
    file = tmp_path / "judge.safetensors"
    torch.manual_seed(3)
    save_file(Judge().state_dict(), file)
    made = load_judge(train_part("judge", tmp_path / "run", start=file, steps=1, batch_size=2)).state_dict()
    changes = [float((made[name] - tensor).abs().max()) for name, tensor in load_file(file).items()]
    assert 0 < max(changes) < 0.02


def test_a_few_steps_teach_it_something(tmp_path: Path, vae: VAE, read_in_process: None) -> None:
    few = replace(SETTINGS, steps=12, batch_size=16, decay_steps=4, warmup_steps=2, log_steps=3)
    judge = train_judge(tmp_path, vae, settings=few)
    losses = [json.loads(row)["loss"] for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]
    assert judge.read(Renders(vae=vae, batch_size=2)[0].pixels.permute(0, 2, 3, 1).numpy())


def test_a_widened_judge_answers_as_before_and_opens_as_one_that_knows_subjects(tmp_path: Path) -> None:
    judge = load_judge()
    wide = widened(judge)
    pixels = torch.from_numpy(render_batch(PLAIN[:4])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        before, after = judge(pixels), wide(pixels)
    for name, known in SOLID_ANSWERS.items():
        kept = [SUBJECT_ANSWERS[name].index(answer) for answer in known]
        torch.testing.assert_close(after.solid[name][:, kept], before.solid[name])
        assert after.solid[name].shape[1] == len(SUBJECT_ANSWERS[name])
    torch.testing.assert_close(after.place, before.place)
    save_file(wide.state_dict(), tmp_path / "wide.safetensors")
    assert load_judge(tmp_path / "wide.safetensors").answers is SUBJECT_ANSWERS
    assert load_judge().answers is SOLID_ANSWERS


def test_a_judge_of_subjects_learns_from_images_of_each(vae: VAE) -> None:
    batch = Renders(vae=vae, batch_size=6, subjects=True)[0]
    for name, answers in SUBJECT_ANSWERS.items():
        found = batch.truth[name]
        new = [answers.index(each) for each in answers if each not in SOLID_ANSWERS[name]]
        assert all((found == index).sum() == 2 for index in new), name
