"""ReDo: at regular intervals, units that have fallen silent start afresh."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import check_parts, check_update, typed_key, warn_of_groups
from plastic_jax.inner import frozen_leaves, with_extra_args
from plastic_jax.lanes import any_lane
from plastic_jax.methods.signature import Range, method, static_args
from plastic_jax.paths import leaf_key
from plastic_jax.replacement.initializers import InitializerName, UnitInitializer, unit_initializer
from plastic_jax.replacement.replacement_log import empty, record
from plastic_jax.replacement.reset import (
    Replacement,
    add_replaced,
    check_units,
    draw_replacement,
    forget_units,
    network_params,
    replace_units,
    without_frozen,
)
from plastic_jax.replacement.statistics import all_finite, group_dtype, mean_absolute
from plastic_jax.replacement.step_counts import count_by_weight
from plastic_jax.units.graph import UnitGraph, UnitGroup

_NAME = "redo"


class RedoState(NamedTuple):
    """State of ReDo; dictionaries are by group name.

    Attributes:
        inner: the inner optimizer's state.
        key: uint32, data of a random key, never changed; step `t` uses `fold_in(key, t)`.
        count: int32 scalar, steps counted; saturates.
        age: int32 `[width]`, steps since a unit was made; saturates.
        replaced: int32 scalar, units replaced so far; saturates.
        activity: float `[width]`, running average of E|h|, not corrected for age.
        log: the last replacements, see `plastic_jax.replacement.replacement_log`; `None` with `log_size=0`.
    """

    inner: Any
    key: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    age: dict[str, jax.Array]
    replaced: dict[str, jax.Array]
    activity: dict[str, jax.Array]
    log: Any = None

    per_unit = ("age", "activity")  # what a replaced unit starts with at 0


@method("features")
def redo(
    inner: optax.GradientTransformation,
    units: UnitGraph,
    *,
    threshold: Annotated[float | jax.Array, Range(0)] = 0.025,
    period: Annotated[int | jax.Array, Range(1, 2**31 - 1)] = 1000,
    decay_rate: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.0,
    initializer: InitializerName | UnitInitializer = "kaiming_uniform",
    key: jax.Array,
    max_replacements: Annotated[int | None, Range(1)] = None,
    reset_state: bool = True,
    axis_name: str | None = None,
    log_size: Annotated[int, Range(0)] = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Every `period` steps, replaces the units that are dormant: much less active than the mean of their group.

        s_i = E|h_i| / mean_k E|h_k|,   dormant: s_i <= threshold

    with the features `h` of the forward pass that gave the gradients; `E` is the mean over the batch and all positions,
    and with `decay_rate` also over the steps before. One batch must be large enough to tell a silent unit from one that
    rests: at batch 1, half of all ReLU units are silent at any step, and a decay rate is needed.
    A dormant unit gets incoming weights from `initializer`, bias 0, outgoing weights 0, and the inner optimizer's
    statistics of these weights as `inner.init` has them. It is the outermost transformation.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from plastic_jax import MLP, trace_units
        >>> from plastic_jax.methods.redo import redo
        >>> network, x = MLP(widths=(8,), outputs=1), jnp.linspace(-1, 1, 16)[:, None]
        >>> params = network.init(jax.random.key(0), x)["params"]
        >>> params["Dense_0"]["bias"] = params["Dense_0"]["bias"].at[3].set(-100.0)  # silent for every input
        >>> units = trace_units(lambda params, x: network.apply({"params": params}, x), params, x)
        >>> tx = redo(optax.sgd(0.1), units, period=1, key=jax.random.key(1))
        >>> features = units.apply(params, x)[1]
        >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, features=features)
        >>> optax.apply_updates(params, updates)["Dense_0"]["bias"].tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph of the model.
        threshold: share of the group's mean activity up to which a unit is dormant; at least 0.
        period: steps between two resets, at least 1; the first is at step `period`.
        decay_rate: `eta` of the running average of E|h|, in [0, 1); 0: the batch of this step alone, as published.
        initializer: a name, see `plastic_jax.Initializer`, or a `UnitInitializer`.
        key: typed random key.
        max_replacements: bound on units replaced per group and reset, least active first; `None`: all that are dormant.
        reset_state: whether the inner optimizer's statistics of a replaced unit start afresh.
        axis_name: name of a mapped axis (devices, each with an equal part of the batch) over which the means over the
            batch are averaged, so that the same units go on every device; the gradients come averaged already.
        log_size: replacements kept in the state, see `plastic_jax.replacement.replacement_log`; 0 keeps none.

    `update` needs `params` and the extra argument `features`, by group name; others are handed to `inner`.

    For `optax.inject_hyperparams`, which must leave the arguments that are no numbers as they are:
    `optax.inject_hyperparams(redo, REDO_STATIC_ARGS)(inner=inner, units=units, ...)`.

    Between resets the updates are those of `inner`, bit for bit. They pass through a `cond`, for which XLA writes them
    out: 5 to 10 % of the time of a step from batch 128, but up to twice its time at batch 1.

    Raises:
        ValueError: a number is outside its range, a name is unknown, or the graph does not fit the parameters.

    References:
        Sokar, Agarwal, Castro and Evci, "The dormant neuron phenomenon in deep reinforcement learning", ICML 2023.

    Differs from the code of Dohare et al. 2024, which keeps the inner optimizer's statistics (`reset_state=False`), and
    replaces none of a group in which all units are silent; here all of them go.
    """
    inner = with_extra_args(inner)
    frozen = frozen_leaves(inner)
    key = typed_key(_NAME, key)
    check_parts(_NAME, units, initializer)
    warn_of_groups(_NAME, units)
    initializers = {g.name: unit_initializer(initializer, g.activation) for g in units.groups}

    def init(params: Any) -> RedoState:
        weights = network_params(params)
        check_units(units, weights, _NAME)
        age = {g.name: jnp.zeros(g.width, jnp.int32) for g in units.groups}
        none = {g.name: jnp.zeros([], jnp.int32) for g in units.groups}
        activity = {g.name: jnp.zeros(g.width, group_dtype(g, weights)) for g in units.groups}
        start = jax.random.key_data(leaf_key(key, _NAME)), jnp.zeros([], jnp.int32)
        inner_state = count_by_weight(inner.init(params), units, weights)
        return RedoState(inner_state, *start, age, none, activity, empty(log_size, age))

    def choose(group: UnitGroup, activity: jax.Array, params: Any, now: jax.Array, step_key: jax.Array) -> Replacement:
        score = relative_activity(activity)
        index = jnp.argsort(score, stable=True)[:max_replacements].astype(jnp.int32)
        valid = (score[index] <= threshold) & now
        return draw_replacement(group, index, valid, leaf_key(step_key, group.name), initializers[group.name], params)

    def update(
        updates: Any, state: Any, params: Any = None, *, features: Any = None, **extra: Any
    ) -> tuple[Any, RedoState]:
        check_update(_NAME, units, params, features)
        extra["features"] = features
        live = without_frozen(units, frozen(params, extra))
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        eta = {n: jnp.asarray(decay_rate, a.dtype) for n, a in state.activity.items()}
        seen = {g.name: unit_activity(g, features[g.name], axis_name) for g in units.groups}
        counts = all_finite(seen)

        def if_counted(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(counts, n, o), new, old)

        count = if_counted(optax.safe_increment(state.count), state.count)
        now = counts & (count % period == 0)
        age = if_counted(jax.tree.map(optax.safe_increment, state.age), state.age)
        activity = if_counted(
            {n: eta[n] * a + (1.0 - eta[n]) * seen[n] for n, a in state.activity.items()}, state.activity
        )

        def reset() -> Any:
            step_key = jax.random.fold_in(
                jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(key)), state.count
            )
            mean = {n: a / -jnp.expm1(age[n] * jnp.log(eta[n])) for n, a in activity.items()}  # corrected for age
            picks = {g.name: Replacement.of_none() for g in units.groups}
            picks |= {g.name: choose(g, mean[g.name], network_params(params), now, step_key) for g in live.groups}
            edited = replace_units(inner, live, picks, params, updates, inner_state, reset_state)
            gone = {g.name: picks[g.name].mask(g.width) for g in units.groups}
            score = {n: relative_activity(a) for n, a in mean.items()}
            return *edited, gone, record(state.log, state.count, picks, age, score)

        def leave() -> Any:
            return updates, inner_state, {g.name: jnp.zeros(g.width, bool) for g in units.groups}, state.log

        updates, inner_state, gone, log = jax.lax.cond(any_lane(now), reset, leave)
        replaced = add_replaced(state.replaced, gone)
        after = RedoState(inner_state, state.key, count, age, replaced, activity, log)
        return updates, forget_units(after, gone)

    return optax.GradientTransformationExtraArgs(init, update)


REDO_STATIC_ARGS = static_args(redo)
"""Arguments of `redo` that are no numbers: `static_args` of `optax.inject_hyperparams`."""


def unit_activity(group: UnitGroup, feature: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Mean |h| of each unit over the batch and all positions, `[width]`."""
    return jnp.mean(mean_absolute(group, feature, axis_name), axis=1)


def relative_activity(activity: jax.Array) -> jax.Array:
    """ReDo's score: the activity of each unit over the mean of its group, `[width]`; 0 where all are silent.

    NaN where an activity is NaN: such units are not dormant.
    """
    mean = jnp.mean(activity)
    return jnp.where(mean == 0, 0, activity / jnp.where(mean == 0, 1, mean))
