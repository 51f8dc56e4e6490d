"""Warnings that point at the user's line."""

import sys
import warnings

_LIBRARIES = ("plastic_jax", "jax", "optax", "flax")


def warn_user(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the innermost line that is not of this package, nor of one that it is called by or through."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
