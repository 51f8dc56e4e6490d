"""Self-normalised resets: units that have been silent for longer than they ever are start afresh."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import check_parts, check_update, typed_key, warn_of_groups
from plastic_jax.inner import frozen_leaves, network_params, with_extra_args
from plastic_jax.lanes import any_lane
from plastic_jax.paths import leaf_key
from plastic_jax.replacement.draw import Replacement, draw_replacement
from plastic_jax.replacement.initializers import InitializerName, UnitInitializer, unit_initializer
from plastic_jax.replacement.inner_state import forget_units
from plastic_jax.replacement.replacement_log import empty, record
from plastic_jax.replacement.reset import add_replaced, check_units, replace_units, without_frozen
from plastic_jax.replacement.statistics import all_finite, largest_feature
from plastic_jax.replacement.step_counts import count_by_weight
from plastic_jax.signature import Range, method, static_args
from plastic_jax.units.graph import UnitGraph, UnitGroup

_NAME = "snr"


class SNRState(NamedTuple):
    """State of self-normalised resets; dictionaries are by group name.

    Attributes:
        inner: the inner optimizer's state.
        key: uint32, data of a random key, never changed; step `t` uses `fold_in(key, t)`.
        count: int32 scalar, steps counted; saturates.
        age: int32 `[width]`, steps since a unit was made; saturates.
        replaced: int32 scalar, units replaced so far; saturates.
        silent: int32 `[width]`, steps since a unit was last above 0; saturates.
        limit: float32 `[width]`, steps of silence at which a unit goes.
        histogram: int32 `[width, longest_silence + 1]`, how often a unit's silence ended after so many steps since the
            limits were last estimated.
        log: the last replacements, see `plastic_jax.replacement.replacement_log`; `None` with `log_size=0`.
    """

    inner: Any
    key: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    age: dict[str, jax.Array]
    replaced: dict[str, jax.Array]
    silent: dict[str, jax.Array]
    limit: dict[str, jax.Array]
    histogram: dict[str, jax.Array]
    log: Any = None

    per_unit = ("age", "silent")  # what a replaced unit starts with at 0


@method("features")
def snr(
    inner: optax.GradientTransformation,
    units: UnitGraph,
    *,
    percentile: Annotated[float | jax.Array, Range(0, 1)] = 0.98,
    period: Annotated[int | jax.Array, Range(1, 2**31 - 1)] = 1000,
    initial_limit: Annotated[float | jax.Array, Range(0)] = 100.0,
    least_limit: Annotated[float | jax.Array, Range(0)] = 1.0,
    longest_silence: Annotated[int, Range(1)] = 1000,
    expansion: Annotated[float | jax.Array, Range(1)] = 2.0,
    initializer: InitializerName | UnitInitializer = "kaiming_uniform",
    key: jax.Array,
    reset_state: bool = True,
    axis_name: str | None = None,
    log_size: Annotated[int, Range(0)] = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces every unit that has been silent for longer than is likely by its own record of silences.

    A unit is silent at a step if its value is at most 0 for every example of the batch, at every position. With `a` the
    steps since it was last not, at every step

        not silent: H[a] <- H[a] + 1, a <- 0;   silent: a <- a + 1;   a >= T: the unit is replaced, H[a] <- H[a] + 1

    and every `period` steps, with `q` the smallest length `j >= 1` up to which there are at least the share
    `percentile` of the silences of length 1 or more in H,

        T <- q if q < T, else expansion * T;   T <- min(max(T, least_limit), longest_silence);   H <- 0

    with `q = 0` where there was no silence. A replaced unit gets incoming weights from `initializer`, bias 0, outgoing
    weights 0, and the inner optimizer's statistics of these weights as `inner.init` has them. So each unit is its own
    norm: the one that often rests may rest, and a unit that never did goes after `least_limit` silent steps.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from plastic_jax import MLP, snr, trace_units
        >>> network, x = MLP(widths=(8,), outputs=1), jnp.linspace(-1, 1, 16)[:, None]
        >>> params = network.init(jax.random.key(0), x)["params"]
        >>> params["Dense_0"]["bias"] = params["Dense_0"]["bias"].at[3].set(-100.0)  # silent for every input
        >>> units = trace_units(lambda params, x: network.apply({"params": params}, x), params, x)
        >>> tx = snr(optax.sgd(0.1), units, initial_limit=2, key=jax.random.key(1))
        >>> state, features = tx.init(params), units.apply(params, x)[1]
        >>> for _ in range(2):
        ...     _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params, features=features)
        >>> state.age["Dense_0"].tolist()  # 0: new
        [2, 2, 2, 0, 2, 2, 2, 2]

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph of the model.
        percentile: share of a unit's silences that its limit is to cover, in [0, 1]: 1 minus the level of the test.
        period: steps between two estimates of the limits, at least 1; in the published code some tasks.
        initial_limit: the limit `T` before the first estimate, in steps.
        least_limit: the smallest limit, in steps; at least one silent step is needed in any case.
        longest_silence: the largest limit, in steps; every unit keeps a histogram of this length.
        expansion: factor by which a limit grows that its estimate is not below; at least 1.
        initializer: a name, see `plastic_jax.Initializer`, or a `UnitInitializer`.
        key: typed random key.
        reset_state: whether the inner optimizer's statistics of a replaced unit start afresh.
        axis_name: name of a mapped axis (devices, each with an equal part of the batch) over which a unit has to be
            silent; the gradients come averaged already.
        log_size: replacements kept in the state, see `plastic_jax.replacement.replacement_log`; 0 keeps none.

    `update` needs `params` and the extra argument `features`, by group name; others are handed to `inner`. Features
    that are not finite do not count. At steps at which nothing goes the updates are those of `inner`, bit for bit.

    For `optax.inject_hyperparams`, which must leave the arguments that are no numbers as they are:
    `optax.inject_hyperparams(snr, SNR_STATIC_ARGS)(inner=inner, units=units, ...)`.

    Raises:
        ValueError: a number is outside its range, a name is unknown, or the graph does not fit the parameters.

    References:
        Farias and Jozefiak, "Self-normalized resets for plasticity in continual learning", ICLR 2025.

    Differs from the published code, which counts examples where this counts steps (its thresholds are these times the
    batch size), has a least threshold of 100 examples, and looks at pre-activations, whose sign is that of ReLU,
    leaky ReLU and tanh units. Its Adam has one step count (`optax.adam`).
    """
    inner = with_extra_args(inner)
    frozen = frozen_leaves(inner)
    key = typed_key(_NAME, key)
    check_parts(_NAME, units, initializer)
    warn_of_groups(_NAME, units)
    initializers = {g.name: unit_initializer(initializer, g.activation) for g in units.groups}

    def init(params: Any) -> SNRState:
        check_units(units, network_params(params), _NAME)
        widths = {g.name: g.width for g in units.groups}
        first = jnp.asarray(initial_limit, jnp.float32)
        return SNRState(
            inner=count_by_weight(inner.init(params), units, network_params(params)),
            key=jax.random.key_data(leaf_key(key, _NAME)),
            count=jnp.zeros([], jnp.int32),
            age={n: jnp.zeros(w, jnp.int32) for n, w in widths.items()},
            replaced={n: jnp.zeros([], jnp.int32) for n in widths},
            silent={n: jnp.zeros(w, jnp.int32) for n, w in widths.items()},
            limit={n: jnp.full(w, first, jnp.float32) for n, w in widths.items()},
            histogram={n: jnp.zeros((w, longest_silence + 1), jnp.int32) for n, w in widths.items()},
            log=empty(log_size, widths),
        )

    def ended(histogram: jax.Array, silent: jax.Array, which: jax.Array) -> jax.Array:
        """The histogram with the silences of the units `which`; longer ones than it has are not counted."""
        place = jnp.where(which, silent, longest_silence + 1)
        return histogram.at[jnp.arange(len(silent)), place].add(1, mode="drop")

    def estimated(limit: jax.Array, histogram: jax.Array) -> jax.Array:
        so_far = jnp.cumsum(histogram[:, 1:], axis=1)
        total = so_far[:, -1:]
        covers = so_far / jnp.maximum(total, 1) >= percentile
        quantile = jnp.where(total[:, 0] > 0, 1 + jnp.argmax(covers, axis=1), 0).astype(limit.dtype)
        new = jnp.where(quantile < limit, quantile, expansion * limit)
        return jnp.clip(new, least_limit, longest_silence).astype(limit.dtype)

    def draw(group: UnitGroup, gone: jax.Array, params: Any, step_key: jax.Array) -> Replacement:
        index = jnp.arange(group.width, dtype=jnp.int32)
        return draw_replacement(group, index, gone, leaf_key(step_key, group.name), initializers[group.name], params)

    def update(
        updates: Any, state: Any, params: Any = None, *, features: Any = None, **extra: Any
    ) -> tuple[Any, SNRState]:
        check_update(_NAME, units, params, features)
        extra["features"] = features
        live = without_frozen(units, frozen(params, extra))
        living = {g.name for g in live.groups}
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        largest = {g.name: largest_feature(g, features[g.name], axis_name) for g in units.groups}
        counts = all_finite(largest)
        count = jnp.where(counts, optax.safe_increment(state.count), state.count)
        age, silent, histogram, due = {}, {}, {}, {}
        for n, before in state.silent.items():
            fires = counts & (largest[n] > 0)
            age[n] = jnp.where(counts, optax.safe_increment(state.age[n]), state.age[n])
            silent[n] = jnp.where(fires, 0, jnp.where(counts, optax.safe_increment(before), before))
            due[n] = counts & (silent[n] > 0) & (silent[n] >= state.limit[n]) & (n in living)
            histogram[n] = ended(state.histogram[n], jnp.where(fires, before, silent[n]), fires | due[n])
        any_due = jnp.any(jnp.concatenate(list(due.values()))) if due else jnp.zeros([], bool)

        def reset() -> Any:
            typed = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(key))
            step_key = jax.random.fold_in(typed, state.count)
            picks = {g.name: Replacement.of_none() for g in units.groups}
            picks |= {g.name: draw(g, due[g.name], network_params(params), step_key) for g in live.groups}
            edited = replace_units(inner, live, picks, params, updates, inner_state, reset_state)
            return *edited, record(state.log, state.count, picks, age, silent)

        updates, inner_state, log = jax.lax.cond(any_lane(any_due), reset, lambda: (updates, inner_state, state.log))
        now = counts & (count % period == 0)
        limit, histogram = jax.lax.cond(
            any_lane(now),
            lambda: (
                {n: jnp.where(now, estimated(old, histogram[n]), old) for n, old in state.limit.items()},
                {n: jnp.where(now, 0, h) for n, h in histogram.items()},
            ),
            lambda: (state.limit, histogram),
        )
        replaced = add_replaced(state.replaced, due)
        after = SNRState(inner_state, state.key, count, age, replaced, silent, limit, histogram, log)
        return updates, forget_units(after, due)

    return optax.GradientTransformationExtraArgs(init, update)


SNR_STATIC_ARGS = static_args(snr)
"""Arguments of `snr` that are no numbers: `static_args` of `optax.inject_hyperparams`."""
