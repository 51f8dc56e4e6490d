"""Evaluates a program with some of its inner values as extra outputs, and otherwise exactly as it stands."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from plastic_jax.units import jaxprs, passes
from plastic_jax.units.groups import Tap
from plastic_jax.units.story import CONSTANTS, EVERY, INPUTS, OUTPUTS, Path, Place
from plastic_jax.units.views import View


def evaluate(
    closed: jaxprs.ClosedJaxpr,
    args: Sequence[Any],
    taps: Sequence[Sequence[Tap]],
    axes: Sequence[tuple[int, ...]],
    means: bool = False,
) -> tuple[list[Any], list[Any]]:
    """The program's outputs, and the features at `taps`, with the units and their copies on `axes`.

    With `means` their `FeatureMeans` in place of the features, taken inside of scans and remat.

    Every equation is evaluated as it stands: custom derivatives stay whole; jit, remat and scan are entered only if a
    feature lies within.

    Raises:
        NotImplementedError: a feature lies where no further output can be had: a custom derivative, a branch.
    """
    spots = [
        [_Spot(*_astuple(tap.place), (tap, len(wanted)) if means else None) for tap in group]
        for group, wanted in zip(taps, axes, strict=True)
    ]
    different = list(dict.fromkeys(spot for group in spots for spot in group))
    outputs, values = _run(closed, args, different)
    found = dict(zip(different, values, strict=True))
    if means:
        return outputs, [passes.averaged([found[spot] for spot in group]) for group in spots]
    features = [
        [(_viewed(found[spot], tap.view, tap.leading), tap.axes) for spot, tap in zip(*pair, strict=True)]
        for pair in zip(spots, taps, strict=True)
    ]
    return outputs, [passes.joined(values, wanted) for values, wanted in zip(features, axes, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Spot:
    """A `Place` within a program, and of what, and on how many axes, means are taken there; `None`: the value."""

    path: Path
    equation: int
    output: int
    averaged: tuple[Tap, int] | None

    def read(self, value: jax.Array) -> Any:
        """What is handed out of the program."""
        if self.averaged is None:
            return value
        tap, kept = self.averaged
        return passes.means(_viewed(value, tap.view, 0), tap.axes, kept)


def _astuple(place: Place) -> tuple[Path, int, int]:
    return place.path, place.equation, place.output


def _run(closed: jaxprs.ClosedJaxpr, args: Sequence[Any], places: Sequence[_Spot]) -> tuple[list[Any], list[Any]]:
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))
    here = {p: _variable(jaxpr, p) for p in places if not p.path}
    entered = sorted({p.path[0][0] for p in places if p.path})
    wanted = {v for v in (*jaxpr.outvars, *here.values()) if not isinstance(v, jaxprs.Literal)}
    wanted |= {v for n in entered for v in jaxpr.eqns[n].invars if not isinstance(v, jaxprs.Literal)}
    found: dict[_Spot, Any] = {}
    for start, stop in zip([-1, *entered], [*entered, len(jaxpr.eqns)], strict=True):
        later = {v for e in jaxpr.eqns[stop:] for v in e.invars if not isinstance(v, jaxprs.Literal)}
        jaxprs.run(jaxpr, jaxpr.eqns[start + 1 : stop], env, wanted | later)
        if stop < len(jaxpr.eqns):
            eqn, within = jaxpr.eqns[stop], [p for p in places if p.path and p.path[0][0] == stop]
            outputs, inner = _enter(eqn, [_read(env, atom) for atom in eqn.invars], within)
            env.update(zip(eqn.outvars, outputs, strict=True))
            found |= dict(zip(within, inner, strict=True))
    found |= {place: place.read(_read(env, variable)) for place, variable in here.items()}
    return [_read(env, atom) for atom in jaxpr.outvars], [found[place] for place in places]


def _variable(jaxpr: Any, place: _Spot) -> Any:
    own = {INPUTS: jaxpr.invars, CONSTANTS: jaxpr.constvars, OUTPUTS: jaxpr.outvars}
    return (own[place.equation] if place.equation < 0 else jaxpr.eqns[place.equation].outvars)[place.output]


def _read(env: dict[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, jaxprs.Literal) else env[atom]


def _enter(eqn: Any, values: list[Any], places: Sequence[_Spot]) -> tuple[list[Any], list[Any]]:
    """The equation's outputs, and the values at places within it."""
    below = [dataclasses.replace(p, path=p.path[1:]) for p in places]
    if eqn.primitive.name == "scan":
        return _enter_scan(eqn, values, [p.path[0][1] for p in places], below)
    inner = jaxprs.body(eqn)
    if inner is None:
        raise NotImplementedError(
            f"units: a feature lies inside '{eqn.primitive.name}' ({jaxprs.line_of(eqn)}), which cannot give more "
            "outputs; move the layer out of it"
        )
    n = len(inner.jaxpr.invars)

    def run(*args: Any) -> tuple[list[Any], list[Any]]:
        return _run(inner, args, below)

    return jaxprs.rerun(eqn, run, values[len(values) - n :])


def _enter_scan(
    eqn: Any, values: list[Any], rounds: Sequence[int | None], below: Sequence[_Spot]
) -> tuple[list[Any], list[Any]]:
    p = eqn.params
    body, n, m = jaxprs.scan_parts(eqn)
    different = list(dict.fromkeys(below))

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], tuple[list[Any], list[Any]]]:
        outputs, inner = _run(body, [*values[:n], *carry, *x], different)
        return outputs[:m], (outputs[m:], inner)

    carry, (ys, inner) = jax.lax.scan(
        step, values[n : n + m], values[n + m :], length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    stacked = dict(zip(different, inner, strict=True))
    chosen = [
        stacked[b] if r == EVERY else jax.tree.map(lambda leaf, r=r: leaf[r], stacked[b])
        for b, r in zip(below, rounds, strict=True)
    ]
    return [*carry, *ys], chosen


def _viewed(value: jax.Array, view: View, leading: int) -> jax.Array:
    """The units, and their copies, on axes of their own; several axes of units as one, the last."""
    front = value.shape[:leading]
    if view.window is not None:
        box = (slice(None),) * leading + tuple(slice(start, stop) for start, stop in view.window)
        value = value[box]
    value = value.reshape(*front, *view.shape)
    if len(view.unit_dims) == 1:
        return value
    dims = [leading + d for d in (*view.copy_dims, *view.unit_dims)]
    value = jnp.moveaxis(value, dims, range(value.ndim - len(dims), value.ndim))
    return value.reshape(*value.shape[: value.ndim - len(view.unit_dims)], -1)
