"""Axes are read as AUTOMATIC1111 and SwarmUI read them, and refused in one line."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.errors import SHOWN, InputError
from ssd1b.lab.axes import AXES, MAX_VALUES, parse_axis
from ssd1b.presets import NEGATIVE_PROMPTS


def settings(text: str, name: str) -> list[Any]:
    return [value.settings[name] for value in parse_axis(text).values]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("2,5,9", [2, 5, 9]),
        (" 2 , 5 ", [2, 5]),
        ("1-5", [1, 2, 3, 4, 5]),
        ("5-1", [5, 4, 3, 2, 1]),
        ("1-5 (+2)", [1, 3, 5]),
        ("1-5(2)", [1, 3, 5]),
        ("10-5 (-3)", [10, 7]),
        ("1-3 (+0.5)", [1, 1.5, 2, 2.5, 3]),
        ("0.1-0.4 (+0.1)", [0.1, 0.2, 0.3, 0.4]),
        ("1-10 [5]", [1, 3.25, 5.5, 7.75, 10]),
        ("3-3", [3]),
        ("4-9 [1]", [4]),
        ("1, 2, .., 5", [1, 2, 3, 4, 5]),
        ("1, .., 4", [1, 2, 3, 4]),
        ("4, ..., 1", [4, 3, 2, 1]),
        ("1, 3, .., 8", [1, 3, 5, 7, 8]),
        ("0.5, 1, .., 2", [0.5, 1, 1.5, 2]),
        ("2||5 || 9", [2, 5, 9]),
        ("1-2, 7", [1, 2, 7]),
        ("5, 5, 5", [5]),
    ],
)
def test_numbers(values: str, expected: list[float]) -> None:
    assert settings(f"guidance={values}", "guidance_scale") == expected


def test_whole_numbers_stay_whole() -> None:
    assert settings("steps=1-10 [5]", "steps") == [1, 3, 5, 7, 10]
    assert all(isinstance(each, int) for each in settings("steps=5-25 (+10)", "steps"))


@given(st.integers(1, 100), st.integers(0, 60), st.integers(1, 9))
def test_ranges_are_pythons(first: int, length: int, step: int) -> None:
    text = f"steps={first}-{first + length} (+{step})"
    assert settings(text, "steps") == list(range(first, first + length + 1, step))


def test_labels_are_what_people_write() -> None:
    assert [value.label for value in parse_axis("guidance=1-2 (+0.5)").values] == ["1", "1.5", "2"]


def test_texts_may_hold_commas() -> None:
    assert settings("negative=blurry, noisy||none||sketch", "negative_prompt") == [
        "blurry, noisy", None, "sketch",
    ]  # fmt: skip
    assert settings('negative="blurry, noisy",sketch', "negative_prompt") == ["blurry, noisy", "sketch"]


def test_every_kind_of_axis() -> None:
    assert settings("negative-preset=none,basic", "negative_prompt") == [None, NEGATIVE_PROMPTS["basic"]]
    assert [dict(value.settings) for value in parse_axis("size=512,512x768").values] == [
        {"width": 512, "height": 512}, {"width": 512, "height": 768},
    ]  # fmt: skip
    assert settings("guidance-interval=0-1,0.2:0.8", "guidance_interval") == [(0.0, 1.0), (0.2, 0.8)]
    assert settings("sampler=DPM++ 2M Karras,Euler a", "sampler") == ["DPM++ 2M Karras", "Euler a"]
    assert [value.model for value in parse_axis("model=mini-sdxl,ssd-1b").values] == ["mini-sdxl", "ssd-1b"]
    assert [value.words for value in parse_axis("words=red,blue").values] == [("red", "red"), ("red", "blue")]
    assert settings("preset=article-detail", "guidance_scale") == [14.5]


@pytest.mark.parametrize(
    ("written", "name"),
    [("cfg", "guidance"), ("CFG scale", "guidance"), ("guidance_scale", "guidance"), ("Steps", "steps")],
)
def test_other_names(written: str, name: str) -> None:
    assert parse_axis(f"{written}=3").name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance", "has no values"),
        ("guidance=1-10 [0]", "has no values: the number in brackets is 1 or more"),
        ("guidance=", "has no values: write it as guidance=2,5,9"),
        ("guidanze=1", "did you mean 'guidance'"),
        ("guidance=high", "'high' is not a number"),
        ("guidance=1-", "is not a number"),
        ("guidance=200", "a number from 0 to 100"),
        ("guidance=-3", "is not a number"),
        ("steps=1.5", "a whole number from 1"),
        ("guidance=1-5 (-1)", "never gets from 1 to 5 by -1"),
        ("guidance=1-5 (+0)", "never gets"),
        ("guidance=2, 1, .., 5", "never gets"),
        ("guidance=..,5", "must stand between"),
        ("guidance=1,..", "must stand between"),
        ("seed=1-99999999999999", f"allowed are {MAX_VALUES}"),
        ("guidance=0-1 [100000000]", f"allowed are {MAX_VALUES}"),
        ("guidance=0,0.000000001,..,100", f"allowed are {MAX_VALUES}"),
        ("sampler=Eular", "did you mean 'euler'"),
        ("schedule=karas", "did you mean 'karras'"),
        ("negative-preset=basics", "did you mean 'basic'"),
        ("preset=articel-detail", "did you mean 'article-detail'"),
        ("size=big", "must be like 1024x768"),
        ("size=100", "a multiple of 8"),
        ("guidance-interval=0.5", "is not an interval"),
        ("guidance-interval=0.8-0.2", "the start must be less than the end"),
        ("words=,blue", "what is searched for"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace("+", r"\+")) as error:
        parse_axis(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@given(st.sampled_from(AXES), st.text(max_size=60))
def test_any_text_is_an_axis_or_an_error(name: str, values: str) -> None:
    try:
        axis = parse_axis(f"{name}={values}")
    except InputError:
        return
    assert 0 < len(axis.values) <= MAX_VALUES


def test_a_seed_of_minus_one_is_random_and_drawn_once() -> None:
    axis = parse_axis("seed=-1, -1, 7")
    seeds = [value.settings["seed"] for value in axis.values]
    assert [value.label for value in axis.values] == [str(seed) for seed in seeds]
    assert seeds[2] == 7 and len(set(seeds)) == 3
    assert parse_axis("seed=-1") != axis


@pytest.mark.parametrize(
    "text",
    [
        "steps=٢٥", "steps=1_0", "steps=+5", "steps=1e1", "steps=١-٥", "guidance=nan", "guidance=inf",
        "size=٦٤", "seed=-2", "seed=4294967296", "guidance-interval=٠-١", "steps=-1", "guidance=-1",
        "size=+64", f"steps={'9' * 5000}", f"steps=1-{'9' * 5000}", f"steps=1-9 [{'9' * 5000}]",
        f"steps=1-9 (+{'9' * 5000})",
        f"guidance=1, {'0.' + '0' * 5000 + '1'}", f"{'x' * 10**5}=1", f"sampler={'x' * 10**5}", "x" * 10**5,
        f"size={'9' * 5000}", f"guidance-interval={'9' * 5000}-1", f"steps=1, {'9' * 5000}, .., 3",
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_numbers_in_other_digits_and_endless_ones_are_refused_in_a_short_line(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_axis(text)
    assert len(str(refused.value)) < 400 and SHOWN < 400
