"""Words that are drawn, and styles."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.errors import InputError, NotFoundError
from ssd1b.styles import Style, apply_styles, read_styles
from ssd1b.wildcards import Wildcards
from timing import at_most

PLAIN = Wildcards()


def drawn(text: str, wildcards: Wildcards = PLAIN, count: int = 300) -> Counter[str]:
    return Counter(wildcards.draw(text, seed) for seed in range(count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "animals").mkdir()
    (tmp_path / "colors.txt").write_text("\ufeffred\n# no color\n\n green \n", encoding="utf-8")
    (tmp_path / "animals" / "small.txt").write_text("a __colors__ {mouse|cat}\n")
    (tmp_path / "animals" / "big.txt").write_text("elephant\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "loop.txt").write_text("x __loop__\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {red|green} car", {"a red car", "a green car"}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("{|very }big", {"big", "very big"}),
        ("{2$$a|b|c}", {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}),
        ("{1-2$$ and $$a|b}", {"a", "b", "a and b", "b and a"}),
        ("{9$$a|b}", {"a, b", "b, a"}),
        ("{0::a|b}", {"b"}),
        ("{x::a|b ::c}", {"x::a", "b ::c"}),
        ("{1$$a}", {"a"}),
        ("{a} {b {c} | }", {"{a} b {c} ", "{a}  "}),
        ("{a|b", {"{a|b"}), ("a|b}", {"a|b}"}), ("plain", {"plain"}), ("{}", {"{}"}),
    ],
)  # fmt: skip
def test_braces(text: str, expected: set[str]) -> None:
    assert drawn(text).keys() == expected


def test_weights_and_seeds() -> None:
    counts = drawn("{3::a|b}", count=2000)
    assert 1400 < counts["a"] < 1600
    text = "{a|b|c|d} {a|b|c|d} {a|b|c|d}"
    assert [PLAIN.draw(text, 7) for _ in range(3)] == [PLAIN.draw(text, 7)] * 3
    assert len(drawn(text, count=20)) > 10


def test_files(folder: Path) -> None:
    wildcards = Wildcards.of(str(folder))
    assert drawn("__colors__ car", wildcards).keys() == {"red car", "green car"}
    small = {f"a {color} {animal}" for color in ("red", "green") for animal in ("mouse", "cat")}
    assert drawn("__animals/small__", wildcards).keys() == drawn("__small__", wildcards).keys() == small
    assert drawn("__animals/*__", wildcards).keys() == small | {"elephant"}
    assert drawn("{__big__|x}", wildcards).keys() == {"elephant", "x"}
    assert wildcards.draw("snake__case", 0) == "snake__case"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__colours__", "unknown wildcard 'colours': did you mean 'colors'"),
        ("__../secret__", "unknown wildcard '../secret'"),
        ("__empty__", r"empty.txt has no lines to draw"),
        ("__loop__", "more than 1000 wildcards"),
        ("{3-2$$a|b}", r"asks for 3 to 2 words"),
        ("{-1::a|b}", r"'{-1::a\|b}': weight is '-1': it must be from 0 to 1000000 in plain digits"),
        *((f"{{a|{weight}::b}}", "weight is") for weight in ("nan", "inf", "1e400", "+1", "1e3", "9" * 400)),
        ("{0::a|0::b}", r"'{0::a\|0::b}': all weights are 0"),
    ],
)
def test_mistakes(text: str, message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        Wildcards.of(str(folder)).draw(text, 0)
    with pytest.raises(NotFoundError, match="no such folder, in which wildcards"):
        Wildcards.of(str(folder / "none"))


@given(st.text(alphabet="{}|$-0123:_ ab", max_size=40))
def test_any_text_is_drawn_or_refused(text: str) -> None:
    try:
        assert isinstance(PLAIN.draw(text, 1), str)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("piece", ["{", "}", "{a|", "|}", "{a|b}", "__", "{{"])
def test_drawing_takes_time_in_proportion_to_the_text(piece: str) -> None:
    for text in (piece * (10_000 // len(piece)), "{" * 5000 + piece + "}" * 5000):
        with at_most(5), suppress(InputError):
            PLAIN.draw(text, 1)


CSV = '''name,prompt,negative_prompt
"film","film still of {prompt}, grain","cartoon"
vivid,"vivid, ""bright""",
,,
'''


def test_styles_of_automatic1111_and_fooocus(tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text(CSV, encoding="utf-8-sig")
    styles = read_styles(str(tmp_path / "styles.csv"))
    assert styles["vivid"] == Style(name="vivid", prompt='vivid, "bright"')
    assert apply_styles("a cat", None, ["film", "vivid"], styles) == (
        'film still of a cat, grain, vivid, "bright"', "cartoon"
    )  # fmt: skip
    assert apply_styles("a cat", "blurry", ["film"], styles)[1] == "blurry, cartoon"
    assert apply_styles("a cat", None, ["vivid"], styles)[1] is None
    rows = [{"name": "sai-anime", "prompt": "anime {prompt}", "negative_prompt": "photo"}, {"name": "none"}]
    (tmp_path / "sai.json").write_text(json.dumps(rows))
    assert apply_styles("x", "y", ["sai-anime"], read_styles(str(tmp_path / "sai.json"))) == (
        "anime x",
        "y, photo",
    )
    with pytest.raises(InputError, match="unknown style 'flim': did you mean 'film'"):
        apply_styles("a cat", None, ["flim"], styles)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x,y\n1,2\n", "the first line must name the columns name, prompt"),
        ("a.csv", "", "the first line must name the columns"),
        ("a.csv", "name,prompt\n,x\n", "style 1 of .*name"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", '{"name": "x"}', "expected a list of objects"),
        ("a.json", '[{"name": 1, "prompt": "x"}]', "style 1 of .*name is 1"),
        ("a.json", "[" * 100_000, "not valid JSON"),
    ],
)
def test_files_of_styles_that_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_styles(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_on_the_command_line(run, tiny_model: Path, folder: Path) -> None:
    (folder / "styles.csv").write_text(CSV)
    given = ["--model", tiny_model, "--device", "cpu", "--seed", 3, "--size", 64, "--json"]
    made = run(
        "generate", "a __colors__ {cat|dog}", *given, "--count", 4, "--wildcard-folder", folder,
        "--styles", folder / "styles.csv", "--style", "film",
    )  # fmt: skip
    assert made.code == 0, made.err
    settings = [json.loads(line)["settings"] for line in made.out.splitlines()]
    wildcards = Wildcards.of(str(folder))
    expected = [wildcards.draw("film still of a __colors__ {cat|dog}, grain", seed) for seed in range(3, 7)]
    assert [each["prompt"] for each in settings] == expected and len({*expected}) > 1
    assert {each["negative_prompt"] for each in settings} == {"cartoon"}
    third = json.loads(made.out.splitlines()[2])["path"]
    again = run("rerun", third, "--model", tiny_model, "--device", "cpu", "--out", "again")
    assert again.code == 0 and "bit-equal" in again.err
    for arguments, message in (
        (["a __colour__", "--wildcard-folder", folder], "unknown wildcard"),
        (["a cat", "--style", "film"], "--style needs --styles"),
        (["a cat", "--styles", folder / "styles.csv", "--style", "flim"], "did you mean 'film'"),
    ):
        refused = run("generate", *arguments, *given)
        assert refused.code == 2 and message in refused.err and refused.err.count("\n") == 1
    assert "see --wildcard-folder" in run("generate", "a {cat|dog}", *given).err
