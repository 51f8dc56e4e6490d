"""Keeping a rare branch a branch when many runs are vmapped."""

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def any_lane(predicate: jax.Array) -> jax.Array:
    """`predicate`; under `vmap`, whether it holds in any lane, as one unbatched value.

    A `cond` on a batched predicate becomes a `select` that runs both sides for every lane. A `cond` on
    `any_lane(predicate)` stays a branch; what it computes must then choose per lane by itself.
    """
    return predicate


@any_lane.def_vmap
def _any_lane_vmap(axis_size: int, in_batched: list[bool], predicate: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size
    return (any_lane(jnp.any(predicate, axis=0)), False) if in_batched[0] else (any_lane(predicate), False)
