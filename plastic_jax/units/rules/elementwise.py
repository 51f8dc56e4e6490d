"""Elementwise operations: channels that meet, parameters that meet channels, nonlinearities, skip connections."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from plastic_jax.units import jaxprs, labels
from plastic_jax.units.story import Entries, Frame, Leaf, Value, clearest
from plastic_jax.units.walk import Walk

_PASS_ON = {"convert_element_type", "copy", "copy_p", "reduce_precision", "stop_gradient", "real", "imag", "neg"}
_PASS_ON |= {"conj", "device_put", "sharding_constraint", "optimization_barrier", "pvary", "bitcast_convert_type"}
ADD = {"add", "sub", "add_any", "complex"}
NONLINEAR = {"exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "sin", "cos", "tan", "asin", "acos", "atan"}
NONLINEAR |= {"sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erf_inv", "erfc", "abs", "sign", "sqrt", "rsqrt"}
NONLINEAR |= {"cbrt", "integer_pow", "square", "floor", "ceil", "round", "is_finite", "not", "lgamma", "digamma"}
NONLINEAR |= {"max", "min", "pow", "atan2", "rem", "nextafter", "select_n", "clamp", "and", "or", "xor"}
NONLINEAR |= {"eq", "ne", "lt", "le", "gt", "ge"}
_ZERO_AT_ZERO = {"tanh", "sin", "tan", "asin", "atan", "sinh", "asinh", "atanh", "erf", "abs", "sign", "sqrt", "cbrt"}
_ZERO_AT_ZERO |= {"log1p", "expm1", "square", "floor", "ceil", "round"}


def unchanged(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Operations that leave every element what it is."""
    return values[: len(eqn.outvars)]


