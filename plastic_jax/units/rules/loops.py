"""Loops and branches."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plastic_jax.units import jaxprs, labels
from plastic_jax.units.labels import Labels
from plastic_jax.units.story import CLOSED, EVERY, LAST, PREVIOUS, Frame, Made, Value
from plastic_jax.units.walk import Walk


def scan(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """A scan over time; a scan over stacked parameters is one over layers."""
    (inner, n, m), length = jaxprs.scan_parts(eqn), eqn.params["length"]
    consts, carry, xs = values[:n], values[n : n + m], values[n + m :]
    atoms = [(a, i >= n + m) for i, a in enumerate(eqn.invars)]
    outer = {v: a for i, (v, a) in enumerate(zip(inner.jaxpr.invars, atoms, strict=True)) if not n <= i < n + m}
    along = (i for v in xs for e in v.entries.values() for i in e.index if i is not None)
    stacked = any(v.entries for v in xs) if length == 1 else any(i.shape[0] > 1 for i in along)
    if stacked:
        return _layers(walk, eqn, (consts, carry, xs), outer, frame)
    for x in xs:
        walk.leak(x, "is scanned over", x.varied([0]))
    one = [_first(x) for x in xs]
    below, used = frame.below(outer, EVERY), [*[True] * m, *frame.used[m:]]
    new = dict(zip(inner.jaxpr.invars[n : n + m], enumerate(inner.jaxpr.outvars[:m]), strict=True))
    handed_on = {v: (i, o) for v, (i, o) in new.items() if not carry[i].made and o not in inner.jaxpr.invars}
    below.carried = {v: i for v, (i, _) in handed_on.items()}
    with walk.rehearsal():
        step = lambda c: walk.run(inner, [*consts, *c, *one], below, used)[:m]  # noqa: E731
        carry = _settled(walk, carry, lambda c: _part(step(c), below, PREVIOUS))
    _begun(walk, values[n : n + m], carry)
    out = walk.run(inner, [*consts, *carry, *one], below, used)
    ys = [v.moved((length, *v.shape), lambda i: i[None]) for v in out[m:]]
    return _left(walk, carry, out[:m], below) + ys


def _layers(
    walk: Walk, eqn: Any, parts: tuple[list[Value], list[Value], list[Value]], outer: Any, frame: Frame
) -> list[Value]:
    """A scan over stacked parameters: every run through the body is a layer of its own."""
    inner, length, rows = jaxprs.scan_parts(eqn)[0], eqn.params["length"], []
    consts, carry, xs = parts
    m = len(carry)
    outer = {v: a for v, a in outer.items() if not a[1]}
    order = range(length - 1, -1, -1) if eqn.params["reverse"] else range(length)
    for layer in order:
        row = [x.moved(x.shape[1:], lambda i, layer=layer: _layer(i, layer)) for x in xs]
        out = walk.run(inner, [*consts, *carry, *row], frame.below(outer, layer), [*[True] * m, *frame.used[m:]])
        carry = out[:m]
        rows.append(out[m:])
    rows = rows[::-1] if eqn.params["reverse"] else rows
    ys = [_stacked(column) for column in zip(*rows, strict=True)]
    return [*carry, *ys]


def while_loop(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """A loop of unknown length."""
    inner, n, c = jaxprs.closed(eqn.params["body_jaxpr"]), eqn.params["body_nconsts"], eqn.params["cond_nconsts"]
    consts, carry = values[c : c + n], values[c + n :]
    below = frame.below({}, CLOSED)
    with walk.rehearsal():
        carry = _settled(walk, carry, lambda state: _part(walk.run(inner, [*consts, *state], below), below, PREVIOUS))
    out = walk.run(inner, [*consts, *carry], below)
    test = jaxprs.closed(eqn.params["cond_jaxpr"])
    for value in walk.run(test, [*values[:c], *carry], frame.below({}, CLOSED)):
        walk.leak(value, "decides when a loop ends")
    return _left(walk, carry, out, below)


def cond(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Branches, each of which may be taken."""
    outs: list[Value] = []
    test = values[0]
    walk.leak(test, "decides which branch is taken")
    for branch in map(jaxprs.closed, eqn.params["branches"]):
        outer = {v: (a, False) for v, a in zip(branch.jaxpr.invars, eqn.invars[1:], strict=True)}
        out = walk.run(branch, values[1:], frame.below(outer, CLOSED), frame.used)
        outs = [walk.either(a, b) for a, b in zip(outs, out, strict=True)] if outs else out
    return [dataclasses.replace(v, depends=v.depends or test.depends, behind=v.behind | test.behind) for v in outs]


