"""Verifies a unit graph with numbers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from plastic_jax.paths import get_leaf, set_leaves
from plastic_jax.units import jaxprs
from plastic_jax.units.graph import Slice, UnitGraph, UnitGroup
from plastic_jax.warning import warn_user

_EXAMPLES = 4
_CLOSE = 1e-5


def check_graph(
    graph: UnitGraph,
    args: tuple[Any, ...],
    inputs: int,
    options: Mapping[str, Any],
    alone: frozenset[str],
    running: frozenset[int],
) -> dict[str, str]:
    """Checks the promise itself, on at most four examples and with every parameter random.

    Half of the units are made silent: their incoming weights are 0, and where that does not make their value 0 (a
    sigmoid, a skip connection) their outgoing weights too.

    - The machine that methods use replaces these units: the output stays.
    - It stays no longer if the first outgoing slice of every group is left as it was: the first test can fail. (If
      not, the model does not tell: a warning.)
    - No other parameter changes the value of a unit whose incoming weights are 0 (groups in `alone`).

    What is multiplied with 0 is 0 in every precision, so that the model is taken as it is.

    Args:
        graph: the graph.
        args: what `graph.apply` takes, parameters first. With abstract values nothing is checked.
        inputs: how many of `args`, the last ones, are inputs with a batch axis.
        options: keyword arguments of the model.
        alone: names of the groups that nothing but their incoming slices makes.
        running: numbers of the outputs that are running statistics, which may change.

    Returns:
        By name, the groups that failed, and how: mistakes of this library.
    """
    leaves = jax.tree.leaves((args, options))
    isolated = [g for g in graph.groups if g.function_preserving]
    if not isolated or any(isinstance(leaf, jax.ShapeDtypeStruct | Tracer) for leaf in leaves):
        return {}
    rng = np.random.default_rng(0)
    params, given = args[0], args[len(args) - inputs :]
    variables = jax.tree.map(lambda leaf: _positive(leaf, rng), args[1 : len(args) - inputs])
    rest = (*variables, *_few(functools.partial(graph.apply, **options), (params, *variables), given))

    def numbers(params: Any) -> tuple[Any, dict[str, Any]]:
        output, features = graph.apply(params, *rest, **options)
        kept = [leaf for i, leaf in enumerate(jax.tree.leaves(output)) if i not in running]
        return [leaf for leaf in kept if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)], features

    one, two = _random(params, rng), _random(params, rng)
    quiet = jaxprs.without_prints(jaxprs.trace(numbers, one))
    evaluate = jax.jit(quiet).lower(one).compile(_quickly())
    if not all(np.isfinite(leaf).all() for leaf in map(_floats, evaluate(one)[0])):
        _not_checked("the output is not finite")
        return {}
    chosen = {g.name: _half(g, rng) for g in isolated}
    silent = _mixed(one, None, [(g, s) for g in isolated for s in g.incoming], chosen)
    before, features = evaluate(silent)
    values = _values(isolated, features, chosen)
    if not all(np.isfinite(leaf).all() for leaf in map(_floats, [*before, *values.values()])):
        silent, alone = one, frozenset()  # weights that are divided by their norm: 0 is no weight
    loud = [g for g in isolated if g.name not in alone or values[g.name].any()]
    silent = _mixed(silent, None, [(g, s) for g in loud for s in g.outgoing], chosen)
    before, features = evaluate(silent)
    values = _values(isolated, features, chosen)
    replaced = _replaced(isolated, silent, chosen)
    if not _equal(before, evaluate(replaced)[0]):
        wrong = [g.name for g in isolated if not _equal(before, evaluate(_replaced([g], silent, chosen))[0])]
        return dict.fromkeys(wrong or chosen, "in the check, replacing silent units changed the output")
    if not any(_notices(isolated, replaced, _random(params, rng, False), chosen, before, evaluate) for _ in range(4)):
        _not_checked("the output does not depend on the units")
    fed = [g for g in isolated if g.name in alone]
    other = _mixed(two, None, [(g, s) for g in fed for s in g.incoming], chosen)
    others = _values(fed, evaluate(other)[1], chosen)
    wrong = [name for name in others if not _equal(values[name], others[name])]
    return dict.fromkeys(wrong, "in the check, units with zero incoming weights depended on other parameters")


def _notices(groups: Sequence[UnitGroup], params: Any, other: Any, chosen: Any, before: Any, evaluate: Any) -> bool:
    """Whether the output changes when units with other weights keep one of their readers, or all."""
    loud = _mixed(params, other, [(g, s) for g in groups for s in g.incoming_kernels], chosen)
    loud = _mixed(loud, None, [(g, s) for g in groups for s in g.outgoing], chosen)
    spared = [[(g, g.outgoing[i]) for g in groups if i < len(g.outgoing)] for i in range(4)]
    spared.append([(g, s) for g in groups for s in g.outgoing])
    return any(not _equal(before, evaluate(_mixed(loud, other, slices, chosen))[0]) for slices in spared if slices)


def _not_checked(why: str) -> None:
    warn_user(f"trace_units: the graph was not checked: with random parameters {why}")


def _quickly() -> Any:
    """Compiler options: compiling is what takes the time, and the program runs a few times only."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def _replaced(groups: Sequence[UnitGroup], params: Any, chosen: Mapping[str, np.ndarray]) -> Any:
    """The parameters after the chosen units of the groups were replaced."""
    from plastic_jax.replacement.draw import draw_replacement
    from plastic_jax.replacement.initializers import unit_initializer
    from plastic_jax.replacement.reset import reset_updates

    initializer, key = unit_initializer("lecun_uniform", "linear"), jax.random.key(0)

    def replace(params: Any) -> Any:
        drawn = {}
        for g in groups:
            index = np.flatnonzero(chosen[g.name])
            valid = jnp.ones(len(index), bool)
            drawn[g.name] = draw_replacement(g, jnp.asarray(index), valid, key, initializer, params)
        graph = UnitGraph(tuple(groups), lambda params: (None, {}))
        updates = reset_updates(graph, drawn, params, jax.tree.map(jnp.zeros_like, params))
        return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)

    return jax.jit(replace, compiler_options=_quickly())(params)


