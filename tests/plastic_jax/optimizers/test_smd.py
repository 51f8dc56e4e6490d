"""Stochastic meta-descent: by hand on a net of three weights, and against differences of whole trajectories."""

from typing import Any

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.networks.convolutions import as_products
from plastic_jax.optimizers.curvature import gauss_newton
from plastic_jax.optimizers.smd import SMDState, smd

STEPS = 60
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(STEPS, 2)), RANDOM.normal(size=STEPS)
W = np.array([0.3, -0.2, 0.5])


def output(w, x):
    """A hidden unit and an output: w2 tanh(w0 x0 + w1 x1)."""
    return w[2] * jnp.tanh(w[0] * x[0] + w[1] * x[1])


def by_hand(w, x, y):
    """Gradient, Hessian and Gauss-Newton matrix of 1/2 (output - y)^2."""
    h = np.tanh(w[0] * x[0] + w[1] * x[1])
    slope, bend = 1 - h**2, -2 * h * (1 - h**2)
    jacobian = np.array([w[2] * slope * x[0], w[2] * slope * x[1], h])
    second = np.zeros((3, 3))
    second[:2, :2] = w[2] * bend * np.outer(x, x)
    second[:2, 2] = second[2, :2] = slope * x
    error = w[2] * h - y
    return error * jacobian, np.outer(jacobian, jacobian) + error * second, np.outer(jacobian, jacobian)


def smd_by_hand(curvature, step_size, meta, decay):
    w, a, v, sizes, seen = W.copy(), np.full(3, step_size), np.zeros(3), [], []
    for x, y in zip(X, Y, strict=True):
        gradient, hessian, gauss_newton_matrix = by_hand(w, x, y)
        h = hessian if curvature == "hessian" else gauss_newton_matrix
        a = a * np.maximum(0.5, 1 - meta * gradient * v)
        v = decay * v - a * (gradient + decay * h @ v)
        w = w - a * gradient
        sizes.append(a)
        seen.append(w)
    return np.array(seen), np.array(sizes), v


def ours(curvature, step_size, meta, decay, **options):
    """Weights and step sizes after every step, and the last state, in float64."""

    def run(w, x, y):
        tx = smd(step_size, meta, decay, shorten=False, **options)

        def step(carry, now):
            w, state = carry
            x, y = now
            loss = lambda out: 0.5 * (out - y) ** 2  # noqa: E731
            whole = lambda w: loss(output(w, x))  # noqa: E731
            if curvature == "hessian":
                hvp = lambda d: jax.jvp(jax.grad(whole), (w,), (d,))[1]  # noqa: E731
            else:
                hvp = gauss_newton(lambda w: output(w, x), loss, w)
            updates, state = tx.update(jax.grad(whole)(w), state, w, hvp=hvp)
            w = optax.apply_updates(w, updates)
            return (w, state), (w, state.step_size)

        (_, state), seen = jax.lax.scan(step, (w, tx.init(w)), (x, y))
        return *seen, state

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(run)(jnp.asarray(W), X, Y))


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_is_what_is_computed_by_hand(curvature):
    expected = smd_by_hand(curvature, 0.1, 0.3, 0.95)
    weights, sizes, state = ours(curvature, 0.1, 0.3, 0.95)
    for got, wanted in zip((weights, sizes, state.trace), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9)
    assert np.ptp(sizes[-1]) > 0.005  # the step sizes have come apart


def test_the_trace_is_the_derivative_of_the_whole_trajectory_in_the_step_sizes():
    """All step sizes of all steps times e^d, d small: what the last weights change by, without decay."""
    _, sizes, state = ours("hessian", 0.1, 0.3, 1.0)

    def end(d):
        w = W.copy()
        for x, y, a in zip(X, Y, sizes, strict=True):
            w = w - np.exp(d) * a * by_hand(w, x, y)[0]
        return w

    d = 1e-4
    difference = (8 * (end(d) - end(-d)) - (end(2 * d) - end(-2 * d))) / (12 * d)
    np.testing.assert_allclose(state.trace, difference, rtol=1e-6)
    assert np.abs(difference).min() > 1e-3