def _begun(walk: Walk, first: Sequence[Value], carry: Sequence[Value]) -> None:
    """Notes what the state of a loop begins with, unless it is 0."""
    for before, value in zip(first, carry, strict=True):
        if value.made and not before.made and not before.zero:
            if not before.depends and before.entries:
                for leaf, found in before.entries.items():
                    for made in value.made.values():
                        walk.entering(leaf, "bias", found.index, made.channel)
                continue
            walk.guests([value])
            if not before.depends:
                walk.leak(value, "begins with a state that is not 0")


def _part(carry: Sequence[Value], loop: Frame, which: int) -> list[Value]:
    """What one step of a loop carries, as the next step or the program behind the loop sees it."""
    within = loop.path if which == PREVIOUS else ()
    made = [{s: m.part((loop.path, which), within) for s, m in value.made.items()} for value in carry]
    return [dataclasses.replace(value, made=m) for value, m in zip(carry, made, strict=True)]


def _left(walk: Walk, carry: Sequence[Value], out: Sequence[Value], loop: Frame) -> list[Value]:
    """What is left of a carry after a loop: made of what it was and became, but by the last step."""
    left = []
    for before, after in zip(carry, _part(out, loop, LAST), strict=True):
        value = walk.either(before, after)
        uses = {s: m.uses for s, m in after.made.items()}
        made = {s: dataclasses.replace(m, uses=uses.get(s, frozenset())) for s, m in value.made.items()}
        left.append(dataclasses.replace(value, made=made))
    return left


_ROUNDS = 256


def _settled(walk: Walk, carry: list[Value], body: Callable[[list[Value]], list[Value]]) -> list[Value]:
    """What the carry of a loop is made of once nothing is added to it any more."""
    for _ in range(_ROUNDS):
        new = [walk.either(a, b) for a, b in zip(carry, body(carry), strict=True)]
        if all(_same(a, b) for a, b in zip(carry, new, strict=True)):
            return new
        carry = new
    raise NotImplementedError(f"trace_units: what a loop carries is not settled after {_ROUNDS} rounds")


def _same(a: Value, b: Value) -> bool:
    return (
        (a.depends, a.behind) == (b.depends, b.behind)
        and a.made.keys() == b.made.keys()
        and all(
            (m.activation, m.uses) == (b.made[s].activation, b.made[s].uses)
            and np.array_equal(m.channel, b.made[s].channel)
            for s, m in a.made.items()
        )
    )


def _layer(index: Labels, layer: int) -> Labels:
    return index[min(layer, index.shape[0] - 1)]


def _first(value: Value) -> Value:
    return value.without(value.varied([0])).moved(value.shape[1:], lambda i: i[0])


def _stacked(column: Sequence[Value]) -> Value:
    """Values of one shape, one after the other on a new first axis."""
    made = {}
    for source in dict.fromkeys(s for v in column for s in v.made):
        parts = [v.made[source].channel[None] if source in v.made else None for v in column]
        name = next((v.made[source].activation for v in column if source in v.made), None)
        uses = frozenset().union(*(v.made[source].uses for v in column if source in v.made))
        made[source] = Made(labels.concatenate(parts, [1] * len(column), 0), name, uses)
    depends, running = any(v.depends for v in column), all(v.running for v in column)
    shape, behind = (len(column), *column[0].shape), frozenset[int]().union(*(v.behind for v in column))
    return Value(shape, depends, made, running=running, behind=behind)


LOOPS = {"scan": scan, "while": while_loop, "cond": cond}
