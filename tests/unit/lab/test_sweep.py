"""Cells are drawn once, whoever asks and whatever is killed in between."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from lab_cells import FAKE, FIVE_HUNDRED, Fake, run, sweep, wanted
from ssd1b.errors import InputError
from ssd1b.evaluate.cost import deep_share
from ssd1b.images import decode_recipe
from ssd1b.lab.axes import parse_axis
from ssd1b.lab.store import DONE, FAILED, Outcome, Store
from ssd1b.lab.sweep import (
    MAX_CELLS,
    Model,
    Sweep,
    attempts,
    batches,
    cells,
    definition,
    describe,
    draw,
    identity,
    restored,
)
from ssd1b.pipeline import Pipeline
from ssd1b.presets import load_preset
from ssd1b.settings import GenerationSettings, Preset
from ssd1b.weights.files import write_json
from ssd1b.weights.loading import open_checkpoint

CHILD = Path(__file__).parents[2] / "lab_cells.py"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "cells")) as opened:
        yield opened


def test_every_combination_is_a_cell_and_the_dear_axes_are_outer_loops() -> None:
    found = wanted(sweep("guidance=2,5", "steps=3,4", "seed=1,2", prompts=("a cube", "a cone")))
    settings = [
        (c.settings.prompt, c.settings.seed, c.settings.steps, c.settings.guidance_scale) for c in found
    ]
    assert settings == [
        (prompt, seed, steps, guidance)
        for prompt in ("a cube", "a cone") for seed in (1, 2) for steps in (3, 4) for guidance in (2, 5)
    ]  # fmt: skip
    assert len({cell.key for cell in found}) == len(found)


def test_of_axes_that_set_the_same_the_later_one_wins() -> None:
    for axes in (("preset=article-detail", "guidance=3"), ("guidance=3", "preset=article-detail")):
        (cell,) = wanted(sweep(*axes))
        assert cell.settings.guidance_scale == (3.0 if axes[1] == "guidance=3" else 14.5)


def test_words_are_replaced_in_prompt_and_negative_prompt() -> None:
    found = wanted(sweep("words=cube,cone", "negative=a cube||none"))
    told = [(cell.settings.prompt, cell.settings.negative_prompt) for cell in found]
    assert told == [("a cube", "a cube"), ("a cube", None), ("a cone", "a cone"), ("a cone", None)]
    with pytest.raises(InputError, match="'sphere' is not in the prompt 'a cube'"):
        wanted(sweep("words=sphere,cone"))


OTHER_SETTINGS = {
    "prompt": "a cone", "negative_prompt": "", "guidance_scale": 3.0, "guidance_rescale": 0.5,
    "guidance_interval": (0.0, 0.5), "feature_reuse": 0.1, "steps": 7, "sampler": "ddim",
    "schedule": "karras", "seed": 2, "width": 128, "height": 128, "original_size": (32, 32),
    "crop_top_left": (0, 8), "target_size": (32, 32),
}  # fmt: skip
"""Of each setting a value that is not the default."""


def key(
    what: Sweep, model: Model = FAKE, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> str:  # fmt: skip
    return next(cells(what, lambda name: model, device=torch.device(device), dtype=dtype)).key


def test_each_setting_decides_the_key() -> None:
    plain = sweep("seed=1")
    assert OTHER_SETTINGS.keys() == {each.name for each in fields(GenerationSettings)}
    changed = {name: replace(plain, settings={name: value}) for name, value in OTHER_SETTINGS.items()}
    changed["prompt"] = replace(plain, prompts=("a cone",))
    changed["seed"] = sweep("seed=2")
    assert len({key(plain), *map(key, changed.values())}) == len(OTHER_SETTINGS) + 1


def test_all_else_that_decides_the_picture_decides_the_key_and_nothing_more(monkeypatch) -> None:
    plain = sweep("seed=1")
    keys = {
        key(plain),
        key(plain, model=FAKE._replace(fingerprint="other")),
        key(plain, device="cuda"),
        key(plain, dtype=torch.bfloat16),
    }
    with monkeypatch.context() as patched:
        patched.setattr("ssd1b.lab.sweep.version", lambda name: "0.0.0")
        keys.add(key(plain))
    with monkeypatch.context() as patched:
        patched.setattr("ssd1b.lab.sweep.DRAWING", 10**6)
        keys.add(key(plain))
    assert len(keys) == 6
    assert (
        key(plain) == key(replace(plain, axes=(*plain.axes, parse_axis("steps=25")))) == key(sweep("seed=1"))
    )
    assert key(plain) == key(plain, model=FAKE._replace(path=Path("elsewhere")))
    assert key(plain) == key(replace(plain, model="by another name"))


def test_keys_are_those_of_stores_from_before(monkeypatch, store: Store) -> None:
    monkeypatch.setattr("ssd1b.lab.sweep.version", lambda name: "0.1.0")
    assert key(sweep("seed=1")) == "46e41d6480aa9098b90950e4bbd02652ec7e9ff870467574bd0fd11f1d892552"
    found = {name: describe(name, store, offline=True).fingerprint for name in ("mini-sdxl", "mini-ssd-1b")}
    assert found == {
        "mini-sdxl": "4930a8d61cdb86442d06f8eec46670c2516d63c2e3d1dc2cbbaf36711b6e399a",
        "mini-ssd-1b": "f5c99943d96f3c51d467c6ba70c71f0bb129afb81564da038bc604e2cbaa669d",
    }


def test_a_models_world_decides_no_key(tiny_model, tmp_path, store: Store) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    before = describe(str(model), store, offline=True)
    file = model / "ssd1b.json"
    write_json(file, {**json.loads(file.read_text()), "world": "tabletop"})
    assert open_checkpoint(model).world == "tabletop"
    assert describe(str(model), store, offline=True).fingerprint == before.fingerprint
    write_json(file, {"world": 3})
    with pytest.raises(InputError, match=r"ssd1b\.json: world must be a text, got 3"):
        describe(str(model), store, offline=True)


def test_every_file_of_a_model_decides_its_fingerprint(tiny_model, tmp_path, store: Store) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)

    def fingerprint(prediction: str | None = None) -> str:
        return describe(str(model), store, offline=True, prediction=prediction).fingerprint

    seen = [fingerprint(), fingerprint("v")]
    assert fingerprint() == seen[0]
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    about, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    other = tmp_path / "other"
    other.write_bytes(content)
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    os.replace(other, weights)  # of the same size and time
    seen.append(fingerprint())
    (model / "notes.txt").write_text("one")
    seen.append(fingerprint())
    (model / "notes.txt").rename(model / "names.txt")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)


def test_a_second_sweep_draws_only_what_is_new(store: Store) -> None:
    first, again, more = Fake(), Fake(), Fake()
    run(store, sweep("guidance=2,5", "seed=1-3"), first)
    run(store, sweep("guidance=2,5", "seed=1-3"), again)
    run(store, sweep("guidance=2,5,9", "seed=1-3"), more)
    assert (first.drawn, again.drawn, more.drawn) == (6, 0, 3)
    assert len(store.sweeps()) == 2
    last = [*store.sweeps()][-1]
    assert [member.outcome.state for member in store.members(last) if member.outcome] == [DONE] * 9
    assert restored(store.sweeps()[last]) == sweep("guidance=2,5,9", "seed=1-3")


def test_a_model_draws_and_is_measured(store: Store) -> None:
    mini = Pipeline.load("mini-sdxl", device="cpu", dtype="fp32")
    settings = mini.settings("a red cube", seed=7, steps=2)

    def measure(picture: Image.Image, prompt: str) -> dict[str, float]:
        return {"width": float(picture.width), "words": float(len(prompt.split())), "nothing": float("nan")}

    with attempts(mini, measure) as attempt:
        ((outcome, file),) = attempt([settings])
        ((again, _),) = attempt([settings])
    (picture,) = mini.generate("a red cube", seed=7, steps=2)
    assert outcome.state == DONE and outcome.metrics == {"width": 128.0, "words": 3.0}
    assert outcome.digest == again.digest == sha256(picture.image.tobytes()).hexdigest()
    assert file is not None and decode_recipe(file) == picture.recipe
    assert outcome.passes == again.passes == 4, "what was remembered still counts"
    assert store.claim(["k"]) == ["k"]
    store.finish([("k", outcome, file)])
    assert store.outcomes(["k"]) == {"k": outcome}
    assert store.picture("k").read_bytes() == file


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({}, 8),
        ({"guidance_scale": 1.0}, 4),
        ({"guidance_interval": (0.0, 0.5)}, 6),
        ({"sampler": "heun"}, 14),  # twice a step but for the last one
        ({"sampler": "dpmpp_sde", "guidance_scale": 1.0}, 7),
    ],
)
def test_a_picture_costs_the_passes_that_its_settings_take_alone_and_in_a_batch(given, passes) -> None:
    mini = Pipeline.load("mini-sdxl", device="cpu", dtype="fp32")
    batch = [mini.settings("a red cube", seed=seed, **{"steps": 4, **given}) for seed in (1, 2)]
    with attempts(mini, lambda picture, prompt: {}) as attempt:
        found = [*attempt(batch[:1]), *attempt(batch), *attempt(batch[1:])]
    assert [outcome.passes for outcome, _ in found] == [passes] * 4


def test_the_expected_cost_of_a_cell_is_that_of_its_passes() -> None:
    costs = {name: [] for name in ("euler", "heun")}
    for cell in wanted(sweep("sampler=euler,heun", "guidance=1,5", "steps=1,4")):
        costs[cell.settings.sampler].append(cell.cost / 64**2)
    assert costs == {"euler": [1, 2, 4, 8], "heun": [1, 2, 7, 14]}


def test_features_that_are_reused_leave_out_their_share_of_a_pass() -> None:
    mini = Pipeline.load("mini-sdxl", device="cpu", dtype="fp32")
    own = mini.settings("a red cube", seed=1, steps=6)
    factor = mini.layout.vae.factor
    shallow = 1 - deep_share(mini.layout.unet, own.height // factor, own.width // factor)
    assert 0 < shallow < 0.5
    with attempts(mini, lambda picture, prompt: {}) as attempt:
        ((outcome, _),) = attempt([replace(own, feature_reuse=1.0)])
    assert outcome.passes is not None
    computed = (outcome.passes - 12 * shallow) / (1 - shallow)
    assert computed == pytest.approx(round(computed)) and 2 <= round(computed) <= 8, "of 12 passes"


def test_what_goes_wrong_with_a_picture_is_its_outcome() -> None:
    mini = Pipeline.load("mini-sdxl", device="cpu", dtype="fp32")

    def measure(picture: Image.Image, prompt: str) -> NoReturn:
        raise FloatingPointError("no\nnumbers")

    with attempts(mini, measure) as attempt:
        ((outcome, file),) = attempt([mini.settings("a red cube", seed=7, steps=1)])
    assert (outcome.state, outcome.error, file) == (FAILED, "no numbers", None)


def test_pictures_with_the_same_steps_and_guidance_are_drawn_together() -> None:
    found = wanted(sweep("guidance=2,5", "seed=1-20", prompts=("a cube", "a cone")))
    shared = [[(c.settings.guidance_scale, c.settings.width) for c in batch] for batch in batches(found)]
    assert [(len(batch), *set(batch)) for batch in shared] == [
        (32, (2.0, 64)), (32, (5.0, 64)), (8, (2.0, 64)), (8, (5.0, 64))
    ]  # fmt: skip
    large = [cell._replace(settings=replace(cell.settings, width=1024, height=1024)) for cell in found]
    assert [len(batch) for batch in batches(large)] == [1] * 80


def test_a_batch_draws_what_its_pictures_are_alone_and_blames_the_one_that_fails() -> None:
    mini = Pipeline.load("mini-sdxl", device="cpu", dtype="fp32")
    prompts = ("a red cube", "a blue cone", "a green torus")
    batch = [mini.settings(prompt, seed=seed, steps=2) for seed, prompt in enumerate(prompts)]

    def measure(picture: Image.Image, prompt: str) -> dict[str, float]:
        if "cone" in prompt:
            raise FloatingPointError("no numbers")
        return {}

    with attempts(mini, measure) as attempt:
        found = attempt(batch)
    assert [outcome.state for outcome, _ in found] == [DONE, FAILED, DONE]
    with attempts(mini, lambda picture, prompt: {}) as attempt:
        together = [Image.open(BytesIO(file or b"")) for _, file in attempt(batch)]
    for settings, picture in zip(batch, together, strict=True):
        (alone,) = mini.generate(settings.prompt, seed=settings.seed, steps=2)
        assert np.abs(np.asarray(picture, int) - np.asarray(alone.image, int)).max() <= 1


def test_failures_are_written_down_and_drawn_again_when_asked(store: Store) -> None:
    what = sweep("seed=1,2", prompts=("a broken one", "a cube"))
    fake = Fake()
    found = run(store, what, fake)
    outcomes = store.outcomes(cell.key for cell in found)
    assert [outcomes[cell.key].state for cell in found] == [FAILED, FAILED, DONE, DONE]
    assert outcomes[found[0].key].error == "the picture is no numbers"
    assert not store.picture(found[0].key).exists()
    run(store, what, fake)
    assert fake.drawn == 4
    run(store, what, fake, retry=True)
    assert fake.drawn == 6


def test_a_model_of_which_everything_is_there_is_not_loaded(store: Store) -> None:
    found = run(store, sweep("seed=1"), Fake())

    def prepare(name: str) -> NoReturn:
        raise AssertionError("loaded")

    draw(found, store, prepare)


def hashes(folder: Path) -> dict[str, str | None]:
    with closing(Store(folder)) as opened:
        return {
            key: each.digest
            for key, each in opened.outcomes(c.key for c in wanted(sweep(*FIVE_HUNDRED))).items()
        }


def child(folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, str(CHILD), str(folder), str(log)], env={**os.environ})


def test_a_sweep_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    rng = random.Random(0)
    log = tmp_path / "log"
    kills = 0
    for _ in range(20):
        process = child(tmp_path / "killed", log)
        before = log.stat().st_size if log.exists() else 0
        while process.poll() is None and (not log.exists() or log.stat().st_size == before):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 10
    assert child(tmp_path / "killed", log).wait() == 0
    drawn = Counter(log.read_text().splitlines())
    assert len(drawn) == 500
    assert drawn.total() <= 500 + 10 * kills, "no more than the batch in work is lost with each kill"

    with closing(Store(tmp_path / "whole")) as whole:
        run(whole, sweep(*FIVE_HUNDRED), Fake())
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert len([path for path in (tmp_path / "killed/pictures").rglob("*") if path.is_file()]) == 500
    assert not list((tmp_path / "killed/workers").iterdir())


def test_two_processes_in_one_folder_share_the_cells(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [child(tmp_path / "cells", log) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    drawn = log.read_text().splitlines()
    assert len(drawn) == len(set(drawn)) == 500
    assert not list((tmp_path / "cells/workers").iterdir())


def test_what_a_dead_process_had_claimed_is_free(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as one, closing(Store(tmp_path)) as other:
        assert one.claim(["a", "b", "a"]) == ["a", "b"] and other.claim("abc") == ["c"]
        half = one._unfinished(one._worker)
        half.touch()
        one._lock.release()  # as the system does when a process dies
        assert other.claim("ab") == ["a", "b"] and not one.claim("abc")
        assert not half.exists(), "nor is what it had half written in anybody's way"


def test_more_combinations_than_anybody_wants_are_refused_before_they_are_made() -> None:
    axes = tuple(parse_axis(f"{name}=1-1000") for name in ("seed", "steps"))
    with pytest.raises(InputError, match=f"1000000 combinations: allowed are {MAX_CELLS}.*11.6 days"):
        Sweep(prompts=("a cube",), axes=axes, model="fake")
    with pytest.raises(InputError, match="axis seed is there twice"):
        sweep("seed=1", "seed=2")
    with pytest.raises(InputError, match="no prompt"):
        sweep("seed=1", prompts=())


def test_a_hundred_thousand_cells_are_listed_in_seconds(store: Store) -> None:
    rows = [(f"{number:06}", (number,)) for number in range(100_000)]
    store.record("many", {}, rows)
    start = time.process_time()
    assert sum(1 for _ in store.members("many")) == 100_000
    assert time.process_time() - start < 5


def test_a_sweep_comes_back_from_its_definition() -> None:
    axes = (
        "guidance-interval=0-1,0.2-0.8", "size=64,64x128", "words=cube,cone", "negative=none||a, b",
        "preset=article-detail", "model=one,other",
    )  # fmt: skip
    what = replace(sweep(*axes), preset=load_preset("model-card"), settings={"steps": 3})
    back = restored(json.loads(json.dumps(definition(what))))
    assert wanted(back) == wanted(what)
    places = [0] * len(what.all_axes)
    assert back.chosen(places).settings["steps"] == what.chosen(places).settings["steps"] == 25


def test_an_identity_is_that_of_axes_and_cells() -> None:
    one, other = sweep("seed=1,2"), sweep("seed=2,1")
    assert identity(one, wanted(one)) == identity(one, wanted(one)) != identity(other, wanted(other))


def test_outcomes_come_back_as_they_were(store: Store) -> None:
    outcome = Outcome(state=DONE, digest="d", passes=8.0, metrics={"a": 1.0}, thumbnail=b"\0\xff")
    store.finish([("k", outcome, b"picture")])
    assert store.outcomes(["k", "unknown"]) == {"k": outcome}


def test_a_random_seed_is_drawn_once_for_all_cells() -> None:
    asked = replace(sweep("steps=3,4", prompts=("a cube", "a cone")), settings={"seed": -1})
    assert len({cell.settings.seed for cell in wanted(asked)}) == 1
    preset = Preset(name="p", source="", settings={"seed": -1})
    asked = replace(asked, settings={}, preset=preset)
    assert len({cell.settings.seed for cell in wanted(asked)}) == 1
