"""How expected unit graphs are written down, and functions on slices for the tests.

An expected slice is a line `path[window]: pattern`, for example

    Dense_0/kernel: i u            columns of the kernel belong to the units
    Dense_1/kernel: (p u) o        rows, position-major; each unit has several (its copies)
    qkv/kernel[:, 8:12]: i u       only a window of the leaf
    Conv_1/kernel: h w v (u2 o)    a grouped convolution: unit u * V + v

The letters `u`, `v` number the unit, row-major in this order; all other letters are its fan or its copies. A digit is
the letter's size, needed where a bracket leaves it open. The role follows from the leaf's name; `path~shift` says it.
Slices are compared by owner: which unit each entry of the leaf belongs to, however the slice is written.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.paths import get_leaf, leaf_names, set_leaves
from plastic_jax.units.graph import Slice, UnitGroup

UNIT_LETTERS = "uv"
ROLES = {"kernel": "kernel", "weight": "kernel", "w": "kernel", "embedding": "kernel", "b": "bias"}
ROLES |= {name: name for name in ("bias", "scale", "mean", "var")}
Owners = dict[tuple[str, str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Expected:
    """One group as it should be found.

    `preserving`: whether a unit whose outgoing weights are zero has no influence on the output. `blocks`: within each
    of so many runs of consecutive units, renumbering the units changes nothing. `copies=None`: not compared.
    """

    width: int
    incoming: str
    outgoing: str
    variables: str = ""
    preserving: bool = True
    blocks: int = 1
    copies: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model with the graph that it should have.

    Attributes:
        apply: `apply(params, *inputs)`, or `apply(params, variables, *inputs)` with `variables`.
        params: its parameters, or their shapes.
        inputs: example inputs.
        groups: expected groups by name.
        variables: running statistics.
        left_out: names of the layers that are reported as not replaceable.
        features: for some groups an independent way to the features, `[..., width]` or `[..., copies, width]`.
        output: picks from what `apply` returns what a replaced unit must not change.
    """

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    groups: Mapping[str, Expected]
    variables: Any = None
    left_out: str = ""
    features: Mapping[str, Callable[..., jax.Array]] = dataclasses.field(default_factory=dict)
    output: Callable[[Any], Any] = lambda output: output

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What `apply` gets after the parameters."""
        return self.inputs if self.variables is None else (self.variables, *self.inputs)


class Owned(NamedTuple):
    """What the units of one group own. By path and role: for every entry of the leaf its unit's number, -1 for none."""

    width: int
    incoming: Owners
    outgoing: Owners
    variables: Owners


def expected_owners(group: Expected, params: Any, variables: Any) -> Owned:
    """What the lines say."""
    read = functools.partial(_read_lines, width=group.width)
    return Owned(
        group.width, read(group.incoming, params), read(group.outgoing, params), read(group.variables, variables)
    )


def found_owners(group: UnitGroup, params: Any, variables: Any) -> Owned:
    """What the slices say."""
    read = functools.partial(_read_slices, width=group.width)
    return Owned(
        group.width, read(group.incoming, params), read(group.outgoing, params), read(group.variables, variables)
    )


def _read_lines(lines: str, tree: Any, width: int) -> Owners:
    found: Owners = {}
    for line in filter(None, (part.strip() for part in re.split(r"[;\n]", lines))):
        match = re.fullmatch(r"([^\[\]:~]+)(?:~(\w+))?(?:\[(.+)\])?: (.+)", line)
        assert match, f"cannot read {line!r}"
        path, role, window, pattern = match.groups()
        part = np.full(get_leaf(tree, path).shape, -1)
        inside = part[_window(window)]
        inside[...] = _pattern_owner(pattern, inside.shape, width)
        _merge(found, (path, role or ROLES[path.rpartition("/")[2]]), part)
    return found


def _read_slices(slices: Iterable[Slice], tree: Any, width: int) -> Owners:
    found: Owners = {}
    for s in slices:
        part = np.full(get_leaf(tree, s.path).shape, -1)
        window = (slice(None),) if s.window is None else tuple(slice(*w) for w in s.window)
        unit = np.arange(width).reshape([s.view_shape[d] for d in s.unit_dims])
        others = [d for d in range(len(s.view_shape)) if d not in s.unit_dims]
        order = (*s.unit_dims, *others)
        view = np.broadcast_to(unit.reshape(unit.shape + (1,) * len(others)), [s.view_shape[d] for d in order])
        part[window] = np.transpose(view, np.argsort(order)).reshape(part[window].shape)
        _merge(found, (s.path, s.role), part)
    return found


def _window(text: str | None) -> tuple[slice, ...]:
    parts = (text or ":").split(",")
    return tuple(slice(*(int(n) if n.strip() else None for n in part.split(":"))) for part in parts)


