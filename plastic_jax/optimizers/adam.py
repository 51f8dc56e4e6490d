"""Adam with a step count of its own for every parameter, so that parts of a network can be made new."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

Number = float | jax.Array


class AdamState(NamedTuple):
    """Moments of every weight, and how many gradients they have seen since the weight was new.

    The count of a weight is the smaller one of its row's and its column's, so that it costs two vectors in place of a
    matrix, and the bias corrections two powers per row and column in place of two per weight.

    Attributes:
        rows: int32, a tree like the parameters: gradients seen by each row, the weights along the last axis, which has
            size 1 here; of parameters with less than two axes, by each entry. Saturates.
        columns: int32 likewise: by each column, the weights along the longest one of the other axes.
        mu: first moments, a tree like the parameters.
        nu: second moments, a tree like the parameters.
    """

    rows: optax.Updates
    columns: optax.Updates
    mu: optax.Updates
    nu: optax.Updates


def adam(
    step_size: Number,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    *,
    bias_correction: Literal["standard", "published"] = "standard",
) -> optax.GradientTransformationExtraArgs:
    """Adam whose bias correction counts the steps of every weight since it was new.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   t <- t + 1     (t per weight)
    standard:   w <- w - step_size * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    published:  w <- w - step_size * (1 - b2^t) * m / (sqrt(v) + eps)

    While nothing is reset this is `optax.adam`. The difference appears when a unit is replaced: its weights must start
    with new moments *and* a new count. Zeroed moments under an old, shared count are not corrected for their bias, and
    since v recovers more slowly than m, the weight moves by up to 6.6 times the regular step (b1 = 0.9, b2 = 0.999,
    some 12 steps after the reset). Setting back a shared count spoils the steps of all weights that were not reset.

    A replaced unit's weights are whole rows and whole columns of its parameters, so methods that replace units reset
    `rows` and `columns` in place. Where a unit has only parts of them (grouped convolutions), these methods begin with
    a count for every weight (`plastic_jax.replacement.step_counts`). Any mask can be applied by
    `optax.tree.map_params(tx, lambda s, m: jnp.where(m, 0, s), state, mask)`: the counts then broadcast to the
    parameter's shape, one for every weight, and `update` goes on from there.

    Example:
        >>> params = jnp.array([1.0, -2.0])
        >>> tx = adam(0.1)
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jnp.array([3.0, -0.5]), state, params)
        >>> abs(updates + jnp.array([0.1, -0.1])) < 1e-6
        Array([ True,  True], dtype=bool)

    Args:
        step_size: a number or a traced 0-d array.
        b1, b2: decay rates of the moments, in [0, 1).
        eps: keeps the denominator from 0.
        bias_correction: "published" is what the published code's Adam with counts per weight (AdamGnT) computes: its
            bias correction is dropped by mistake, which gives every weight a warm-up over some 1000 steps after each
            reset (for a constant gradient, 0.3 % of the step size at t = 1, 31 % at 100, 80 % at 1000).

    Raises:
        ValueError: a rate outside its interval, or a `bias_correction` of another name.

    Source: Kingma & Ba, ICLR 2015, algorithm 1; counts per weight: Dohare et al., Nature 632 (2024), published code.
    Cost: that of `optax.adam`, in time and in memory.
    """
    if bias_correction not in ("standard", "published"):
        raise ValueError(f"bias_correction must be 'standard' or 'published', got {bias_correction!r}")
    _check_in("step_size", step_size, 0, float("inf"))
    _check_in("b1", b1, 0, 1)
    _check_in("b2", b2, 0, 1)
    _check_in("eps", eps, 0, float("inf"))

    def init(params: optax.Params) -> AdamState:
        return AdamState(*first_counts(params), optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def step(rows: jax.Array, columns: jax.Array, mu: jax.Array, nu: jax.Array) -> jax.Array:
        exact = jnp.promote_types(mu.dtype, jnp.float32)
        correct1, correct2 = (correction(decay, rows, columns, exact) for decay in (b1, b2))
        if bias_correction == "standard":
            direction = (mu * correct1) / (jnp.sqrt(nu * correct2) + eps)
        else:
            direction = mu / (correct2 * (jnp.sqrt(nu) + eps))
        return (-step_size * direction).astype(mu.dtype)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, AdamState]:
        del params, extra
        rows, columns = jax.tree.map(optax.safe_increment, (state.rows, state.columns))
        mu = jax.tree.map(lambda m, g: (b1 * m + (1 - b1) * g).astype(m.dtype), state.mu, updates)
        nu = jax.tree.map(lambda v, g: (b2 * v + (1 - b2) * g * g).astype(v.dtype), state.nu, updates)
        return jax.tree.map(step, rows, columns, mu, nu), AdamState(rows, columns, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def correction(decay: Number, rows: jax.Array, columns: jax.Array, dtype: Any) -> jax.Array:
    """1 / (1 - decay^count) of a parameter's running average, with the counts of its rows and columns.

    These are vectors; a matrix meets them in multiplications only. Infinite where nothing has been seen.
    """
    return jnp.maximum(*(1 / share_seen(decay, count, dtype) for count in (rows, columns)))


def first_counts(params: optax.Params) -> tuple[Any, Any]:
    """The counts of rows and of columns of all parameters before the first gradient, int32 zeros."""
    rows, columns = (
        jax.tree.map(lambda p, i=i: jnp.zeros(count_shapes(jnp.shape(p))[i], jnp.int32), params) for i in (0, 1)
    )
    return rows, columns


def count_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the counts by row and by column of a parameter.

    A row is the weights along the last axis, a column those along the longest one of the others; that axis has size 1.
    A parameter with less than two axes has a count for each entry in both.
    """
    if len(shape) < 2:
        return shape, shape
    longest = shape.index(max(shape[:-1]))
    return (*shape[:-1], 1), (*shape[:longest], 1, *shape[longest + 1 :])


def share_seen(decay: Number, count: jax.Array, dtype: Any) -> jax.Array:
    """1 - decay^count: the share of a running average that comes from values seen, exact at small counts too."""
    if isinstance(decay, int | float) and decay > 0:
        # In double precision: rounding 0.999 to float32 alone would put 1 - decay off by 5e-5 of itself.
        return -jnp.expm1(count.astype(dtype) * math.log(decay))
    return -jnp.expm1(count.astype(dtype) * jnp.log(jnp.asarray(decay, dtype)))


def _check_in(name: str, value: Any, low: float, high: float) -> None:
    if callable(value) or (isinstance(value, int | float) and not low <= value < high):
        raise ValueError(f"{name} must be a number in [{low}, {high}) or an array, got {value!r}")
