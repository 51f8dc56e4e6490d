from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from plastic_jax import CONTINUAL_BACKPROP_STATIC_ARGS, MLP, UTILITIES, Initializer, Utility, trace_units
from plastic_jax import continual_backprop as typed_continual_backprop
from plastic_jax.optimizers.adam import adam

continual_backprop: Any = typed_continual_backprop  # the tests also give it what its types forbid

KEY = jax.random.key(3)
NETWORK = MLP(widths=(4, 3), outputs=2)
X = jax.random.normal(jax.random.key(0), (5, 6))
PARAMS: Any = jax.tree.map(lambda p: p + 0.1, NETWORK.init(jax.random.key(1), X)["params"])


def units_of(network, params, x):
    return trace_units(lambda params, x: network.apply({"params": params}, x), params, x)


UNITS = units_of(NETWORK, PARAMS, X)
FEATURES: Any = UNITS.apply(PARAMS, X)[1]
ZEROS: Any = jax.tree.map(jnp.zeros_like, PARAMS)
NAMES = ("Dense_0", "Dense_1")
ROWS = Initializer("kaiming_uniform", 2**0.5, linspace=True)


def make(inner=None, units=UNITS, **change: Any) -> Any:
    arguments = {"replacement_rate": 1e-7, "maturity_threshold": 0, "decay_rate": 0.5, "initializer": ROWS, "key": KEY}
    return continual_backprop(inner or optax.sgd(0.1), units, **(arguments | change))


def run(tx, steps, features=FEATURES, state=None, **extra) -> Any:
    """States after each of `steps` updates under a gradient of 0 and the same features (axis 0: step)."""

    def step(state, clock):
        more = {name: value(clock) for name, value in extra.items()}
        _, state = tx.update(ZEROS, state, PARAMS, features=features, **more)
        return state, state

    return jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(steps))[1])(state or tx.init(PARAMS))


def owing(tx, amounts=(1.0, 1.0), lowest=(2, 1), **fields) -> Any:
    """A state in which `amounts` units are owed by each layer and unit `lowest` of each is the least useful."""
    state = tx.init(PARAMS)
    utility = {n: state.utility[n].at[:].set(1e6).at[u].set(-1e6) for n, u in zip(NAMES, lowest, strict=True)}
    accumulator = {n: jnp.array([a, 0.0]) for n, a in zip(NAMES, amounts, strict=True)}
    return state._replace(utility=utility, accumulator=accumulator, **fields)


def one_step(tx, state, params=PARAMS, gradient=ZEROS, features=FEATURES) -> tuple[Any, Any]:
    updates, state = jax.jit(tx.update)(gradient, state, params, features=features)
    return optax.apply_updates(params, updates), state


def replaced_steps(states, name="Dense_0"):
    """Rows (step, unit)."""
    return np.argwhere(np.asarray(states.age[name]) == 0)


# -- statistics


def test_averages_are_those_of_the_equations():
    states = run(make(), 3)
    for name, reader in (("Dense_0", "Dense_1"), ("Dense_1", "Dense_2")):
        mean = np.mean(FEATURES[name], 0)
        outgoing = np.abs(PARAMS[reader]["kernel"]).mean(1)
        shares = 1 - 0.5 ** np.arange(1, 4)
        np.testing.assert_array_equal(states.age[name], np.outer([1, 2, 3], np.ones(len(mean))))
        np.testing.assert_allclose(states.mean_activation[name][..., 0], np.outer(shares, mean), rtol=1e-5)
        contribution = outgoing * np.abs(FEATURES[name]).mean(0)
        np.testing.assert_allclose(states.utility[name], np.outer(shares, contribution), rtol=1e-5)
    np.testing.assert_array_equal(states.count, [1, 2, 3])


def test_weights_are_those_after_inners_step_and_the_activation_those_before():
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    params, state = one_step(make(optax.sgd(0.5)), make(optax.sgd(0.5)).init(PARAMS), gradient=gradient)
    expected = np.abs(params["Dense_2"]["kernel"]).mean(1) * np.abs(FEATURES["Dense_1"]).mean(0)
    np.testing.assert_allclose(state.utility["Dense_1"], 0.5 * expected, rtol=1e-5)


def test_decay_rate_zero_looks_at_the_last_step_only():
    states = run(make(decay_rate=0.0), 2)
    np.testing.assert_allclose(states.mean_activation["Dense_1"][1, :, 0], np.mean(FEATURES["Dense_1"], 0), rtol=1e-6)


