"""Calibrated partial resets: at regular intervals every unit goes part of the way to a new one."""

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import check_params, check_parts, typed_key, warn_of_groups
from plastic_jax.inner import frozen_leaves, network_params, with_extra_args
from plastic_jax.lanes import any_lane
from plastic_jax.methods.regrama import weight_gradients
from plastic_jax.paths import leaf_key
from plastic_jax.replacement.dormant import relative_activity
from plastic_jax.replacement.draw import draw_replacement
from plastic_jax.replacement.initializers import InitializerName, UnitInitializer, unit_initializer
from plastic_jax.replacement.reset import check_units, soften_units, without_frozen
from plastic_jax.replacement.statistics import all_finite, group_dtype
from plastic_jax.signature import Range, method, static_args
from plastic_jax.units.graph import UnitGraph

_NAME = "cpr"
_LEAST = 1e-8  # as published, beside the mean of a group's gradients
Transform = Literal["sigmoid", "exponential", "softplus", "linear"]


class CPRState(NamedTuple):
    """State of calibrated partial resets; dictionaries are by group name.

    Attributes:
        inner: the inner optimizer's state.
        key: uint32, data of a random key, never changed; step `t` uses `fold_in(key, t)`.
        count: int32 scalar, steps counted; saturates.
        utility: float `[width]`, running average of the relative size of a unit's gradient; 1 after a reset.
    """

    inner: Any
    key: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    utility: dict[str, jax.Array]


