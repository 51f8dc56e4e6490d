"""UPGD: closed forms, and the published code's recordings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.methods.upgd import ada_upgd, feature_upgd, upgd
from plastic_jax.methods.weight_clipping import weight_clipping

KEY = jax.random.key(0)
PARAMS = {"kernel": jnp.array([[1.0, 2.0], [-1.0, 1.0]]), "bias": jnp.array([0.5, 0.0])}
GRADS = {"kernel": jnp.array([[-1.0, 1.0], [-1.0, -2.0]]), "bias": jnp.array([1.0, 3.0])}
UTILITY = {"kernel": np.array([[1.0, -2.0], [-1.0, 2.0]]), "bias": np.array([-0.5, 0.0])}  # -g w
QUIET = {"step_size": 1.0, "noise": 0.0, "weight_decay": 0.0, "key": KEY}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def one_step(grads=GRADS, params=PARAMS, **settings):
    tx = upgd(optax.sgd(1.0), **(QUIET | settings))
    return tx.update(grads, tx.init(params), params)


def shares(updates, grads=GRADS):
    """Which share of the gradient step each weight has moved."""
    return jax.tree.map(lambda u, g: np.asarray(-u / g), updates, grads)


def assert_close(tree, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), tree, expected)


def test_the_best_weight_of_all_is_held_most():
    moved = shares(one_step(decay_rate=0.0)[0])
    assert_close(moved, jax.tree.map(lambda u: 1 - sigmoid(u / 2), UTILITY))  # the largest utility is 2


def test_at_first_the_published_maximum_is_not_corrected():
    """With decay 0.9 the average is 0.1 u after one step, its correction u, and the maximum 0.2."""
    published, corrected = (shares(one_step(decay_rate=0.9, corrected_maximum=c)[0]) for c in (False, True))
    assert_close(published, jax.tree.map(lambda u: 1 - sigmoid(u / 0.2), UTILITY))
    assert_close(corrected, jax.tree.map(lambda u: 1 - sigmoid(u / 2), UTILITY))


def test_a_local_utility_is_compared_with_those_of_the_same_output():
    moved = shares(one_step(scope="local", decay_rate=0.0)[0])
    norm = np.sqrt([[2.0, 8.0]])
    assert_close(moved["kernel"], 1 - sigmoid(UTILITY["kernel"] / norm))
    assert_close(moved["bias"], 1 - sigmoid(UTILITY["bias"] / 0.5))
    grads, params = ({"weight": tree["kernel"].T, "bias": tree["bias"]} for tree in (GRADS, PARAMS))
    first = shares(one_step(grads, params, scope="local", decay_rate=0.0)[0], grads)
    assert_close(first["weight"], moved["kernel"].T)  # the outputs come first


def test_noise_and_gradient_pass_the_gate_or_the_noise_alone():
    """Of weights of utility 0 the gate is one half."""
    zero, normal = jax.tree.map(jnp.zeros_like, PARAMS), jax.tree.map(lambda w: jnp.full(w.shape, 3.0), PARAMS)
    settings = {"noise": 0.5, "step_size": 0.1, "draw": lambda key, now, params: normal}

    def moved(**more):
        tx = upgd(optax.sgd(0.1), **(QUIET | settings | more))
        updates, _ = tx.update(jax.tree.map(lambda w: w + 2.0, zero), tx.init(zero), zero)
        return np.unique(updates["kernel"]), np.unique(updates["bias"])

    assert_close(moved(), (0.5 * -0.1 * (2 + 1.5),) * 2)
    assert_close(moved(doubled=True), (-0.1 * (2 + 1.5),) * 2)
    assert_close(moved(protecting=False), (-0.1 * (2 + 0.5 * 1.5),) * 2)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_without_a_useful_weight_the_order_of_utilities_stays_and_nothing_is_nan(scope):
    ones, params = jax.tree.map(jnp.ones_like, PARAMS), jax.tree.map(lambda w: jnp.abs(w) + 1.0, PARAMS)
    gates = shares(one_step(ones, params, scope=scope, decay_rate=0.0)[0], ones)
    assert 1 > gates["kernel"][0, 1] > gates["kernel"][0, 0] > 0.5  # the most harmful weight moves most
    still = one_step(jax.tree.map(jnp.zeros_like, PARAMS), scope=scope)[0]
    assert_close(still, jax.tree.map(jnp.zeros_like, PARAMS))


def test_decay_is_neither_gated_nor_doubled_and_leaves_frozen_parameters_alone():
    inner = optax.chain(optax.sgd(0.1), optax.masked(optax.set_to_zero(), {"kernel": False, "bias": True}))
    tx = upgd(inner, **(QUIET | {"step_size": 0.1, "weight_decay": 0.5, "doubled": True}))
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
    assert_close(updates, {"kernel": -0.05 * PARAMS["kernel"], "bias": zero["bias"]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": -1.0}, r"upgd: noise=-1.0 is not in \[0"),
        ({"decay_rate": 1.0}, r"upgd: decay_rate=1.0 is not in \[0"),
        ({"scope": "layer"}, "upgd: scope='layer'; allowed: global, local"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        one_step(**settings)
    tx = upgd(optax.sgd(1.0), **QUIET)
    with pytest.raises(ValueError, match="upgd: update needs `params`"):
        tx.update(GRADS, tx.init(PARAMS))


def tables(trace):
    """The recorded normal numbers of each step, as parameters."""
    names = ("W0", "b0", "W1", "b1", "W2", "b2")
    shapes = [trace[f"init/{name}"].shape for name in names]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    table = trace["noise_table"][np.arange(len(trace["x"]) * ends[-1]) % len(trace["noise_table"])]
    parts = np.split(table.reshape(len(trace["x"]), -1), ends[:-1], axis=1)
    drawn = {n: part.reshape(-1, *shape) for n, part, shape in zip(names, parts, shapes, strict=True)}
    return {f"Dense_{i}": {"kernel": np.swapaxes(drawn[f"W{i}"], 1, 2), "bias": drawn[f"b{i}"]} for i in range(3)}


def settings(config, drawn):
    return {
        "step_size": config["lr"],
        "noise": config["sigma"],
        "decay_rate": config["beta_utility"],
        "weight_decay": config["weight_decay"],
        "key": KEY,
        "draw": lambda key, now, params: drawn,
    }


VARIANTS = {
    "upgd_global_a": {},
    "upgd_local_a": {"scope": "local"},
    "upgd_np_global_a": {"protecting": False},
    "upgd_np_local_a": {"protecting": False, "scope": "local"},
    "upgd_readme_a": {"doubled": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_replays_the_published_code(name, replay):
    def make_tx(config, units, drawn):
        return upgd(optax.sgd(config["lr"]), **settings(config, drawn), **VARIANTS[name])

    replay(name, make_tx, extra=tables)


def test_units_replay_the_published_code(replay):
    def make_tx(config, units, drawn):
        return feature_upgd(optax.sgd(config["lr"]), units, **settings(config, drawn))

    trace, ours = replay("upgd_feature_a", make_tx, extra=tables)
    if trace.full:
        for i in (0, 1):
            utility = ours.state.utility[f"Dense_{i}"]
            np.testing.assert_allclose(utility, trace[f"f64/opt/avg_utility/h{i}"], rtol=1e-9)


def test_with_weight_clipping_it_replays_the_published_code(replay):
    def make_tx(config, units, drawn):
        tx = upgd(optax.sgd(config["lr"]), **settings(config, drawn))
        return weight_clipping(tx, bound=config["zeta"])

    replay("upgd_wc_a", make_tx, extra=tables)


def test_adaupgd_replays_the_published_code(replay):
    def make_tx(config, units, drawn):
        return ada_upgd(b1=config["beta1"], b2=config["beta2"], eps=config["eps"], **settings(config, drawn))

    trace, ours = replay("adaupgd_a", make_tx, extra=tables)
    if trace.full:
        assert json.loads(str(trace["config"]))["eps"] == 1e-5
        utility = np.swapaxes(ours.state.utility["Dense_1"]["kernel"], 0, 1)
        np.testing.assert_allclose(utility, trace["f64/opt/avg_utility/W1"], rtol=1e-9, atol=1e-14)
