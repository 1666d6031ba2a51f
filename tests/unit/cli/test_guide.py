"""``ssd1b guide``: what it leaves, and what it refuses."""

import json

import pytest

QUICK = ("--only", "negative", "--pairs", 8, "--steps", 1)


@pytest.fixture
def guide(run, tiny_model):
    def call(*arguments):
        return run("guide", *QUICK, "--model", tiny_model, "--out", "guide", *arguments)

    return call


def test_claims_are_told_and_nothing_is_drawn_twice(guide, tmp_path):
    done = guide("a cube", "a cone")
    assert done.code == 0, done.err
    claim = "the negative prompt “basic” raises quality"
    assert f"not decidable: {claim} (not measured for this model" in done.out
    told = json.loads((tmp_path / "guide/guide.json").read_text())
    assert told["own"]["steps"] == 1 and told["pictures"] == {"negative": 4 * 8}
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "guide/cells/pictures").rglob("*.png")}
    assert len(drawn) == 4 * 8
    assert guide("a cube", "a cone").out == done.out
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn


def test_what_nobody_can_count_is_not_drawn(guide, tmp_path):
    done = guide("a cube", "--only", "faults")
    assert done.code == 0, done.err
    assert "not decidable: negative prompts suppress what they name" in done.out
    assert json.loads((tmp_path / "guide/guide.json").read_text())["pictures"]["faults"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no prompt"]),
        (["a cube", "--only", "step"], ["unknown experiment 'step'", "did you mean 'steps'"]),
        (["a cube", "--pairs", "7"], ["pairs is 7", "from 8"]),
        (["a cube", "--seed", "3"], ["seed is no setting"]),
        (["a cube", "--guidance", "-1"], ["guidance_scale is -1"]),
        (["a cube", "--file", "none.txt"], ["cannot read none.txt"]),
        (["a cube", "--model", "mini-sdx"], ["unknown model 'mini-sdx'", "mini-sdxl"]),
    ],
)
def test_wrong_calls(guide, arguments, words):
    done = guide(*arguments)
    assert done.code == 2 and done.out == ""
    assert all(word in done.err for word in words), done.err
