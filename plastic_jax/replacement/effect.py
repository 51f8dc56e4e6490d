"""How far the replacement of a unit moves a network's output."""

from typing import Any

import jax
import jax.numpy as jnp

from plastic_jax.replacement.draw import Replacement, draw_replacement
from plastic_jax.replacement.initializers import UnitInitializer, unit_initializer
from plastic_jax.replacement.reset import reset_updates
from plastic_jax.units.graph import UnitGraph


def replacement_effect(
    units: UnitGraph,
    params: Any,
    *inputs: Any,
    key: jax.Array | None = None,
    initializer: str | UnitInitializer = "kaiming_uniform",
) -> dict[str, tuple[float, float]]:
    """By group name, how far the output moves when a unit is replaced and when the new unit's weights change.

    Both are `||y' - y|| / ||y||` over all outputs that are real numbers, for the unit in the middle of the group. The
    first is what is lost with the old unit and, where new units are not silent, what the new one adds. The second
    compares two draws of the new unit: 0 for a group that is `function_preserving`.

    Example:
        >>> from plastic_jax import MLP, trace_units
        >>> network, x = MLP(widths=(8,), outputs=1), jnp.linspace(-1, 1, 16)[:, None]
        >>> params = network.init(jax.random.key(0), x)
        >>> effect = replacement_effect(trace_units(network.apply, params, x), params, x)
        >>> [(name, draws) for name, (_, draws) in effect.items()]
        [('params/Dense_0', 0.0)]

    Args:
        units: the graph.
        params: the parameters.
        inputs: what `units.apply` takes beside them.
        key: random key of the fresh weights; `None`: `jax.random.key(0)`.
        initializer: as in `continual_backprop`.
    """
    keys = jax.random.split(jax.random.key(0) if key is None else key)

    @jax.jit
    def outputs(params: Any) -> jax.Array:
        leaves = jax.tree.leaves(units.apply(params, *inputs)[0])
        return jnp.concatenate([leaf.ravel() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)])

    def replaced(name: str, key: jax.Array) -> Any:
        group, going = units.group(name), {g.name: Replacement.of_none() for g in units.groups}
        unit, draw = jnp.full(1, group.width // 2, jnp.int32), unit_initializer(initializer, group.activation)
        going[name] = draw_replacement(group, unit, jnp.ones(1, bool), key, draw, params)
        return outputs(jax.tree.map(jnp.add, params, reset_updates(units, going, params, zeros)))

    zeros, before = jax.tree.map(jnp.zeros_like, params), outputs(params)
    found = {}
    for group in units.groups:
        one, other = (replaced(group.name, key) for key in keys)
        size = jnp.linalg.norm(before)
        found[group.name] = (float(jnp.linalg.norm(one - before) / size), float(jnp.linalg.norm(other - one) / size))
    return found