@pytest.mark.parametrize("utility", ["contribution", "adaptable_contribution"])
def test_statistics_over_a_mapped_axis_are_those_of_the_joined_batch(utility):
    halves = {n: jnp.stack([h[:2], h[2:4]]) for n, h in FEATURES.items()}
    joined = {n: h[:4] for n, h in FEATURES.items()}
    mapped = make(utility=utility, axis_name="device")
    update = jax.vmap(lambda f: mapped.update(ZEROS, mapped.init(PARAMS), PARAMS, features=f)[1], axis_name="device")
    ours, whole = jax.jit(update)(halves), run(make(utility=utility), 1, joined)
    for name in NAMES:
        for device in range(2):
            np.testing.assert_allclose(ours.utility[name][device], whole.utility[name][0], rtol=1e-5)
            np.testing.assert_allclose(ours.mean_activation[name][device], whole.mean_activation[name][0], rtol=1e-5)


def test_utility_every_counts_a_measurement_several_times_and_looks_at_no_other_step():
    always = run(make(), 6)

    def features_of(clock):
        return {n: jnp.where(clock % 3 == 0, h, jnp.nan) for n, h in FEATURES.items()}

    tx = make(utility_every=3)

    def step(state, clock):
        _, state = tx.update(ZEROS, state, PARAMS, features=features_of(clock), clock=clock)
        return state, state

    _, seldom = jax.jit(lambda: jax.lax.scan(step, tx.init(PARAMS), jnp.arange(6)))()
    for name in NAMES:
        for at in (2, 5):
            np.testing.assert_allclose(seldom.utility[name][at], always.utility[name][at], rtol=1e-5)
            np.testing.assert_allclose(seldom.mean_activation[name][at], always.mean_activation[name][at], rtol=1e-5)
        np.testing.assert_array_equal(seldom.age[name], always.age[name])


def test_seldom_measurement_and_rare_replacement_stay_branches_under_vmap():
    tx = make(utility_every=4, replacement_rate=1e-3, initializer="kaiming_uniform")
    states = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(2))

    def update(state, clock):
        return tx.update(ZEROS, state, PARAMS, features=FEATURES, clock=clock)

    jaxpr = jax.make_jaxpr(jax.vmap(update, (0, None)))(states, jnp.int32(0))
    outside = [equation.primitive.name for equation in jaxpr.eqns]
    assert outside.count("cond") == 2
    assert not {"random_bits", "argmin", "sort"} & set(outside)


def test_the_program_that_draws_does_not_grow_with_the_depth():
    def draws(depth):
        network = MLP(widths=(4,) * depth, outputs=2)
        params = network.init(jax.random.key(0), X)
        units = trace_units(network.apply, params, X)
        tx, features = make(units=units, initializer="kaiming_uniform"), units.apply(params, X)[1]
        program = jax.make_jaxpr(lambda state: tx.update(params, state, params, features=features))(tx.init(params))
        (rare,) = [e for e in program.eqns if e.primitive.name == "cond" and "random_bits" in str(e)]
        return str(rare).count("random_bits"), str(rare).count("argmin")

    assert draws(12) == draws(6) == (2, 2)  # the first layer's, and that of all others


# -- how many units go, and when


def test_maturity_is_strictly_greater():
    states = run(make(replacement_rate=1.0, maturity_threshold=3, max_replacements=4), 5)
    assert replaced_steps(states).tolist() == [[3, 0], [3, 1], [3, 2], [3, 3]]  # the fourth step, where the age is 4


def test_nothing_immature_goes_however_much_is_owed():
    ages = run(make(replacement_rate=1.0, maturity_threshold=10), 40).age["Dense_0"]
    before = np.concatenate([np.zeros((1, 4)), np.asarray(ages[:-1])])
    gone = np.asarray(ages) == 0
    assert (before[gone] + 1 > 10).all()
    assert replaced_steps(run(make(replacement_rate=1.0, maturity_threshold=10), 40))[:4, 0].tolist() == [
        10,
        11,
        12,
        13,
    ]


def test_whole_units_beyond_the_bound_are_forgotten_and_fractions_are_carried_on():
    rate = 0.3  # of 4 units: 1.2 a step
    bound_one, bound_two = (run(make(replacement_rate=rate, max_replacements=n), 9) for n in (1, 2))
    assert bound_one.replaced["Dense_0"].tolist() == list(range(1, 10))
    assert bound_two.replaced["Dense_0"].tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    for states in (bound_one, bound_two):
        fraction = (0.2 * np.arange(1, 10) + 1e-5) % 1
        np.testing.assert_allclose(states.accumulator["Dense_0"][:, 0], fraction, atol=2e-5)


