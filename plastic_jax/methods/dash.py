"""DASH: when new data come, weights that point away from what the data ask for are shrunk."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.inner import frozen_leaves, with_extra_args
from plastic_jax.lanes import any_lane
from plastic_jax.matrices import read_kernels
from plastic_jax.paths import keep_leaves, named_leaves, set_leaves
from plastic_jax.signature import Range, method

_NAME = "dash"


class DASHState(NamedTuple):
    """State of direction-aware shrinking.

    Attributes:
        inner: the inner optimizer's state.
        count: int32 scalar, steps taken; saturates.
        left: int32 scalar, steps for which gradients are still gathered; 0 while the network learns.
        direction: a tree like the parameters, running average of negative gradients.
    """

    inner: optax.OptState
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    left: jax.Array
    direction: Any


@method("boundary")
def dash(
    inner: optax.GradientTransformation,
    *,
    rate: Annotated[float | jax.Array, Range(0, 1)] = 0.3,
    minimum: Annotated[float | jax.Array, Range(0, 1)] = 0.3,
    batches: Annotated[int | jax.Array, Range(1, 2**31 - 1)] = 20,
    axes: Mapping[str, str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """At the start of a task, gathers the gradients of `batches` steps, then shrinks weights that point elsewhere.

    gathering:    d <- (1 - rate) * d - rate * g, from d = 0, while weights and inner optimizer stand still;
    at its end:   w <- w * clip(cos(d, w), minimum, 1)

    with one cosine for the weights of one output of a dense kernel, for each filter of a convolution (one input, one
    output), and for all of any other parameter. The network learns nothing in the steps of gathering, as in the paper,
    where they are a pass over the new data. Nothing happens at step 0. The inner optimizer's state is kept.

    Example:
        >>> params = {"kernel": jnp.array([[1.0, 1.0], [0.0, 1.0]])}
        >>> tx = dash(optax.sgd(0.1), batches=1)
        >>> gradient, new = {"kernel": jnp.array([[1.0, -1.0], [1.0, -1.0]])}, jnp.array(True)
        >>> _, state = tx.update(gradient, tx.init(params), params, boundary=new)
        >>> updates, state = tx.update(gradient, state, params, boundary=new)
        >>> optax.apply_updates(params, updates)["kernel"].tolist()  # cosines -0.7 and 1
        [[0.30000001192092896, 1.0], [0.0, 1.0]]

    Args:
        inner: the optimizer that does the learning.
        rate: weight of a new gradient in the average, in [0, 1].
        minimum: least factor, in [0, 1].
        batches: number of steps whose gradients are gathered, at least 1.
        axes: what the axes of kernels are, by pattern of names; see `plastic_jax.matrices`.

    `update` needs `params` and the extra argument `boundary` (0-d bool), true at the first step of a new task.

    Raises:
        ValueError: a number is outside its range; `boundary` is not given.

    References:
        Shin, Oh, Cho and Yun, "DASH: warm-starting neural network training in stationary settings without loss of
        plasticity", NeurIPS 2024.
    """
    inner = with_extra_args(inner)
    frozen = frozen_leaves(inner)

    def start(params: optax.Params) -> DASHState:
        read_kernels(_NAME, params, axes=axes, warn=True)
        zero = jnp.zeros([], jnp.int32)
        return DASHState(inner.init(params), zero, jnp.copy(zero), optax.tree.zeros_like(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, *, boundary: Any = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        for name, value in (("params", params), ("boundary", boundary)):
            if value is None:
                raise ValueError(f"{_NAME}: update needs `{name}`; call update(grads, state, params, boundary=...)")
        extra["boundary"] = boundary
        begins = jnp.asarray(boundary) & (state.count > 0)
        left = jnp.where(begins, batches, state.left).astype(jnp.int32)
        gathers, ends = left > 0, left == 1
        moved, moved_state = inner.update(updates, state.inner, params, **extra)

        def gather() -> Any:
            direction = jax.tree.map(
                lambda d, g: ((1 - rate) * jnp.where(begins, 0, d) - rate * g).astype(d.dtype), state.direction, updates
            )
            summed = {k.name: _summed(k.axes) for k in read_kernels(_NAME, params, axes=axes)}
            weights = dict(named_leaves(params))
            factors = {n: _factor(d, weights[n], minimum, summed.get(n)) for n, d in named_leaves(direction)}
            steps = {n: jnp.where(ends, (f - 1) * weights[n], 0).astype(weights[n].dtype) for n, f in factors.items()}
            shrunk = set_leaves(params, steps)
            shrunk = keep_leaves(shrunk, jax.tree.map(jnp.zeros_like, moved), frozen(params, extra))
            held = shrunk, state.inner, direction
            return optax.tree.where(gathers, held, (moved, moved_state, state.direction))

        def leave() -> Any:
            return moved, moved_state, state.direction

        updates, inner_state, direction = jax.lax.cond(any_lane(gathers), gather, leave)
        count: Any = optax.safe_increment(state.count)
        return updates, DASHState(inner_state, count, jnp.maximum(left - 1, 0), direction)

    return optax.GradientTransformationExtraArgs(start, update)


def _summed(axes: str) -> tuple[int, ...]:
    """The axes of a kernel over which a cosine goes: the window of a convolution, else the inputs."""
    return tuple(i for i, letter in enumerate(axes) if letter == ("t" if "t" in axes else "i"))


def _factor(direction: jax.Array, weights: jax.Array, minimum: Any, axes: tuple[int, ...] | None) -> jax.Array:
    """The clipped cosine over these axes, which are kept with size 1; `None`: over all."""

    def inside(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=axes, keepdims=True)

    size = jnp.maximum(jnp.sqrt(inside(direction, direction)), 1e-8)
    size *= jnp.maximum(jnp.sqrt(inside(weights, weights)), 1e-8)
    return jnp.clip(inside(direction, weights) / size, minimum, 1)
