import pytest

from ssd1b.errors import LINE, SHOWN, InputError, line, printable, shown, unknown
from timing import at_most

ESCAPES = "\x1b[2J\r\x07\x00\x9b\u202e\u2028\ud800"
"""What a terminal acts on, or cannot print."""


def test_printable_keeps_letters_and_shows_the_rest():
    assert printable("grün\n\x1b[0m\u2028") == r"grün\n\x1b[0m\u2028"


VALUES = [
    "x" * 10**7, ESCAPES * 10**5, 10**5000, [[1]] * 1000, {"a": ESCAPES}, b"\xff" * 1000, None, float("nan"),
]  # fmt: skip
MESSAGES = ["short", "x" * 10**7, ESCAPES * 10**6, "one\ntwo  three", "\U000e0001" * 10**6]


@pytest.mark.parametrize("value", VALUES, ids=map(str, range(len(VALUES))))
def test_a_value_is_shown_in_one_short_line(value):
    text = shown(value)
    assert len(text) <= SHOWN
    assert text.isprintable()
    text.encode()


@pytest.mark.parametrize("text", MESSAGES, ids=map(str, range(len(MESSAGES))))
def test_a_message_is_one_printable_line(text):
    with at_most(5):
        message = line(text)
    assert len(message) <= LINE
    assert message.isprintable()
    message.encode()


def test_a_long_message_keeps_its_begin_and_its_end():
    message = line(f"unknown name {'x' * 10**6}: allowed: a, b")
    assert (
        message.startswith("unknown name x") and message.endswith("x: allowed: a, b") and " ... " in message
    )
    assert line("one\ntwo") == "one two"


def test_unknown_names_are_compared_and_shown_in_part():
    long = [f"{number:02d}-{'x' * 30}" for number in range(20)]
    listed = str(unknown("preset", long[3], long))
    assert long[3] in listed and "more" in listed and len(listed) < 450
    assert long[0] * 20 in str(unknown("column", "y", [long[0] * 20])), "one name is always listed"
    assert "k25" in str(unknown("key", "zz", [f"k{number}" for number in range(30)])), "all keys of a table"
    error = unknown("sampler", "eulr" + "\x1b" * 10**6, ["euler", "heun"])
    assert isinstance(error, InputError)
    assert len(str(error)) < 200 and "\x1b" not in str(error)