@pytest.mark.parametrize("count", ["accumulate", "bernoulli", lambda key, owed: 1])
def test_nothing_is_replaced_once_the_rate_is_0(count):
    """After 20 steps in which ten times as much is asked for as the bound lets go; the rate is traced."""
    tx = optax.inject_hyperparams(continual_backprop, CONTINUAL_BACKPROP_STATIC_ARGS)(
        inner=optax.sgd(0.1, momentum=0.9),
        units=UNITS,
        replacement_rate=lambda step: jnp.where(step < 20, 1.0, 0.0),
        maturity_threshold=0,
        count=count,
        key=KEY,
    )
    gradient = jax.tree.map(jnp.cos, PARAMS)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient, state, params, features=FEATURES)
        alone, momentum = optax.sgd(0.1, momentum=0.9).update(gradient, carry[1].inner_state.inner)
        same = jax.tree.map(lambda a, b: jnp.all(a == b), (updates, state.inner_state.inner), (alone, momentum))
        same = jnp.all(jnp.stack(jax.tree.leaves(same)))
        return (optax.apply_updates(params, updates), state), (same, state.inner_state.replaced["Dense_0"])

    _, (same, replaced) = jax.jit(lambda c: jax.lax.scan(step, c, length=60))((PARAMS, tx.init(PARAMS)))
    assert replaced[19] == replaced[-1] == 20
    assert same.tolist() == [False] * 20 + [True] * 40


def test_owed_fractions_do_not_get_lost_at_tiny_rates():
    # A plain float32 sum near 1 grows by 4.2e-7 when 4e-7 is added: it would be done after 23,966 steps.
    tx = make(replacement_rate=1e-7)
    state = owing(tx, (0.99, 0.0))
    plain = jax.jit(lambda: jax.lax.fori_loop(0, 23_990, lambda _, s: s + jnp.float32(4e-7), jnp.float32(0.99)))()
    assert plain >= 1

    def step(_, state):
        return tx.update(ZEROS, state, PARAMS, features=FEATURES)[1]

    after = jax.jit(lambda n, state: jax.lax.fori_loop(0, n, step, state))
    assert after(24_995, state).replaced["Dense_0"] == 0
    assert after(25_005, state).replaced["Dense_0"] == 1


def test_bernoulli_replaces_at_the_rate_on_average():
    states = run(make(replacement_rate=0.05, count="bernoulli"), 2000)
    for name, width in zip(NAMES, (4, 3), strict=True):
        p = 0.05 * width
        assert abs(int(states.replaced[name][-1]) - 2000 * p) < 4 * (2000 * p * (1 - p)) ** 0.5
    both = np.asarray(states.age["Dense_0"] == 0).any(1) & np.asarray(states.age["Dense_1"] == 0).any(1)
    assert 30 < both.sum() < 90  # drawn for each layer by itself: 2000 * 0.2 * 0.15 = 60


def test_bernoulli_loses_the_fraction_above_one_and_draws_nothing_at_rate_zero():
    assert run(make(replacement_rate=0.6, count="bernoulli", max_replacements=4), 3).replaced["Dense_0"][-1] == 6
    assert run(make(replacement_rate=0.0, count="bernoulli"), 50).replaced["Dense_0"][-1] == 0


def test_count_may_be_a_function_and_is_bounded():
    def rule(key, owed):
        return jnp.where(owed > 1, 7, 0)

    states = run(make(replacement_rate=0.5, count=rule, max_replacements=2), 3)
    assert states.replaced["Dense_0"].tolist() == [2, 4, 6]
    assert run(make(replacement_rate=0.2, count=rule), 3).replaced["Dense_0"].tolist() == [0, 0, 0]


def test_over_100000_steps_as_many_go_as_the_rate_says_and_none_too_young():
    rates, threshold, steps = jnp.array([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]), 20, 100_000
    features = {n: h[:1] for n, h in FEATURES.items()}

    def step(carry, _):
        state, eligible, youngest, rate = carry
        tx = make(optax.identity(), replacement_rate=rate, maturity_threshold=threshold, utility="random")
        _, after = tx.update(ZEROS, state, PARAMS, features=features)
        age = {n: a + 1 for n, a in state.age.items()}
        eligible = {n: eligible[n] + jnp.sum(a > threshold) for n, a in age.items()}
        gone = {n: jnp.where(after.age[n] == 0, a, steps).min() for n, a in age.items()}
        return (after, eligible, jax.tree.map(jnp.minimum, youngest, gone), rate), None

    @jax.jit
    @jax.vmap
    def run_at(rate):
        none = dict.fromkeys(NAMES, jnp.int32(0))
        carry = (make().init(PARAMS), none, dict.fromkeys(NAMES, jnp.int32(steps)), rate)
        (state, eligible, youngest, _), _ = jax.lax.scan(step, carry, length=steps)
        return state.replaced, eligible, youngest

    replaced, eligible, youngest = jax.tree.map(np.asarray, run_at(rates))
    for name, width in zip(NAMES, (4, 3), strict=True):
        expected = np.asarray(rates, float) * eligible[name]
        assert (np.abs(replaced[name] - np.floor(expected)) <= 1).all(), (replaced[name], expected)
        assert replaced[name][-1] > 5000
        np.testing.assert_allclose(eligible[name][:3], width * (steps - threshold), rtol=0.05)
        assert (youngest[name][2:] > threshold).all()
        assert youngest[name][-1] < threshold + 5


