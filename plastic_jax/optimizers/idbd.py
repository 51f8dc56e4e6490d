"""IDBD and K1: a step size for every weight, learned by gradient descent, for linear units and by local targets."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.matrices import wide
from plastic_jax.optimizers.curvature import read_curvature, sum_by_unit
from plastic_jax.signature import Range, method


class IDBDState(NamedTuple):
    """State of IDBD and of K1.

    Attributes:
        log_step_size: natural logarithms of the step sizes, a tree like the parameters, float32 at least.
        trace: `h`, how the weight depends on `log_step_size`, likewise.
    """

    log_step_size: optax.Updates
    trace: optax.Updates

    step_sizes = (("log_step_size", "log"),)


@method("curvature")
def idbd(
    step_size: Annotated[float | jax.Array, Range(0)], meta_step_size: Annotated[float | jax.Array, Range(0)] = 0.01
) -> optax.GradientTransformationExtraArgs:
    """IDBD: the step size of every weight follows the gradient of the loss in its logarithm.

        beta <- beta - meta_step_size g h,   a = exp(beta),   w <- w - a g,   h <- h max(1 - a c, 0) - a g

    with the gradient g and the curvature c. Of a linear unit with the loss 1/2 e^2, g = -e x and c = x^2, which is
    Sutton's algorithm (incremental delta-bar-delta). Hidden layers learn by local targets: c is `local_curvature`.
    Weights whose last steps agree with the next gradient get larger step sizes, those of irrelevant inputs small ones.

    Example:
        >>> params = {"kernel": jnp.zeros((2, 1))}
        >>> tx = idbd(0.1, meta_step_size=0.5)
        >>> state = tx.init(params)
        >>> x, e = jnp.array([[1.0], [0.0]]), 2.0
        >>> for _ in range(2):
        ...     updates, state = tx.update({"kernel": -e * x}, state, params, curvature={"kernel": x**2})
        >>> [round(a, 4) for a in jnp.exp(state.log_step_size["kernel"])[:, 0].tolist()]
        [0.1221, 0.1]

    Args:
        step_size: the first step size of every weight, at least 0; a schedule of it changes those of new weights alone.
        meta_step_size: step size of the logarithms, at least 0; 0 is gradient descent.

    `update` needs the extra argument `curvature`, a tree like the parameters (`plastic_jax.local_curvature`).

    Nothing bounds a step: with a meta step size that is too large the weights diverge. `autostep` does not.

    Raises:
        ValueError: a number is negative; `update` has no curvature, or one of other shapes.

    References:
        Sutton, "Adapting bias by gradient descent: an incremental version of delta-bar-delta", AAAI 1992.
    """

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, IDBDState]:
        del params

        def step(g: jax.Array, c: jax.Array, beta: jax.Array, h: jax.Array) -> tuple[jax.Array, ...]:
            beta = beta - meta_step_size * g * h
            a = jnp.exp(beta)
            return -a * g, beta, h * jnp.maximum(1 - a * c, 0) - a * g

        updates, *kept = map_leaves(step, updates, read_curvature("idbd", updates, extra), *state)
        return updates, IDBDState(*kept)

    return optax.GradientTransformationExtraArgs(lambda params: _first(params, step_size), update)


@method("curvature")
def k1(
    step_size: Annotated[float | jax.Array, Range(0)], meta_step_size: Annotated[float | jax.Array, Range(0)] = 0.01
) -> optax.GradientTransformationExtraArgs:
    """K1: IDBD with the gain of a Kalman filter whose covariance is diagonal, which bounds every step.

        beta <- beta - meta_step_size g h,   k = exp(beta) / (1 + sum_j exp(beta_j) c_j)
        w <- w - k g,   h <- (h - k g) max(1 - k c, 0)

    with the gradient g and the curvature c; the sum is over all weights of a unit, its bias included
    (`plastic_jax.matrices` reads kernels by their names). Of a linear unit with the loss 1/2 e^2, g = -e x and c = x^2.

    Example:
        >>> params = {"kernel": jnp.zeros((2, 1))}
        >>> tx = k1(1.0)
        >>> x, e = jnp.array([[1.0], [2.0]]), 3.0
        >>> updates, _ = tx.update({"kernel": -e * x}, tx.init(params), params, curvature={"kernel": x**2})
        >>> updates["kernel"][:, 0].tolist()  # e x / (1 + 5)
        [0.5, 1.0]

    Args:
        step_size: the first variance exp(beta) of every weight, at least 0, in units of that of the noise.
        meta_step_size: step size of the logarithms, at least 0.

    `update` needs the extra argument `curvature`, a tree like the parameters (`plastic_jax.local_curvature`).

    Raises:
        ValueError: a number is negative; `update` has no curvature, or one of other shapes.

    References:
        Sutton, "Gain adaptation beats least squares?", Yale Workshop on Adaptive and Learning Systems 1992.
    """

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, IDBDState]:
        del params
        c = read_curvature("k1", updates, extra)
        beta = jax.tree.map(lambda g, b, h: b - meta_step_size * wide(g) * h, updates, *state)
        total = sum_by_unit("k1", jax.tree.map(lambda b, c: jnp.exp(b) * c, beta, c))

        def step(g: jax.Array, c: jax.Array, total: jax.Array, beta: jax.Array, h: jax.Array) -> tuple[jax.Array, ...]:
            k = jnp.exp(beta) / (1 + total)
            return -k * g, beta, (h - k * g) * jnp.maximum(1 - k * c, 0)

        updates, *kept = map_leaves(step, updates, c, total, beta, state.trace)
        return updates, IDBDState(*kept)

    return optax.GradientTransformationExtraArgs(lambda params: _first(params, step_size), update)


def map_leaves(step: Any, updates: Any, *trees: Any) -> list[Any]:
    """`step(gradient, *leaves) -> (update, *statistics)` of every parameter, as trees.

    The gradient is float32 at least, the update has its type again, and statistics have that of the last `trees`.
    """
    gradients, treedef = jax.tree.flatten(updates)
    leaves = [treedef.flatten_up_to(tree) for tree in trees]
    out = [step(wide(g), *own) for g, *own in zip(gradients, *leaves, strict=True)]
    n = len(out[0]) if out else 1
    first = [u.astype(g.dtype) for g, (u, *_) in zip(gradients, out, strict=True)]
    kept = [[row[i].astype(own[i - n].dtype) for row, *own in zip(out, *leaves, strict=True)] for i in range(1, n)]
    return [jax.tree.unflatten(treedef, each) for each in (first, *kept)]


def _first(params: optax.Params, step_size: float | jax.Array) -> IDBDState:
    betas = jax.tree.map(lambda p: full_like(p, jnp.log(jnp.asarray(step_size, wide(p).dtype))), params)
    return IDBDState(betas, jax.tree.map(lambda p: full_like(p, 0.0), params))


def full_like(leaf: Any, value: Any) -> jax.Array:
    """An array like a parameter, float32 at least."""
    leaf = jnp.asarray(leaf)
    return jnp.full(leaf.shape, value, jnp.promote_types(leaf.dtype, jnp.float32))