def drifting(meta, shorten):
    """Squared errors of a net on a target that keeps changing; a meta step size of 1 is about the best."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (600, 5))
    y = jnp.sum(x * jnp.cumsum(0.05 * jax.random.normal(keys[1], x.shape), 0), 1)
    params = {"in": 0.4 * jax.random.normal(keys[2], (5, 8)), "out": jnp.full(8, 0.3)}
    tx = smd(0.05, meta, shorten=shorten)

    def step(carry, now):
        params, state = carry
        x, y = now
        apply = lambda p: jnp.tanh(x @ p["in"]) @ p["out"]  # noqa: E731
        loss = lambda out: 0.5 * (out - y) ** 2  # noqa: E731
        value, gradient = jax.value_and_grad(lambda p: loss(apply(p)))(params)
        updates, state = tx.update(gradient, state, params, hvp=gauss_newton(apply, loss, params))
        return (optax.apply_updates(params, updates), state), value

    (params, state), losses = jax.lax.scan(step, (params, tx.init(params)), (x, y))
    return losses, params, state


def test_a_meta_step_size_that_is_far_too_large_is_bad_and_not_infinite_and_says_so():
    run: Any = jax.jit(jax.vmap(lambda meta: drifting(meta, True)))
    losses, params, state = run(jnp.array([0.0, 1.0, 10.0, 50.0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((losses, params, state)))
    late = np.asarray(losses[:, 300:].mean(1))
    assert late[1] < 0.95 * late[0]  # the best learns step sizes that pay
    assert losses[:3].max() < 10 * losses[0].max()  # ten times as much costs little, fifty times much
    assert losses.max() < 1e3
    shortened = np.asarray(state.shortened)
    assert shortened[1] < 0.2 * 600 < 0.4 * 600 < shortened[3]


def test_without_meta_step_it_is_gradient_descent_and_a_long_step_ends_at_the_minimum_of_its_line():
    params = {"kernel": jnp.array([[1.0], [2.0]]), "bias": jnp.array([0.5])}
    x, y = jnp.array([[3.0, -1.0]]), jnp.array([[2.0]])
    apply = lambda p: x @ p["kernel"] + p["bias"]  # noqa: E731
    loss = lambda out: 0.5 * jnp.sum((out - y) ** 2)  # noqa: E731

    def step(step_size, shorten):
        tx = smd(step_size, 0.0, shorten=shorten)
        return tx.update(gradient, tx.init(params), params, hvp=gauss_newton(apply, loss, params))

    step = jax.jit(step, static_argnums=1)
    gradient = jax.grad(lambda p: loss(apply(p)))(params)
    updates, state = step(0.01, True)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -jnp.float32(0.01) * g, rtol=1e-6), updates, gradient)
    assert state.shortened == 0
    updates, state = step(10.0, True)
    np.testing.assert_allclose(apply(optax.apply_updates(params, updates)), y, atol=1e-5)
    assert state.shortened == 1
    updates, _ = step(10.0, False)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -10 * g, rtol=1e-6), updates, gradient)


def test_products_are_those_of_the_gauss_newton_matrix():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    labels = jnp.array([0, 1, 2, 1])
    params = {"a": jax.random.normal(jax.random.key(1), (3, 3)), "b": jnp.ones(3)}
    apply = lambda p: jnp.tanh(x @ p["a"]) * p["b"]  # noqa: E731
    loss = lambda z: optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()  # noqa: E731

    @jax.jit
    def both(direction):
        flat, back = jax.flatten_util.ravel_pytree(params)
        jacobian = jax.jacobian(lambda f: apply(back(f)).ravel())(flat)
        hessian = jax.hessian(lambda z: loss(z.reshape(4, 3)))(apply(params).ravel())
        product = gauss_newton(apply, loss, params)
        expected = back(jacobian.T @ hessian @ jacobian @ jax.flatten_util.ravel_pytree(direction)[0])
        return product(direction), expected, product({"a": direction["a"]}), product({**direction, "b": jnp.zeros(3)})

    found, expected, part, whole = both(jax.tree.map(jnp.cos, params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert set(part) == {"a"}  # of a part, as under a mask: the rest counts as 0
    np.testing.assert_allclose(part["a"], whole["a"], rtol=1e-6)


def test_products_of_convolutions_as_matrix_products_are_the_same():
    network, x = nn.Conv(2, (3, 3)), jnp.linspace(-1, 1, 72).reshape(2, 6, 6, 1)
    params = jax.jit(network.init)(jax.random.key(0), x)
    direction = jax.tree.map(jnp.cos, params)
    loss = lambda z: jnp.mean(z**2)  # noqa: E731
    apply = lambda p: jnp.tanh(network.apply(p, x))  # noqa: E731
    two = jax.jit(lambda p: [gauss_newton(f, loss, p)(direction) for f in (apply, as_products(apply))])(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *two)


def test_what_is_missing_is_said_and_types_are_kept():
    params: Any = {"kernel": jnp.ones((2, 1), jnp.bfloat16)}
    tx = smd(0.1)
    with pytest.raises(ValueError, match="smd: update needs the extra argument hvp, a function"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"smd: trace_decay=1.5 is not in"):
        smd(0.1, trace_decay=1.5)
    updates, state = tx.update(params, tx.init(params), params, hvp=lambda d: d)
    assert isinstance(state, SMDState) and updates["kernel"].dtype == jnp.bfloat16
    assert state.step_size["kernel"].dtype == state.trace["kernel"].dtype == jnp.float32