def test_a_new_unit_contributes_exactly_nothing():
    """However its incoming weights are changed, no bit of the output is."""
    tx = make(initializer="kaiming_uniform")
    after, _ = one_step(tx, owing(tx, (0.0, 1.0), lowest=(0, 1)), gradient=jax.tree.map(jnp.cos, PARAMS))
    other = jax.tree.map(jnp.array, after)
    other["Dense_1"]["kernel"] = other["Dense_1"]["kernel"].at[:, 1].multiply(-1e6)
    assert (UNITS.apply(after, X)[1]["Dense_1"][:, 1] != UNITS.apply(other, X)[1]["Dense_1"][:, 1]).any()
    np.testing.assert_array_equal(UNITS.apply(after, X)[0], UNITS.apply(other, X)[0])


def test_number_of_replacements_saturates():
    tx = make(replacement_rate=1.0)
    most = {n: jnp.int32(2**31 - 1) for n in NAMES}
    _, state = one_step(tx, tx.init(PARAMS)._replace(replaced=most))
    assert state.replaced == most


def test_all_units_count_once_one_is_eligible():
    """Of 4 and 3 units one is old enough from the start, the others from the fourth step on."""
    old = {"Dense_0": jnp.array([0, 9, 0, 0]), "Dense_1": jnp.array([0, 0, 9])}
    for count_units, expected in (("eligible", [0.1, 0.2, 0.3, 0.7]), ("all", [0.4, 0.8, 0.2, 0.6])):
        tx = make(replacement_rate=0.1, maturity_threshold=3, count_units=count_units)
        states = run(tx, 4, state=owing(tx, (0.0, 0.0), (1, 2), age=old))
        np.testing.assert_allclose(states.accumulator["Dense_0"][:, 0], expected, atol=1e-6)
    none_yet = run(make(replacement_rate=0.1, maturity_threshold=3, count_units="all"), 4)
    np.testing.assert_allclose(none_yet.accumulator["Dense_0"][:, 0], [0, 0, 0, 0.4], atol=1e-6)


# -- which units go


@pytest.mark.parametrize(("bound", "expected"), [(1, [0]), (4, [0, 1])])
def test_of_equal_units_the_lowest_index_goes_first(bound, expected):
    nothing = jax.tree.map(jnp.zeros_like, FEATURES)
    states = run(make(replacement_rate=0.5, max_replacements=bound), 1, nothing)
    assert replaced_steps(states)[:, 1].tolist() == expected


@pytest.mark.parametrize(("age_correction", "ages"), [(True, [0, 1, 101, 101]), (False, [101, 0, 101, 101])])
def test_ranking_is_corrected_for_age(age_correction, ages):
    # Unit 1 is young: its average of 0.4 stands for 0.8 at age 1, more than 0.7 at a great age.
    params = {name: PARAMS[name] for name in NAMES}
    units = units_of(MLP(widths=(4,), outputs=3), params, X)
    tx = make(
        units=units,
        replacement_rate=0.25,
        utility=Utility(lambda stats: jnp.array([[0.7], [0.8], [0.75], [0.75]])),
        age_correction=age_correction,
    )
    state = tx.init(params)
    state = state._replace(
        age={"Dense_0": jnp.array([100, 0, 100, 100])}, utility={"Dense_0": jnp.array([0.7, 0.0, 0.75, 0.75])}
    )
    _, state = one_step(tx, state, params, {n: ZEROS[n] for n in NAMES}, {"Dense_0": FEATURES["Dense_0"]})
    assert state.age["Dense_0"].tolist() == ages


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
@pytest.mark.parametrize("bound", [1, 2])
def test_utility_that_is_no_number_never_sends_an_immature_unit(bad, bound):
    tx = make(
        maturity_threshold=5,
        utility=Utility(lambda stats: 0 * stats.mean_absolute + bad),
        max_replacements=bound,
    )
    state = owing(tx, (1.0, 1.0), age={"Dense_0": jnp.array([0, 9, 0, 0]), "Dense_1": jnp.array([0, 0, 9])})
    _, state = one_step(tx, state)
    infinite = bad == jnp.inf  # a unit of utility NaN never goes
    assert state.age["Dense_0"].tolist() == [1, 0 if infinite else 10, 1, 1]
    assert state.age["Dense_1"].tolist() == [1, 1, 0 if infinite else 10]


