"""ReGraMa: closed forms, and a public implementation's recording."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, Initializer, regrama, trace_units

NETWORK = MLP(widths=(3,), outputs=2)
X = jnp.array([[1.0, -1.0], [0.5, 2.0]])
PARAMS = {
    "Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.array([-9.0, 0.1, 0.2])},  # unit 0 is silent
    "Dense_1": {"kernel": jnp.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.5]]), "bias": jnp.zeros(2)},  # nobody reads 1
}
UNITS = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), PARAMS, X, check=False)
KEY = jax.random.key(0)


@jax.jit
def seen(params):
    return UNITS.value_and_grad(lambda y: jnp.mean(y**2), feature_gradients=True)(params, X)


@pytest.mark.parametrize(("signal", "gone"), [("feature_gradient", [1]), ("weight_gradient", [0, 1])])
def test_a_silent_unit_has_a_gradient_of_its_value_and_none_of_its_weights(signal, gone):
    (_, features), (grads, own) = seen(PARAMS)
    tx = regrama(optax.sgd(0.0), UNITS, signal=signal, period=1, key=KEY)
    updates, state = jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS, features=features, feature_gradients=own)
    assert np.flatnonzero(state.age["Dense_0"] == 0).tolist() == gone
    after = optax.apply_updates(PARAMS, updates)
    for unit in gone:
        assert after["Dense_0"]["bias"][unit] == 0 and (after["Dense_1"]["kernel"][unit] == 0).all()
        assert (after["Dense_0"]["kernel"][:, unit] != 1).all()
    expected = np.abs(own["Dense_0"]).mean(0) if signal == "feature_gradient" else None
    if expected is not None:
        np.testing.assert_allclose(state.activity["Dense_0"], np.where(np.isin(range(3), gone), 0, expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signal": "activity"}, "regrama: signal='activity'; allowed: feature_gradient, weight_gradient"),
        ({"threshold": -0.1}, r"regrama: threshold=-0.1 is not in \[0, inf\]"),
        ({"units": None}, "regrama: units is no UnitGraph; see trace_units"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        regrama(optax.sgd(0.1), **({"units": UNITS, "key": KEY} | arguments))


def test_what_is_missing_is_named():
    for signal in ("feature_gradient", "weight_gradient"):
        tx = regrama(optax.sgd(0.1), UNITS, signal=signal, key=KEY)
        with pytest.raises(ValueError, match="regrama: update needs `params`"):
            tx.update(PARAMS, tx.init(PARAMS))
    tx = regrama(optax.sgd(0.1), UNITS, key=KEY)
    with pytest.raises(ValueError, match="regrama: update needs `feature_gradients`; call update"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, features={})


def due(trace):
    """The period at each step: resets are due at the steps `t > 0` that it divides, counted from 0."""
    t = np.arange(len(trace["x"]))
    return np.where((t > 0) & (t % trace.config["update_frequency"] == 0), 1, 10**6)


def test_adam_replays_the_public_implementation_reset_by_reset(replay):
    def make_tx(config, units, period):
        return regrama(
            optax.adam(config["base_optimizer"]["lr"]),
            units,
            signal="weight_gradient",
            threshold=config["score_threshold"],
            period=period,
            initializer=Initializer(gain=2**0.5, linspace=True),
            key=KEY,
        )

    trace, ours = replay("regrama_a", make_tx, extra=due, see=lambda state: state.age)
    gone = np.stack([ours.seen[f"Dense_{i}"] == 0 for i in range(2)], axis=1)
    assert {tuple(row) for row in np.argwhere(gone)} == {tuple(row) for row in trace["f64/events"]}
