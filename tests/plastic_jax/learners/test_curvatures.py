"""What learners tell optimizers of the loss's curvature: exact for linear units, and refused where it cannot be had."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import MLP, idbd, smd
from plastic_jax.learners.supervised import SupervisedLearner


def batch(x, y):
    return types.SimpleNamespace(
        x=x, y=y, boundary=jnp.zeros([], bool), reset_head=jnp.zeros([], bool), class_mask=None, step_scale=None
    )


def learned(make_tx, network, x, y, **options):
    """Parameters before and after learning the examples one by one."""
    learner = SupervisedLearner(network, x.shape[1:], "squared_error", lambda hyper, key: make_tx(), **options)

    def run(x, y):
        first = learner.init(jax.random.key(0), jax.random.key(1), {})

        def step(state, now):
            clock, x, y = now
            return learner.step(state, {}, batch(x[None], y[None]), clock)

        state, metrics = jax.lax.scan(step, first, (jnp.arange(len(x)), x, y))
        return first.params, state.params, metrics["squared_error"]

    return jax.tree.map(np.asarray, jax.jit(run)(x, y))


X, Y = np.random.default_rng(0).normal(size=(2, 30, 3))
Y = 2 * X @ np.array([[1.0], [0.0], [-1.0]]) + 0.1 * Y[:, :1]


def test_a_linear_network_learns_as_sutton_wrote_idbd_down():
    """For 1/2 e^2; the learner's loss is e^2, of which half the step sizes are the same."""
    alpha, theta = 0.1, 0.05
    first, last, errors = learned(lambda: idbd(alpha / 2, theta / 2), MLP(widths=()), X, Y, curvature=True)
    w = np.append(first["Dense_0"]["kernel"][:, 0], 0.0).astype(float)
    beta, h = np.full(4, np.log(alpha)), np.zeros(4)
    for x, y, seen in zip(X, Y[:, 0], errors, strict=True):
        x = np.append(x, 1.0)
        e = y - w @ x
        np.testing.assert_allclose(e**2, seen, rtol=1e-4, atol=1e-6)
        beta += theta * e * x * h
        w += np.exp(beta) * e * x
        h = h * np.maximum(1 - np.exp(beta) * x**2, 0) + np.exp(beta) * e * x
    np.testing.assert_allclose(last["Dense_0"]["kernel"][:, 0], w[:3], rtol=1e-4)


def test_a_linear_network_s_products_are_those_of_the_hessian():
    """Of the loss e^2: 2 x x' v, which stochastic meta-descent follows here step by step."""
    first, last, _ = learned(lambda: smd(0.05, 0.1, shorten=False), MLP(widths=()), X, Y, hvp=True)
    w = np.append(first["Dense_0"]["kernel"][:, 0], 0.0).astype(float)
    a, v = np.full(4, 0.05), np.zeros(4)
    for x, y in zip(X, Y[:, 0], strict=True):
        x = np.append(x, 1.0)
        g = -2 * (y - w @ x) * x
        a = a * np.maximum(0.5, 1 - 0.1 * g * v)
        v, w = 0.99 * v - a * (g + 0.99 * 2 * x * (x @ v)), w - a * g
    np.testing.assert_allclose(last["Dense_0"]["kernel"][:, 0], w[:3], rtol=1e-4)


def test_devices_that_share_a_batch_are_refused():
    how: Any = {"axis_name": "devices", "hvp": True}
    with pytest.raises(ValueError, match="curvature and hvp need the whole batch on one device"):
        SupervisedLearner(MLP(), (3,), "squared_error", lambda hyper, key: smd(0.1), **how)
