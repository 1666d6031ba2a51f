"""Errors that a user can fix, each with a message of one line."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches

_COMPARED = 200
"""Characters of a name that are compared with the valid ones, since the time grows quadratically."""

_ALL, _NEAREST, _LONGEST = 30, 24, 300
"""Up to ``_ALL`` valid names are all listed, such as the keys of a table. Of more, such as all axes, only the
nearest ones are, and at most so many characters of them."""


class InputError(ValueError):
    """The base of all errors for users, and itself the one for invalid input.

    The message is one line that says what is wrong, what was given and what is allowed. The command line
    prints it without a traceback and exits with 2. Any other exception is a bug.
    """


class NotFoundError(InputError):
    """A model, file, preset or sweep does not exist."""


class ConflictError(InputError):
    """Something that exists is in the way: a file of that name, or a run with other settings."""


class UnavailableError(InputError):
    """The hub, a device or a library is not available."""


class OutOfSpaceError(InputError):
    """The disk is full."""


class FailedError(InputError):
    """A training run or an image failed although the input was valid."""


class LostProcessError(FailedError):
    """Another process of the same training ended or does not answer."""


SHOWN = 80
"""Maximum length of a value quoted in a message, in characters."""

LINE = 900
"""Maximum length of a message, in characters; names from files and lists of problems may be much longer."""


def unknown(
    kind: str, given: str, allowed: Iterable[str], error: type[InputError] = InputError
) -> InputError:
    """Build the error for a name that is not in ``allowed``; it suggests the nearest valid name.

    Up to 30 names are all listed, of more the nearest ones.
    """
    names = sorted(allowed)
    nearest = get_close_matches(given[:_COMPARED].lower(), names, n=_NEAREST, cutoff=0.0)
    near = get_close_matches(given[:_COMPARED].lower(), nearest, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    if len(names) <= _ALL and len(", ".join(names)) <= LINE // 2:
        nearest = names
    while nearest is not names and len(nearest) > 1 and len(", ".join(nearest)) > _LONGEST:
        nearest = nearest[:-1]
    left_out = len(names) - len(nearest)
    listed = names if left_out <= 0 else [*sorted(nearest), f"and {left_out} more"]
    return error(f"unknown {kind} {shown(given)}: {hint}allowed: {', '.join(listed) or 'none'}")


@contextmanager
def prefix_errors(where: str) -> Generator[None, None, None]:
    """Put ``where`` before the message of any InputError; its class stays."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{where}: {error}") from None


def shown(value: object, most: int = SHOWN) -> str:
    """Format any value for a message, as one printable line of at most so many characters."""
    try:
        plain = str(value).lower() if isinstance(value, bool) else value  # as in TOML and JSON
        text = repr(value[: most + 1]) if isinstance(value, str) else printable(" ".join(str(plain).split()))
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list of thousands of lists
        return f"a value that is too large ({type(value).__name__})"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str) -> str:
    """Replace line ends and terminal escape sequences by Python's escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def line(text: str) -> str:
    """Format a message as one printable line; the middle of more than ``LINE`` characters is cut out."""
    # Cut first, because a message may hold megabytes, and again, because escapes are longer.
    return _cut(printable(" ".join(_cut(text).split())))


def _cut(text: str) -> str:
    half = (LINE - 5) // 2
    return text if len(text) <= LINE else f"{text[:half]} ... {text[-half:]}"
