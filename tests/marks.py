"""Which cases of a test are for `make test-slow`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(quick: Callable[..., bool], cases: Iterable[Any]) -> list[Any]:
    """The cases, of which `make test` runs those for which `quick` is true, and `make test-slow` the others.

    A case that is a tuple is handed to `quick` as several arguments.
    """

    def marked(case: Any) -> Any:
        values = case if isinstance(case, tuple) else (case,)
        return case if quick(*values) else pytest.param(*values, marks=pytest.mark.slow)

    return [marked(case) for case in cases]