def test_most_useful_first_and_least_useful_first():
    spread = {n: jnp.outer(jnp.array([-1.0, 1.0]), jnp.arange(1.0, h.shape[1] + 1)) for n, h in FEATURES.items()}
    params = jax.tree.map(jnp.ones_like, PARAMS)
    for utility, unit in (("adaptable_contribution", 0), ("most_useful_first", 3)):
        tx = make(utility=utility, replacement_rate=0.25)
        _, state = one_step(tx, tx.init(params), params, features=spread)
        assert np.argwhere(state.age["Dense_0"] == 0).tolist() == [[unit]]


def test_random_chooses_every_unit_equally_often():
    states = run(make(utility="random", replacement_rate=0.25), 800)
    chosen = np.bincount(replaced_steps(states)[:, 1], minlength=4)
    assert chosen.sum() == 800
    assert (abs(chosen - 200) < 50).all()


def test_measure_at_the_step_of_choosing_sees_the_corrected_mean():
    # The centred magnitude of constant units is 0 only around their true mean.
    constant = {n: jnp.broadcast_to(jnp.arange(1.0, h.shape[1] + 1), h.shape) for n, h in FEATURES.items()}
    seen = []

    def measure(stats):
        jax.debug.callback(seen.append, stats.mean_absolute_centred)
        return stats.mean_absolute_centred

    tx = make(utility=Utility(measure, averaged=False), replacement_rate=0.25)
    one_step(tx, owing(tx, (1.0, 0.0)), features=constant)
    jax.effects_barrier()
    assert seen
    assert all(np.abs(values).max() < 1e-6 for values in seen)


def test_a_measure_that_is_not_averaged_ranks_by_this_step_alone():
    params = jax.tree.map(jnp.array, PARAMS)
    params["Dense_1"]["kernel"] = jnp.array([3.0, 1.0, 2.0, 4.0])[:, None] * jnp.ones((4, 3))
    for measure, unit in ((Utility(UTILITIES["weight"].measure, averaged=False), 1), ("weight", 2)):
        tx = make(utility=measure)
        _, state = one_step(tx, owing(tx, (1.0, 0.0), lowest=(2, 0)), params)
        assert np.flatnonzero(state.age["Dense_0"] == 0).tolist() == [unit]


def test_lifetime_activity_neither_decays_nor_is_reset():
    tx = make(utility="lifetime_contribution", decay_rate=0.9)
    states = run(tx, 3, state=owing(tx, (1.0, 0.0)))
    assert states.replaced["Dense_0"].tolist() == [1, 1, 1]
    for name, h in FEATURES.items():
        grown = 0.1 * np.outer([1, 2, 3], np.abs(h).mean(0))
        np.testing.assert_allclose(states.lifetime_absolute[name][..., 0], grown, rtol=1e-5)
    seldom = make(utility="lifetime_contribution", decay_rate=0.9, utility_every=2)
    at_four = run(seldom, 4).lifetime_absolute["Dense_1"][-1, :, 0]
    np.testing.assert_allclose(at_four, 0.4 * np.abs(FEATURES["Dense_1"]).mean(0), rtol=1e-5)
    assert make().init(PARAMS).lifetime_absolute == {}


def test_lifetime_contribution_is_that_sum_times_the_outgoing_weights_of_the_step():
    params = jax.tree.map(jnp.array, PARAMS)
    params["Dense_1"]["kernel"] = jnp.array([3.0, 1.0, 2.0, 1.0])[:, None] * jnp.ones((4, 3))
    tx = make(utility="lifetime_contribution")
    lifetime = {"Dense_0": jnp.array([[1.0], [4.0], [1.0], [3.5]]), "Dense_1": jnp.ones((3, 1))}
    silent = {n: jnp.zeros_like(h) for n, h in FEATURES.items()}
    _, state = one_step(tx, owing(tx, (1.0, 0.0), lifetime_absolute=lifetime), params, features=silent)
    assert np.flatnonzero(state.age["Dense_0"] == 0).tolist() == [2]  # 3, 4, 2, 3.5


