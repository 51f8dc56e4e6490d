"""Stochastic meta-descent: a step size for every weight of any network, learned with curvature-vector products."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.matrices import wide
from plastic_jax.optimizers.idbd import full_like, map_leaves
from plastic_jax.signature import Range, method


class SMDState(NamedTuple):
    """State of stochastic meta-descent; trees like the parameters, float32 at least.

    Attributes:
        step_size: the step sizes.
        trace: `v`, how the weights depend on a common factor of all step sizes.
        shortened: int32 scalar, steps so far that were shortened so as not to overshoot; saturates.
    """

    step_size: optax.Updates
    trace: optax.Updates
    shortened: jax.Array

    step_sizes = (("step_size", "linear"),)


@method("hvp")
def smd(
    step_size: Annotated[float | jax.Array, Range(0)],
    meta_step_size: Annotated[float | jax.Array, Range(0)] = 0.01,
    trace_decay: Annotated[float | jax.Array, Range(0, 1)] = 0.99,
    least_factor: Annotated[float | jax.Array, Range(0, 1)] = 0.5,
    shorten: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic meta-descent (SMD): IDBD for any network, with the full curvature in place of its diagonal.

        a <- a max(least_factor, 1 - meta_step_size g v),   w <- w - a g
        v <- trace_decay v - a (g + trace_decay H v)

    with the gradient g and the product H v of the loss's curvature matrix, both at the weights before the step. With
    `trace_decay=1` v is exactly the derivative of the weights in the logarithm of a factor common to all step sizes
    over the whole past. H is that of the step's loss: the Gauss-Newton matrix, which has no negative eigenvalues
    (`plastic_jax.gauss_newton`), or the Hessian.

    With `shorten`, a step is divided by (a g)' H (a g) / g' (a g) where that is above 1, so that none goes beyond the
    minimum, along its own direction, of the loss's quadratic model (of a linear unit: sum_j a_j x_j^2 <= 1, Autostep's
    bound), and no step size grows in such a step. A meta step size that is far too large then makes the learner bad and
    not infinite, and `SMDState.shortened` says in how many steps: a large share of them means that step sizes are.

    Example:
        >>> from plastic_jax import gauss_newton
        >>> x, y = jnp.array([[1.0, 0.0]]), jnp.array([2.0])
        >>> params, tx = jnp.zeros(2), smd(0.1, meta_step_size=0.5)
        >>> state, apply, loss = tx.init(params), lambda w: x @ w, lambda z: 0.5 * jnp.mean((z - y) ** 2)
        >>> for _ in range(2):
        ...     gradient = jax.grad(lambda w: loss(apply(w)))(params)
        ...     updates, state = tx.update(gradient, state, params, hvp=gauss_newton(apply, loss, params))
        ...     params = optax.apply_updates(params, updates)
        >>> [round(a, 3) for a in state.step_size.tolist()]
        [0.118, 0.1]

    Args:
        step_size: the first step size of every weight, at least 0; a schedule of it changes those of new weights alone.
        meta_step_size: relative change of a step size per unit of `g v`, at least 0; 0 is gradient descent.
        trace_decay: how much of the past counts, in [0, 1].
        least_factor: the least factor of a step size in one step, in [0, 1].
        shorten: whether a step that would overshoot is shortened, for one more product with H.

    `update` needs the extra argument `hvp`, a function from a tree like the parameters to its product with H.

    Raises:
        ValueError: a number is outside its range; `update` has no `hvp`.

    References:
        Schraudolph, "Local gain adaptation in stochastic gradient descent", ICANN 1999; "Fast curvature matrix-vector
        products for second-order gradient descent", Neural Computation 2002.

    Differs from the paper by `shorten`, without which it is the published algorithm.
    """

    def init(params: optax.Params) -> SMDState:
        sizes, trace = (jax.tree.map(lambda p, x=x: full_like(p, x), params) for x in (step_size, 0.0))
        return SMDState(sizes, trace, jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, SMDState]:
        del params
        hvp = extra.get("hvp")
        if hvp is None:
            raise ValueError(
                "smd: update needs the extra argument hvp, a function from a direction to its product with the loss's "
                "curvature: gauss_newton gives it, and so do the learners with hvp=True"
            )

        def product(direction: Any) -> Any:
            return jax.tree.map(wide, hvp(direction))

        gradient = jax.tree.map(wide, updates)

        def adapted(g: jax.Array, a: jax.Array, v: jax.Array) -> jax.Array:
            factor = 1 - meta_step_size * g * v
            return a * jnp.where(jnp.isfinite(factor), jnp.maximum(least_factor, factor), least_factor)

        sizes = jax.tree.map(adapted, gradient, state.step_size, state.trace)
        beyond, shortened = jnp.ones([]), state.shortened
        if shorten:
            direction = jax.tree.map(jnp.multiply, sizes, gradient)
            slope, bend = (jnp.asarray(optax.tree.vdot(direction, x)) for x in (gradient, product(direction)))
            beyond = jnp.maximum(jnp.where(slope > 0, bend / jnp.where(slope > 0, slope, 1), 1), 1)
            sizes = jax.tree.map(lambda a, old: jnp.where(beyond > 1, jnp.minimum(a, old), a), sizes, state.step_size)
            shortened = jnp.where(beyond > 1, optax.safe_increment(shortened), shortened)

        def step(g: jax.Array, hv: jax.Array, a: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            taken = a / beyond
            v = trace_decay * v - taken * (g + trace_decay * hv)
            return -taken * g, a, jnp.where(jnp.isfinite(v), v, 0)

        updates, sizes, trace = map_leaves(step, updates, product(state.trace), sizes, state.trace)
        return updates, SMDState(sizes, trace, shortened)

    return optax.GradientTransformationExtraArgs(init, update)
