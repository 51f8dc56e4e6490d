"""Reductions, pooling, sorting: channels along whose axis they go are mixed; all others are left what they are."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from plastic_jax.units import jaxprs, labels
from plastic_jax.units.story import Frame, Value
from plastic_jax.units.walk import Walk

_REDUCE = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"}
_ALONG = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort"}
_DEVICES = {"psum", "psum2", "psum_invariant", "pmax", "pmin"}
_WINDOWS = {"reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"}


def reduced(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Sums, means, greatest values over axes."""
    value, name, axes = values[0], eqn.primitive.name, tuple(eqn.params["axes"])
    if name in ("reduce_max", "reduce_min"):
        value = _pooled(walk, value, [d for d in range(len(value.shape)) if d not in axes])
    return [_over(walk, value, axes, None if name == "reduce_sum" else "linear")]


def _over(walk: Walk, value: Value, axes: Sequence[int], activation: str | None) -> Value:
    """What a reduction over axes leaves; `activation` where it is not linear."""
    keep = [d for d in range(len(value.shape)) if d not in axes]
    lost = value.varied(axes)
    walk.leak(value, "is mixed with other units of its layer (a norm, softmax or sum over units)", lost)
    to = {d: i for i, d in enumerate(keep)}
    made = {
        s: m.at(labels.placed(m.channel, to, len(keep))).passed(activation)
        for s, m in value.made.items()
        if s not in lost
    }
    entries = {} if value.depends else {leaf: e.placed(to, axes, len(keep)) for leaf, e in value.entries.items()}
    shape = tuple(value.shape[d] for d in keep)
    return dataclasses.replace(value, shape=shape, made=made, entries=entries, statistic=value.depends)


def _pooled(walk: Walk, value: Value, keep: Sequence[int]) -> Value:
    """Of channels of which the greatest goes on, where several such sets remain (maxout): each set is one unit."""
    made = dict(value.made)
    for source, one in value.made.items():
        along = set(labels.varying(one.channel))
        if along & set(keep) and along - set(keep):
            channel, shared = labels.one_per_place(one.channel, keep)
            walk.same(shared)
            made[source] = one.at(channel)
    return dataclasses.replace(value, made=made)


def windowed(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Pooling, cumulative sums, sorting: along axes on which the units do not change they act on each alone."""
    name, out = eqn.primitive.name, []
    for value, variable in zip(values, eqn.outvars, strict=False):
        shape = jaxprs.shape(variable)
        if name in _WINDOWS:
            axes = [d for d, w in enumerate(eqn.params["window_dimensions"]) if w > 1 or value.shape[d] != shape[d]]
        else:
            axes = [eqn.params["dimension" if name == "sort" else "axis"]]
        lost = value.varied(axes)
        walk.leak(value, f"is mixed with other units of its layer ({name})", lost)
        linear = name in ("reduce_window_sum", "cumsum")
        made = {s: m.passed(None if linear else "linear") for s, m in value.made.items() if s not in lost}
        out.append(dataclasses.replace(value, shape=shape, made=made, entries={}))
    return out


def over_devices(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Sums over a mapped axis: like those over the batch, every channel meets itself alone.

    An axis that `vmap` has named is a number: an axis of the value.
    """
    activation = None if eqn.primitive.name.startswith("psum") else "linear"
    axes = tuple(axis for axis in eqn.params["axes"] if isinstance(axis, int))
    if axes:
        values = [_over(walk, value, axes, activation) for value in values]
    out = []
    for value in values:
        made = {s: m.passed(activation) for s, m in value.made.items()}
        entries = {} if value.depends else value.entries
        out.append(dataclasses.replace(value, made=made, entries=entries, statistic=value.depends))
    return out


def picked(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """The greatest few: which they are is not known."""
    walk.leak(values[0], "is picked by an index")
    return [Value(jaxprs.shape(v), values[0].depends) for v in eqn.outvars]


RULES = dict.fromkeys(_REDUCE, reduced) | dict.fromkeys(_ALONG | _WINDOWS, windowed) | {"top_k": picked}
RULES |= dict.fromkeys(_DEVICES, over_devices)
