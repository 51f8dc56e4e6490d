"""Checks of arguments that methods share; each error says which method, which argument, and what is allowed."""

import math
from typing import Any

from plastic_jax.units.graph import UnitGraph


def check_number(method: str, name: str, value: Any, low: float, high: float, *, below: bool = False) -> None:
    """A Python number is in `[low, high]`, or in `[low, high)` with `below`; arrays are let through.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, int | float) or (low <= value < high if below else low <= value <= high):
        return
    raise ValueError(f"{method}: {name}={value} is not in [{low}, {high}{')' if below else ']'}")


def check_positive_integer(method: str, name: str, value: Any) -> None:
    """ValueError where the value is not a positive Python integer."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{method}: {name}={value!r} is not a positive integer")


def check_update(method: str, units: UnitGraph, params: Any, features: Any) -> None:
    """`update` got the parameters, and of every group a feature array of its width.

    Raises:
        ValueError: one is missing or has another shape.
    """
    for name, value in (("params", params), ("features", features)):
        if value is None:
            call = "update(grads, state, params, features=features)"
            raise ValueError(f"{method}: update needs `{name}`; call {call}")
    for group in units.groups:
        if group.name not in features:
            there = ", ".join(sorted(features))
            raise ValueError(f"{method}: features has no entry '{group.name}'; there are: {there}")
        shape = features[group.name].shape
        if math.prod(shape[axis] for axis in group.feature_axes) != group.width * group.copies:
            copies = f" at {group.copies} positions" if group.copies > 1 else ""
            what = f"features['{group.name}'] of shape {shape}"
            raise ValueError(f"{method}: {what} has not {group.width} units{copies}")
