"""The one error a user can cause, and the sentence that helps to mend it."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave is wrong: one line that says what, what was given and what is allowed.

    The command line prints the message without a traceback and exits with 2.
    """


def unknown(kind: str, given: str, allowed: Iterable[str]) -> InputError:
    """Build the error for a name that is none of ``allowed``, with the nearest valid name first."""
    names = sorted(allowed)
    near = get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {kind} {given!r}: {hint}allowed: {', '.join(names)}")