def _pattern_owner(pattern: str, shape: tuple[int, ...], width: int) -> np.ndarray:
    axes = [a.strip("()").split() for a in re.findall(r"\([^)]*\)|\S+", pattern)]
    assert len(axes) == len(shape), f"pattern {pattern!r} for shape {shape}"
    letters = [name for axis in axes for name in axis]
    units = sorted(name[0] for name in letters if name[0] in UNIT_LETTERS)
    sizes = {name[0]: int(name[1:]) for name in letters if name[1:]}
    if units == ["u"]:
        sizes["u"] = width
    for axis, n in zip(axes, shape, strict=True):
        known = math.prod(sizes.get(name[0], 1) for name in axis)
        for name in axis:
            if name[0] not in sizes:
                sizes[name[0]] = n // known  # at most one of an axis is open
                known = n
        assert math.prod(sizes[name[0]] for name in axis) == n, f"pattern {pattern!r} for shape {shape}"
    index = np.indices([sizes[name[0]] for name in letters])
    owner = np.zeros(index.shape[1:], int)
    for unit in units:
        owner = owner * sizes[unit] + index[[name[0] for name in letters].index(unit)]
    assert math.prod(sizes[unit] for unit in units) == width, f"pattern {pattern!r}: not {width} units"
    return owner.reshape(shape)


def _merge(found: Owners, key: tuple[str, str], part: np.ndarray) -> None:
    old = found.setdefault(key, np.full(part.shape, -1))
    assert not np.any((old >= 0) & (part >= 0)), f"{key}: an entry is owned twice"
    found[key] = np.where(part >= 0, part, old)


# What must hold of the units of a group, on the model itself ----------------------------------------------------------


@functools.cache
def evaluate(model: Model) -> Callable[..., np.ndarray]:
    """`evaluate(model)(params, variables)`: the model's output at its example inputs, one vector."""

    def output(params: Any, variables: Any) -> jax.Array:
        arguments = model.inputs if model.variables is None else (variables, *model.inputs)
        leaves = jax.tree.leaves(model.output(model.apply(params, *arguments)))
        return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])

    compiled = jax.jit(output, compiler_options={"xla_backend_optimization_level": 0})
    return lambda params, variables: np.asarray(compiled(params, variables), np.float64)


def influence(model: Model, group: Owned, units: Iterable[int], spare: tuple[str, str] | None = None) -> float:
    """How much the output changes, relative to its size, when the units' incoming weights change at random while
    their outgoing weights are zero; those of the leaf `spare` keep their values."""
    chosen = list(units)
    fill = np.random.default_rng(3)
    silent = _edited(model.params, group.outgoing, chosen, lambda old: np.zeros_like(old), spare)
    loud = _edited(silent, group.incoming, chosen, lambda old: fill.normal(size=old.shape))
    for key in group.outgoing:  # a weight that leaves one unit and enters another stays zero
        if key in group.incoming and key != spare:
            loud = _edited(loud, {key: group.outgoing[key]}, chosen, lambda old: np.zeros_like(old))
    return _difference(evaluate(model)(silent, model.variables), evaluate(model)(loud, model.variables))


def matters(model: Model, key: tuple[str, str]) -> bool:
    """Whether the output depends on a leaf at all; it does not on a bias whose mean is subtracted."""

    def other(tree: Any) -> Any:
        if tree is None or key[0] not in leaf_names(tree):
            return tree
        return set_leaves(tree, {key[0]: get_leaf(tree, key[0]) * 1.5 + 0.5})

    plain = evaluate(model)(model.params, model.variables)
    return _difference(plain, evaluate(model)(other(model.params), other(model.variables))) > 1e-4


def asymmetry(model: Model, group: Owned, blocks: int, spare: tuple[str, str] | None = None) -> float:
    """How much the output changes, relative to its size, when the units are renumbered within each block, in all
    leaves but `spare`."""
    order = np.roll(np.arange(group.width).reshape(blocks, -1), 1, axis=1).ravel()
    plain = evaluate(model)(model.params, model.variables)
    return _difference(plain, evaluate(model)(*renumbered(model, group, order, spare)))


def renumbered(model: Model, group: Owned, order: np.ndarray, spare: tuple[str, str] | None = None) -> tuple[Any, Any]:
    """Parameters and variables in which unit `i` is what unit `order[i]` was."""
    params = model.params
    for owners in (group.incoming, group.outgoing):
        params = _renumbered(params, owners, order, spare)
    return params, _renumbered(model.variables, group.variables, order, spare)


def _edited(tree: Any, owners: Owners, units: list[int], new: Any, spare: tuple[str, str] | None = None) -> Any:
    values = {}
    for (path, _), owner in ((k, o) for k, o in owners.items() if k != spare):
        leaf = np.array(values.get(path, get_leaf(tree, path)))
        mask = np.isin(owner, units)
        leaf[mask] = new(leaf[mask])
        values[path] = leaf
    return set_leaves(tree, values)


def _renumbered(tree: Any, owners: Owners, order: np.ndarray, spare: tuple[str, str] | None) -> Any:
    values = {}
    for (path, _), owner in ((k, o) for k, o in owners.items() if k != spare):
        old = np.array(values.get(path, get_leaf(tree, path))).ravel()
        new = old.copy()
        places = [np.flatnonzero(owner.ravel() == unit) for unit in range(len(order))]
        for unit, other in enumerate(order):
            new[places[unit]] = old[places[other]]
        values[path] = new.reshape(owner.shape)
    return set_leaves(tree, values)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    assert np.all(np.isfinite(a)) and np.all(np.isfinite(b))
    return float(np.max(np.abs(a - b)) / np.max(np.abs(a)))
