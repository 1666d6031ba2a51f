"""Prompts that change while an image is generated, in AUTOMATIC1111's syntax; no torch.

- ``[a:b:0.5]`` is a in the first half of the steps, and then b; ``[a:b:10]`` until the tenth step
- ``[a:0.7]`` is added after 70 % of the steps, ``[a::0.3]`` is removed after 30 %
- ``[a|b]`` is a in the first step, b in the second, a in the third, and so on

They may be nested. A number with a point is a share of the steps, one without is a step. Brackets without a
number or a bar weaken words, see ``prompts``.

Source: AUTOMATIC1111 ``modules/prompt_parser.py``, ``get_learned_conditioning_prompt_schedules``.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

DEEPEST = 32
"""Levels of changes within changes; deeper ones are plain text."""

_TOKENS = re.compile(r"\\.?|[\[\]():|]|[^\\\[\]():|]+", re.DOTALL)
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*")


@dataclass(frozen=True, slots=True)
class _Change:
    """Words before a step and after it."""

    before: "_Text"
    after: "_Text"
    when: str
    depth: int


@dataclass(frozen=True, slots=True)
class _Turns:
    """Words that take turns."""

    words: "tuple[_Text, ...]"
    depth: int


_Text = tuple["str | _Change | _Turns", ...]


@dataclass(slots=True)
class _Open:
    """A square bracket that is not closed yet: its content between the signs of its own level.

    Signs in round brackets are not of this level; ``round`` counts those that are open.
    """

    parts: list[list[str | _Change | _Turns]] = field(default_factory=lambda: [[]])
    between: list[str] = field(default_factory=list[str])
    round: int = 0

    def plain(self) -> "list[str | _Change | _Turns]":
        """Return all of it as text, in which only inner brackets change."""
        found: list[str | _Change | _Turns] = [*self.parts[0]]
        for sign, part in zip(self.between, self.parts[1:], strict=True):
            found += [sign, *part]
        return found


def is_edited(prompt: str) -> bool:
    """Whether a prompt changes during the steps."""
    return any(not isinstance(each, str) for each in _parsed(prompt))


@lru_cache(maxsize=256)
def prompts_of(prompt: str, steps: int) -> tuple[str, ...]:
    """Return the prompt of each step.

    Args:
        prompt: text with editing and alternating words.
        steps: number of steps of the whole schedule.
    """
    tree = _parsed(prompt)
    known: dict[str, str] = {}  # many steps share a text
    texts = ("".join(_at(tree, step, steps)) for step in range(1, steps + 1))
    return tuple(known.setdefault(text, text) for text in texts)


@lru_cache(maxsize=1024)
def _parsed(prompt: str) -> _Text:
    """Read a prompt in one pass."""
    stack = [_Open()]
    for match in _TOKENS.finditer(prompt):
        token, top = match[0], stack[-1]
        if token == "[":
            stack.append(_Open())
        elif token == "]" and len(stack) > 1:
            stack.pop()
            plain: list[str | _Change | _Turns] = ["[", *top.plain(), "]"]
            if top.between:
                change = _change(top)
                plain = _joined(plain) if change is None else [change]
            stack[-1].parts[-1] += plain
        elif token in (":", "|") and len(stack) > 1 and not top.round:
            top.between.append(token)
            top.parts.append([])
        else:
            top.round = max(0, top.round + {"(": 1, ")": -1}.get(token, 0))
            top.parts[-1].append(token)
    while len(stack) > 1:  # not closed, so it is text
        top = stack.pop()
        stack[-1].parts[-1] += ["[", *top.plain()]
    return tuple(_joined(stack[0].parts[0]))


def _change(closed: _Open) -> _Change | _Turns | None:
    """Return what a pair of square brackets changes; None if it does not. A number at the end comes first."""
    *texts, last = _split(closed, ":")
    when = last[0] if len(last) == 1 else None
    change: _Change | _Turns | None = None
    if len(texts) in (1, 2) and isinstance(when, str) and _NUMBER.fullmatch(when):
        before, after = texts if len(texts) == 2 else ((), texts[0])
        change = _Change(before, after, when.strip(), _deepest(texts))
    elif "|" in closed.between:
        words = _split(closed, "|")
        change = _Turns(tuple(words), _deepest(words))
    return None if change is None or change.depth > DEEPEST else change


def _deepest(texts: Iterable[_Text]) -> int:
    """Count the levels of changes within a change of these texts."""
    return 1 + max((each.depth for text in texts for each in text if not isinstance(each, str)), default=0)


def _split(closed: _Open, sign: str) -> list[_Text]:
    """Split the content of a bracket at one of its signs; the other is text."""
    found = [[*closed.parts[0]]]
    for between, part in zip(closed.between, closed.parts[1:], strict=True):
        if between == sign:
            found.append([*part])
        else:
            found[-1] += [between, *part]
    return [tuple(_joined(each)) for each in found]


def _joined(pieces: "list[str | _Change | _Turns]") -> "list[str | _Change | _Turns]":
    """Join texts that follow each other."""
    found: list[str | _Change | _Turns] = []
    texts: list[str] = []
    for each in (*pieces, None):
        if isinstance(each, str):
            texts.append(each)
            continue
        if text := "".join(texts):
            found.append(text)
        texts = []
        if each is not None:
            found.append(each)
    return found


def _at(tree: _Text, step: int, steps: int) -> Iterator[str]:
    """Yield the text of a step, counted from 1."""
    for each in tree:
        if isinstance(each, str):
            yield each
        elif isinstance(each, _Turns):
            yield from _at(each.words[(step - 1) % len(each.words)], step, steps)
        else:
            value = float(each.when)  # of many digits it is infinite, which is no int
            when = int(max(0, min(steps, value * steps if "." in each.when else value)))
            yield from _at(each.before if step <= when else each.after, step, steps)
