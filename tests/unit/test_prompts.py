import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.errors import InputError
from ssd1b.prompts import (
    CHUNK_SIZE,
    COMMA_BACKTRACK,
    MAX_PROMPTS,
    MAX_WEIGHT,
    Segment,
    chunk,
    format_prompt,
    parse_prompt,
    split_prompts,
    unsupported,
)
from timing import at_most

COMMA = 267
WORD = 320


def parsed(text: str) -> list[list[tuple[str, float]]]:
    return [[(segment.text, segment.weight) for segment in part] for part in parse_prompt(text)]


# The first six are the doctests of AUTOMATIC1111's parse_prompt_attention, with their exact weights.
ATTENTION = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ],
    "[less]": [("less", 1 / 1.1)],
    "[open": [("open", 1 / 1.1)],
    "shut) and shut]": [("shut) and shut]", 1.0)],
    "a :1.2) b": [("a :1.2) b", 1.0)],
    "(ratio 16:9)": [("ratio 16", 9.0)],
    "ratio 16:9": [("ratio 16:9", 1.0)],
    "(spaced: 1.5 )": [("spaced", 1.5)],
    "(negative:-.5)": [("negative", -0.5)],
    "(nothing:0)": [("nothing", 0.0)],
    "(version:1.2.3)": [("version:1.2.3", 1.1)],
    "(a [b) c]": [("a ", 1.1), ("b", 1.1 * (1 / 1.1)), (" c", 1 / 1.1)],
    r"back\slash \\ end\ ": [("backslash \\ end ", 1.0)],
    "(a\nb:2)": [("a\nb", 2.0)],
}  # fmt: skip


@pytest.mark.parametrize("text", ATTENTION)
def test_weights_are_those_of_automatic1111(text):
    assert parsed(text) == [ATTENTION[text]]


BREAKS = {
    "": [[]],
    "()": [[]],
    "a BREAK b": [[("a", 1.0)], [("b", 1.0)]],
    "BREAK": [[], []],
    "a BREAK  BREAK b": [[("a", 1.0)], [], [("b", 1.0)]],
    "a\nBREAK\nb": [[("a", 1.0)], [("b", 1.0)]],
    "(a BREAK b:1.3)": [[("a", 1.3)], [("b", 1.3)]],
    "BREAKFAST break": [[("BREAKFAST break", 1.0)]],
    r"B\REAK": [[("BREAK", 1.0)]],
}


@pytest.mark.parametrize("text", BREAKS)
def test_break_divides_the_prompt(text):
    assert parsed(text) == BREAKS[text]


@pytest.mark.parametrize("text", ["(Metropolis:1927)", "(a:-101)", "(" * 60 + "a", f"(a:{'9' * 400})"])
def test_absurd_weight_is_refused(text):
    with pytest.raises(
        InputError, match=r"attention weight of '(Metropolis|a)' is .* it must be from -100 to 100"
    ):
        parse_prompt(text)


MARKUP = st.lists(
    st.sampled_from(
        ["(", ")", "[", "]", "\\", ":", ":1.2)", ": -0.50 )", ":1e-5)", "BREAK", " ", "\n", "a", "é", ","]
    )
    | st.text(max_size=3),
    max_size=25,
).map("".join)


@given(MARKUP)
def test_any_text_is_read_and_what_was_read_is_written_back(text):
    try:
        parts = parse_prompt(text)
    except InputError:
        return
    assert parse_prompt(format_prompt(parts)) == parts
    assert len(parts) <= 1 + text.count("BREAK")
    for part in parts:
        assert all(segment.text and abs(segment.weight) <= MAX_WEIGHT for segment in part)
        assert all(one.weight != other.weight for one, other in pairwise(part))


@given(st.text(min_size=1).filter(lambda text: not re.search(r"[][()\\]|\bBREAK\b", text)))
def test_text_without_markup_is_one_segment_of_weight_one(text):
    assert parsed(text) == [[(text, 1.0)]]


@given(st.text(min_size=1), st.floats(-MAX_WEIGHT, MAX_WEIGHT))
def test_any_text_can_be_given_any_weight(text, weight):
    parts = [[Segment(text=text, weight=weight)]]
    assert parse_prompt(format_prompt(parts)) == parts


def test_space_beside_a_break_survives():
    parts = [[Segment(text="a ", weight=1.0)], [Segment(text=" b", weight=1.0)]]
    assert parse_prompt(format_prompt(parts)) == parts


def words(count: int, start: int = 1000) -> list[tuple[int, float]]:
    return [(start + index, 1.0) for index in range(count)]


def test_chunk_of_an_empty_prompt_is_one_empty_chunk():
    assert chunk([[]], comma_id=COMMA) == [[]]
    assert chunk([], comma_id=COMMA) == [[]]


@pytest.mark.parametrize(("count", "lengths"), [(74, [74]), (75, [75]), (76, [75, 1]), (151, [75, 75, 1])])
def test_chunks_fill_up_when_no_comma_is_near(count, lengths):
    assert [len(part) for part in chunk([words(count)], comma_id=COMMA)] == lengths


