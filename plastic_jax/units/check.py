"""Verifies a unit graph with numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from plastic_jax.paths import get_leaf, set_leaves
from plastic_jax.units.graph import Slice, UnitGraph, UnitGroup

_EXAMPLES = 4
_CLOSE = 1e-5


def check_graph(
    graph: UnitGraph, args: tuple[Any, ...], inputs: int, alone: frozenset[str], running: frozenset[int]
) -> None:
    """Checks, on at most four examples and with every parameter random, that for half of the units

    - with zero outgoing weights, the incoming weights do not change the output (groups that preserve the function);
    - with zero incoming weights, no other parameter changes their value (groups in `alone`);
    - with the first outgoing slice of every group left as it is, the first test fails: it can.

    What is multiplied with 0 is 0 in every precision, so that the model is taken as it is.

    Args:
        graph: the graph.
        args: what `graph.apply` takes, parameters first. With abstract values nothing is checked.
        inputs: how many of `args`, the last ones, are inputs with a batch axis.
        alone: names of the groups that nothing but their incoming slices makes.
        running: numbers of the outputs that are running statistics, which may change.

    Raises:
        ValueError: a check failed.
    """
    leaves = jax.tree.leaves(args)
    if not graph.groups or any(isinstance(leaf, jax.ShapeDtypeStruct | Tracer) for leaf in leaves):
        return
    rng = np.random.default_rng(0)
    params, given = args[0], args[len(args) - inputs :]
    variables = jax.tree.map(lambda leaf: _positive(leaf, rng), args[1 : len(args) - inputs])
    rest = (*variables, *_few(graph, (params, *variables), given))

    def evaluate(params: Any) -> tuple[Any, dict[str, Any]]:
        output, features = graph.apply(params, *rest)
        numbers = [(i, leaf) for i, leaf in enumerate(jax.tree.leaves(output)) if i not in running]
        return [leaf for _, leaf in numbers if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)], features

    # Compiling is what takes the time, and the program runs a few times only.
    options: Any = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    compiled = jax.jit(evaluate).lower(_random(params, rng)).compile(options)
    _check_outgoing(graph, params, compiled, rng)
    _check_incoming([g for g in graph.groups if g.function_preserving and g.name in alone], params, compiled, rng)


def _check_outgoing(graph: UnitGraph, params: Any, evaluate: Any, rng: np.random.Generator) -> None:
    isolated = [g for g in graph.groups if g.function_preserving]
    if not isolated:
        return
    chosen = {g.name: _half(g, rng) for g in isolated}
    one, two = _random(params, rng), _random(params, rng)

    def outputs(keep: int | None) -> tuple[Any, Any]:
        base = _zeroed(one, [(g, s) for g in isolated for i, s in enumerate(g.outgoing) if i != keep], chosen)
        other = _mixed(base, two, [(g, s) for g in isolated for s in g.incoming], chosen)
        return evaluate(base)[0], evaluate(other)[0]

    if not _equal(*outputs(None)):
        worst = [g.name for g in isolated if not _group_passes(g, one, two, chosen, evaluate)]
        where = ", ".join(worst) or "together"
        raise ValueError(f"trace_units: a unit with zero outgoing weights still changes the output; groups: {where}")
    if all(_equal(*outputs(spared)) for spared in range(min(4, max(len(g.outgoing) for g in isolated)))):
        raise ValueError("trace_units: the check cannot tell a wrong graph: the output does not depend on the units")


def _group_passes(group: UnitGroup, one: Any, two: Any, chosen: Any, evaluate: Any) -> bool:
    base = _zeroed(one, [(group, s) for s in group.outgoing], chosen)
    other = _mixed(base, two, [(group, s) for s in group.incoming], chosen)
    return _equal(evaluate(base)[0], evaluate(other)[0])


def _check_incoming(fed: list[UnitGroup], params: Any, evaluate: Any, rng: np.random.Generator) -> None:
    if not fed:
        return
    chosen = {g.name: _half(g, rng) for g in fed}
    one, two = _random(params, rng), _random(params, rng)
    slices = [(g, s) for g in fed for s in g.incoming]

    def features(params: Any) -> dict[str, np.ndarray]:
        found = evaluate(_zeroed(params, slices, chosen))[1]
        return {g.name: _rows(g, found[g.name])[chosen[g.name]] for g in fed}

    first, second = features(one), features(two)
    wrong = [name for name in first if not _equal(first[name], second[name])]
    if wrong:
        raise ValueError(
            "trace_units: a unit with zero incoming weights still depends on other parameters; groups: "
            + ", ".join(wrong)
        )


def _half(group: UnitGroup, rng: np.random.Generator) -> np.ndarray:
    """A random half of the units, rounded up."""
    return rng.permutation(group.width) < (group.width + 1) // 2


def _rows(group: UnitGroup, feature: Any) -> np.ndarray:
    axes = [axis % feature.ndim for axis in group.feature_axes]
    moved = np.moveaxis(np.asarray(feature), axes[0], 0)
    return moved.reshape(group.width, -1)


def _zeroed(params: Any, slices: list[tuple[UnitGroup, Slice]], chosen: Any) -> Any:
    return _mixed(params, jax.tree.map(np.zeros_like, params), slices, chosen)


def _mixed(params: Any, other: Any, slices: list[tuple[UnitGroup, Slice]], chosen: Any) -> Any:
    """`params`, with the chosen units' slices from `other`."""
    new: dict[str, Any] = {}
    for group, s in slices:
        leaf = new.get(s.path, get_leaf(params, s.path))
        mask = np.asarray(s.spread(jnp.asarray(chosen[group.name]), leaf.shape))
        new[s.path] = np.where(mask, get_leaf(other, s.path), leaf)
    return set_leaves(params, new)


