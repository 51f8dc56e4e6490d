"""Checks of arguments that methods share; each error says which method, which argument, and what is allowed."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from plastic_jax.units.graph import UnitGraph
from plastic_jax.units.passes import FeatureMeans
from plastic_jax.warning import warn_user


def check_number(
    method: str, name: str, value: Any, low: float, high: float, *, below: bool = False, integer: bool = False
) -> None:
    """A number is in `[low, high]`, or in `[low, high)` with `below`, and whole with `integer`; arrays are let through.

    Raises:
        ValueError: it is not, or it is neither a number nor an array.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        if hasattr(value, "dtype"):
            return
        raise ValueError(f"{method}: {name}={value!r} is neither a number nor an array")
    number = float(value)
    if not (low <= number < high if below else low <= number <= high):
        raise ValueError(f"{method}: {name}={value} is not in [{low}, {high}{')' if below else ']'}")
    if integer and not number.is_integer():
        raise ValueError(f"{method}: {name}={value} is not a whole number")


def check_integer(method: str, name: str, value: Any, low: int) -> None:
    """ValueError where the value is not an integer, of Python or numpy, from `low` on."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < low:
        raise ValueError(f"{method}: {name}={value!r} is not an integer from {low} on")


def typed_key(method: str, key: Any) -> jax.Array:
    """The random key, typed; `jax.random.PRNGKey` makes raw ones.

    Raises:
        ValueError: it is no random key.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return key
    raw = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    if dtype == raw.dtype and jnp.shape(key) == raw.shape:
        return jax.random.wrap_key_data(key)
    raise ValueError(f"{method}: key={key!r} is no random key; jax.random.key(0) is one")


def check_like(what: str, tree: Any, params: Any) -> None:
    """ValueError where a tree has not the structure of the parameters."""
    got, wanted = jax.tree.structure(tree), jax.tree.structure(params)
    if got != wanted:
        raise ValueError(f"{what} must be a tree like the parameters, {wanted}, got {got}")


def check_parts(method: str, units: Any, initializer: Any) -> None:
    """What a method that replaces units is made of: a unit graph, and an initializer of fresh weights.

    Raises:
        ValueError: one of them is something else.
    """
    if not isinstance(units, UnitGraph):
        raise ValueError(f"{method}: units is no UnitGraph; see trace_units")
    if not isinstance(initializer, str) and not callable(initializer):
        raise ValueError(f"{method}: initializer={initializer!r} is neither a name nor a function")


class ReplacementWarning(UserWarning):
    """A method has no units to replace, or units whose replacement changes the output at once."""


def warn_of_groups(method: str, units: UnitGraph) -> None:
    """Warns of a graph without groups, and of groups whose new units are not silent.

    `warnings.simplefilter("error", plastic_jax.ReplacementWarning)` makes it raise.
    """
    if not units.groups:
        reasons = "; ".join(f"{group.name}: {group.note}" for group in units.left_out)
        text = "the graph has no units that can be replaced, so only the inner optimizer acts"
        warn_user(f"{method}: {text}" + (f" ({reasons})" if reasons else ""), ReplacementWarning)
    loud = [f"{group.name} ({group.note or 'set by hand'})" for group in units.groups if not group.function_preserving]
    if loud:
        warn_user(
            f"{method}: in {len(loud)} of {len(units.groups)} groups new units are not silent: replacing one changes "
            f"the output at once, by as much as plastic_jax.replacement_effect(units, params, x) says; "
            f"units.isolated() leaves them out: {', '.join(loud)}",
            ReplacementWarning,
        )


def check_params(method: str, params: Any) -> None:
    """ValueError where `update` got no parameters."""
    if params is None:
        raise ValueError(f"{method}: update needs `params`; call update(grads, state, params)")


def check_update(method: str, units: UnitGraph, params: Any, features: Any, argument: str = "features") -> None:
    """`update` got the parameters, and of every group an array of its width in the extra argument of that name.

    Raises:
        ValueError: one is missing or has another shape.
    """
    for name, value in (("params", params), (argument, features)):
        if value is None:
            call = f"update(grads, state, params, {argument}={argument})"
            raise ValueError(f"{method}: update needs `{name}`; call {call}")
    for group in units.groups:
        if group.name not in features:
            there = ", ".join(sorted(features))
            raise ValueError(f"{method}: {argument} has no entry '{group.name}'; there are: {there}")
        feature, axes = features[group.name], group.feature_axes
        if isinstance(feature, FeatureMeans):
            feature, axes = feature.mean, (-2, -1)
        shape = jnp.shape(feature)
        there = all(-len(shape) <= axis < len(shape) for axis in axes)
        if not there or math.prod(shape[axis] for axis in axes) != group.width * group.copies:
            copies = f" at {group.copies} positions" if group.copies > 1 else ""
            what = f"{argument}['{group.name}'] of shape {shape}"
            raise ValueError(f"{method}: {what} has not {group.width} units{copies}")