@pytest.mark.parametrize(
    ("comma_at", "lengths"),
    [
        (CHUNK_SIZE - COMMA_BACKTRACK - 1, [75, 25]),  # one token too early
        (CHUNK_SIZE - COMMA_BACKTRACK, [56, 44]),
        (74, [75, 25]),
        (75, [75, 25]),  # the comma itself is the first that does not fit
    ],
)
def test_a_full_chunk_ends_behind_the_last_near_comma(comma_at, lengths):
    tokens = words(100)
    tokens[comma_at] = (COMMA, 1.0)
    assert [len(part) for part in chunk([tokens], comma_id=COMMA)] == lengths


def test_a_comma_is_used_once():
    # After the cut at the comma the second chunk holds 19 moved tokens and no comma: it fills to 75.
    tokens = words(56 + 75 + 5)
    tokens[55] = (COMMA, 1.0)
    assert [len(part) for part in chunk([tokens], comma_id=COMMA)] == [56, 75, 5]


@pytest.mark.parametrize(
    ("parts", "lengths"),
    [
        ([3, 4], [3, 4]),
        ([75, 4], [75, 4]),
        ([80, 4], [75, 5, 4]),
        ([0, 4], [0, 4]),
        ([3, 0, 4], [3, 0, 4]),
        ([3, 0], [3]),
        ([3, 0, 0], [3, 0]),
        ([0, 0], [0]),
    ],
)
def test_break_begins_a_chunk(parts, lengths):
    assert [len(part) for part in chunk([words(n) for n in parts], comma_id=COMMA)] == lengths


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from([COMMA, WORD, 1, 2]), st.floats(-9, 9)), max_size=60), max_size=4
    ),
    st.integers(1, 20),
    st.integers(0, 30),
)
def test_chunks_keep_every_token_in_order(parts, size, backtrack):
    chunks = chunk(parts, comma_id=COMMA, size=size, backtrack=backtrack)
    assert [pair for part in chunks for pair in part] == [pair for part in parts for pair in part]
    assert all(len(part) <= size for part in chunks)
    assert chunks


def test_one_prompt_per_line():
    text = "\ufeff# my prompts\r\na red cube\r\n\n   \n  # no\n  a cat, (sleeping:1.2)  \nC# code\n"
    assert split_prompts(text, source="list.txt") == ["a red cube", "a cat, (sleeping:1.2)", "C# code"]


@pytest.mark.parametrize("text", ["", "\n# only a comment\n", "x\n" * (MAX_PROMPTS + 1)])
def test_no_prompt_or_too_many_are_refused(text):
    with pytest.raises(InputError, match=r"^list\.txt has \d+ prompts: 1 to 10000 are allowed"):
        split_prompts(text, source="list.txt")


WORDS = {
    "a LoRA or another network": ["<lora:x:0.8>", "<lora:x>", "<hypernet:some name:1>", "<lyco:x:1:lbw=A>"],
    "composition of prompts": ["AND"],
    "a wildcard": ["{a|b}", "{red|green|}", "__animal__", "__colors/warm*__", "{2$$a|b}"],
    "an embedding": ["embedding:easynegative", "embedding:some/file.pt"],
}
NO_SYNTAX = [
    "a cat and a dog", "[word]", "[[two words]]", "(a:1.2)", "[(a:1.2)]", "((a))", r"\[a:b:0.5\]",
    r"\[a|b]", "a [b] c: 0.5]", "a:b:0.5]", "a | b", "(a|b)", "{a}", "a __ b", "__init", "x < y > z", "<3",
    "10:30", "[10:30 pm]", "SAND", "BRANDY", "[a:b]", "[a:b:c]", "a] [b", "an embedding: x", "[a", "a]",
    "<lora:", "BREAK", "", "[]", "5 < x: y", r"\<lora:x:1>",
]  # fmt: skip


@pytest.mark.parametrize(
    ("feature", "piece"), [(name, each) for name, pieces in WORDS.items() for each in pieces]
)
def test_syntax_that_is_read_as_words_is_found(feature, piece):
    assert unsupported(piece) == {feature: piece}
    assert unsupported(f"a (photo:1.1) of [a cat], {piece} in the {piece} sun")[feature] == piece


@pytest.mark.parametrize("text", NO_SYNTAX)
def test_words_are_taken_for_no_syntax(text):
    assert unsupported(text) == {}


@pytest.mark.parametrize(
    "piece", ["[", "]", "[a:b:", "[a|", "{a|", "<lora:", "<a:<", "__a", "_", "{|", "[[]", "embedding:", "\\"]
)
def test_finding_syntax_takes_time_in_proportion_to_the_text(piece):
    text = piece * (10_000 // len(piece))
    with at_most(5):
        unsupported(text)


@given(st.text(alphabet="[]{}<>|:.05_\\ aAND", max_size=60))
def test_pieces_of_syntax_are_in_the_text(text):
    assert all(piece and piece in text for piece in unsupported(text).values())