def _equal(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, atol=_CLOSE, rtol=_CLOSE, equal_nan=True) for x, y in pairs)


def _random(params: Any, rng: np.random.Generator) -> Any:
    """Every leaf random, kernels scaled so that values keep their size."""

    def draw(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return leaf
        shape, dtype = np.shape(leaf), jnp.result_type(leaf)
        scale = np.sqrt(np.prod(shape[:-1], initial=1.0)) if len(shape) > 1 else 1.0
        drawn = rng.normal(size=shape) + (
            1j * rng.normal(size=shape) if jnp.issubdtype(dtype, jnp.complexfloating) else 0
        )
        return np.asarray(drawn / scale, dtype)

    return jax.tree.map(draw, params)


def _positive(leaf: Any, rng: np.random.Generator) -> Any:
    """Random numbers near 1, which may stand for variances."""
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return leaf
    return rng.uniform(0.5, 1.5, np.shape(leaf)).astype(jnp.result_type(leaf))


def _few(graph: UnitGraph, before: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """At most four examples, where the first axis of all inputs is one of examples: that of the outputs shrinks too."""
    leaves = [leaf for leaf in jax.tree.leaves(inputs) if getattr(leaf, "ndim", 0) > 0]
    if not leaves or len({leaf.shape[0] for leaf in leaves}) > 1 or leaves[0].shape[0] <= _EXAMPLES:
        return inputs
    few = jax.tree.map(lambda leaf: leaf[:_EXAMPLES] if getattr(leaf, "ndim", 0) > 0 else leaf, inputs)
    n = leaves[0].shape[0]

    def shapes(inputs: tuple[Any, ...]) -> list[tuple[int, ...]]:
        return [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(graph.apply, *before, *inputs))]

    try:
        found = zip(shapes(inputs), shapes(few), strict=True)
        by_example = all(a == b or (a[0], b[0], a[1:]) == (n, _EXAMPLES, b[1:]) for a, b in found)
    except Exception:  # noqa: BLE001  whatever the model raises on inputs of another shape
        by_example = False
    return few if by_example else inputs
