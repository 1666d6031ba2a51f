"""Hostile input: strategies that damage what is valid, and a check of what a reader does with it."""

import copy
import gc
import json
import logging
import math
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from rounds import rounds
from ssd1b.errors import InputError
from timing import at_most

Given = TypeVar("Given")

SECONDS = 5.0
MEMORY = 2**30
"""Of one input: processor seconds, and bytes beyond what the process had before."""

EXAMPLES = rounds(40, 200)
"""Inputs of a round, if a target says nothing else."""

LONGEST_MESSAGE = 2000
"""Characters; the command line shortens what is still longer than a line on a screen."""


def fuzz(
    read: Callable[[Given], object],
    inputs: st.SearchStrategy[Given],
    *,
    seconds: float,
    examples: int = EXAMPLES,
) -> None:
    """Check that reading ends well for every input: it succeeds, or raises ``InputError``.

    The first round is the same in every run. Further rounds follow until the time is over.

    Raises:
        AssertionError: an input took more than ``SECONDS`` or ``MEMORY``, or its error message is too long.
    """
    gc.collect()  # garbage of earlier tests that is freed in between would hide as much memory
    count = 0

    def check(given: Given) -> None:
        nonlocal count
        count += 1
        reset_peak()
        before = _peak()
        with at_most(SECONDS):
            try:
                read(given)
            except InputError as error:
                assert len(str(error)) <= LONGEST_MESSAGE, f"a message of {len(str(error))} characters"
        assert _peak() - before < MEMORY, "too much memory"

    end = time.monotonic() + seconds
    quiet = settings(
        max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    number = 0
    while number == 0 or time.monotonic() < end:
        seed(number if number == 0 else time.time_ns())(quiet(given(inputs)(check)))()
        number += 1
    logging.getLogger(__name__).info("%d inputs", count)


def reset_peak() -> bool:
    """Forget the most memory that the process has had, where the system can: Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    """Give the most memory that the process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (each for each in status.read_text().splitlines() if each.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 64, 2**31, 2**33, 2**63, 2**64, 10**400, 0.0, -0.5, 1e-300, 1e308,
    math.nan, math.inf, "", " ", "a", "none", "../../x", "/etc/passwd", "\0", "\x1b[31m", "\ud800",
    "é" * 300, "x" * 5000, [], [[]], [0], [1, 2, 3, 4], ["a", "b"], [320, 640], [None] * 4, {}, {"": 0},
    {"a": {"b": []}},
)  # fmt: skip


def _deep(levels: int) -> Any:
    """Nest lists. Few: ``copy`` and ``json`` recurse, and changes nest one value in another."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


odd_values = st.one_of(
    st.sampled_from(ODD_VALUES),
    st.builds(_deep, st.integers(1, 40)),
    st.integers(-(10**6), 10**6),
    st.text(max_size=30),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    ),
)


@st.composite
def mutated_json(draw: st.DrawFn, value: Any) -> Any:
    """Replace, remove, double or add up to four values anywhere in a JSON value."""
    found = {"": copy.deepcopy(value)}  # so that the root, too, can be replaced
    for _ in range(draw(st.integers(1, 4))):
        places = _places(found)
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "swap")))
        if kind == "replace":
            parent[key] = copy.deepcopy(draw(odd_values))  # another change may be made inside it
        elif kind == "remove" and parent is not found:
            del parent[key]
        elif kind == "swap":
            other, name = places[draw(st.integers(0, len(places) - 1))]
            parent[key] = copy.deepcopy(other[name])
        elif isinstance(parent, dict) and parent is not found:
            parent[draw(st.text(max_size=12))] = copy.deepcopy(draw(odd_values))
    return found[""]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) below a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = []
    for key in keys:
        found.append((value, key))
        found += _places(value[key])
    return found


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


_PLACE_OF_DEPTH = "the place of depth"


@st.composite
def _deep_json(draw: st.DrawFn, value: Any) -> bytes:
    """Put nested lists or objects into a JSON value: deeper than the stack of a parser that recurses."""
    found = {"": copy.deepcopy(value)}
    places = _places(found)
    parent, key = places[draw(st.integers(0, len(places) - 1))]
    parent[key] = _PLACE_OF_DEPTH
    levels = draw(st.integers(1, 100_000) | st.integers(1, 2000))
    opening, closing = draw(st.sampled_from(((b"[", b"]"), (b'{"a":', b"}"))))
    inside = opening * levels + b"1" + closing * levels
    return as_json(found[""]).replace(as_json(_PLACE_OF_DEPTH), inside)


def damaged_json(value: Any) -> st.SearchStrategy[bytes]:
    """JSON texts of a value with other values in it, some of them deeper than a parser's stack."""
    changed = mutated_json(value).map(as_json)
    return st.one_of(changed, changed, changed, _deep_json(value))


@st.composite
def mutated_bytes(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Change, insert, remove, double or cut off up to eight runs of bytes of a valid file."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 8))):
        # Headers are at the start: half of the changes happen there.
        reach = draw(st.sampled_from((64, 512, len(data), len(data))))
        place = draw(st.integers(0, max(0, min(reach, len(data)) - 1)))
        run = draw(st.integers(1, 16))
        kind = draw(st.sampled_from(("change", "change", "number", "insert", "remove", "double", "cut")))
        if kind == "change":
            new = draw(st.binary(min_size=1, max_size=run))
            data[place : place + len(new)] = new
        elif kind == "number":
            number = draw(st.sampled_from((0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)))
            size = 8 if number >= 2**32 else 4
            data[place : place + size] = number.to_bytes(size, draw(st.sampled_from(("little", "big"))))
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=64)) * draw(st.sampled_from((1, 1, 100)))
        elif kind == "remove":
            del data[place : place + run]
        elif kind == "double":
            data[place:place] = data[place : place + 20 * run]
        elif len(data) > 8:
            del data[max(place, 8) :]
    return bytes(data)


def worded(words: Sequence[str], *, max_size: int = 40) -> st.SearchStrategy[str]:
    """Texts made of the words of a syntax and of anything else."""
    anything = st.text(max_size=12)
    piece = st.sampled_from(words) | anything
    few = st.lists(piece, max_size=max_size).map("".join)
    many = st.tuples(piece, st.sampled_from((100, 3000))).map(lambda each: each[0] * each[1])
    return few | many | st.tuples(few, many, few).map("".join)
