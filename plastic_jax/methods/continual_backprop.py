"""Continual backprop: gradient descent that never stops initialising."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import check_parts, check_update, typed_key, warn_of_groups
from plastic_jax.inner import frozen_leaves, network_params, with_extra_args
from plastic_jax.lanes import any_lane
from plastic_jax.paths import leaf_key
from plastic_jax.replacement.counting import CountRule, expected_replacements, owed
from plastic_jax.replacement.draw import Replacement, choose_and_draw
from plastic_jax.replacement.initializers import InitializerName, UnitInitializer, unit_initializer
from plastic_jax.replacement.inner_state import forget_units
from plastic_jax.replacement.propagation import outgoing_gradient, recursive_worth
from plastic_jax.replacement.replacement_log import ReplacementLog, empty, record
from plastic_jax.replacement.reset import (
    add_replaced,
    add_to_leaves,
    check_units,
    replace_units,
    transferred_bias,
    without_frozen,
)
from plastic_jax.replacement.statistics import all_finite, group_dtype, mean_absolute, mean_feature, unit_stats
from plastic_jax.replacement.step_counts import count_by_weight
from plastic_jax.replacement.utility import UnitStats, Utility, UtilityName, unit_utility
from plastic_jax.signature import Range, method, static_args
from plastic_jax.units.graph import UnitGraph, UnitGroup

_NAME = "continual_backprop"


class ContinualBackpropState(NamedTuple):
    """State of continual backprop; dictionaries are by group name.

    Attributes:
        inner: the inner optimizer's state.
        key: uint32, data of a random key, never changed; step `t` uses `fold_in(key, t)`.
        count: int32 scalar, steps counted; saturates.
        age: int32 `[width]`, steps since a unit was made; saturates.
        utility: float `[width]`, running average of the measure, not corrected for age.
        mean_activation: float `[width, copies]`, running average of the unit's value, not corrected for age.
        accumulator: float `[2]`, the fraction of a replacement that is owed, and the rounding error of that sum.
        replaced: int32 scalar, units replaced so far; saturates.
        lifetime_absolute: float `[width, copies]`, sum of (1 - eta) E|h| over all steps, which replacement does not
            touch; `{}` where the measure does not need it.
        log: the last replacements, see `plastic_jax.replacement.replacement_log`; `None` with `log_size=0`.
    """

    inner: Any
    key: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    age: dict[str, jax.Array]
    utility: dict[str, jax.Array]
    mean_activation: dict[str, jax.Array]
    accumulator: dict[str, jax.Array]
    replaced: dict[str, jax.Array]
    lifetime_absolute: dict[str, jax.Array]
    log: Any = None

    per_unit = ("age", "utility", "mean_activation")  # what a replaced unit starts with at 0


class _Averages(NamedTuple):
    """Running averages by group name, as in the state."""

    utility: dict[str, jax.Array]
    mean_activation: dict[str, jax.Array]
    lifetime_absolute: dict[str, jax.Array]


class _Step(NamedTuple):
    """A step before anything is replaced: weights and gradients before it, weights after it, features, its key."""

    params: Any
    new_params: Any
    gradients: Any
    features: Any
    key: Callable[[], jax.Array]


class _Seen(NamedTuple):
    """What one group knows after looking at a step: its ages, and how many units go.

    `correction` is `1 - eta^a`, or 1: what the running averages are divided by.
    """

    age: jax.Array
    correction: jax.Array
    accumulator: jax.Array
    due: jax.Array


@method("features")
def continual_backprop(
    inner: optax.GradientTransformation,
    units: UnitGraph,
    *,
    replacement_rate: Annotated[float | jax.Array, Range(0, 1)] = 1e-4,
    maturity_threshold: Annotated[int | jax.Array, Range(0, 2**31 - 1)] = 100,
    decay_rate: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.99,
    utility: UtilityName | Utility = "contribution",
    initializer: InitializerName | UnitInitializer = "kaiming_uniform",
    key: jax.Array,
    max_replacements: Annotated[int, Range(1)] = 1,
    utility_every: Annotated[int, Range(1)] = 1,
    count: Literal["accumulate", "bernoulli"] | CountRule = "accumulate",
    count_units: Literal["eligible", "all"] = "eligible",
    reset_state: bool = True,
    transfer_bias: bool = False,
    age_correction: bool = True,
    axis_name: str | None = None,
    log_size: Annotated[int, Range(0)] = 0,
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
        >>> from plastic_jax import MLP, continual_backprop, trace_units
        >>> network = MLP(widths=(8,), outputs=1)
        >>> x = jnp.linspace(-1, 1, 16)[:, None]
        >>> params = network.init(jax.random.key(0), x)
        >>> units = trace_units(network.apply, params, x)
        >>> tx = continual_backprop(optax.sgd(0.1), units, replacement_rate=1e-3, key=jax.random.key(1))
        >>> state = tx.init(params)
        >>> def loss(params):
        ...     y, features = units.apply(params, x)
        ...     return jnp.mean((y - x**2) ** 2), features
        >>> @jax.jit
        ... def step(params, state):
        ...     grads, features = jax.grad(loss, has_aux=True)(params)
        ...     updates, state = tx.update(grads, state, params, features=features)
        ...     return optax.apply_updates(params, updates), state
        >>> for _ in range(200):
        ...     params, state = step(params, state)
        >>> print(bool(loss(params)[0] < 0.01))
        True

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph of the model.
        replacement_rate: units replaced per step, as a share of the eligible ones; in [0, 1].
        maturity_threshold: steps that a unit is protected after it was made; at least 0.
        decay_rate: `eta`, in [0, 1).
        utility: the name of a measure in `plastic_jax.utility`, or a `Utility`.
        initializer: a name, see `plastic_jax.Initializer`, or a `UnitInitializer`.
        key: typed random key.
        max_replacements: bound on units replaced per group and step; what exceeds it is owed to later steps.
        utility_every: measure utility only at every `k`-th step, counting the measurement `k` times (an approximation
            that saves its cost; with an unbatched extra argument `clock` also under `vmap`).
        count: `"accumulate"`: owed fractions are added up; `"bernoulli"`: a fraction below one is drawn, of a number
            above one the fraction is lost; or a function `(key, owed) -> number`.
        count_units: whether the rate is a share of the eligible units, or of all units once one of them is eligible.
        reset_state: whether the inner optimizer's statistics of a replaced unit start afresh.
        transfer_bias: whether the next layer's bias takes over a removed unit's mean contribution.
        age_correction: whether running averages are divided by `1 - eta^a`; if not, young units look less useful.
        axis_name: name of a mapped axis (devices, each with an equal part of the batch) over which the means over the
            batch are averaged, so that the same units go on every device; the gradients come averaged already.
        log_size: replacements kept in the state, see `plastic_jax.replacement.replacement_log`; 0 keeps none.

    `update` needs `params` and the extra argument `features`, by group name; `clock` is optional, others are ignored.

    For `optax.inject_hyperparams`, which must leave the arguments that are no numbers as they are:
    `optax.inject_hyperparams(continual_backprop, CONTINUAL_BACKPROP_STATIC_ARGS)(inner=inner, units=units, ...)`.

    Returns:
        The transformation. With rate 0 its updates are those of `inner`, bit for bit.

    Raises:
        ValueError: a number is outside its range, a name is unknown, or the graph does not fit the parameters.

    References:
        Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024.

    Differs from the published code: there the transfer of the mean contribution to the next bias is always 0, the
    inner optimizer's statistics are kept (except in one variant of Adam), and owed fractions are drawn by default.
    Those are `transfer_bias=False` (default), `reset_state=False` and `count="bernoulli"`. For convolutional and
    residual networks it counts all units (`count_units="all"`), and for residual networks its utility is
    `"lifetime_contribution"`.
    """
    inner = with_extra_args(inner)
    frozen = frozen_leaves(inner)
    key = typed_key(_NAME, key)
    check_parts(_NAME, units, initializer)
    warn_of_groups(_NAME, units)
    measure = unit_utility(utility)
    bounds = {g.name: min(max_replacements, g.width) for g in units.groups}
    initializers = {g.name: unit_initializer(initializer, g.activation) for g in units.groups}

    def init(params: Any) -> ContinualBackpropState:
        check_units(units, network_params(params), _NAME)
        groups = {g.name: g for g in units.groups}
        dtype = {n: group_dtype(g, network_params(params)) for n, g in groups.items()}
        return ContinualBackpropState(
            inner=count_by_weight(inner.init(params), units, network_params(params)),
            key=jax.random.key_data(leaf_key(key, _NAME)),  # its own: donating the state leaves the caller's alone
            count=jnp.zeros([], jnp.int32),
            age={n: jnp.zeros(g.width, jnp.int32) for n, g in groups.items()},
            utility={n: jnp.zeros(g.width, dtype[n]) for n, g in groups.items()},
            mean_activation={n: jnp.zeros((g.width, g.copies), dtype[n]) for n, g in groups.items()},
            accumulator={n: jnp.zeros(2, dtype[n]) for n in groups},
            replaced={n: jnp.zeros([], jnp.int32) for n in groups},
            lifetime_absolute={
                n: jnp.zeros((g.width, g.copies), dtype[n])
                for n, g in groups.items()
                if "lifetime_absolute" in measure.needs
            },
            log=empty(log_size, groups),
        )

    def look(group: UnitGroup, state: ContinualBackpropState, step: _Step) -> _Seen:
        """Ages the group, and says how many of its units are due."""
        name = group.name
        age = jnp.asarray(optax.safe_increment(state.age[name]))
        dtype = state.utility[name].dtype
        correction = -jnp.expm1(age * jnp.log(jnp.asarray(decay_rate, dtype)))  # exact for young units too
        correction = correction if age_correction else jnp.ones_like(correction)
        eligible = jnp.sum(age > maturity_threshold, dtype=jnp.int32)
        expected = expected_replacements(jnp.asarray(replacement_rate, dtype), eligible, group.width, count_units)
        most = jnp.minimum(eligible, bounds[name])
        return _Seen(age, correction, *owed(count, state.accumulator[name], expected, most, leaf_key(step.key(), name)))

    def measured(step: _Step, means: dict[str, jax.Array], lifetime: dict[str, jax.Array]) -> dict[str, Any]:
        """The measure of every unit's usefulness at this step."""

        def look_at(g: UnitGroup) -> UnitStats:
            key = leaf_key(leaf_key(step.key(), g.name), "measure")
            return unit_stats(g, step.new_params, step.features[g.name], means[g.name], key, axis_name)

        stats = {g.name: look_at(g) for g in units.groups}
        stats = {n: s._replace(lifetime_absolute=lifetime.get(n)) for n, s in stats.items()}
        if "outgoing_gradient" in measure.needs:
            sums = {g.name: outgoing_gradient(g, step.params, step.gradients) for g in units.groups}
            stats = {n: s._replace(outgoing_gradient=sums[n]) for n, s in stats.items()}
        if "worth" in measure.needs:
            activity = {n: s.mean_absolute_centred for n, s in stats.items()}
            worth = recursive_worth(units, step.new_params, activity)
            stats = {n: s._replace(worth=worth[n]) for n, s in stats.items()}
        return {n: jnp.mean(measure(s), axis=1) for n, s in stats.items()}

    def averages(
        step: _Step, old: _Averages, seen: dict[str, _Seen]
    ) -> tuple[_Averages, jax.Array, dict[str, jax.Array]]:
        """The averages with this step in them, counted `utility_every` times; whether it counts; who has a rank.

        A step with features that are not finite does not count. A unit whose measure is NaN keeps its average and has
        no rank.
        """
        eta = {n: jnp.asarray(decay_rate, u.dtype) for n, u in old.utility.items()}
        keep = {n: e**utility_every for n, e in eta.items()}

        means = {g.name: mean_feature(g, step.features[g.name], axis_name) for g in units.groups}
        finite = all_finite(means)

        def mix(before: dict[str, jax.Array], now: dict[str, jax.Array]) -> dict[str, jax.Array]:
            mixed = {n: keep[n] * b + (1.0 - keep[n]) * now[n] for n, b in before.items()}
            return {n: jnp.where(finite & ~jnp.isnan(now[n]), mixed[n], b) for n, b in before.items()}

        mean_activation = mix(old.mean_activation, means)
        lifetime = {}
        for g in (g for g in units.groups if g.name in old.lifetime_absolute):
            now = utility_every * (1.0 - eta[g.name]) * mean_absolute(g, step.features[g.name], axis_name)
            lifetime[g.name] = old.lifetime_absolute[g.name] + jnp.where(finite, now, 0.0)
        utility, ranked = old.utility, {}
        if measure.averaged:
            now = measured(step, _corrected(mean_activation, seen), lifetime)
            utility, ranked = mix(old.utility, now), {n: ~jnp.isnan(y) for n, y in now.items()}
        return _Averages(utility, mean_activation, lifetime), finite, ranked

    def choose(age: jax.Array, due: jax.Array, ranking: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The eligible units of lowest rank, as many as are due."""
        # An infinite utility still ranks before the units that may not go: the young ones, and those of utility NaN.
        may_go = (age > maturity_threshold) & ~jnp.isnan(ranking)
        ranking = jnp.where(may_go, jnp.nan_to_num(ranking), jnp.inf)
        n = min(max_replacements, len(age))
        index = jnp.argmin(ranking)[None] if n == 1 else jnp.argsort(ranking, stable=True)[:n]
        return index.astype(jnp.int32), (jnp.arange(n) < due) & may_go[index]

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        features: Any = None,
        clock: Any = None,
        **extra: Any,
    ) -> tuple[Any, ContinualBackpropState]:
        check_update(_NAME, units, params, features)
        extra |= {"features": features, "clock": clock}
        live = without_frozen(units, frozen(params, extra))
        living = {g.name for g in live.groups}
        gradients = updates
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        weights, new_weights = network_params(params), network_params(optax.apply_updates(params, updates))
        now = (state.count if clock is None else clock) % utility_every == 0
        typed = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(key))

        def step_key() -> jax.Array:
            # Made anew in every branch that draws: handed in, it would be computed at every step.
            return jax.random.fold_in(typed, state.count)

        step = _Step(weights, new_weights, gradients, features, step_key)
        seen = {g.name: look(g, state, step) for g in units.groups}
        old = _Averages(state.utility, state.mean_activation, state.lifetime_absolute)
        if utility_every == 1:
            new, counts, ranked = averages(step, old, seen)
        else:
            all_ranked = {n: jnp.ones(u.shape, bool) for n, u in old.utility.items()} if measure.averaged else {}
            as_before = old, jnp.ones([], bool), all_ranked
            new, counts, ranked = jax.lax.cond(now, lambda: averages(step, old, seen), lambda: as_before)
        due = {n: counts & (s.due > 0) for n, s in seen.items() if n in living}

        def some() -> tuple[dict[str, Replacement], dict[str, jax.Array], ReplacementLog | None]:
            means = _corrected(new.mean_activation, seen)
            if measure.averaged:
                ranking = {n: jnp.where(ranked[n], new.utility[n] / s.correction, jnp.nan) for n, s in seen.items()}
            else:
                ranking = measured(step, means, new.lifetime_absolute)
            known = {n: (seen[n].age, jnp.where(counts, seen[n].due, 0), ranking[n]) for n in living}
            picks = {g.name: Replacement.of_none() for g in units.groups}
            picks |= choose_and_draw(live.groups, choose, known, step.key(), initializers, step.new_params)
            gains = transferred_bias(live, picks, new_weights, means) if transfer_bias else {}
            return picks, gains, record(state.log, state.count, picks, {n: s.age for n, s in seen.items()}, ranking)

        def none() -> tuple[dict[str, Replacement], dict[str, jax.Array], ReplacementLog | None]:
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(some)[:2])
            return *nothing, state.log

        any_due = jnp.any(jnp.stack(list(due.values()))) if due else jnp.zeros([], bool)
        replacements, gains, log = jax.lax.cond(any_lane(any_due), some, none)
        updates, inner_state = replace_units(
            inner, live, replacements, params, add_to_leaves(updates, gains), inner_state, reset_state
        )
        return updates, _next_state(state, inner_state, seen, new, counts, replacements, log)

    return optax.GradientTransformationExtraArgs(init, update)


CONTINUAL_BACKPROP_STATIC_ARGS = static_args(continual_backprop)
"""Arguments of `continual_backprop` that are no numbers: `static_args` of `optax.inject_hyperparams`."""


def _next_state(
    state: ContinualBackpropState,
    inner_state: Any,
    seen: dict[str, _Seen],
    new: _Averages,
    counts: jax.Array,
    replacements: dict[str, Replacement],
    log: ReplacementLog | None,
) -> ContinualBackpropState:
    gone = {n: replacements[n].mask(len(age)) for n, age in state.age.items()}
    after = state._replace(
        inner=inner_state,
        count=jnp.where(counts, optax.safe_increment(state.count), state.count),
        age={n: jnp.where(counts, s.age, state.age[n]) for n, s in seen.items()},
        utility=new.utility,
        mean_activation=new.mean_activation,
        accumulator={n: jnp.where(counts, s.accumulator, state.accumulator[n]) for n, s in seen.items()},
        replaced=add_replaced(state.replaced, gone),
        lifetime_absolute=new.lifetime_absolute,
        log=log,
    )
    return forget_units(after, gone)


def _corrected(averages: dict[str, jax.Array], seen: dict[str, _Seen]) -> dict[str, jax.Array]:
    """Running means `[width, copies]`, corrected for age."""
    return {n: average / seen[n].correction[:, None] for n, average in averages.items()}
