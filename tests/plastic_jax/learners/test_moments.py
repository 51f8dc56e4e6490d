"""Running moments against NumPy, and a learner that normalises its inputs by them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP
from plastic_jax.learners.moments import deviation, no_moments, normalised, taken_in
from plastic_jax.learners.supervised import SupervisedLearner

X = 5 + 3 * np.asarray(jax.random.normal(jax.random.key(0), (12, 2)))


@pytest.mark.parametrize("decay", [None, 1.0])
@pytest.mark.parametrize("batch", [1, 4])
def test_without_forgetting_they_are_mean_and_deviation_of_all_values(decay, batch):
    moments = no_moments((2,))
    for part in X.reshape(-1, batch, 2):
        moments = taken_in(moments, part, decay)
    assert moments.number == 12
    np.testing.assert_allclose(moments.mean, X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation(moments), X.std(0), rtol=1e-5)


def test_with_a_decay_they_are_an_exponential_average_unbiased_from_the_first_value_on():
    moments = no_moments((2,))
    for n, x in enumerate(X, start=1):
        moments = taken_in(moments, x[None], 0.7)
        weights = 0.7 ** np.arange(n - 1, -1, -1)
        mean, square = (np.average(values, axis=0, weights=weights) for values in (X[:n], X[:n] ** 2))
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(deviation(moments) ** 2, np.maximum(square - mean**2, 1e-8), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(moments.number, (1 - 0.7**12) / 0.3, rtol=1e-5)


def test_a_batch_ages_what_came_before_by_as_many_values_as_it_has():
    moments = taken_in(taken_in(no_moments((2,)), X[:4], 0.9), X[4:], 0.9)
    np.testing.assert_allclose(moments.number, 4 * 0.9**8 + 8, rtol=1e-6)


def test_parts_of_a_batch_on_several_devices_make_the_moments_of_the_whole():
    before = taken_in(no_moments((2,)), X[:4])
    whole = taken_in(before, X[4:], 0.9)
    take = functools.partial(taken_in, axis_name="devices")
    parts = jax.vmap(take, in_axes=(None, 0, None), axis_name="devices")(before, X[4:].reshape(2, 4, 2), 0.9)
    jax.tree.map(lambda part, all_: np.testing.assert_allclose(part, np.stack([all_] * 2), rtol=1e-5), parts, whole)


def test_normalised_values_are_clipped_to_ten_deviations():
    moments = taken_in(no_moments((2,)), X)
    far = normalised(moments, np.array([[1e6, -1e6]]))
    np.testing.assert_array_equal(far, [[10, -10]])
    assert normalised(None, X) is X


class Batch(NamedTuple):
    x: Any
    y: Any
    boundary: Any
    reset_head: Any = False
    class_mask: Any = None
    step_scale: Any = None


HYPER = {"step_size": 0.1, "input_decay": 0.9}
Y = np.asarray(jax.random.normal(jax.random.key(1), (12, 1)))


def learner(**fields) -> Any:
    return SupervisedLearner(
        MLP((3,), 1), (2,), "squared_error", lambda hyper, key: optax.sgd(hyper["step_size"]), **fields
    )


def trained(agent, x, boundary=(False,) * 12):
    """One example a step."""
    state = agent.init(jax.random.key(2), jax.random.key(3), HYPER)

    def step(state, example):
        x, y, boundary = example
        return agent.step(state, HYPER, Batch(x[None], y[None], boundary), jnp.int32(0))

    return jax.jit(lambda state: jax.lax.scan(step, state, (x, Y, jnp.array(boundary))))(state)


def test_a_learner_that_normalises_does_not_see_scale_and_offset_of_its_inputs():
    agent = learner(normalise_inputs=True)
    (state, seen), (other, seen_too) = trained(agent, X), trained(agent, 100 * X - 40)
    np.testing.assert_allclose(seen["squared_error"], seen_too["squared_error"], rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), state.params, other.params)
    assert np.abs(state.inputs.mean - other.inputs.mean).min() > 10
    plain = trained(learner(), X)[1]["squared_error"]
    assert np.abs(plain / seen["squared_error"] - 1).max() > 0.1

    held_out = {"test": Y}
    errors = [agent.evaluate(each, x, held_out)["test"][0] for each, x in ((state, X), (other, 100 * X - 40))]
    np.testing.assert_allclose(*errors, rtol=1e-3)
    output = agent.network.apply({"params": state.params}, normalised(state.inputs, X))
    np.testing.assert_allclose(errors[0], np.sum((output - Y) ** 2), rtol=1e-4)


def test_a_fresh_network_begins_with_moments_of_its_own_task():
    boundary = tuple(i == 8 for i in range(12))
    state, _ = trained(learner(normalise_inputs=True, restart=True), X, boundary)
    np.testing.assert_allclose(state.inputs.number, (1 - 0.9**4) / 0.1, rtol=1e-5)
    kept, _ = trained(learner(normalise_inputs=True, restart=True, restart_all=False), X, boundary)
    np.testing.assert_allclose(kept.inputs.number, (1 - 0.9**12) / 0.1, rtol=1e-5)
