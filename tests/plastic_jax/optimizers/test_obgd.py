"""ObGD and intentional updates: recordings of streaming TD(lambda), and what a step does to the error."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP
from plastic_jax.optimizers.intentional import intentional
from plastic_jax.optimizers.obgd import obgd

X = jnp.array([1.9, -1.0, 0.5])
START = jnp.array([0.1, 0.2, -0.3])


def learned(trace, make_tx, precision):
    """TD(lambda) as recorded: TD errors of all steps, final parameters and state."""
    with jax.enable_x64(precision == "f64"):
        dtype = jnp.float64 if precision == "f64" else jnp.float32
        network = MLP(widths=(16, 16), outputs=1, activation="leaky_relu")
        tx = make_tx(trace.config)

        def value(params, s):
            return network.apply({"params": params}, s[None])[0, 0]

        def step(carry, now):
            params, state = carry
            s, following, reward, done = now
            v, gradient = jax.value_and_grad(value)(params, s)
            error = reward + trace.config["gamma"] * value(params, following) * (1 - done) - v
            updates, state = tx.update(gradient, state, params, error=error, reset=done > 0)
            return (optax.apply_updates(params, updates), state), error

        params = jax.tree.map(jnp.asarray, trace.tree("init", dtype))
        stream = tuple(jnp.asarray(trace[key], dtype) for key in ("s", "s_next", "reward", "done"))
        run = jax.jit(functools.partial(jax.lax.scan, step))
        (params, state), errors = run((params, tx.init(params)), stream)
        return np.asarray(errors), params, state


def make_obgd(config):
    more = {"adaptive": True, "b2": config["beta2"], "eps": config["eps"]} if config["adaptive"] else {}
    decay = config["gamma"] * config["lamda"]
    return obgd(config["lr"], overshooting_bound=config["kappa"], trace_decay=decay, **more)


@pytest.mark.parametrize("name", ["obgd_a", "obgd_adaptive_a"])
def test_obgd_replays_the_published_code(name, traces):
    load_trace, _, assert_tree_close = traces
    short = load_trace(name)
    try:
        trace = load_trace(name, full=True)
    except pytest.skip.Exception:
        trace = short
    errors, params, state = learned(trace, make_obgd, "f64")
    np.testing.assert_allclose(errors[: len(short["f64/delta"])], short["f64/delta"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(errors, trace["f64/delta"], rtol=1e-9, atol=1e-12)
    if trace.full:
        assert_tree_close(params, trace.tree("f64/final"))
        sign = jax.tree.map(jnp.negative, state.trace)  # recorded is the gradient of the prediction's negative
        assert_tree_close(sign, trace.tree("f64/opt/eligibility_trace"))
        single = learned(trace, make_obgd, "f32")[0]
        recorded = trace["f32/delta"]
        np.testing.assert_allclose(single, recorded, rtol=0, atol=1e-5 * np.abs(recorded).max())


def squared_error(w, target):
    return (target - w @ X) ** 2


def one_step(tx, target, state=None, w=START):
    loss, gradient = jax.value_and_grad(squared_error)(w, target)
    updates, state = tx.update(gradient, tx.init(w) if state is None else state, w, loss=loss)
    return optax.apply_updates(w, updates), state


@pytest.mark.parametrize("target", [7.0, -0.5])
def test_an_intentional_update_takes_away_the_share_of_the_error_that_is_asked_for(target):
    for scaled in (True, False):
        w, _ = one_step(intentional(0.3, scaled=scaled), target)
        np.testing.assert_allclose(target - w @ X, 0.7 * (target - START @ X), rtol=1e-5)


def test_with_traces_the_step_is_measured_along_them():
    """The trace of a gradient g that comes twice is (1 + d) g, and a = share / sqrt(|g|^2 (1 + d)^2 |g|^2)."""
    tx = intentional(0.3, scaled=False, trace_decay=0.6)
    state, w = tx.init(START), START
    for _ in range(2):
        error = 7.0 - w @ X
        updates, state = tx.update(X, state, w, error=error)
        w = w + updates
        np.testing.assert_allclose(updates @ X, 0.3 * error, rtol=1e-5)
    _, after = tx.update(X, state, w, error=1.0, reset=jnp.array(True))
    np.testing.assert_array_equal(after.trace, 0.0)


def test_an_error_beyond_the_usual_is_clipped():
    """After 400 errors of 1 one of 1000 counts as 2 root mean squares: sqrt(400/401 + 1e6/401) each."""
    tx = intentional(1.0, scaled=False, clip_errors=2.0, error_decay=0.9999)
    state = tx.init(START)
    state = jax.lax.fori_loop(0, 400, lambda _, s: tx.update(X, s, START, error=1.0)[1], state)
    updates, _ = tx.update(X, state, START, error=1000.0)
    np.testing.assert_allclose(updates @ X, 2 * np.sqrt((400 + 1e6) / 401), rtol=0.02)


def test_obgd_never_overshoots_where_plain_gradient_descent_does():
    """Of a linear prediction of inputs below the bound, at any step size, the error keeps its sign and shrinks."""
    for step_size, target in itertools.product((0.01, 1.0, 100.0), (-20.0, 0.4, 20.0)):
        before = target - START @ X
        after = target - one_step(obgd(step_size), target)[0] @ X
        assert 0 < after / before < 1, (step_size, target)
    plain = target - one_step(optax.with_extra_args_support(optax.sgd(1.0)), target)[0] @ X
    assert plain / before < -1  # the last target and input


@pytest.mark.parametrize("make", [lambda: obgd(adaptive=True), intentional])
def test_a_squared_errors_gradient_makes_the_step_of_the_predictions(make):
    tx, target = make(), 7.0
    by_loss, _ = one_step(tx, target)
    updates, _ = tx.update(X, tx.init(START), START, error=target - START @ X)
    np.testing.assert_allclose(by_loss, START + updates, rtol=1e-5)


@pytest.mark.parametrize("make", [obgd, intentional])
def test_a_loss_of_zero_moves_nothing(make):
    """Nor makes it anything that is not a number."""
    tx = make()
    updates, state = tx.update(jnp.zeros(3), tx.init(START), START, loss=jnp.zeros([]))
    np.testing.assert_array_equal(updates, 0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("make", [obgd, intentional])
def test_what_is_missing_is_named(make):
    tx = make()
    with pytest.raises(ValueError, match=f"{make.__name__}: update needs the extra argument loss .* or error"):
        tx.update(X, tx.init(START), START)
