"""What is said of wrong input: one line, the value got, the values allowed, the nearest match."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Something a person gave wrong; its text is one line and the exit status is 2."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the allowed name closest to `name`, or nothing."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def unknown(what: str, name: str, allowed: Iterable[str]) -> InputError:
    """The error for a name that is not among those allowed."""
    allowed = sorted(allowed)
    return InputError(f"{what}: unknown '{name}'{nearest(name, allowed)}; allowed: {', '.join(allowed)}")
