"""Prompt syntax: attention weights, BREAK, chunks of 75 tokens, one prompt per line.

Syntax and results are those of AUTOMATIC1111's web UI (``modules/prompt_parser.py`` and
``modules/sd_hijack_clip.py``), in which most shared prompts are written:

- ``(words)`` x 1.1, ``((words))`` x 1.21, ``(words:1.3)`` x 1.3, ``[words]`` / 1.1
- a backslash before a bracket or a backslash makes it text
- ``BREAK`` starts a new chunk
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from ssd1b.errors import InputError

BRACKET_WEIGHT = 1.1

MAX_WEIGHT = 100.0
"""Largest absolute attention weight; beyond it, as in "(Metropolis:1927)", the number was meant as text."""

CHUNK_SIZE = 75
"""Tokens in a chunk: CLIP's context of 77 without its begin and end tokens."""

COMMA_BACKTRACK = 20
"""Maximum number of tokens by which a chunk is shortened to end after a comma (AUTOMATIC1111's default)."""

MAX_PROMPTS = 10_000
"""Maximum number of prompts in a file."""

NO_PROMPT = "no prompt: describe an image, or give a file of prompts with --file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of text with one attention weight."""

    text: str
    weight: float


_TOKEN = re.compile(
    r"""
    \\ (?P<escaped> [\]\[()\\]? )    # before anything else a backslash is dropped
  | (?P<open> [\[(] )
  | : \s* (?P<weight> [+-]? (?: \d+ (?: \.\d* )? | \.\d+ ) ) \s* \)
  | (?P<close> [\])] )
  | (?P<text> [^\]\[()\\:]+ | : )
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"(?:(?<!\s)\s+)?\bBREAK\b\s*")  # the look-behind keeps long runs of space linear
_SPECIAL = re.compile(r"[\]\[()\\]")
_BRACKETS = {"(": BRACKET_WEIGHT, "[": 1 / BRACKET_WEIGHT}
_OPENED_BY = {")": "(", "]": "["}


def parse_prompt(text: str) -> list[list[Segment]]:
    """Parse a prompt into a list of weighted segments for each part between BREAKs.

    Adjacent segments differ in weight. Brackets may be unbalanced: an unclosed one extends to the end, an
    unopened one is text. There are two differences from AUTOMATIC1111: a BREAK inside brackets counts, and
    segments without text are dropped (so a part may be empty).

    Raises:
        InputError: a weight exceeds ``MAX_WEIGHT``.
    """
    pieces: list[str | None] = []  # None is a BREAK
    weights: list[float] = []
    opened: dict[str, list[int]] = {bracket: [] for bracket in _BRACKETS}

    def scale(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        value = match[kind]
        if kind == "open":
            opened[value].append(len(pieces))
        elif kind == "close" and opened[_OPENED_BY[value]]:
            scale(opened[_OPENED_BY[value]].pop(), _BRACKETS[_OPENED_BY[value]])
        elif kind == "weight" and opened["("]:
            scale(opened["("].pop(), float(value))
        else:
            found = [value] if kind == "escaped" else _split_breaks(match[0])
            pieces += found
            weights += [1.0] * len(found)
    for bracket, starts in opened.items():
        for start in starts:
            scale(start, _BRACKETS[bracket])
    return _merge(pieces, weights)


_UNSUPPORTED = re.compile(
    r"""
    \\.                                          # escaped, so it is text
  | (?P<network> <\w+:[^<>\n]{1,200}> )
  | (?P<embedding> \bembedding:[\w./-]{1,200} )
  | (?P<wildcard> __[\w*/-]{1,200}__ | \{[^{}|\n]{0,200}\|[^{}\n]{0,200}\} )
  | (?P<composition> \bAND\b )
    """,
    re.VERBOSE | re.DOTALL,
)
NETWORK = "a LoRA or another network"
EMBEDDING = "an embedding"
WILDCARD = "a wildcard"
_FEATURES = {
    "network": NETWORK,
    "embedding": EMBEDDING,
    "wildcard": WILDCARD,
    "composition": "composition of prompts",
}


def unsupported(text: str) -> dict[str, str]:
    """Find syntax of other programs that is treated as plain words here.

    Returns:
        The first occurrence of each feature, by a readable name of the feature.
    """
    found: dict[str, str] = {}
    for match in _UNSUPPORTED.finditer(text):
        if match.lastgroup is not None:
            found.setdefault(_FEATURES[match.lastgroup], match[0])
    return found


def _split_breaks(text: str) -> list[str | None]:
    first, *rest = _BREAK.split(text)
    return [first, *(piece for part in rest for piece in (None, part))]


def _merge(pieces: Sequence[str | None], weights: Sequence[float]) -> list[list[Segment]]:
    parts: list[list[Segment]] = [[]]
    for piece, weight in zip(pieces, weights, strict=True):
        if piece is None:
            parts.append([])
        elif piece:
            if not abs(weight) <= MAX_WEIGHT:
                raise InputError(
                    f"attention weight of {piece[:40]!r} is {weight:g}: it must be from -{MAX_WEIGHT:g} to "
                    rf"{MAX_WEIGHT:g} (for brackets as text, write \( and \))"
                )
            if parts[-1] and parts[-1][-1].weight == weight:
                piece = parts[-1].pop().text + piece
            parts[-1].append(Segment(text=piece, weight=weight))
    return parts


def format_prompt(parts: Iterable[Iterable[Segment]]) -> str:
    """Format segments as a prompt, which ``parse_prompt`` parses to the same segments."""
    formatted = ["".join(map(_format_segment, part)) for part in parts]
    # A BREAK removes the space around it; a lone backslash protects space that belongs to the text.
    protected = [re.sub(r"\A(?=\s)|(?<=\s)\Z", r"\\", part) for part in formatted]
    return " BREAK ".join(protected) if len(formatted) > 1 else "".join(formatted)


def _format_segment(segment: Segment) -> str:
    text = _SPECIAL.sub(r"\\\g<0>", segment.text)
    text = re.sub(r"\bBREAK\b", r"B\\REAK", text)
    # Decimal, because the syntax has no exponents: 1e-05 is written 0.00001.
    return text if segment.weight == 1.0 else f"({text}:{Decimal(repr(segment.weight)):f})"


def chunk(
    parts: Iterable[Iterable[tuple[int, float]]],
    *,
    comma_id: int,
    size: int = CHUNK_SIZE,
    backtrack: int = COMMA_BACKTRACK,
    together: Mapping[int, int] = MappingProxyType({}),
) -> list[list[tuple[int, float]]]:
    """Split the (token id, weight) pairs of a prompt into one or more chunks of at most ``size``.

    Each of the ``parts``, as from ``parse_prompt``, begins a new chunk. A part that does not fit is split
    after the last comma if that is among the last ``backtrack`` tokens, otherwise where the chunk is full.
    The chunks are not padded, since the padding token depends on the tokenizer.

    Args:
        parts: the pairs.
        comma_id: the token after which a chunk may end early.
        size: maximum number of tokens in a chunk.
        backtrack: maximum number of tokens by which a chunk is shortened.
        together: how many tokens from one of these on are not split, such as an embedding's vectors.

    Source: AUTOMATIC1111 ``TextConditionalModel.tokenize_line``.
    """
    chunks: list[list[tuple[int, float]]] = []
    for part in parts:
        chunks.append([])
        comma = None  # index of the last comma in the current chunk
        for pair in part:
            if pair[0] == comma_id:
                comma = len(chunks[-1])
            elif len(chunks[-1]) == size and comma is not None and size - comma <= backtrack:
                chunks.append(chunks[-1][comma + 1 :])
                del chunks[-2][comma + 1 :]
                comma = None
            if len(chunks[-1]) + together.get(pair[0], 1) > size:
                chunks.append([])
                comma = None
            chunks[-1].append(pair)
    # A BREAK at the end begins a chunk that stays empty.
    return chunks[:-1] if len(chunks) > 1 and not chunks[-1] else chunks or [[]]


def split_prompts(text: str, *, source: str) -> list[str]:
    """Read one prompt per line; blank lines and lines that begin with ``#`` are skipped.

    Args:
        text: content of a file or of the standard input.
        source: its name in errors.

    Raises:
        InputError: there is no prompt, or there are more than ``MAX_PROMPTS``.
    """
    lines = (line.strip() for line in text.removeprefix("\ufeff").split("\n"))
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise InputError(f"{source} has {len(prompts)} prompts: 1 to {MAX_PROMPTS} are allowed, one per line")
    return prompts
