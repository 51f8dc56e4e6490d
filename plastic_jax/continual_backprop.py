"""Continual backprop: gradient descent that never stops initialising."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.counting import CountRule, owed
from plastic_jax.initializers import UnitInitializer, unit_initializer
from plastic_jax.lanes import any_lane
from plastic_jax.paths import get_leaf, leaf_key, set_leaves
from plastic_jax.reset import (
    Replacement,
    check_units,
    draw_replacement,
    reset_inner_state,
    reset_mask,
    reset_updates,
    transferred_bias,
)
from plastic_jax.statistics import mean_feature, unit_stats
from plastic_jax.units.graph import UnitGraph, UnitGroup
from plastic_jax.utility import Utility, unit_utility

STATIC_ARGS = (
    "units",
    "utility",
    "initializer",
    "max_replacements",
    "utility_every",
    "count",
    "reset_state",
    "transfer_bias",
    "axis_name",
)


class ContinualBackpropState(NamedTuple):
    """State of continual backprop; dictionaries are by group name.

    Attributes:
        inner: the inner optimizer's state.
        key: typed key, never changed; step `t` uses `fold_in(key, t)`.
        count: int32 scalar, steps taken.
        age: int32 `[width]`, steps since a unit was made; saturates.
        utility: float `[width]`, running average of the measure, not corrected for age.
        mean_activation: float `[width, copies]`, running average of the unit's value, not corrected for age.
        accumulator: float `[2]`, replacements owed, and the rounding error of that sum.
        replaced: int32 scalar, units replaced so far; saturates.
    """

    inner: Any
    key: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    age: dict[str, jax.Array]
    utility: dict[str, jax.Array]
    mean_activation: dict[str, jax.Array]
    accumulator: dict[str, jax.Array]
    replaced: dict[str, jax.Array]


class _Seen(NamedTuple):
    """What one group knows after looking at a step: its statistics, and how many units go.

    `correction` is `1 - eta^a`, what the running averages are divided by.
    """

    age: jax.Array
    correction: jax.Array
    utility: jax.Array
    mean_activation: jax.Array
    accumulator: jax.Array
    due: jax.Array

    def mean(self) -> jax.Array:
        """The running mean of the unit's value, corrected for age."""
        return self.mean_activation / self.correction[:, None]


