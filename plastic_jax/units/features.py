"""Evaluates a program with some of its inner values as extra outputs, and otherwise exactly as it stands."""

import dataclasses
from collections.abc import Mapping, Sequence
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
    perturbations: Sequence[jax.Array | None] | None = None,
) -> tuple[list[Any], list[Any]]:
    """The program's outputs, and the features at `taps`, with the units and their copies on `axes`.

    With `means` their `FeatureMeans` in place of the features, taken inside of scans and remat. `perturbations`, one a
    group and of the features' shape without `means`, are added to the values where they are made.

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
    added = {} if perturbations is None else _at_spots(closed, taps, axes, perturbations)
    outputs, values = _run(closed, args, different, added)
    found = dict(zip(different, values, strict=True))
    if means:
        return outputs, [passes.averaged([found[spot] for spot in group]) for group in spots]
    values = [[found[spot] for spot in group] for group in spots]
    return outputs, [_joined(*group) for group in zip(values, taps, axes, strict=True)]


def _joined(values: Sequence[jax.Array], taps: Sequence[Tap], axes: tuple[int, ...]) -> jax.Array:
    """Values as they stand at `taps` as one array."""
    viewed = [(_viewed(value, tap.view, tap.leading), tap.axes) for value, tap in zip(values, taps, strict=True)]
    return passes.joined(viewed, axes)


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


def _at_spots(
    closed: jaxprs.ClosedJaxpr,
    taps: Sequence[Sequence[Tap]],
    axes: Sequence[tuple[int, ...]],
    perturbations: Sequence[jax.Array | None],
) -> dict["_Spot", jax.Array]:
    """What is added at each place, so that `_joined` of it is each group's perturbation."""
    added: dict[_Spot, jax.Array] = {}
    for group, wanted, perturbation in zip(taps, axes, perturbations, strict=True):
        if perturbation is None:
            continue
        spots = [_Spot(*_astuple(tap.place), None) for tap in group]
        blank = passes.zeros_like([_abstract(closed, spot) for spot in spots], perturbation)
        join = lambda *values, group=group, wanted=wanted: _joined(values, group, wanted)  # noqa: E731
        parts = jax.vjp(join, *blank)[1](perturbation)  # it is linear, so this is its transpose
        for spot, part in zip(spots, parts, strict=True):
            added[spot] = added[spot] + part if spot in added else part
    return added


def _abstract(closed: jaxprs.ClosedJaxpr, spot: "_Spot") -> jax.ShapeDtypeStruct:
    """The value at a place, with leading axes for the rounds of the scans around it."""
    jaxpr, leading = closed.jaxpr, ()
    for number, rounds in spot.path:
        eqn = jaxpr.eqns[number]
        if eqn.primitive.name == "scan":
            leading += (eqn.params["length"],) if rounds == EVERY else ()
            jaxpr = jaxprs.scan_parts(eqn)[0].jaxpr
        else:
            inner = jaxprs.body(eqn)
            assert inner is not None, "features lie in what is called or looped"
            jaxpr = inner.jaxpr
    aval = _variable(jaxpr, spot).aval
    return jax.ShapeDtypeStruct((*leading, *aval.shape), aval.dtype)


def _astuple(place: Place) -> tuple[Path, int, int]:
    return place.path, place.equation, place.output


