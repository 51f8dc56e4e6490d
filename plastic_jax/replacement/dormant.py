"""Recycling dormant units, whatever their activity is measured by: shared by ReDo and ReGraMa."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import check_parts, typed_key, warn_of_groups
from plastic_jax.inner import frozen_leaves, network_params, with_extra_args
from plastic_jax.lanes import any_lane
from plastic_jax.paths import leaf_key
from plastic_jax.replacement.draw import Replacement, draw_replacement
from plastic_jax.replacement.initializers import UnitInitializer, unit_initializer
from plastic_jax.replacement.inner_state import forget_units, restart_counts
from plastic_jax.replacement.replacement_log import empty, record
from plastic_jax.replacement.reset import add_replaced, check_units, replace_units, without_frozen
from plastic_jax.replacement.statistics import all_finite, group_dtype
from plastic_jax.replacement.step_counts import count_by_weight
from plastic_jax.units.graph import UnitGraph, UnitGroup

Number = float | jax.Array
Measure = Callable[[Any, Any, Mapping[str, Any]], dict[str, jax.Array]]
"""`(gradients, params, extra arguments) -> activity`, float `[width]` by group name."""


class DormantState(NamedTuple):
    """State of a method that recycles dormant units; dictionaries are by group name.

    Attributes:
        inner: the inner optimizer's state.
        key: uint32, data of a random key, never changed; step `t` uses `fold_in(key, t)`.
        count: int32 scalar, steps counted; saturates.
        age: int32 `[width]`, steps since a unit was made; saturates.
        replaced: int32 scalar, units replaced so far; saturates.
        activity: float `[width]`, running average of what the method measures, not corrected for age.
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


def recycle_dormant_units(
    name: str,
    inner: optax.GradientTransformation,
    units: UnitGraph,
    measure: Measure,
    *,
    threshold: Number,
    period: int | jax.Array,
    decay_rate: Number,
    initializer: str | UnitInitializer,
    key: jax.Array,
    max_replacements: int | None,
    reset_state: bool,
    log_size: int,
    bias_initializer: str | UnitInitializer = "zero",
    zero_last: bool = False,
    reset_bias_state: bool = True,
    reset_counts: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The transformation that every `period` steps replaces units whose relative activity is at most `threshold`.

    Args:
        name: of the method, for errors.
        inner, units, threshold, period, decay_rate, initializer, key, max_replacements, reset_state, log_size: as in
            `plastic_jax.redo`.
        measure: what activity is.
        bias_initializer, zero_last, reset_bias_state, reset_counts: as in `plastic_jax.redo`.
    """
    inner = with_extra_args(inner)
    frozen = frozen_leaves(inner)
    key = typed_key(name, key)
    check_parts(name, units, initializer)
    warn_of_groups(name, units)
    initializers = {g.name: unit_initializer(initializer, g.activation) for g in units.groups}
    of_bias = {
        g.name: None if bias_initializer == "zero" else unit_initializer(bias_initializer, g.activation)
        for g in units.groups
    }

    def init(params: Any) -> DormantState:
        check_units(units, network_params(params), name)
        widths = {g.name: g.width for g in units.groups}
        return DormantState(
            inner=count_by_weight(inner.init(params), units, network_params(params)),
            key=jax.random.key_data(leaf_key(key, name)),  # its own: donating the state leaves the caller's alone
            count=jnp.zeros([], jnp.int32),
            age={n: jnp.zeros(w, jnp.int32) for n, w in widths.items()},
            replaced={n: jnp.zeros([], jnp.int32) for n in widths},
            activity={g.name: jnp.zeros(g.width, group_dtype(g, network_params(params))) for g in units.groups},
            log=empty(log_size, widths),
        )

    def choose(group: UnitGroup, activity: jax.Array, params: Any, now: jax.Array, step_key: jax.Array) -> Replacement:
        score = relative_activity(activity)
        index = jnp.argsort(score, stable=True)[:max_replacements].astype(jnp.int32)
        valid = (score[index] <= threshold) & now
        own = leaf_key(step_key, group.name)
        return draw_replacement(group, index, valid, own, initializers[group.name], params, of_bias[group.name])

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, DormantState]:
        seen = measure(updates, params, extra)
        live = without_frozen(units, frozen(params, extra))
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        eta = {n: jnp.asarray(decay_rate, a.dtype) for n, a in state.activity.items()}
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
            how = {"zero_last": zero_last, "reset_bias_state": reset_bias_state}
            edited, after = replace_units(inner, live, picks, params, updates, inner_state, reset_state, **how)
            if reset_counts:
                after = restart_counts(inner, live, after, params, now)
            gone = {g.name: picks[g.name].mask(g.width) for g in units.groups}
            score = {n: relative_activity(a) for n, a in mean.items()}
            return edited, after, gone, record(state.log, state.count, picks, age, score)

        def leave() -> Any:
            return updates, inner_state, {g.name: jnp.zeros(g.width, bool) for g in units.groups}, state.log

        updates, inner_state, gone, log = jax.lax.cond(any_lane(now), reset, leave)
        replaced = add_replaced(state.replaced, gone)
        after = DormantState(inner_state, state.key, count, age, replaced, activity, log)
        return updates, forget_units(after, gone)

    return optax.GradientTransformationExtraArgs(init, update)


def relative_activity(activity: jax.Array, least: float = 0.0) -> jax.Array:
    """The activity of each unit over the mean of its group, `[width]`; 0 where all are silent.

    NaN where an activity is NaN: such units are not dormant. `least` is added to the mean.
    """
    mean = jnp.mean(activity) + least
    return jnp.where(mean == 0, 0, activity / jnp.where(mean == 0, 1, mean))
