"""Rendering: pictures of a batch are what they are alone, measured, with the passes that they took."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from ssd1b.evaluate.cost import deep_share
from ssd1b.images import decode_recipe
from ssd1b.jobs.executor import renderer
from ssd1b.jobs.store import DONE, FAILED, Store
from ssd1b.pipeline import Pipeline

SMALL = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return Pipeline.load("mini-sdxl", device="cpu", dtype="fp32")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "cells")) as opened:
        yield opened


def test_a_model_draws_and_is_measured(mini: Pipeline, store: Store) -> None:
    settings = mini.settings("a red cube", seed=7, steps=2)

    def measure(picture: Image.Image, prompt: str) -> dict[str, float]:
        return {"width": float(picture.width), "words": float(len(prompt.split())), "nothing": float("nan")}

    with renderer(mini, measure) as render:
        ((outcome, file),) = render([settings])
        ((again, _),) = render([settings])
    (picture,) = mini.generate("a red cube", seed=7, steps=2)
    assert outcome.state == DONE and outcome.metrics == {"width": 128.0, "words": 3.0}
    assert outcome.digest == again.digest == sha256(picture.image.tobytes()).hexdigest()
    assert file is not None and decode_recipe(file) == picture.recipe
    assert outcome.passes == again.passes == 4, "what was remembered still counts"
    assert store.claim(["k"]) == ["k"]
    store.finish([("k", outcome, file)])
    assert store.outcomes(["k"]) == {"k": outcome}
    assert store.picture("k").read_bytes() == file


@pytest.mark.parametrize(("share_steps", "calls"), [(True, 2), (False, 4)])
def test_steps_are_shared_only_if_asked_for(mini, share_steps, calls, monkeypatch) -> None:
    """Requests to a server do not share noise, and memory must not grow with their number."""
    settings, forward, found = mini.settings("a red cube", seed=7, steps=2, **SMALL), mini.unet.forward, []
    monkeypatch.setattr(mini.unet, "forward", lambda *inputs: (found.append(1), forward(*inputs))[1])
    with renderer(mini, lambda picture, prompt: {}, share_steps=share_steps) as render:
        assert render([settings])[0].outcome.digest == render([settings])[0].outcome.digest
    assert len(found) == calls


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
def test_a_picture_costs_the_passes_that_its_settings_take_alone_and_in_a_batch(mini, given, passes) -> None:
    batch = [mini.settings("a red cube", seed=seed, **{"steps": 4, **SMALL, **given}) for seed in (1, 2)]
    with renderer(mini, lambda picture, prompt: {}) as render:
        found = [*render(batch[:1]), *render(batch), *render(batch[1:])]
    assert [outcome.passes for outcome, _ in found] == [passes] * 4


def test_features_that_are_reused_leave_out_their_share_of_a_pass(mini: Pipeline) -> None:
    own = mini.settings("a red cube", seed=1, steps=6, **SMALL)
    factor = mini.layout.vae.factor
    shallow = 1 - deep_share(mini.layout.unet, own.height // factor, own.width // factor)
    assert 0 < shallow < 0.5
    with renderer(mini, lambda picture, prompt: {}) as render:
        ((outcome, _),) = render([replace(own, feature_reuse=1.0)])
    assert outcome.passes is not None
    computed = (outcome.passes - 12 * shallow) / (1 - shallow)
    assert computed == pytest.approx(round(computed)) and 2 <= round(computed) <= 8, "of 12 passes"


def test_what_goes_wrong_with_a_picture_is_its_outcome(mini: Pipeline) -> None:

    def measure(picture: Image.Image, prompt: str) -> NoReturn:
        raise FloatingPointError("no\nnumbers")

    with renderer(mini, measure) as render:
        ((outcome, file),) = render([mini.settings("a red cube", seed=7, steps=1)])
    assert (outcome.state, outcome.error, file) == (FAILED, "no numbers", None)


def test_a_batch_draws_what_its_pictures_are_alone_and_blames_the_one_that_fails(mini: Pipeline) -> None:
    prompts = ("a red cube", "a blue cone", "a green torus")
    batch = [mini.settings(prompt, seed=seed, steps=2) for seed, prompt in enumerate(prompts)]

    def measure(picture: Image.Image, prompt: str) -> dict[str, float]:
        if "cone" in prompt:
            raise FloatingPointError("no numbers")
        return {}

    with renderer(mini, measure) as render:
        found = render(batch)
    assert [outcome.state for outcome, _ in found] == [DONE, FAILED, DONE]
    with renderer(mini, lambda picture, prompt: {}) as render:
        together = [Image.open(BytesIO(file or b"")) for _, file in render(batch)]
    for settings, picture in zip(batch, together, strict=True):
        (alone,) = mini.generate(settings.prompt, seed=settings.seed, steps=2)
        assert np.abs(np.asarray(picture, int) - np.asarray(alone.image, int)).max() <= 1
