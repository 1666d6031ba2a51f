"""A picture is the same whatever it is drawn beside, to rounding: at most one level of 255."""

from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssd1b.batching import batches
from ssd1b.errors import InputError
from ssd1b.evaluate.drawing import Drawn, timed
from ssd1b.execution import Execution
from ssd1b.jobs.captions import Task, draw_captions
from ssd1b.jobs.driver import draw_jobs, plan
from ssd1b.jobs.executor import Inline, renderer
from ssd1b.jobs.store import Store
from ssd1b.lab.axes import parse_axis
from ssd1b.lab.sweep import Sweep, describe, expand
from ssd1b.model import Model
from ssd1b.models.text import chunk_count
from ssd1b.pipeline import Pipeline
from ssd1b.weights.vocabulary import clip_tokenizer

SPHERE = "a large red metal sphere on a blue background"
PROMPTS = tuple(", ".join([SPHERE] * repeats) for repeats in (1, 9, 17, 25))
"""Of 1 to 4 chunks."""

LEVELS = 1


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return Pipeline.load("mini-ssd-1b", device="cpu", dtype="fp32")


def levels(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def chunks(pipeline: Pipeline, text: str) -> int:
    return chunk_count([pipeline.text.tokenizer, pipeline.text.tokenizer_2], [text])


def test_the_prompts_have_one_to_four_chunks(mini: Pipeline) -> None:
    assert [chunks(mini, prompt) for prompt in PROMPTS] == [1, 2, 3, 4]


def test_a_sweeps_cells_are_what_generate_draws(mini: Pipeline, tmp_path: Path) -> None:
    """The guide's pictures are cells of sweeps, too."""
    axes = ("negative-preset=none,basic,realistic-people",)
    sweep = Sweep(
        prompts=PROMPTS, axes=tuple(map(parse_axis, axes)), model="mini-ssd-1b", settings={"steps": 2}
    )
    with closing(Store(tmp_path)) as store:
        found = describe("mini-ssd-1b", store.file_digest, offline=True)
        wanted = list(expand(sweep, lambda name: found, device=torch.device("cpu"), dtype=torch.float32))
        draw_jobs(plan(wanted, store), store, Inline(lambda name: renderer(mini, lambda picture, prompt: {})))
        for cell in wanted[1::2]:
            (alone,) = mini.draw([cell.settings])
            assert levels(Image.open(store.picture(cell.key)), alone.image) <= LEVELS, cell.settings


def drawn(pipeline: Pipeline, tasks: list[Task], **settings: Any) -> list[Drawn]:
    model = Model.find("mini-ssd-1b", offline=True)
    return list(draw_captions(model, Inline(lambda name: timed(pipeline)), tasks, batch_size=8, **settings))


def test_evaluate_draws_what_generate_draws_and_in_the_order_of_its_tasks(mini: Pipeline) -> None:
    tasks = [(prompt, seed) for seed, prompt in product((1, 2), PROMPTS)]
    together = drawn(mini, tasks, steps=2, negative_prompt="bad")
    for (prompt, seed), each in zip(tasks, together, strict=True):
        (alone,) = mini.generate(prompt, seed=seed, steps=2, negative_prompt="bad")
        assert levels(each.image, alone.image) <= LEVELS
        assert each.passes == 4 and each.seconds > 0


def test_features_are_kept_by_what_a_picture_does_alone(mini: Pipeline) -> None:
    tasks = [(SPHERE, 1), ("a small green rubber cube", 2), ("blurry, noise", 3)]
    given = {"steps": 10, "feature_reuse": 0.2}
    for (prompt, seed), each in zip(tasks, drawn(mini, tasks, **given), strict=True):
        (alone,) = mini.generate(prompt, seed=seed, **given)
        assert levels(each.image, alone.image) <= LEVELS


@pytest.mark.parametrize(
    ("computing", "limit"),
    [
        ({}, 8),
        ({"quantized": "int8"}, 1),
        ({"quantized": "int8-weights"}, 8),
        ({"backend": "openvino", "quantized": "int8"}, 8),
    ],
)
def test_eight_bits_that_share_a_range_are_drawn_one_by_one(
    mini: Pipeline, computing: dict[str, str], limit: int
) -> None:
    other = replace(mini, execution=Execution(**computing))
    assert other.batch_limit(mini.settings(SPHERE), 8) == limit


def test_a_batch_of_unequal_chunks_is_refused(mini: Pipeline) -> None:
    batch = [mini.settings(prompt, seed=1, steps=1) for prompt in PROMPTS[:2]]
    with pytest.raises(InputError, match="same number of prompt chunks"):
        next(mini.steps(batch))
    same = [mini.settings(SPHERE, seed=1, steps=1, negative_prompt=PROMPTS[1]), batch[1]]
    next(mini.steps(same))


def test_both_encoders_get_as_many_chunks() -> None:
    """An exclamation mark pads SDXL's second encoder, and is a token of its own there."""
    first, second = clip_tokenizer("text_encoder"), clip_tokenizer("text_encoder_2")
    text = "wow!!!! " * 30
    assert (
        chunk_count([first], [text]) < chunk_count([second], [text]) == chunk_count([first, second], [text])
    )


def test_items_of_equal_keys_share_batches_in_the_order_of_the_first() -> None:
    words = ("a", "bb", "c", "dd", "e", "f", "gg")
    assert batches(words, len, lambda word: 3) == [["a", "c", "e"], ["bb", "dd", "gg"], ["f"]]
    assert batches(words, len, lambda word: 4 - len(word)) == [["a", "c", "e"], ["bb", "dd"], ["f"], ["gg"]]
    assert batches((), len, lambda word: 1) == []
