"""The errors that a user can do something about, each with one line that says what."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

_COMPARED = 200
"""Characters of a given name that are compared with the valid ones; the time grows with their square."""


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
    """The hub, a device or a library that is needed cannot be used here or now."""


class OutOfSpaceError(InputError):
    """The disk is full."""


class FailedError(InputError):
    """A training or an image went wrong although the input was valid."""


SHOWN = 80
"""Most characters of a value that a message repeats."""

LINE = 900
"""Most characters of a message: names out of files and lists of problems may be much longer."""


def unknown(
    kind: str, given: str, allowed: Iterable[str], error: type[InputError] = InputError
) -> InputError:
    """Build the error for a name that is none of ``allowed``, with the nearest valid name first."""
    names = sorted(allowed)
    near = get_close_matches(given[:_COMPARED].lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return error(f"unknown {kind} {shown(given)}: {hint}allowed: {', '.join(names)}")


@contextmanager
def prefix_errors(where: str) -> Iterator[None]:
    """Put ``where`` before the message of any InputError; its class stays."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{where}: {error}") from None


def shown(value: object) -> str:
    """Write a value into a message, whatever it is: one short line that a terminal can print."""
    try:
        text = repr(value[: SHOWN + 1]) if isinstance(value, str) else printable(" ".join(str(value).split()))
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list of thousands of lists
        return f"too large a value ({type(value).__name__})"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def printable(text: str) -> str:
    """Replace what a terminal would act on, line ends and escape sequences, by Python's escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def line(text: str) -> str:
    """Make a message one printable line of at most ``LINE`` characters; a longer one loses its middle."""
    # Cut before the work, because a message may hold megabytes, and after it, because escapes are longer.
    return _cut(printable(" ".join(_cut(text).split())))


def _cut(text: str) -> str:
    half = (LINE - 5) // 2
    return text if len(text) <= LINE else f"{text[:half]} ... {text[-half:]}"
