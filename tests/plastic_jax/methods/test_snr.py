"""Self-normalised resets: closed forms, and the published code's recordings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, FeatureMeans, Initializer, snr, trace_units

NETWORK = MLP(widths=(3,), outputs=1)
X = jnp.ones((1, 2))
PARAMS = NETWORK.init(jax.random.key(0), X)["params"]
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
UNITS = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), PARAMS, X, check=False)
KEY = jax.random.key(0)
ON, OFF = 1.0, -1.0


def run(values, **how):
    """Ages, silences and limits after each step in which the units have these values."""
    tx = snr(optax.sgd(0.1), UNITS, key=KEY, **how)
    step = jax.jit(lambda state, h: tx.update(ZEROS, state, PARAMS, features={"Dense_0": h})[1])
    state, seen = tx.init(PARAMS), []
    for h in values:
        state = step(state, jnp.array([h, [OFF] * 3]))  # a second example for which all are silent
        seen.append([np.asarray(leaf["Dense_0"]).tolist() for leaf in (state.age, state.silent, state.limit)])
    return seen, state


def test_a_unit_goes_when_it_was_silent_up_to_its_limit():
    seen, state = run([[ON, OFF, OFF], [ON, OFF, OFF], [ON, OFF, ON], [OFF, OFF, OFF]], initial_limit=3)
    assert [ages for ages, _, _ in seen] == [[1, 1, 1], [2, 2, 2], [3, 0, 3], [4, 1, 4]]
    assert [silent for _, silent, _ in seen] == [[0, 1, 1], [0, 2, 2], [0, 0, 0], [1, 1, 1]]
    histogram = np.asarray(state.histogram["Dense_0"])
    assert np.argwhere(histogram[:, 1:]).tolist() == [[1, 2], [2, 1]]  # silences of 3 (the reset) and 2 steps
    assert histogram[0, 0] == 3 and state.replaced["Dense_0"] == 1


def test_limits_contract_to_the_percentile_or_expand_within_their_bounds():
    rests = [[ON, OFF, ON], [ON, ON, OFF], [ON, OFF, OFF], [ON, ON, ON]]  # never; twice 1 step; once 2 steps
    for percentile, least, longest, expected in (
        (0.5, 1, 50, [1, 1, 2]),
        (0.5, 2, 50, [2, 2, 2]),
        (0.5, 1, 1, [1, 1, 1]),
    ):
        how = {"percentile": percentile, "least_limit": least, "longest_silence": longest}
        seen, state = run(rests, initial_limit=9, period=4, **how)
        assert seen[-1][2] == expected
        assert not state.histogram["Dense_0"].any()
    seen, _ = run(rests, initial_limit=2, period=4, percentile=0.5, longest_silence=3)
    assert seen[-1][2] == [1, 1, 3]  # of limit 2: 1 is below; 2 is not, and twice 2 is bounded


def test_of_means_a_unit_is_silent_where_no_value_is_above_0():
    tx = snr(optax.sgd(0.1), UNITS, key=KEY)
    values = jnp.array([[0.3, -0.7, 0.0], [-0.1, -0.2, 0.0]])
    means = FeatureMeans(jnp.mean(values, 0)[:, None], jnp.mean(jnp.abs(values), 0)[:, None], jnp.float32(2))
    for features in (values, means):
        _, state = jax.jit(tx.update)(ZEROS, tx.init(PARAMS), PARAMS, features={"Dense_0": features})
        assert state.silent["Dense_0"].tolist() == [0, 1, 1]


def test_features_that_are_not_finite_do_not_count():
    _, state = run([[ON, jnp.nan, OFF]] * 4, initial_limit=2)
    assert state.count == 0 and not state.silent["Dense_0"].any() and not state.histogram["Dense_0"].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"percentile": 1.5}, r"snr: percentile=1.5 is not in \[0, 1\]"),
        ({"expansion": 0.5}, r"snr: expansion=0.5 is not in \[1, inf\]"),
        ({"longest_silence": 0}, "snr: longest_silence=0 is not an integer from 1 on"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        snr(optax.sgd(0.1), UNITS, key=KEY, **arguments)
    tx = snr(optax.sgd(0.1), UNITS, key=KEY)
    with pytest.raises(ValueError, match="snr: update needs `features`"):
        tx.update(ZEROS, tx.init(PARAMS), PARAMS)


BATCH = 8  # the recordings count examples


@pytest.mark.parametrize("name", ["snr_a", "snr_min100_a"])
def test_adam_replays_the_published_code_reset_by_reset(replay, name):
    def make_tx(config, units, extra):
        return snr(
            optax.adam(config["base_optimizer"]["lr"]),
            units,
            percentile=config["threshold_percentile"],
            period=config["task_length"] * config["threshold_reset_freq"],
            initial_limit=config["initial_threshold"] / BATCH,
            least_limit=config["minimum_threshold"] / BATCH,
            longest_silence=config["tau_max"] // BATCH,
            expansion=config["threshold_expansion_factor"],
            initializer=Initializer(gain=2**0.5, linspace=True),
            key=KEY,
        )

    trace, ours = replay(name, make_tx, see=lambda state: (state.age, state.limit))
    ages, limits = (np.stack([seen[f"Dense_{i}"] for i in range(2)], axis=1) for seen in ours.seen)
    np.testing.assert_array_equal(np.argwhere(ages == 0), trace["f64/events"])
    after = limits[trace.config["task_length"] - 1 :: trace.config["task_length"]]
    np.testing.assert_array_equal(BATCH * after, trace["f64/thresholds_after_task"][: len(after)])
    if trace.full:
        for i in range(2):
            np.testing.assert_array_equal(BATCH * ours.state.silent[f"Dense_{i}"], trace["f64/final_ages"][i])
            histogram = trace["f64/final_hist"][i][:, ::BATCH]
            np.testing.assert_array_equal(ours.state.histogram[f"Dense_{i}"], histogram)
