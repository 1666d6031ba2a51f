"""Prompts that change during the steps, as in AUTOMATIC1111."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.batching import batch_key, texts_of
from ssd1b.editing import is_edited, prompts_of
from ssd1b.pipeline import Pipeline
from ssd1b.recipe import read_json, write_json
from ssd1b.settings import BEFORE, GenerationSettings
from timing import at_most

A1111 = [
    # From the examples in AUTOMATIC1111's modules/prompt_parser.py, with 10 steps: (last step, text).
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", [(n, "a" if n % 2 else "(b:1.1)") for n in range(1, 11)]),
    ("[fe|]male", [(n, "female" if n % 2 else "male") for n in range(1, 11)]),
    ("[fe|||]male", [(n, "female" if n % 4 == 1 else "male") for n in range(1, 11)]),
    # Ours.
    ("[a::0.3] b", [(3, "a b"), (10, " b")]),
    ("[a:b:1.0]", [(10, "a")]),
    ("[a:b:99]", [(10, "a")]),
    ("[a:b:0]", [(10, "b")]),
    (r"\[a:b:0.5\]", [(10, r"\[a:b:0.5\]")]),
    ("[a:b:c:0.5] [10:30 pm] [a:b]", [(10, "[a:b:c:0.5] [10:30 pm] [a:b]")]),
    ("[a:b:0.5", [(10, "[a:b:0.5")]),
    ("[[x:y:0.5]|z]", [(n, "z" if n % 2 == 0 else "x" if n <= 5 else "y") for n in range(1, 11)]),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "expected"), A1111, ids=[prompt for prompt, _ in A1111])
def test_prompts_of_each_step(prompt: str, expected: list[tuple[int, str]]) -> None:
    found = prompts_of(prompt, 10)
    for step, text in enumerate(found, 1):
        assert text == next(text for last, text in expected if step <= last), step
    assert is_edited(prompt) == (not all(text == prompt for text in found))


@pytest.mark.parametrize("when", ["9" * 400, "-" + "9" * 400, "0." + "9" * 400, "9" * 400 + ".5"])
def test_a_number_beyond_the_steps(when: str) -> None:
    assert {*prompts_of(f"[a:b:{when}]", 4)} == ({"b"} if when.startswith("-") else {"a"})


@pytest.mark.parametrize(
    "piece", ["[", "]", "(", ")", "[a|", "[a:", "[[a|b]", "([", "[a|b]", "[(", "|]", "[]", "\\"]
)
def test_reading_takes_time_in_proportion_to_the_text(piece: str) -> None:
    for text in (piece * (10_000 // len(piece)), "[" * 5000 + piece + "]" * 5000, "[a|" * 3000 + "]" * 3000):
        with at_most(15):
            is_edited(text)
            prompts_of(text, 2)


@given(st.text(alphabet="[]():|.05 \\ab", max_size=40), st.integers(1, 12))
def test_any_text_has_a_prompt_for_each_step(text: str, steps: int) -> None:
    found = prompts_of(text, steps)
    assert len(found) == steps
    if not is_edited(text):
        assert {*found} == {text}


@pytest.fixture(scope="module")
def pipeline(worded_model) -> Pipeline:
    return Pipeline.load(str(worded_model), device="cpu", dtype="fp32")


def latents(pipeline: Pipeline, *batch: GenerationSettings) -> torch.Tensor:
    *_, last = pipeline.steps(batch)
    return last.latents


GIVEN = {"seed": 1, "steps": 4, "width": 64, "height": 64}


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "ddim"])
def test_a_change_at_a_step_is_one_run_continued_with_another_prompt(
    pipeline: Pipeline, sampler: str
) -> None:
    given = {**GIVEN, "sampler": sampler}
    first = [*pipeline.steps([pipeline.settings("a cat", **given)])]
    changed = [*pipeline.steps([pipeline.settings("a [cat:dog:2]", **given)])]
    for index in (0, 1):
        assert torch.equal(first[index].latents, changed[index].latents)
    assert not torch.equal(first[2].latents, changed[2].latents)
    unchanged = latents(pipeline, pipeline.settings("a [cat:cat:2]", **given))
    assert torch.equal(unchanged, first[-1].latents)
    late = latents(pipeline, pipeline.settings("a [dog:cat:0]", **given))
    assert torch.equal(late, first[-1].latents)


def test_batches_and_negative_prompts(pipeline: Pipeline) -> None:
    texts = [("a [cat|dog]", "[blurry:sharp:0.5]"), ("a cat", None), ("a [cat:0.5] x", "")]
    batch = [pipeline.settings(prompt, negative_prompt=negative, **GIVEN) for prompt, negative in texts]
    together = latents(pipeline, *batch)
    for index, settings in enumerate(batch):
        torch.testing.assert_close(together[index], latents(pipeline, settings)[0], rtol=1e-4, atol=1e-4)
    assert texts_of(batch[0]) == {"a cat", "a dog", "blurry", "sharp"}
    tokenizers = (pipeline.text.tokenizer, pipeline.text.tokenizer_2)
    longer = pipeline.settings(f"a [cat:{'dog ' * 100}:0.5]", **GIVEN)
    assert batch_key(longer, tokenizers)[-1] == (2,)


def test_the_setting(pipeline: Pipeline) -> None:
    edited, plain = (pipeline.settings(text, **GIVEN) for text in ("[a|b]", "a [b]"))
    assert (edited.prompt_editing, plain.prompt_editing) == ("on", "off") and BEFORE[
        "prompt_editing"
    ] == "off"
    literal = pipeline.settings("[a|b]", prompt_editing="off", **GIVEN)
    assert literal.prompts() == [("[a|b]", None)]
    assert not torch.equal(latents(pipeline, literal), latents(pipeline, edited))
    recipe = pipeline.recipe(edited)
    assert read_json(write_json(recipe)) == recipe