def test_first_order_utility_is_the_activation_times_its_gradient():
    """From the gradients handed in, before inner changes them, and the weights before its step."""
    y = jnp.ones((5, 2))

    def loss(params, added):
        h0 = jax.nn.relu(X @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]) + added["Dense_0"]
        h1 = jax.nn.relu(h0 @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]) + added["Dense_1"]
        return jnp.mean((h1 @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"] - y) ** 2)

    gradient, slope = jax.grad(loss, (0, 1))(PARAMS, {n: jnp.zeros_like(h) for n, h in FEATURES.items()})
    tx = make(optax.chain(optax.clip(1e-3), optax.sgd(10.0)), utility="first_order")
    _, state = one_step(tx, tx.init(PARAMS), gradient=gradient)
    for name, h in FEATURES.items():
        expected = np.abs(np.sum(h * slope[name], 0))
        np.testing.assert_allclose(state.utility[name], 0.5 * expected, rtol=1e-4, atol=1e-6)


def test_recursive_utility_sees_that_the_reader_is_useless():
    """Unit 2 has the largest weights, but they enter units whose own outgoing weights are 0."""
    params = jax.tree.map(jnp.ones_like, PARAMS)
    params["Dense_1"]["kernel"] = jnp.ones((4, 3)).at[2].set(jnp.array([100.0, 100.0, 0.0]))
    params["Dense_2"]["kernel"] = jnp.zeros((3, 2)).at[2].set(1.0)
    spread = {n: jnp.broadcast_to(jnp.array([[-1.0], [1.0]]), (2, h.shape[1])) for n, h in FEATURES.items()}
    for utility in ("recursive", "recursive_adaptable"):
        tx = make(utility=utility, replacement_rate=0.25)
        _, state = one_step(tx, tx.init(params), params, features=spread)
        np.testing.assert_allclose(state.utility["Dense_0"], [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-5, atol=1e-7)
        assert np.flatnonzero(state.age["Dense_0"] == 0).tolist() == [2]


# -- what happens to them


def test_replaced_unit_is_a_fresh_one_and_everything_else_is_left_alone():
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    tx = make()
    after, state = one_step(tx, owing(tx, (1.0, 0.0), lowest=(2, 0)), gradient=gradient)
    plain, _ = one_step(optax.with_extra_args_support(optax.sgd(0.1)), optax.sgd(0.1).init(PARAMS), gradient=gradient)
    bound = 2**0.5 * (3 / 6) ** 0.5
    expected = jax.tree.map(np.array, plain)
    expected["Dense_0"]["kernel"][:, 2] = np.linspace(-bound, bound, 6)
    expected["Dense_0"]["bias"][2] = 0
    expected["Dense_1"]["kernel"][2, :] = 0
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-7), after, expected)
    assert state.age["Dense_0"].tolist() == [1, 1, 0, 1]
    assert state.utility["Dense_0"][2] == state.mean_activation["Dense_0"][2, 0] == 0
    np.testing.assert_allclose(state.accumulator["Dense_0"], [0, 0], atol=1e-6)
    assert {n: int(r) for n, r in state.replaced.items()} == {"Dense_0": 1, "Dense_1": 0}


def test_weight_from_a_new_unit_to_a_new_unit_is_redrawn():
    tx = make(initializer="kaiming_uniform")
    after, _ = one_step(tx, owing(tx, lowest=(2, 1)))
    row, column = after["Dense_1"]["kernel"][2], after["Dense_1"]["kernel"][:, 1]
    assert row[0] == row[2] == 0
    assert (column != 0).all()
    assert len(set(column.tolist())) == 4


def test_output_loses_exactly_what_the_unit_contributed():
    tx = make()
    before, features = UNITS.apply(PARAMS, X)
    after, _ = one_step(tx, owing(tx, (0.0, 1.0), lowest=(0, 1)))
    output, _ = UNITS.apply(after, X)
    lost = jnp.outer(features["Dense_1"][:, 1], PARAMS["Dense_2"]["kernel"][1])
    np.testing.assert_allclose(output, before - lost, atol=1e-5)


def test_replacing_a_silent_unit_leaves_the_output_as_it_was():
    params = jax.tree.map(jnp.array, PARAMS)
    params["Dense_0"]["bias"] = params["Dense_0"]["bias"].at[2].set(-100.0)
    tx = make()
    after, _ = one_step(tx, owing(tx, (1.0, 0.0), lowest=(2, 0)), params)
    assert (UNITS.apply(after, X)[1]["Dense_0"][:, 2] > 0).any()
    np.testing.assert_allclose(UNITS.apply(after, X)[0], UNITS.apply(params, X)[0], atol=1e-6)


def test_transferred_bias_keeps_the_mean_output():
    params = jax.tree.map(jnp.array, PARAMS)
    before, features = UNITS.apply(params, X)
    assert float(jnp.abs(features["Dense_1"][:, 1]).mean()) > 0.1
    for transfer, kept in ((True, True), (False, False)):
        tx = make(transfer_bias=transfer)
        after, _ = one_step(tx, owing(tx, (0.0, 1.0), lowest=(0, 1)), params)
        same = np.allclose(UNITS.apply(after, X)[0].mean(0), before.mean(0), atol=1e-5)
        assert same == kept


def test_transfer_does_not_reach_a_unit_that_is_itself_replaced():
    tx = make(transfer_bias=True)
    after, _ = one_step(tx, owing(tx, lowest=(2, 1)))
    assert after["Dense_1"]["bias"][1] == 0


INNER: Any = {
    "sgd with momentum": optax.sgd(0.1, momentum=0.9),
    "optax.adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "adam": adam(0.1),
    "rmsprop": optax.rmsprop(0.1, initial_scale=1.0, momentum=0.9),
    "lion": optax.lion(0.1),
    "muon": optax.contrib.muon(0.1),
}


@pytest.mark.parametrize("name", INNER)
def test_inner_statistics_of_a_replaced_unit_are_those_of_a_fresh_one(name):
    inner = INNER[name]
    tx, kept = make(inner), make(inner, reset_state=False)

    gradient = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), PARAMS)
    count = lambda leaf: leaf + 3 if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf  # noqa: E731
    learned = optax.tree.map_params(inner, lambda leaf: leaf + 3, inner.init(PARAMS), transform_non_params=count)

    @jax.jit
    def learn(state):
        return tuple(t.update(gradient, state, PARAMS, features=FEATURES)[1].inner for t in (tx, kept)), inner.update(
            gradient, state.inner, PARAMS
        )[1]

    (ours, untouched), alone = learn(owing(tx, (1.0, 0.0), lowest=(2, 0), inner=learned))
    mask: Any = jax.tree.map(lambda p: np.zeros(p.shape, bool), PARAMS)
    mask["Dense_0"]["kernel"][:, 2] = mask["Dense_0"]["bias"][2] = mask["Dense_1"]["kernel"][2, :] = True
    gap = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731  Muon keeps no momentum of a bias
    gone = optax.tree.map_params(
        inner, lambda old, m: old if gap(old) else m, alone, mask, transform_non_params=lambda _: False, is_leaf=gap
    )

    def fresh_where_all_are(gone, fresh, old):
        """A statistic that weights share, with axes of size 1, is fresh where all of them are gone."""
        shared = tuple(d for d, (n, m) in enumerate(zip(np.shape(old), np.shape(gone), strict=False)) if n != m)
        return np.where(np.all(gone, axis=shared, keepdims=True), fresh, old)

    expected = jax.tree.map(fresh_where_all_are, gone, inner.init(PARAMS), alone)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    jax.tree.map(np.testing.assert_array_equal, untouched, alone)