def _run(
    closed: jaxprs.ClosedJaxpr, args: Sequence[Any], places: Sequence[_Spot], added: Mapping[_Spot, jax.Array]
) -> tuple[list[Any], list[Any]]:
    """The program's outputs and the values at `places`; `added` is added to values right after they are made."""
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))
    here = {p: _variable(jaxpr, p) for p in places if not p.path}
    entered = {p.path[0][0] for p in places if p.path}
    wanted = {v for v in (*jaxpr.outvars, *here.values()) if not isinstance(v, jaxprs.Literal)}
    wanted |= {v for n in entered for v in jaxpr.eqns[n].invars if not isinstance(v, jaxprs.Literal)}
    found: dict[_Spot, Any] = {}
    gains = [(_variable(jaxpr, p), gain) for p, gain in added.items() if not p.path]
    maker = {v: n for n, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars} if gains else {}

    def add(last: int) -> None:
        """To the variables that equation `last` made; to those that were there before, at -1."""
        for variable, gain in gains:
            if maker.get(variable, -1) == last:
                env[variable] = env[variable] + gain

    add(-1)
    start = 0
    for stop in sorted({*entered, *(maker[v] + 1 for v, _ in gains if v in maker), len(jaxpr.eqns)}):
        later = {v for e in jaxpr.eqns[stop:] for v in e.invars if not isinstance(v, jaxprs.Literal)}
        jaxprs.run(jaxpr, jaxpr.eqns[start:stop], env, wanted | later)
        if stop > start:
            add(stop - 1)
        start = stop
        if stop in entered:
            eqn, within = jaxpr.eqns[stop], [p for p in places if p.path and p.path[0][0] == stop]
            below = {p: gain for p, gain in added.items() if p.path and p.path[0][0] == stop}
            outputs, inner = _enter(eqn, [_read(env, atom) for atom in eqn.invars], within, below)
            env.update(zip(eqn.outvars, outputs, strict=True))
            found |= dict(zip(within, inner, strict=True))
            add(stop)
            start = stop + 1
    found |= {place: place.read(_read(env, variable)) for place, variable in here.items()}
    return [_read(env, atom) for atom in jaxpr.outvars], [found[place] for place in places]


def _variable(jaxpr: Any, place: _Spot) -> Any:
    own = {INPUTS: jaxpr.invars, CONSTANTS: jaxpr.constvars, OUTPUTS: jaxpr.outvars}
    return (own[place.equation] if place.equation < 0 else jaxpr.eqns[place.equation].outvars)[place.output]


def _read(env: dict[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, jaxprs.Literal) else env[atom]


def _enter(
    eqn: Any, values: list[Any], places: Sequence[_Spot], added: Mapping[_Spot, jax.Array]
) -> tuple[list[Any], list[Any]]:
    """The equation's outputs, and the values at places within it."""
    below = [_within(p) for p in places]
    if eqn.primitive.name == "scan":
        return _enter_scan(eqn, values, [p.path[0][1] for p in places], below, added)
    inner = jaxprs.body(eqn)
    if inner is None:
        raise NotImplementedError(
            f"units: a feature lies inside '{eqn.primitive.name}' ({jaxprs.line_of(eqn)}), which cannot give more "
            "outputs; move the layer out of it"
        )
    n = len(inner.jaxpr.invars)
    spots = [_within(p) for p in added]

    def run(*args: Any) -> tuple[list[Any], list[Any]]:
        return _run(inner, args[:n], below, dict(zip(spots, args[n:], strict=True)))

    return jaxprs.rerun(eqn, run, [*values[len(values) - n :], *added.values()])


def _within(spot: _Spot) -> _Spot:
    """The place as the program that it lies in sees it."""
    return dataclasses.replace(spot, path=spot.path[1:])


def _enter_scan(
    eqn: Any,
    values: list[Any],
    rounds: Sequence[int | None],
    below: Sequence[_Spot],
    added: Mapping[_Spot, jax.Array],
) -> tuple[list[Any], list[Any]]:
    p = eqn.params
    body, n, m = jaxprs.scan_parts(eqn)
    different = list(dict.fromkeys(below))
    gains: dict[_Spot, jax.Array] = {}
    for spot, gain in added.items():
        if (one := spot.path[0][1]) != EVERY:  # of one round alone
            gain = jnp.zeros((p["length"], *gain.shape), gain.dtype).at[one].set(gain)
        gains[_within(spot)] = gains[_within(spot)] + gain if _within(spot) in gains else gain

    def step(carry: list[Any], x: tuple[list[Any], list[Any]]) -> tuple[list[Any], tuple[list[Any], list[Any]]]:
        own, gain = x
        outputs, inner = _run(body, [*values[:n], *carry, *own], different, dict(zip(gains, gain, strict=True)))
        return outputs[:m], (outputs[m:], inner)

    xs = values[n + m :], list(gains.values())
    carry, (ys, inner) = jax.lax.scan(
        step, values[n : n + m], xs, length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
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