@method()
def cpr(
    inner: optax.GradientTransformation,
    units: UnitGraph,
    *,
    replacement_rate: Annotated[float | jax.Array, Range(0, 1)] = 0.015,
    period: Annotated[int | jax.Array, Range(1, 2**31 - 1)] = 1000,
    sharpness: Annotated[float | jax.Array, Range(0)] = 16.0,
    threshold: Annotated[float | jax.Array, Range(0)] = 1.0,
    decay_rate: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.99,
    transform: Transform = "sigmoid",
    initializer: InitializerName | UnitInitializer = "kaiming_uniform",
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Every `period` steps, moves every unit towards a new one, the further the smaller its gradient has been.

        u <- eta u + (1 - eta) s,   s_i = mean_j |dL/dw_ij| / mean over the group       at every step, u = 1 at first
        r = replacement_rate * T(u),   w_out <- (1 - r) w_out,   w_in <- (1 - r) w_in + r fresh,   u <- 1

    after the inner optimizer's step, with the gradient before it. A weight that leaves one unit and enters another
    first shrinks and then moves. Biases, normalisation parameters and the optimizer's statistics stay. With
    `sharpness=0` every unit has `T = 1`: shrink and perturb, by units. With a sharp transform and a rate of 1 it is a
    hard reset of those below the threshold.

        sigmoid       T(u) = min(1, 2 / (1 + exp(k (u - tau))))
        exponential   T(u) = min(1, exp(-k (u - tau)))
        softplus      T(u) = min(1, log(1 + exp(k (tau - u))) / log 2)
        linear        T(u) = clip(1 - k (u - tau), 0, 1)

    with the sharpness k and the threshold tau.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from plastic_jax import MLP, cpr, trace_units
        >>> network, x = MLP(widths=(8,), outputs=1), jnp.linspace(-1, 1, 16)[:, None]
        >>> params = network.init(jax.random.key(0), x)["params"]
        >>> units = trace_units(lambda params, x: network.apply({"params": params}, x), params, x)
        >>> tx = cpr(optax.sgd(0.1), units, replacement_rate=0.5, sharpness=0.0, period=1, key=jax.random.key(1))
        >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> ratio = optax.apply_updates(params, updates)["Dense_1"]["kernel"] / params["Dense_1"]["kernel"]
        >>> bool(jnp.allclose(ratio, 0.5))
        True

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph of the model.
        replacement_rate: how far the least useful units go at most, in [0, 1].
        period: steps between two resets, at least 1; the first is at step `period`.
        sharpness: `k`, how fast the way shortens with growing utility; at least 0.
        threshold: `tau`, the utility from which on it shortens; 1 is the mean of the group.
        decay_rate: `eta` of the running average of utility, in [0, 1).
        transform: the function T.
        initializer: a name, see `plastic_jax.Initializer`, or a `UnitInitializer`.
        key: typed random key.

    `update` needs `params`; extra arguments are handed to `inner`. A step whose gradients are not finite does not
    count. With rate 0 the updates are those of `inner`, bit for bit.

    Raises:
        ValueError: a number is outside its range, a name is unknown, or the graph does not fit the parameters.

    References:
        McCutcheon, Chatzaroulas and Fallah, "Calibrated partial resets" (arXiv 2607.24996), 2026.

    Differs from the published code, which resets at steps `period + 1`, `2 period + 1`, ...
    """
    inner = with_extra_args(inner)
    frozen = frozen_leaves(inner)
    key = typed_key(_NAME, key)
    check_parts(_NAME, units, initializer)
    warn_of_groups(_NAME, units)
    initializers = {g.name: unit_initializer(initializer, g.activation) for g in units.groups}

    def init(params: Any) -> CPRState:
        check_units(units, network_params(params), _NAME)
        return CPRState(
            inner=inner.init(params),
            key=jax.random.key_data(leaf_key(key, _NAME)),
            count=jnp.zeros([], jnp.int32),
            utility={g.name: jnp.ones(g.width, group_dtype(g, network_params(params))) for g in units.groups},
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, CPRState]:
        check_params(_NAME, params)
        live = without_frozen(units, frozen(params, extra))
        signal = {g.name: weight_gradients(g, network_params(updates)) for g in units.groups}
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        counts = all_finite(signal)
        count = jnp.where(counts, optax.safe_increment(state.count), state.count)
        utility = {}
        for name, old in state.utility.items():
            eta = jnp.asarray(decay_rate, old.dtype)
            new = eta * old + (1.0 - eta) * relative_activity(signal[name], _LEAST).astype(old.dtype)
            utility[name] = jnp.where(counts, new, old)
        now = counts & (count % period == 0)

        def reset() -> Any:
            typed = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(key))
            step_key, weights, moves = jax.random.fold_in(typed, state.count), network_params(params), {}
            for g in live.groups:
                amount = jnp.where(
                    now, replacement_rate * _towards(transform, utility[g.name], sharpness, threshold), 0
                )
                everyone = jnp.arange(g.width, dtype=jnp.int32), jnp.ones(g.width, bool)
                drawn = draw_replacement(g, *everyone, leaf_key(step_key, g.name), initializers[g.name], weights)
                moves[g.name] = drawn._replace(amount=amount)
            return soften_units(live, moves, params, updates)

        updates = jax.lax.cond(any_lane(now), reset, lambda: updates)
        utility = {n: jnp.where(now, jnp.ones_like(u), u) for n, u in utility.items()}
        return updates, CPRState(inner_state, state.key, count, utility)

    return optax.GradientTransformationExtraArgs(init, update)


CPR_STATIC_ARGS = static_args(cpr)
"""Arguments of `cpr` that are no numbers: `static_args` of `optax.inject_hyperparams`."""


def _towards(transform: Transform, utility: jax.Array, sharpness: Any, threshold: Any) -> jax.Array:
    """T(u), in [0, 1]."""
    x = sharpness * (utility - threshold)
    if transform == "sigmoid":
        return jnp.minimum(1.0, 2.0 * jax.nn.sigmoid(-x))
    if transform == "exponential":
        return jnp.minimum(1.0, jnp.exp(-x))
    if transform == "softplus":
        return jnp.minimum(1.0, jax.nn.softplus(-x) / jnp.log(2.0).astype(x.dtype))
    return jnp.clip(1.0 - x, 0.0, 1.0)
