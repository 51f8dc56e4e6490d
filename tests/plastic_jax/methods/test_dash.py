"""DASH: closed forms, and the published code's recording."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.methods.dash import _factor, _summed, dash

PARAMS = {"kernel": jnp.array([[3.0, 1.0], [4.0, 0.0]]), "bias": jnp.array([1.0, 1.0])}
GRADS = {"kernel": jnp.array([[-3.0, 0.0], [-4.0, -1.0]]), "bias": jnp.array([-1.0, 0.0])}


def run(grads, boundaries, **settings):
    """The parameters after every step of plain SGD with step size 1."""
    tx = dash(optax.sgd(1.0), **settings)
    params, state, way = PARAMS, tx.init(PARAMS), []
    for g, boundary in zip(grads, boundaries, strict=True):
        with jax.disable_jit():
            updates, state = tx.update(g, state, params, boundary=jnp.array(boundary))
        params = optax.apply_updates(params, updates)
        way.append(params)
    return way, state


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_weights_are_shrunk_by_the_cosine_to_the_descent_direction():
    zero = jax.tree.map(jnp.zeros_like, GRADS)
    way, _ = run([zero, GRADS], [True, True], batches=1, minimum=0.2)
    assert_close(way[0], PARAMS)  # the first step of all begins nothing
    assert_close(way[1], {"kernel": [[3.0, 0.2], [4.0, 0.0]], "bias": [0.5**0.5] * 2})  # cosines 1 and 0; cos 45


def test_while_it_gathers_nothing_is_learned_and_the_average_is_of_these_steps_alone():
    two, zero = jax.tree.map(lambda g: 2 * g, GRADS), jax.tree.map(jnp.zeros_like, GRADS)
    way, state = run([zero, zero, two], [False, True, False], batches=3, rate=0.25)
    assert_close(way[-1], PARAMS)
    assert_close(state.direction, jax.tree.map(lambda g: -0.5 * g, GRADS))
    assert state.left == 1
    way, state = run([zero, zero, two, GRADS], [False, True, False, False], batches=1)
    assert_close(way[-1], optax.apply_updates(way[1], jax.tree.map(lambda g: -3 * g, GRADS)))


def test_a_convolution_has_a_cosine_for_every_filter():
    weights = jnp.arange(1.0, 13.0).reshape(3, 1, 2, 2)
    direction = weights * jnp.array([[1.0, -1.0], [2.0, 1.0]])
    factor = _factor(direction, weights, 0.0, _summed("ttio"))
    np.testing.assert_allclose(factor, jnp.array([[[[1.0, 0.0], [1.0, 1.0]]]]), rtol=1e-6)


def test_a_kernel_whose_outputs_come_first_is_read_so_and_by_hand():
    for name, settings in (("weight", {}), ("kernel", {"axes": {"kernel": "oi"}})):
        tx = dash(optax.sgd(1.0), batches=1, minimum=0.2, **settings)
        params, grads = ({name: tree["kernel"].T, "bias": tree["bias"]} for tree in (PARAMS, GRADS))
        state = tx.init(params)._replace(count=jnp.int32(1))
        with jax.disable_jit():
            updates, _ = tx.update(grads, state, params, boundary=jnp.array(True))
        after = optax.apply_updates(params, updates)
        assert_close(after[name], jnp.array([[3.0, 4.0], [0.2, 0.0]]))


def test_frozen_parameters_stay():
    inner = optax.chain(optax.sgd(1.0), optax.masked(optax.set_to_zero(), {"kernel": False, "bias": True}))
    tx = dash(inner, batches=1)
    state = tx.init(PARAMS)._replace(count=jnp.int32(5))
    with jax.disable_jit():
        updates, _ = tx.update(GRADS, state, PARAMS, boundary=jnp.array(True))
    assert (updates["bias"] == 0).all()
    assert updates["kernel"][0, 1] != 0


def test_what_is_missing_or_wrong_is_named():
    with pytest.raises(ValueError, match=r"dash: minimum=2.0 is not in \[0"):
        dash(optax.sgd(0.1), minimum=2.0)
    tx = dash(optax.sgd(0.1))
    with pytest.raises(ValueError, match="dash: update needs `params`"):
        tx.update(GRADS, tx.init(PARAMS), boundary=jnp.array(False))
    with pytest.raises(ValueError, match="dash: update needs `boundary`"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(("precision", "tolerance"), [("f64", 1e-9), ("f32", 1e-5)])
def test_replays_the_published_code(precision, tolerance, traces):
    """There a pass over the next batches precedes the step; here these batches come twice."""
    load_trace, replay_trace, assert_tree_close = traces
    config = load_trace("dash_a").config
    number, start = config["n_batches"], config["after_updates"]

    def make_tx(config, units, boundary):
        base = config["base_optimizer"]
        return dash(
            optax.sgd(base["lr"], base["momentum"]),
            rate=config["dash_alpha"],
            minimum=config["dash_lambda"],
            batches=number,
        )

    for full in (False, True) if precision == "f64" else (True,):
        trace = load_trace("dash_a", full)
        order, begins, learns = [], [], []
        for step in range(len(trace["x"])):
            if step in start:
                order += range(step, step + number)
                begins += [True] + [False] * (number - 1)
                learns += [False] * number
            order, begins, learns = [*order, step], [*begins, False], [*learns, True]
        twice = {name: trace[name][order] for name in ("x", "y")}
        ours = replay_trace(
            dataclasses.replace(trace, arrays=trace.arrays | twice),
            make_tx,
            precision=precision,
            extra=np.array(begins, float),
            arguments=lambda begins: {"boundary": begins > 0},
        )
        losses = trace[f"{precision}/loss"]
        np.testing.assert_allclose(ours.losses[learns], losses, rtol=0, atol=tolerance * losses.max())
        if full and precision == "f64":
            assert_tree_close(ours.params, trace.tree("f64/final"))
