"""The one error a user can cause, and the sentence that helps to mend it."""

from collections.abc import Iterable
from difflib import get_close_matches

_COMPARED = 200
"""Characters of a given name that are compared with the valid ones; the time grows with their square."""


class InputError(ValueError):
    """Something the user gave is wrong: one line that says what, what was given and what is allowed.

    The command line prints the message without a traceback and exits with 2.
    """


def unknown(kind: str, given: str, allowed: Iterable[str]) -> InputError:
    """Build the error for a name that is none of ``allowed``, with the nearest valid name first."""
    names = sorted(allowed)
    near = get_close_matches(given[:_COMPARED].lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {kind} {shown(given)}: {hint}allowed: {', '.join(names)}")


def shown(value: object) -> str:
    """Write a value into an error message, whatever it is: one short line."""
    try:
        text = repr(value) if isinstance(value, str) else " ".join(str(value).split())
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list of thousands of lists
        return f"too large a value ({type(value).__name__})"
    return text if len(text) <= 80 else f"{text[:77]}..."