def test_draw_depends_on_key_step_and_layer_only():
    @jax.jit
    def fresh(key, count, utility):
        tx = make(initializer="kaiming_uniform", key=key)
        state = owing(tx, lowest=(2, 1), count=count)
        state = state._replace(mean_activation={n: m + utility for n, m in state.mean_activation.items()})
        updates, _ = tx.update(ZEROS, state, PARAMS, features=FEATURES)
        after = optax.apply_updates(PARAMS, updates)
        return after["Dense_0"]["kernel"][:, 2], after["Dense_1"]["kernel"][:, 1]

    first, other_layer = fresh(KEY, 5, 0.0)
    np.testing.assert_array_equal(first, fresh(KEY, 5, 1.0)[0])
    assert not np.isclose(first, fresh(KEY, 6, 0.0)[0]).any()
    assert not np.isclose(first, fresh(jax.random.key(4), 5, 0.0)[0]).any()
    assert not np.isclose(first[:4], other_layer).any()


def test_a_lane_that_owes_nothing_is_not_touched_when_another_replaces():
    tx = make(initializer="kaiming_uniform")
    owes, free = owing(tx), owing(tx, (0.0, 0.0))
    lanes = jax.tree.map(lambda a, b: jnp.stack([a, b]), owes, free)
    updates, _ = jax.jit(jax.vmap(lambda state: tx.update(ZEROS, state, PARAMS, features=FEATURES)))(lanes)
    alone, _ = jax.jit(tx.update)(ZEROS, owes, PARAMS, features=FEATURES)
    jax.tree.map(lambda u, a: np.testing.assert_allclose(u[0], a, atol=1e-6), updates, alone)
    assert all((leaf[1] == 0).all() for leaf in jax.tree.leaves(updates))


