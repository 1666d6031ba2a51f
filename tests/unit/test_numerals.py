import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.errors import InputError
from ssd1b.numerals import number, whole_number

NO_NUMBERS = [
    "", " ", "-", "--1", "+5", " 5", "5 ", "5\n", "1_0", "1,5", "٦٤", "６４", "²", "1٠", "0x10", "nan", "inf",
    "-inf", "Infinity", "1e", "e5", ".", "-.", "1e999", "1.5.2", "9" * 5000, "1." + "0" * 5000,
    "1e" + "9" * 5000, "true", "\0", "5\0", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(NO_NUMBERS)))
@pytest.mark.parametrize("read", [number, whole_number])
def test_what_is_no_number_in_plain_digits_is_refused_in_one_short_line(read, index):
    with pytest.raises(InputError, match="plain digits") as refused:
        read(NO_NUMBERS[index])
    assert len(str(refused.value)) < 200 and str(refused.value).isprintable()


@pytest.mark.parametrize("text", ["1.0", "1e3", ".5", "7."])
def test_fractions_and_exponents_are_no_whole_numbers(text):
    assert number(text) == float(text)
    with pytest.raises(InputError):
        whole_number(text)


@given(st.integers(-(10**29), 10**29))
def test_whole_numbers_are_read_as_python_writes_them(value):
    assert whole_number(str(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_as_python_writes_them(value):
    assert number(repr(value)) == value
