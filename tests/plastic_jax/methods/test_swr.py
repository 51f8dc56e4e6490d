"""Selective weight reinitialisation: closed forms, and the published code's recordings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.methods import swr as module
from plastic_jax.methods.swr import swr
from plastic_jax.optimizers.adam import adam

KEY = jax.random.key(0)
PARAMS = {"kernel": jnp.array([[4.0, -0.3], [0.1, 2.0]]), "bias": jnp.array([0.0, 1.0])}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def fresh(key):
    return {"kernel": jnp.array([[9.0, 8.0], [-9.0, -8.0]]), "bias": jnp.full(2, 7.0)}


def one_step(grads=ZEROS, params=PARAMS, inner=None, **settings):
    tx = swr(inner or optax.sgd(1.0), **({"period": 1, "init": fresh, "key": KEY} | settings))
    with jax.disable_jit():  # else both branches are compiled
        updates, state = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates), state


def test_weights_up_to_a_share_of_the_mean_utility_go():
    """The mean of |w| is 1.6 in the kernel and 0.5 in the bias."""
    after, state = one_step(factor=0.1875, utility="magnitude")  # thresholds 0.3 and 0.09375
    assert after["kernel"].tolist() == [[4.0, 8.0], [-9.0, 2.0]]
    assert after["bias"].tolist() == [7.0, 1.0]
    assert int(state.redrawn) == 3


def test_utility_is_that_of_the_gradient_before_the_step_and_the_weight_after_it():
    grads = {"kernel": jnp.array([[1.0, 1.0], [1.0, 1.0]]), "bias": jnp.array([1.0, 1.0])}
    params = {"kernel": jnp.array([[1.0, 4.0], [4.0, 4.0]]), "bias": jnp.array([1.0, 3.0])}
    after, _ = one_step(grads, params, factor=1e-3)  # kernel[0, 0] and bias[0] have become 0
    assert after["bias"].tolist() == [7.0, 2.0]
    assert (after["kernel"] == params["kernel"] - 1.0).tolist() == [[False, True], [True, True]]


def test_proportional_selection_takes_the_lowest_and_the_fraction_as_often_as_it_says():
    settings = {"utility": "magnitude", "selection": "proportional"}
    after, _ = one_step(factor=0.5, **settings)
    assert (after["kernel"] == PARAMS["kernel"]).tolist() == [[True, False], [False, True]]
    numbers = jax.vmap(lambda key: module._number(key, 1.25))(jax.random.split(KEY, 4000))
    assert set(numbers.tolist()) == {1.0, 2.0}
    assert np.mean(numbers) == pytest.approx(1.25, abs=0.03)


def test_the_mean_of_a_fresh_network_is_zero_unless_its_values_are_all_the_same():
    after, _ = one_step(factor=1e9, redraw="mean")
    assert after["kernel"].tolist() == [[0, 0], [0, 0]]
    assert after["bias"].tolist() == [7.0, 7.0]


def test_a_random_utility_takes_any_weight():
    masks = module._chosen(KEY, jnp.arange(1.0, 1001.0), 0.2, "proportional", "random")
    assert masks.sum() == 200
    assert 400 < np.flatnonzero(masks).mean() < 600


def test_the_average_begins_anew_for_a_parameter_of_which_a_weight_goes():
    tx = swr(optax.sgd(0.0), factor=0.1, period=2, utility="magnitude", decay_rate=0.5, init=fresh, key=KEY)
    params, state = PARAMS, tx.init(PARAMS)
    params = params | {"bias": jnp.array([1.0, 1.0])}  # none of it is below a tenth of the mean
    for expected in (0.5, 0.75):
        with jax.disable_jit():
            _, state = tx.update(ZEROS, state, params)
        np.testing.assert_allclose(state.utility["bias"], expected)
    assert state.utility["kernel"].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("reset_state", [True, False])
def test_statistics_of_a_redrawn_weight_are_those_of_a_new_one(reset_state):
    grads = {"kernel": jnp.array([[0.0, 3.0], [-3.0, 3.0]]), "bias": jnp.ones(2)}
    tx = swr(adam(0.1), factor=1e-3, period=2, init=fresh, key=KEY, reset_state=reset_state)
    state = tx.init(PARAMS)
    with jax.disable_jit():
        for _ in range(2):
            _, state = tx.update(grads, state, PARAMS)
    assert int(state.redrawn) == 1  # the weight without a gradient
    counts = jnp.broadcast_to(jnp.minimum(state.inner.rows["kernel"], state.inner.columns["kernel"]), (2, 2))
    assert counts.tolist() == [[0 if reset_state else 2, 2], [2, 2]]


def test_frozen_parameters_stay():
    frozen = optax.masked(optax.set_to_zero(), {"kernel": False, "bias": True})
    after, _ = one_step(inner=optax.chain(optax.sgd(1.0), frozen), factor=1e9)
    assert after["bias"].tolist() == PARAMS["bias"].tolist()
    assert not np.isclose(after["kernel"], PARAMS["kernel"]).any()


def test_lookahead_replaces_the_fast_and_the_slow_weights():
    tx = swr(optax.lookahead(optax.sgd(0.1), 2, 0.5), factor=1e9, period=1, init=fresh, key=KEY)
    params = optax.LookaheadParams(PARAMS, jax.tree.map(lambda p: p - 5, PARAMS))
    with jax.disable_jit():
        updates, _ = tx.update(ZEROS, tx.init(params), params)
    fast, slow = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), fast, slow)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": -1.0}, r"swr: factor=-1.0 is not in \[0"),
        ({"period": 0}, "swr: period=0 is not in"),
        ({"utility": "size"}, "swr: utility='size'; allowed: gradient, magnitude, random"),
        ({"init": lambda key: {"kernel": jnp.ones((2, 2))}}, "swr: init must be a tree like the parameters"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        one_step(**settings)
    tx = swr(optax.sgd(1.0), init=fresh, key=KEY)
    with pytest.raises(ValueError, match="swr: update needs `params`"):
        tx.update(ZEROS, tx.init(PARAMS))


def draws(trace):
    """What every weight would become at each step, and whether a fraction of a weight goes, by leaf."""
    names = ("W0", "b0", "W1", "b1", "W2", "b2")
    config = json.loads(str(trace["config"]))
    shapes = [trace[f"init/{name}"].shape for name in names]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    steps = len(trace["x"])
    table = trace["draw_table"].astype(np.float64)[np.arange(steps * ends[-1]) % len(trace["draw_table"])]
    parts = np.split(table.reshape(steps, -1), ends[:-1], axis=1)
    law = zip(names, parts, shapes, config["means"], config["stds_or_bounds"], strict=True)
    drawn = {name: mean + scale * part.reshape(-1, *shape) for name, part, shape, mean, scale in law}
    rest = np.zeros((steps, len(names)))
    for step, leaf, value in trace.arrays.get("f64/binomial_step_leaf_value", ()):
        rest[step, leaf] = value
    layers = {f"Dense_{i}": {"kernel": np.swapaxes(drawn[f"W{i}"], 1, 2), "bias": drawn[f"b{i}"]} for i in range(3)}
    return layers, rest


@pytest.mark.parametrize("name", ["swr_prop_mag_a", "swr_prop_grad_a", "swr_thr_mag_a", "swr_thr_grad_a"])
def test_replays_the_published_code(name, replay, monkeypatch):
    order = ("bias", "kernel")  # the leaves of our tree; the recording has the kernel first

    def make_tx(config, units, extra):
        drawn, rest = extra
        ours = iter(rest[2 * i + (leaf == "bias")] for i in range(3) for leaf in order)
        monkeypatch.setattr(module, "_number", lambda key, expected: jnp.floor(expected) + next(ours))
        base = config["base_optimizer"]
        return swr(
            optax.sgd(base["lr"], base["momentum"]),
            factor=config["reinit_factor"],
            period=config["reinit_freq"],
            utility=config["utility"],
            selection=config["pruning"],
            decay_rate=config["decay_rate"],
            init=lambda key: drawn,
            key=KEY,
            reset_state=False,
        )

    trace, ours = replay(name, make_tx, extra=draws, see=lambda state: state.redrawn)
    steps = np.bincount(trace["f64/events"][:, 0], minlength=len(ours.seen))
    np.testing.assert_array_equal(np.diff(ours.seen, prepend=0), steps)