# -- wrong input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replacement_rate": 2}, r"replacement_rate=2 is not in \[0"),
        ({"replacement_rate": -1e-3}, "replacement_rate=-0.001"),
        ({"replacement_rate": float("nan")}, "replacement_rate=nan"),
        ({"maturity_threshold": -1}, "maturity_threshold=-1"),
        ({"decay_rate": 1.5}, "decay_rate=1.5"),
        ({"decay_rate": 1.0}, r"decay_rate=1.0 is not in \[0, 1\)"),
        ({"replacement_rate": "0.1"}, "replacement_rate='0.1' is neither a number nor an array"),
        ({"maturity_threshold": 1.5}, "maturity_threshold=1.5 is not a whole number"),
        ({"max_replacements": 0}, "max_replacements=0 is not an integer from 1 on"),
        ({"max_replacements": True}, "max_replacements=True is not an integer from 1 on"),
        ({"utility_every": 0.5}, "utility_every=0.5 is not an integer from 1 on"),
        ({"log_size": -1}, "log_size=-1 is not an integer from 0 on"),
        ({"units": {}}, "continual_backprop: units is no UnitGraph; see trace_units"),
        ({"initializer": None}, "initializer=None is neither a name nor a function"),
        ({"key": 0}, r"key=0 is no random key; jax.random.key\(0\)"),
        ({"key": np.zeros(3, np.uint32)}, r"is no random key; jax.random.key\(0\)"),
        ({"count": "poisson"}, "count='poisson'; allowed: accumulate, bernoulli"),
        ({"count_units": "every"}, "count_units='every'; allowed: eligible, all"),
        ({"utility": "contributions"}, "utility='contributions'; allowed: .*contribution"),
        ({"initializer": "kaiming"}, "initializer='kaiming'; allowed: kaiming_uniform"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_integers_of_numpy_and_whole_floats_will_do():
    change = {"maturity_threshold": 2, "max_replacements": 2, "utility_every": 3, "log_size": 4}
    numpy = {name: np.int64(value) for name, value in change.items()} | {"maturity_threshold": 2.0}

    def after(change):
        tx = make(**change)
        return jax.eval_shape(lambda: tx.update(ZEROS, tx.init(PARAMS), PARAMS, features=FEATURES))

    assert after(change) == after(numpy)


def test_missing_arguments_of_update_are_named():
    tx = make()
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="needs `params`"):
        tx.update(ZEROS, state, features=FEATURES)
    with pytest.raises(ValueError, match="needs `features`"):
        tx.update(ZEROS, state, PARAMS)
    with pytest.raises(ValueError, match="features has no entry 'Dense_1'; there are: Dense_0"):
        tx.update(ZEROS, state, PARAMS, features={"Dense_0": FEATURES["Dense_0"]})
    with pytest.raises(ValueError, match=r"features\['Dense_1'\] of shape \(5, 4\) has not 3 units"):
        tx.update(ZEROS, state, PARAMS, features=dict.fromkeys(NAMES, FEATURES["Dense_0"]))
    with pytest.raises(ValueError, match=r"features\['Dense_0'\] of shape \(\) has not 4 units"):
        tx.update(ZEROS, state, PARAMS, features=dict.fromkeys(NAMES, jnp.float32(1.0)))


def test_graph_of_another_network_is_refused():
    other = NETWORK.clone(widths=(4, 5)).init(jax.random.key(0), X)["params"]
    with pytest.raises(ValueError, match=r"continual_backprop: .*'Dense_1/kernel'"):
        make().init(other)
    with pytest.raises(ValueError, match="group 'Dense_0' names parameter 'Dense_1/kernel'; there are: Dense_0/bias"):
        make().init({"Dense_0": PARAMS["Dense_0"], "Dense_2": PARAMS["Dense_2"]})


def test_inner_with_statistics_of_other_shapes_is_refused():
    wide = MLP(widths=(128,), outputs=128)
    params = wide.init(jax.random.key(0), jnp.ones((1, 128)))["params"]
    units = units_of(wide, params, jnp.ones((1, 128)))
    tx = make(optax.adafactor(0.1), units)
    features = {"Dense_0": jnp.ones((1, 128))}
    with pytest.raises(ValueError, match="per-unit resets need statistics of the parameter's shape"):
        jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, features=features), params)
    allowed = make(optax.adafactor(0.1), units, reset_state=False)
    jax.eval_shape(lambda p: allowed.update(p, allowed.init(p), p, features=features), params)
