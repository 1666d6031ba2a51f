"""The harness notices a reader that fails, is slow, or answers at length."""

import time

import pytest
from hypothesis import strategies as st

import fuzzing
from fuzzing import SECONDS, fuzz
from ssd1b.errors import InputError


def fails(number: int) -> None:
    if number == 7:
        raise KeyError(number)


def answers_at_length(number: int) -> None:
    raise InputError("x" * 5000)


def allocates(number: int) -> None:
    bytearray(b"x") * 2**28


def test_a_reader_that_fails() -> None:
    with pytest.raises(KeyError):
        fuzz(fails, st.integers(0, 9), seconds=0)


def test_an_error_as_long_as_its_input() -> None:
    with pytest.raises(AssertionError, match="5000 characters"):
        fuzz(answers_at_length, st.integers(0, 9), seconds=0)


def test_a_reader_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, int(SECONDS) + 1))
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    with pytest.raises(AssertionError, match="of processor time"):
        fuzz(lambda number: None, st.integers(0, 9), seconds=0)


@pytest.mark.skipif(not fuzzing.reset_peak(), reason="peaks of memory cannot be reset here")
def test_a_reader_that_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "MEMORY", 2**26)
    with pytest.raises(AssertionError, match="too much memory"):
        fuzz(allocates, st.just(0), seconds=0)
