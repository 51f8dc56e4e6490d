"""Differences between implementations that no option makes, as methods of one's own around `continual_backprop`.

python -m launch.train --task=slowly_changing_regression --methods=results.census.variants:bias_kept ...
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from plastic_jax import continual_backprop
from plastic_jax.lanes import any_lane
from plastic_jax.optimizers.adam import adam
from plastic_jax.paths import get_leaf, set_leaves
from plastic_jax.replacement.reset import just_replaced
from plastic_jax.signature import method
from plastic_jax.units.graph import Slice, UnitGraph

SETTINGS: dict[str, Any] = {
    "replacement_rate": 1e-4,
    "maturity_threshold": 100,
    "utility": "adaptable_contribution",
}


@method("features")
def bias_kept(
    inner: optax.GradientTransformation, units: UnitGraph, *, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Continual backprop; the bias of a new unit is where the inner optimizer takes that of the old one."""
    replacing = continual_backprop(inner, units, key=key, **SETTINGS)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, after = replacing.update(grads, state, params, **extra)
        plain, gone = inner.update(grads, state.inner, params)[0], just_replaced(after)
        biases = [(g, s) for g in units.groups for s in g.incoming if s.role == "bias"]
        kept = {s.path: _where_gone(gone[g.name], s, plain, updates) for g, s in biases}
        return set_leaves(updates, kept), after

    return optax.GradientTransformationExtraArgs(replacing.init, update)


@method("features")
def outgoing_redrawn(
    inner: optax.GradientTransformation, units: UnitGraph, *, init: Any, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Continual backprop; the outgoing weights of a new unit are those of a fresh network, in place of 0."""
    replacing = continual_backprop(inner, units, key=key, **SETTINGS)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, after = replacing.update(grads, state, params, **extra)
        gone = just_replaced(after)

        def redraw() -> Any:
            fresh = init(jax.random.fold_in(key, state.count))
            steps = jax.tree.map(jnp.subtract, fresh, params)
            kernels = [(g, s) for g in units.groups for s in g.outgoing]
            drawn = {s.path: _where_gone(gone[g.name], s, steps, updates) for g, s in kernels}
            return set_leaves(updates, drawn)

        any_gone = jnp.any(jnp.concatenate(list(gone.values())))
        return jax.lax.cond(any_lane(any_gone), redraw, lambda: updates), after

    return optax.GradientTransformationExtraArgs(replacing.init, update)


@method("features")
def around_published_adam(
    inner: optax.GradientTransformation,
    units: UnitGraph,
    *,
    first_moment: Literal["reset", "kept"] = "reset",
    step_size: Any,
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """Continual backprop around the published Adam, in place of `inner`.

    Args:
        first_moment: whether that of a new unit's incoming kernel is 0, or the old unit's, as `convGnT.py` leaves it.
    """
    inner = adam(step_size, bias_correction="published")
    replacing = continual_backprop(inner, units, key=key, **SETTINGS)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, after = replacing.update(grads, state, params, **extra)
        if first_moment == "reset":
            return updates, after
        old: Any = inner.update(grads, state.inner, params)[1]
        paths = {s.path for g in units.groups for s in g.incoming_kernels}
        kept = set_leaves(after.inner.mu, {path: get_leaf(old.mu, path) for path in paths})
        return updates, after._replace(inner=after.inner._replace(mu=kept))

    return optax.GradientTransformationExtraArgs(replacing.init, update)


def _where_gone(gone: jax.Array, s: Slice, new: Any, old: Any) -> jax.Array:
    """The leaf of `s`, from `new` where it belongs to a unit that has just gone."""
    leaf = get_leaf(old, s.path)
    return jnp.where(s.spread(gone, leaf.shape), get_leaf(new, s.path), leaf)
