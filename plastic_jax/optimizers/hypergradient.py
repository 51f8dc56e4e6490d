"""Hypergradient descent: one step size, which grows while successive steps agree and shrinks when they do not."""

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.matrices import wide
from plastic_jax.optimizers.adam import adam
from plastic_jax.signature import Range, method


class HypergradientState(NamedTuple):
    """State of hypergradient descent.

    Attributes:
        base: the base optimizer's state: moments, or `()`.
        direction: the direction of the last step, before the step size; a tree like the parameters.
        step_size: the step size, 0-d float32 at least, the same in all parameters.
    """

    base: Any
    direction: optax.Updates
    step_size: optax.Updates

    step_sizes = (("step_size", "linear"),)


@method()
def hypergradient(
    step_size: Annotated[float | jax.Array, Range(0)],
    b1: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.9,
    b2: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.999,
    *,
    meta_step_size: Annotated[float | jax.Array, Range(0)] = 1e-4,
    base: Literal["sgd", "adam"] = "sgd",
    rule: Literal["additive", "multiplicative"] = "additive",
) -> optax.GradientTransformationExtraArgs:
    """Hypergradient descent: the derivative of the loss in the step size, <g, -u>, moves the step size.

        additive:        a <- max(a + meta_step_size <g, u>, 0)
        multiplicative:  a <- max(a (1 + meta_step_size <g, u> / (|g| |u|)), 0)
        w <- w - a d,   u <- d

    with the gradient g, the base optimizer's direction d (g itself, or Adam's with its corrected moments), and u that
    of the step before, over all parameters together. With `meta_step_size` 0 it is the base optimizer.

    Example:
        >>> params = jnp.array([1.0, 1.0])
        >>> tx = hypergradient(0.1, meta_step_size=0.01)
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.array([3.0, 4.0]), state, params)
        >>> round(float(state.step_size), 3)  # 0.1 + 0.01 * 25
        0.35

    Args:
        step_size: the first step size.
        b1, b2: decay rates of Adam's moments, in [0, 1).
        meta_step_size: step size of the step size: of the additive rule in units of the squared gradient's inverse.
        base: the optimizer that moves the weights.
        rule: by how much the step size moves; `multiplicative` does not depend on the size of gradients.

    Raises:
        ValueError: a number outside its range, or a word of another name.

    Differs from the source in that a step size is never negative.

    References:
        Baydin, Cornish, Martínez-Rubio, Schmidt and Wood, "Online learning rate adaptation with hypergradient descent",
        ICLR 2018, algorithms 4 and 5, and equation 8.
    """
    moves = optax.sgd(1.0) if base == "sgd" else adam(1.0, b1, b2)

    def init(params: optax.Params) -> HypergradientState:
        def first(p: jax.Array) -> jax.Array:
            return jnp.asarray(step_size, jnp.promote_types(jnp.result_type(p), jnp.float32))

        zeros = jax.tree.map(jnp.zeros_like, params)
        return HypergradientState(moves.init(params), zeros, jax.tree.map(first, params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, HypergradientState]:
        del extra
        gradients, last = (jax.tree.map(wide, tree) for tree in (updates, state.direction))
        agreement = optax.tree.vdot(gradients, last)
        if rule == "multiplicative":
            sizes = optax.tree.norm(gradients) * optax.tree.norm(last)
            agreement = jnp.where(sizes > 0, agreement / jnp.where(sizes > 0, sizes, 1), 0)

        def moved(a: jax.Array) -> jax.Array:
            scale = a if rule == "multiplicative" else 1
            return jnp.maximum(a + meta_step_size * scale * agreement, 0).astype(a.dtype)

        steps = jax.tree.map(moved, state.step_size)
        negative, kept = moves.update(updates, state.base, params)
        directions = jax.tree.map(jnp.negative, negative)
        updates = jax.tree.map(lambda d, a: (-a * wide(d)).astype(d.dtype), directions, steps)
        return updates, HypergradientState(kept, directions, steps)

    return optax.GradientTransformationExtraArgs(init, update)
