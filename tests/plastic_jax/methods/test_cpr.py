"""Calibrated partial resets: closed forms, and the published code's recording."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, Initializer, cpr, trace_units

NETWORK = MLP(widths=(3, 2), outputs=2)
X = jnp.ones((1, 2))
PARAMS = jax.tree.map(jnp.ones_like, NETWORK.init(jax.random.key(0), X)["params"])
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
UNITS = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), PARAMS, X, check=False)
LINES = Initializer(linspace=True)
KEY = jax.random.key(0)


def test_every_unit_goes_the_share_of_the_way_that_its_utility_says():
    """Of three units with gradients 0, 1 and 2, relative to their mean; nothing else moves."""
    gradient = jax.tree.map(jnp.copy, ZEROS)
    gradient["Dense_0"]["kernel"] = jnp.array([[0.0, 1.0, 2.0], [0.0, -1.0, 2.0]])
    how = {"replacement_rate": 0.5, "sharpness": 0.25, "threshold": 1.0, "decay_rate": 0.0, "period": 1}
    tx = cpr(optax.sgd(0.0), UNITS, transform="linear", initializer=LINES, key=KEY, **how)
    updates, state = jax.jit(tx.update)(gradient, tx.init(PARAMS), PARAMS)
    after = optax.apply_updates(PARAMS, updates)
    first = np.array([0.5, 0.5, 0.375])  # of utilities 0 (bound), 1, 2
    bound = (3 / 2) ** 0.5
    kernel = 1 - first + first * np.array([[-bound], [bound]])
    np.testing.assert_allclose(after["Dense_0"]["kernel"], kernel, rtol=1e-6)
    # Without any gradient all utilities are 0: half of the way. What enters them has shrunk before.
    row = np.linspace(-1, 1, 3)
    np.testing.assert_allclose(after["Dense_1"]["kernel"], (0.5 * (1 - first) + 0.5 * row)[:, None] * [1, 1], rtol=1e-6)
    np.testing.assert_allclose(after["Dense_2"]["kernel"], 0.5, rtol=1e-6)
    for layer in after.values():
        assert (layer["bias"] == 1).all()
    assert all((u == 1).all() for u in state.utility.values())


def test_a_sharp_transform_at_rate_1_is_a_hard_reset_and_leaves_the_others_alone():
    gradient = jax.tree.map(jnp.copy, ZEROS)
    gradient["Dense_0"]["kernel"] = jnp.array([[0.0, 1.0, 2.0]] * 2)
    how = {"replacement_rate": 1.0, "sharpness": 1e4, "threshold": 0.5, "decay_rate": 0.0, "period": 1}
    tx = cpr(optax.sgd(0.0), UNITS, initializer=LINES, key=KEY, **how)
    after = optax.apply_updates(PARAMS, jax.jit(tx.update)(gradient, tx.init(PARAMS), PARAMS)[0])["Dense_0"]["kernel"]
    np.testing.assert_allclose(after[:, 0], [-(1.5**0.5), 1.5**0.5], rtol=1e-6)
    assert (after[:, 1:] == 1).all()


@pytest.mark.parametrize("transform", ["sigmoid", "exponential", "softplus", "linear"])
def test_transforms_are_1_up_to_the_threshold_and_fall_from_there(transform):
    from plastic_jax.methods.cpr import _towards

    u = jnp.array([0.0, 0.5, 1.0, 1.05, 3.0])
    shares = np.asarray(_towards(transform, u, 16.0, 1.0))
    assert np.allclose(shares[:3], 1) and 0 < shares[3] < 1 and shares[4] < 1e-6
    expected = {"sigmoid": 2 / (1 + np.exp(0.8)), "exponential": np.exp(-0.8), "linear": 0.2}
    expected["softplus"] = np.log1p(np.exp(-0.8)) / np.log(2)
    np.testing.assert_allclose(shares[3], expected[transform], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replacement_rate": 1.5}, r"cpr: replacement_rate=1.5 is not in \[0, 1\]"),
        ({"transform": "step"}, "cpr: transform='step'; allowed: sigmoid, exponential, softplus, linear"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        cpr(optax.sgd(0.1), UNITS, key=KEY, **arguments)
    tx = cpr(optax.sgd(0.1), UNITS, key=KEY)
    with pytest.raises(ValueError, match="cpr: update needs `params`"):
        tx.update(ZEROS, tx.init(PARAMS))


def due(trace):
    """The period at each step: resets are due at the steps `t > 0` that it divides, counted from 0."""
    t = np.arange(len(trace["x"]))
    return np.where((t > 0) & (t % trace.config["update_frequency"] == 0), 1, 10**6)


def test_adam_replays_the_published_code(replay):
    def make_tx(config, units, period):
        return cpr(
            optax.adam(config["base_optimizer"]["lr"]),
            units,
            replacement_rate=config["replacement_rate"],
            period=period,
            sharpness=config["sharpness"],
            threshold=config["threshold"],
            decay_rate=config["decay_rate"],
            transform=config["transform_type"],
            initializer=Initializer(gain=2**0.5, linspace=True),
            key=KEY,
        )

    trace, ours = replay("cpr_a", make_tx, extra=due, see=lambda state: state.utility)
    steps = [t for t in (0, 9, 100, 199) if t < len(trace["x"])]
    found = np.stack([ours.seen[f"Dense_{i}"][steps] for i in range(2)], axis=1)
    np.testing.assert_allclose(found, trace["f64/utilities"][: len(steps)], rtol=1e-7)
