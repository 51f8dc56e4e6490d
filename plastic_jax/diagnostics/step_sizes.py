"""What has become of learned step sizes: their distribution by layer, collapse, and which units have large ones."""

from typing import Any

import jax
import jax.numpy as jnp

from plastic_jax.optimizers.step_sizes import read_step_sizes
from plastic_jax.paths import named_leaves
from plastic_jax.replacement.statistics import incoming_magnitude
from plastic_jax.units.graph import UnitGraph, UnitGroup

COLLAPSED = 1e-3
"""A step size below this share of the first one has collapsed."""
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}
LEAST = 1e-30
"""Step sizes below count as this one, so that 0 has a logarithm."""


def step_size_metrics(
    state: Any, units: UnitGraph | None = None, first: float | jax.Array | None = None
) -> dict[str, jax.Array]:
    """The distribution of step sizes in an optimizer's state, 0-d numbers by name; empty where it has none.

    - `log10_step_size_low.LAYER`, `..._median.LAYER`, `..._high.LAYER`: the 10 %, 50 % and 90 % quantile of the decimal
      logarithms of a layer's step sizes. A layer is the parameters that differ in the last part of their names only.
    - `collapsed_step_sizes`, with `first`: the share of step sizes below `COLLAPSED * first`.
    - `shortened_steps`, where the state counts them (`smd`): steps so far that were shortened so as not to overshoot. A
      large share of all steps is the diagnosis that step sizes are too large.
    - `step_size_age_correlation`, `step_size_utility_correlation`, with `units` and where the state holds a method that
      replaces units: Pearson's correlation over the units of each group, averaged over groups, of the logarithm of a
      unit's mean incoming step size with its age, or its utility. NaN where one of the two is the same for all units.

    Example:
        >>> from plastic_jax import hypergradient
        >>> found = step_size_metrics(hypergradient(0.01).init({"Dense_0": {"bias": jnp.zeros(3)}}), first=0.01)
        >>> {name: float(value) for name, value in found.items()}["log10_step_size_median.Dense_0"]
        -2.0

    Args:
        state: any state whose parts name their step sizes (`plastic_jax.optimizers.step_sizes`), inside of any methods.
        units: the unit graph of the network.
        first: the first step size.
    """
    trees = read_step_sizes(state)
    layers: dict[str, list[jax.Array]] = {}
    for tree in trees:
        for name, leaf in named_leaves(tree):
            layers.setdefault(name.rpartition("/")[0].replace("/", "."), []).append(jnp.ravel(leaf))
    sizes = {layer: jnp.concatenate(leaves) for layer, leaves in layers.items()}
    found: dict[str, jax.Array] = {}
    for layer, values in sizes.items():
        at = jnp.quantile(jnp.log10(jnp.maximum(values, LEAST)), jnp.array(list(QUANTILES.values())))
        found |= {f"log10_step_size_{name}.{layer}": at[i] for i, name in enumerate(QUANTILES)}
    if first is not None and sizes:
        whole = jnp.concatenate(list(sizes.values()))
        found["collapsed_step_sizes"] = jnp.mean(whole < COLLAPSED * first)
    counts = [node.shortened for node in _parts_with(state, "shortened")]
    if counts:
        found["shortened_steps"] = jnp.sum(jnp.stack(counts)).astype(jnp.float32)
    for tree in trees if units is not None else ():
        if all(jnp.ndim(leaf) for leaf in jax.tree.leaves(tree)):
            found |= _correlations(state, units, tree)
    return found


def _parts_with(state: Any, field: str) -> list[Any]:
    """The named tuples in a state that have a field of that name, also those inside of one another."""

    def has(node: Any) -> bool:
        return field in getattr(node, "_fields", ())

    found = [node for node in jax.tree.leaves(state, is_leaf=has) if has(node)]
    return [part for node in found for part in (node, *_parts_with(tuple(node), field))]


def _correlations(state: Any, units: Any, tree: Any) -> dict[str, jax.Array]:
    """With what is known of units, by the names that methods have for it."""
    found = {}
    for node in _parts_with(state, "age"):
        for field in ("age", "utility"):
            known = getattr(node, field, None)
            groups = [g for g in units.groups if isinstance(known, dict) and g.name in known]
            if known and groups:
                each = [_correlation(_incoming(g, tree), known[g.name]) for g in groups]
                found[f"step_size_{field}_correlation"] = jnp.mean(jnp.stack(each))
    return found


def _incoming(group: UnitGroup, tree: Any) -> jax.Array:
    """The decimal logarithm of the mean step size of each unit's incoming weights, `[width]`."""
    return jnp.log10(jnp.maximum(incoming_magnitude(group, tree)[:, 0], LEAST))


def _correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's, of `[width]` with `[width, ...]`, averaged over all axes but the first."""
    b = b.astype(jnp.float32).reshape(len(a), -1).mean(1)
    a, b = a - jnp.mean(a), b - jnp.mean(b)
    size = jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))
    return jnp.where(size > 0, jnp.sum(a * b) / jnp.where(size > 0, size, 1), jnp.nan)
