"""A step with features that are not finite leaves what methods know of units as it was."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, Utility, continual_backprop, redo, trace_units

NETWORK = MLP(widths=(4, 3), outputs=2)
X = jax.random.normal(jax.random.key(0), (5, 6))
PARAMS: Any = NETWORK.init(jax.random.key(1), X)["params"]
UNITS = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), PARAMS, X)
KEY = jax.random.key(2)
EVERYTHING = Utility(
    lambda s: s.worth + jnp.abs(s.outgoing_gradient) + s.lifetime_absolute,
    needs=("worth", "outgoing_gradient", "lifetime_absolute"),
)
INNER = optax.apply_if_finite(optax.adam(0.1), 9)
METHODS = {
    "continual_backprop": lambda inner: continual_backprop(
        inner, UNITS, replacement_rate=0.3, maturity_threshold=1, key=KEY, log_size=4
    ),
    "continual_backprop that looks at everything": lambda inner: continual_backprop(
        inner, UNITS, replacement_rate=0.3, maturity_threshold=0, utility=EVERYTHING, count="bernoulli", key=KEY
    ),
    "redo": lambda inner: redo(inner, UNITS, threshold=0.9, period=2, decay_rate=0.5, key=KEY, log_size=4),
    "redo of one batch": lambda inner: redo(inner, UNITS, threshold=0.0, period=1, key=KEY),
}


def loss(params, x):
    output, features = UNITS.apply(params, x)
    return jnp.mean((output - 1) ** 2), features


def learner(tx, spoil=lambda features: features):
    """A function from batches to the parameters and states after each; `spoil` changes what the method is shown."""

    @jax.jit
    def step(params, state, x):
        gradient, features = jax.grad(loss, has_aux=True)(params, x)
        updates, state = tx.update(gradient, state, params, features=spoil(features))
        return optax.apply_updates(params, updates), state

    def learn(batches):
        seen = [(PARAMS, tx.init(PARAMS))]
        for x in batches:
            seen.append(step(*seen[-1], x))
        return seen

    return learn


def known(state):
    """What the method itself knows."""
    return getattr(state, "inner_state", state)._replace(inner=None)


GOOD = [X + i for i in range(5)]
SPOILT = [*GOOD[:3], X.at[1, 2].set(jnp.nan), GOOD[3], X.at[0, 0].set(jnp.inf), GOOD[4]]


@pytest.mark.parametrize("method", METHODS)
def test_it_is_as_if_that_step_had_not_been(method):
    learn = learner(METHODS[method](INNER))
    without, spoilt = learn(GOOD), learn(SPOILT)
    jax.tree.map(np.testing.assert_array_equal, known(spoilt[4][1]), known(spoilt[3][1]))
    (params, state), (expected, expected_state) = spoilt[-1], without[-1]
    jax.tree.map(np.testing.assert_array_equal, (params, known(state)), (expected, known(expected_state)))
    assert method == "redo of one batch" or sum(map(int, state.replaced.values())) > 0


def test_guarded_inside_is_guarded_outside():
    for method in ("continual_backprop", "redo"):
        inside = learner(METHODS[method](INNER))(SPOILT)[-1]
        outside = learner(optax.apply_if_finite(METHODS[method](optax.adam(0.1)), 9))(SPOILT)[-1]
        for a, b in ((inside[0], outside[0]), (known(inside[1]), known(outside[1]))):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


@pytest.mark.parametrize("name", ["Dense_0", "Dense_1"])
def test_one_value_of_one_unit_is_enough(name):
    for method in ("continual_backprop", "redo"):
        tx = METHODS[method](INNER)
        features = UNITS.apply(PARAMS, X)[1]
        features[name] = features[name].at[0, 1].set(jnp.nan)
        _, state = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS, features=features)
        jax.tree.map(np.testing.assert_array_equal, known(state), known(tx.init(PARAMS)))


@pytest.mark.parametrize("averaged", [True, False])
def test_a_utility_that_is_nan_is_not_the_lowest_and_never_pays(averaged):
    """Unit 0 of each layer has none; the others are ranked as ever."""

    def measure(stats):
        number = jnp.arange(stats.mean_absolute.shape[0], dtype=jnp.float32)[:, None]
        return jnp.where(number == 0, jnp.nan, number)

    tx = continual_backprop(
        INNER,
        UNITS,
        replacement_rate=1.0,
        maturity_threshold=2,
        max_replacements=2,
        utility=Utility(measure, averaged=averaged),
        key=KEY,
    )
    states = [state for _, state in learner(tx)([X] * 6)]
    assert not np.isnan(states[-1].utility["Dense_0"]).any()
    assert states[3].age["Dense_0"].tolist() == [3, 0, 0, 3]
    assert states[-1].age["Dense_0"][0] == 6