def _half(group: UnitGroup, rng: np.random.Generator) -> np.ndarray:
    """A random half of the units, rounded up."""
    return rng.permutation(group.width) < (group.width + 1) // 2


def _values(groups: Sequence[UnitGroup], features: Any, chosen: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values of the chosen units."""
    found = {}
    for g in groups:
        moved = np.moveaxis(np.asarray(features[g.name]), g.feature_axes[0], 0)
        found[g.name] = moved.reshape(g.width, -1)[chosen[g.name]]
    return found


def _mixed(params: Any, other: Any, slices: Sequence[tuple[UnitGroup, Slice]], chosen: Any) -> Any:
    """`params`, with the chosen units' slices from `other`; 0 for `None`."""
    new: dict[str, Any] = {}
    for group, s in slices:
        leaf = np.asarray(new.get(s.path, get_leaf(params, s.path)))
        mask = np.asarray(s.spread(jnp.asarray(chosen[group.name]), leaf.shape))
        new[s.path] = np.where(mask, 0 if other is None else get_leaf(other, s.path), leaf).astype(leaf.dtype)
    return set_leaves(params, new)


def _floats(leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf)
    return leaf if leaf.dtype.kind in "fc" else np.zeros(())


def _equal(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, atol=_CLOSE, rtol=_CLOSE, equal_nan=True) for x, y in pairs)


def _random(params: Any, rng: np.random.Generator, positive: bool = True) -> Any:
    """Every leaf random, kernels scaled so that values keep their size; what is positive (a variance) stays so."""

    def draw(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return leaf
        shape, dtype = np.shape(leaf), jnp.result_type(leaf)
        scale = np.sqrt(np.prod(shape[:-1], initial=1.0)) if len(shape) > 1 else 1.0
        stays = positive and jnp.issubdtype(dtype, jnp.floating) and bool((np.asarray(leaf) > 0).all())
        drawn = rng.normal(size=shape) + (
            1j * rng.normal(size=shape) if jnp.issubdtype(dtype, jnp.complexfloating) else 0
        )
        return np.asarray((np.abs(drawn) + 0.1 if stays else drawn) / scale, dtype)

    return jax.tree.map(draw, params)


def _positive(leaf: Any, rng: np.random.Generator) -> Any:
    """Random numbers near 1, which may stand for variances."""
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return leaf
    return rng.uniform(0.5, 1.5, np.shape(leaf)).astype(jnp.result_type(leaf))


def _few(apply: Callable[..., Any], before: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """At most four examples, where the first axis of all inputs is one of examples: that of the outputs shrinks too."""
    leaves = [leaf for leaf in jax.tree.leaves(inputs) if getattr(leaf, "ndim", 0) > 0]
    sharded = any(isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1 for leaf in leaves)
    if not leaves or sharded or len({leaf.shape[0] for leaf in leaves}) > 1 or leaves[0].shape[0] <= _EXAMPLES:
        return inputs
    few = jax.tree.map(lambda leaf: leaf[:_EXAMPLES] if getattr(leaf, "ndim", 0) > 0 else leaf, inputs)
    n = leaves[0].shape[0]

    def shapes(inputs: tuple[Any, ...]) -> list[tuple[int, ...]]:
        return [leaf.shape for leaf in jax.eval_shape(lambda *args: jax.tree.leaves(apply(*args)), *before, *inputs)]

    try:
        found = [*zip(shapes(inputs), shapes(few), strict=True)]
        shrunk = [(a, b) for a, b in found if a != b]
        by_example = bool(shrunk) and all((a[0], b[0], a[1:]) == (n, _EXAMPLES, b[1:]) for a, b in shrunk)
    except Exception:  # noqa: BLE001  whatever the model raises on inputs of another shape
        by_example = False
    return few if by_example else inputs