def continual_backprop(
    inner: optax.GradientTransformation,
    units: UnitGraph,
    *,
    replacement_rate: float | jax.Array,
    maturity_threshold: int | jax.Array = 100,
    decay_rate: float | jax.Array = 0.99,
    utility: str | Utility = "contribution",
    initializer: str | UnitInitializer = "kaiming_uniform",
    key: jax.Array,
    max_replacements: int = 1,
    utility_every: int = 1,
    count: Literal["accumulate", "bernoulli"] | CountRule = "accumulate",
    reset_state: bool = True,
    transfer_bias: bool = False,
    axis_name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""At every step, replaces a tiny fraction of the least useful, old enough units of each group.

    With features `h` of the forward pass that gave the gradients and weights `w` *after* the inner update, per unit

        a <- a + 1,   f <- eta f + (1 - eta) E[h],   u <- eta u + (1 - eta) y,   u_hat = u / (1 - eta^a)

    where `y` is the measure `utility`. Units with `a > maturity_threshold` are eligible; `replacement_rate` times
    their number is owed, and the eligible units of lowest `u_hat` pay: incoming weights from `initializer`, bias 0,
    outgoing weights 0, `a = u = f = 0`, and the inner optimizer's statistics of these weights as `inner.init` has them.
    It is the outermost transformation: clipping, weight decay and noise go into `inner`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from plastic_jax import MLP, continual_backprop, mlp_units
        >>> network = MLP(widths=(8,), outputs=1)
        >>> x = jnp.linspace(-1, 1, 16)[:, None]
        >>> params = network.init(jax.random.key(0), x)["params"]
        >>> units = mlp_units(network, params)
        >>> tx = continual_backprop(optax.sgd(0.1), units, replacement_rate=1e-3, key=jax.random.key(1))
        >>> state = tx.init(params)
        >>> def loss(params):
        ...     y, features = units.apply(params, x)
        ...     return jnp.mean((y - x**2) ** 2), features
        >>> for _ in range(200):
        ...     grads, features = jax.grad(loss, has_aux=True)(params)
        ...     updates, state = tx.update(grads, state, params, features=features)
        ...     params = optax.apply_updates(params, updates)
        >>> print(bool(loss(params)[0] < 0.01))
        True

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph of the model.
        replacement_rate: units replaced per step, as a share of the eligible ones; in [0, 1].
        maturity_threshold: steps that a unit is protected after it was made; at least 0.
        decay_rate: `eta`, in [0, 1).
        utility: the name of a measure in `plastic_jax.utility`, or a `Utility`.
        initializer: the name of a law in `plastic_jax.initializers`, or a `UnitInitializer`.
        key: typed random key.
        max_replacements: bound on units replaced per group and step; what exceeds it is owed to later steps.
        utility_every: measure utility only at every `k`-th step, counting the measurement `k` times (an approximation
            that saves its cost; with an unbatched extra argument `clock` also under `vmap`).
        count: `"accumulate"`: owed fractions are added up; `"bernoulli"`: a fraction below one is drawn, of a number
            above one the fraction is lost; or a function `(key, owed) -> number`.
        reset_state: whether the inner optimizer's statistics of a replaced unit start afresh.
        transfer_bias: whether the next layer's bias takes over a removed unit's mean contribution.
        axis_name: name of a mapped axis over which batch statistics are averaged.

    `update` needs `params` and the extra argument `features`, by group name; `clock` is optional, others are ignored.

    Returns:
        The transformation. With rate 0 its updates are those of `inner`, bit for bit.

    Raises:
        ValueError: a number is outside its range, a name is unknown, or the graph does not fit the parameters.

    References:
        Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024.

    Differs from the published code: there the transfer of the mean contribution to the next bias is always 0, the
    inner optimizer's statistics are kept (except in one variant of Adam), and owed fractions are drawn by default.
    Those are `transfer_bias=False` (default), `reset_state=False` and `count="bernoulli"`.
    """
    inner = optax.with_extra_args_support(inner)
    measure = unit_utility(utility)
    _check_arguments(replacement_rate, maturity_threshold, decay_rate, max_replacements, utility_every, count)
    bounds = {g.name: min(max_replacements, g.width) for g in units.groups}
    laws = {g.name: unit_initializer(initializer, g.activation) for g in units.groups}

    def init(params: Any) -> ContinualBackpropState:
        check_units(units, params, "continual_backprop")
        groups = {g.name: g for g in units.groups}
        dtype = {n: _group_dtype(g, params) for n, g in groups.items()}
        return ContinualBackpropState(
            inner=inner.init(params),
            key=leaf_key(key, "continual_backprop"),  # a key of its own: donating the state leaves the caller's alone
            count=jnp.zeros([], jnp.int32),
            age={n: jnp.zeros(g.width, jnp.int32) for n, g in groups.items()},
            utility={n: jnp.zeros(g.width, dtype[n]) for n, g in groups.items()},
            mean_activation={n: jnp.zeros((g.width, g.copies), dtype[n]) for n, g in groups.items()},
            accumulator={n: jnp.zeros(2, dtype[n]) for n in groups},
            replaced={n: jnp.zeros([], jnp.int32) for n in groups},
        )

    def look(
        group: UnitGroup, state: ContinualBackpropState, params: Any, feature: jax.Array, step_key: jax.Array, now: Any
    ) -> _Seen:
        """Ages the group, measures its units if it is time, and says how many of them go."""
        name = group.name
        age = jnp.asarray(optax.safe_increment(state.age[name]))
        eta = jnp.asarray(decay_rate, state.utility[name].dtype)
        correction = -jnp.expm1(age * jnp.log(eta))  # 1 - eta^a, exact for young units too
        old = (state.utility[name], state.mean_activation[name])

        def averages() -> tuple[jax.Array, jax.Array]:
            keep = eta**utility_every
            mean = keep * old[1] + (1.0 - keep) * mean_feature(group, feature, axis_name)
            if not measure.averaged:
                return old[0], mean
            stats = unit_stats(group, params, feature, mean / correction[:, None], step_key, axis_name)
            return keep * old[0] + (1.0 - keep) * jnp.mean(measure(stats), axis=1), mean

        average, mean = averages() if utility_every == 1 else jax.lax.cond(now, averages, lambda: old)
        eligible = jnp.sum(age > maturity_threshold, dtype=jnp.int32)
        expected = jnp.asarray(replacement_rate, average.dtype) * eligible
        most = jnp.minimum(eligible, bounds[name])
        accumulator, due = owed(count, state.accumulator[name], expected, most, step_key)
        return _Seen(age, correction, average, mean, accumulator, due)

    def choose(group: UnitGroup, seen: _Seen, params: Any, feature: jax.Array, step_key: jax.Array) -> Replacement:
        """The eligible units of lowest rank, as many as are due, with fresh weights."""
        ranking = seen.utility / seen.correction
        if not measure.averaged:
            measure_key = leaf_key(step_key, "measure")
            ranking = jnp.mean(measure(unit_stats(group, params, feature, seen.mean(), measure_key, axis_name)), axis=1)
        # What is no finite number still ranks before the units that are not eligible.
        ranking = jnp.where(seen.age > maturity_threshold, jnp.nan_to_num(ranking), jnp.inf)
        n = bounds[group.name]
        index = jnp.argmin(ranking)[None] if n == 1 else jnp.argsort(ranking, stable=True)[:n]
        return draw_replacement(
            group, index.astype(jnp.int32), jnp.arange(n) < seen.due, step_key, laws[group.name], params
        )

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        features: Any = None,
        clock: Any = None,
        **extra: Any,
    ) -> tuple[Any, ContinualBackpropState]:
        _check_update(units, params, features)
        updates, inner_state = inner.update(updates, state.inner, params, features=features, clock=clock, **extra)
        new_params = optax.apply_updates(params, updates)
        now = (state.count if clock is None else clock) % utility_every == 0

        def step_key(group: UnitGroup) -> jax.Array:
            # Made anew in every branch that draws: handed in, it would be computed at every step.
            return leaf_key(jax.random.fold_in(state.key, state.count), group.name)

        seen = {g.name: look(g, state, new_params, features[g.name], step_key(g), now) for g in units.groups}

        def some() -> tuple[dict[str, Replacement], dict[str, jax.Array]]:
            picks = {g.name: choose(g, seen[g.name], new_params, features[g.name], step_key(g)) for g in units.groups}
            if not transfer_bias:
                return picks, {}
            return picks, transferred_bias(units, picks, new_params, {n: s.mean() for n, s in seen.items()})

        def none() -> tuple[dict[str, Replacement], dict[str, jax.Array]]:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(some))

        due = jnp.any(jnp.stack([s.due > 0 for s in seen.values()])) if seen else jnp.zeros([], bool)
        replacements, gains = jax.lax.cond(any_lane(due), some, none)
        updates = set_leaves(updates, {path: get_leaf(updates, path) + gain for path, gain in gains.items()})
        updates = reset_updates(units, replacements, params, updates)
        if reset_state:
            inner_state = reset_inner_state(inner, inner_state, params, reset_mask(units, replacements, params))
        return updates, _next_state(state, inner_state, units, seen, replacements)

    return optax.GradientTransformationExtraArgs(init, update)


def _next_state(
    state: ContinualBackpropState,
    inner_state: Any,
    units: UnitGraph,
    seen: dict[str, _Seen],
    replacements: dict[str, Replacement],
) -> ContinualBackpropState:
    gone = {g.name: replacements[g.name].mask(g.width) for g in units.groups}
    total = {n: state.replaced[n] + jnp.sum(gone[n], dtype=jnp.int32) for n in gone}
    return ContinualBackpropState(
        inner=inner_state,
        key=state.key,
        count=jnp.asarray(optax.safe_increment(state.count)),
        age={n: jnp.where(gone[n], 0, s.age) for n, s in seen.items()},
        utility={n: jnp.where(gone[n], 0.0, s.utility) for n, s in seen.items()},
        mean_activation={n: jnp.where(gone[n][:, None], 0.0, s.mean_activation) for n, s in seen.items()},
        accumulator={n: s.accumulator for n, s in seen.items()},
        replaced={n: jnp.where(total[n] < state.replaced[n], state.replaced[n], total[n]) for n in gone},
    )


def _group_dtype(group: UnitGroup, params: Any) -> Any:
    return jnp.promote_types(get_leaf(params, group.incoming[0].path).dtype, jnp.float32)


def _check_arguments(rate: Any, maturity: Any, decay: Any, bound: int, every: int, count: Any) -> None:
    ranges = (("replacement_rate", rate, 0.0, 1.0), ("maturity_threshold", maturity, 0, 2**31 - 1))
    for name, value, low, high in ranges:
        if isinstance(value, int | float) and not low <= value <= high:
            raise ValueError(f"continual_backprop: {name}={value} is not in [{low}, {high}]")
    if isinstance(decay, int | float) and not 0.0 <= decay < 1.0:
        raise ValueError(f"continual_backprop: decay_rate={decay} is not in [0.0, 1.0)")
    for name, value in (("max_replacements", bound), ("utility_every", every)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"continual_backprop: {name}={value!r} is not a positive integer")
    if not callable(count) and count not in ("accumulate", "bernoulli"):
        allowed = "accumulate, bernoulli, or a function (key, owed) -> number"
        raise ValueError(f"continual_backprop: count='{count}'; allowed: {allowed}")


def _check_update(units: UnitGraph, params: Any, features: Any) -> None:
    for name, value in (("params", params), ("features", features)):
        if value is None:
            call = "update(grads, state, params, features=features)"
            raise ValueError(f"continual_backprop: update needs `{name}`; call {call}")
    for group in units.groups:
        if group.name not in features:
            there = ", ".join(sorted(features))
            raise ValueError(f"continual_backprop: features has no entry '{group.name}'; there are: {there}")
        shape = features[group.name].shape
        if math.prod(shape[axis] for axis in group.feature_axes) != group.width * group.copies:
            copies = f" at {group.copies} positions" if group.copies > 1 else ""
            what = f"features['{group.name}'] of shape {shape}"
            raise ValueError(f"continual_backprop: {what} has not {group.width} units{copies}")