def elementwise(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Channels that meet are one unit; a parameter that meets channels is theirs; skip connections go their own way."""
    name, shape = eqn.primitive.name, jaxprs.shape(eqn.outvars[0])
    values = [_aligned(v, len(shape)) for v in values]
    moving = [v for v in values if v.depends]
    twice = len(moving) == 2 and eqn.invars[0] is eqn.invars[1]
    squared = twice or name in ("square", "integer_pow") or any(v.squared and v.statistic for v in moving)
    statistic = bool(moving) and all(v.statistic for v in moving)
    scaled, shares = any(v.scaled for v in moving), any(v.shares for v in moving)
    activation: str | None = None
    if name in ADD:
        values = _without_skips(walk, values)
        if any(v.depends and not v.made for v in values):
            walk.guests(values)
    elif name in ("mul", "div"):
        big = [v for v in moving if not v.statistic]
        if len(moving) == 2 and len(big) == 1 and _of_itself(values):
            scaled = True
            shares |= name == "div" and not squared
            values = [_linear_in(v, big[0]) for v in values]
        elif sum(bool(v.behind) for v in values) == 2 or (name == "div" and values[1].behind):
            activation = name
    elif name != "select_n" or values[0].behind:  # what does not look at units is no nonlinearity: dropout, masks
        activation = name
    role = "scale" if name in ("mul", "div") else "bias"
    entries, running = _attach(walk, values, role, scaled, squared, name)
    made = walk.merged(values, add=name in ADD)
    if activation is not None:
        made = {s: m.passed(activation) for s, m in made.items()}
    scaled |= role == "scale" and any(v.entries and not v.made for v in values)
    rescaled = role == "scale" or any(v.rescaled for v in moving)
    rows = moving[0].rows if len(moving) == 1 else ()
    out = Value(shape, bool(moving), made, entries, statistic, squared, scaled, running, rescaled, rows)
    return [dataclasses.replace(out, shares=shares)]


def _without_skips(walk: Walk, values: list[Value]) -> list[Value]:
    """The summands; a feature that is added to new channels goes on as a skip connection."""
    for number, this in enumerate(values):
        new = {s for v in values if v is not this for s, m in v.made.items() if m.activation is None}
        if new - set(this.made) and all(m.activation for m in this.made.values()) and _is_feature(walk, this):
            walk.leak(this, "is added to other units by a skip connection")
            walk.story.skips += [(labels.members(m.channel), frozenset(new)) for m in this.made.values()]
            return [dataclasses.replace(v, made={}) if i == number else v for i, v in enumerate(values)]
    return values


def _is_feature(walk: Walk, value: Value) -> bool:
    """Whether something has read the value."""
    return any(set(reading.made) == set(value.made) for reading in walk.story.readings)


def _attach(
    walk: Walk, values: list[Value], role: str, scaled: bool, squared: bool, name: str
) -> tuple[dict[Leaf, Entries], bool]:
    """Gives parameters that meet channels to these; returns those that met none."""
    pending: dict[Leaf, Entries] = {}
    running, factor = False, _factor(values, name) if role == "scale" else None
    for number, value in enumerate(values):
        others = [v for i, v in enumerate(values) if i != number]
        targets = [(v, m) for v in others for m in v.made.values()]
        for leaf, found in value.entries.items():
            for other, made in targets:
                what = _role(leaf, found, role, scaled, squared)
                bare = made.activation is None and found.kind == "plain" and not (other.scaled or other.rescaled)
                walk.entering(leaf, what, found.index, made.channel, added=bare and name in ("add", "add_any"))
            if targets:
                statistics = any(v.statistic for v in others if v.made)
                running |= leaf[0] == "variables" and statistics and name in ADD
            elif not value.depends or value.statistic:
                stays = leaf[0] == "params" and found.stays and _zero_at_zero(name, others)
                if name in NONLINEAR and not stays:
                    found = dataclasses.replace(found, kind="inverse" if name == "rsqrt" else "root")
                elif name == "div" and number == 1:
                    found = dataclasses.replace(found, kind="inverse")
                elif (
                    name in ADD and found.kind == "plain" and not any(v.entries or v.depends or v.zero for v in others)
                ):
                    found = dataclasses.replace(found, kind="offset")
                elif stays or (name in ("mul", "div") and found.kind == "plain"):
                    found = dataclasses.replace(found, kind="scaled")
                if number == factor:
                    found = dataclasses.replace(found, factor=True)
                pending[leaf] = clearest(pending.get(leaf), found, times=role == "scale")
    if pending and any(v.depends and not v.statistic for v in values):
        walk.story.exposed |= pending.keys()
        walk.guests(values)
        pending = {}
    return pending, running


def _zero_at_zero(name: str, others: Sequence[Value]) -> bool:
    """Whether an operation on parameters is 0 where they are."""
    known = [v.known for v in others]
    if name in ("max", "min") and known[0] is not None:
        return bool((known[0] <= 0 if name == "max" else known[0] >= 0).all())
    if name == "clamp" and known[0] is not None and known[-1] is not None:
        return bool((known[0] <= 0).all() and (known[-1] >= 0).all())
    cases = [v for v in others[1:] if not v.entries]  # of `select_n`: the first is the test
    return name in _ZERO_AT_ZERO or (name == "select_n" and not others[0].entries and all(v.zero for v in cases))


def _factor(values: Sequence[Value], name: str) -> int | None:
    """Which of two parameters that are multiplied, or divided, is left what it is when their product is to be 0."""
    if not all(v.entries and not v.depends for v in values):
        return None
    zero = [all(e.stays for e in v.entries.values()) for v in values]
    known = [max(sum(i is not None for i in e.index) for e in v.entries.values()) for v in values]
    return 0 if name == "mul" and (zero[0], known[0]) < (zero[1], known[1]) else 1


def _aligned(value: Value, ndim: int) -> Value:
    if len(value.shape) == ndim:
        return value
    more = ndim - len(value.shape)
    moved = value.moved((*(1,) * more, *value.shape), lambda i: i.reshape((1,) * more + i.shape))
    return dataclasses.replace(moved, known=value.known)


def _of_itself(values: Sequence[Value]) -> bool:
    """Whether a value is multiplied with a statistic of itself."""
    statistic = next(v for v in values if v.statistic)
    other = next(v for v in values if v is not statistic)
    return set(statistic.made) <= set(other.made)


def _linear_in(value: Value, big: Value) -> Value:
    made = {s: dataclasses.replace(m, activation=big.made[s].activation) for s, m in value.made.items()}
    return dataclasses.replace(value, made=made)


def _role(leaf: Leaf, found: Entries, role: str, scaled: bool, squared: bool) -> str:
    if leaf[0] == "variables":
        return "var" if squared or found.kind in ("root", "inverse") else "mean"
    if role == "scale":
        return "shift" if found.kind == "offset" else "scale"
    return "shift" if scaled else "bias"


RULES = dict.fromkeys(ADD | NONLINEAR | {"mul", "div"}, elementwise) | dict.fromkeys(_PASS_ON, unchanged)
