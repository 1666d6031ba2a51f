"""Words of a prompt that are drawn at random, in the syntax of the extension Dynamic Prompts; no torch.

- ``{red|green}`` is one of them, ``{3::red|green}`` red three times as often
- ``{2$$a|b|c}`` is two different ones, ``{1-2$$ and $$a|b|c}`` one or two with "and" between them
- ``__colors__`` is a line of the file ``colors.txt`` in a folder, ``__animals/*__`` one of all that fit

Drawn words may have others in them. A seed always draws the same.

Source: https://github.com/adieyal/sd-dynamic-prompts, its documentation of the syntax.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from ssd1b.errors import InputError, NotFoundError, prefix_errors, shown, unknown
from ssd1b.files import decode_text, expand_path, named, read_file

MOST_DRAWS = 1000
"""Maximum number of wildcards in a prompt, including those in the lines that are drawn."""

MOST_CHARACTERS = 100_000
"""Maximum length of a prompt after drawing."""

_MAX_FILE_BYTES = 16 * 2**20
_WILDCARD = re.compile(r"__([\w*/ .-]{1,200}?)__")
_SIGNS = re.compile(r"[{}|]|[^{}|]+")
_COUNT = re.compile(r"\s*(\d{1,3})?(-)?(\d{1,3})?\s*\$\$")
_WEIGHT = re.compile(r"\s*([^\s:]{1,400})::")
_PLAIN = re.compile(r"\d+\.?\d*|\.\d+")
_MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class Wildcards:
    """Files of words.

    Attributes:
        folder: with text files, also in folders within it; None if there are none.
    """

    folder: Path | None = None

    @classmethod
    def of(cls, folder: str | None) -> "Wildcards":
        """Find a folder.

        Raises:
            NotFoundError: there is none.
        """
        if folder is None:
            return cls()
        path = Path(expand_path(folder))
        if not path.is_dir():
            raise NotFoundError(f"{named(path)}: no such folder, in which wildcards are looked for")
        return cls(path)

    def draw(self, prompt: str, seed: int) -> str:
        """Draw the words of a prompt.

        Args:
            prompt: the text.
            seed: draws the same each time.

        Raises:
            NotFoundError: there is no file of a name.
            InputError: a number is out of range, a file has no lines, or the result is too long.
        """
        chance = random.Random(seed)
        text = _choose(prompt, chance)
        for _ in range(MOST_DRAWS):
            found = _WILDCARD.search(text)
            if found is None:
                return text
            line = chance.choice(self._lines(found[1].strip()))
            text = _choose(text[: found.start()] + line + text[found.end() :], chance)
            if len(text) > MOST_CHARACTERS:
                raise InputError(f"the prompt has more than {MOST_CHARACTERS} characters after drawing")
        raise InputError(f"the prompt has more than {MOST_DRAWS} wildcards: does a file name itself?")

    @cached_property
    def _files(self) -> Mapping[str, list[Path]]:
        """The files by name, with and without the folders that lead to them."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*.txt")) if self.folder else ():
            assert self.folder is not None
            for name in {path.stem, path.relative_to(self.folder).with_suffix("").as_posix()}:
                found.setdefault(name, []).append(path)
        return found

    def _lines(self, name: str) -> list[str]:
        if name in self._files:
            files = self._files[name]
        else:
            fits = [path for each, paths in self._files.items() for path in paths if fnmatchcase(each, name)]
            files = list(dict.fromkeys(fits))
        if not files:
            raise unknown("wildcard", name, self._files, NotFoundError)
        lines = [line for path in files for line in _read(path)]
        if not lines:
            raise InputError(f"{named(files[0])} has no lines to draw")
        return lines


def _read(path: Path) -> list[str]:
    text = decode_text(read_file(path, most=_MAX_FILE_BYTES), named(path))
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _choose(text: str, chance: random.Random) -> str:
    """Draw from all braces, the inner ones first; braces without a bar or a number are text."""
    stack: list[list[str]] = [[""]]
    for match in _SIGNS.finditer(text):
        token = match[0]
        if token == "{":
            stack.append([""])
        elif token == "|" and len(stack) > 1:
            stack[-1].append("")
        elif token == "}" and len(stack) > 1:
            options = stack.pop()
            drawn = len(options) > 1 or _COUNT.match(options[0])
            stack[-1][-1] += _drawn(options, chance) if drawn else f"{{{options[0]}}}"
        else:
            stack[-1][-1] += token
    while len(stack) > 1:  # not closed, so it is text
        options = stack.pop()
        stack[-1][-1] += "{" + "|".join(options)
    return stack[0][0]


def _drawn(options: Sequence[str], chance: random.Random) -> str:
    """Draw from the options in a pair of braces."""
    first, low, high, between = options[0], 1, 1, ", "
    if count := _COUNT.match(first):
        first = first[count.end() :]
        low = int(count[1] or 0)
        high = int(count[3]) if count[3] else len(options) if count[2] else low
        words, separator, rest = first.partition("$$")
        if separator:
            between, first = words, rest
    where = shown("{" + "|".join(options) + "}")
    with prefix_errors(where):
        weighted = [_weighted(option) for option in (first, *options[1:])]
    weights, texts = [weight for weight, _ in weighted], [text for _, text in weighted]
    if low > high:
        raise InputError(f"{where} asks for {low} to {high} words")
    if not any(weights):
        raise InputError(f"{where}: all weights are 0, so that nothing can be drawn")
    number = min(chance.randint(low, high), sum(weight > 0 for weight in weights))
    chosen: list[int] = []
    for _ in range(number):
        left = [0.0 if place in chosen else weight for place, weight in enumerate(weights)]
        chosen += chance.choices(range(len(texts)), left)
    return between.join(texts[place].strip() if number > 1 else texts[place] for place in chosen)


def _weighted(option: str) -> tuple[float, str]:
    """Divide an option into its weight, 1 without one, and its text.

    Raises:
        InputError: what stands before "::" is a number, but no weight.
    """
    match = _WEIGHT.match(option)
    try:
        weight = float(match[1]) if match else 1.0
    except ValueError:  # a text with two colons
        return 1.0, option
    if match is None:
        return weight, option
    if not _PLAIN.fullmatch(match[1]) or weight > _MOST_WEIGHT:
        raise InputError(
            f"weight is {shown(match[1])}: it must be from 0 to {_MOST_WEIGHT:.0f} in plain digits, like 0.5"
        )
    return weight, option[match.end() :]
