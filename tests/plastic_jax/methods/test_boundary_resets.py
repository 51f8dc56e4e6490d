"""Resets at task boundaries: what begins anew, when, and what goes on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import reset_head_at_boundary, reset_network_at_boundary, reset_optimizer_at_boundary
from plastic_jax.optimizers.adam import adam

PARAMS: Any = {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "Dense_1": {"bias": jnp.array([7.0, 8.0])}}
GRADIENT = jax.tree.map(lambda p: jnp.sin(p + 1), PARAMS)
KEY = jax.random.key(0)
INNER = optax.adam(0.1)


def init(key):
    return jax.tree.map(lambda p: jax.random.normal(key, p.shape), PARAMS)


def run(tx, boundaries, params=PARAMS):
    """Parameters and states after each step."""
    state, seen = tx.init(params), []
    step = jax.jit(lambda state, params, boundary: tx.update(GRADIENT, state, params, boundary=boundary))
    for boundary in boundaries:
        updates, state = step(state, params, jnp.array(boundary))
        params = optax.apply_updates(params, updates)
        seen.append((params, state))
    return seen


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def plain(steps, params, state=None):
    """Parameters and state after so many steps of the inner optimizer alone."""
    state = INNER.init(params) if state is None else state
    for _ in range(steps):
        updates, state = INNER.update(GRADIENT, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_an_optimizer_begins_anew_with_the_first_gradient_of_the_task():
    (_, _), (before, _), (after, state), _ = run(reset_optimizer_at_boundary(INNER), [True, False, True, False])
    assert_close(before, plain(2, PARAMS)[0])  # nothing to begin anew at step 0
    expected, expected_state = plain(1, before)
    assert_close((after, state.inner), (expected, expected_state))
    assert optax.tree.get(state.inner, "count") == 1


@pytest.mark.parametrize("reset_state", [True, False])
def test_a_network_is_a_fresh_one_after_the_first_step_of_a_task(reset_state):
    tx = reset_network_at_boundary(INNER, reset_state=reset_state, init=init, key=KEY)
    seen = run(tx, [True, False, True, False, True])
    assert_close(seen[1][0], plain(2, PARAMS)[0])
    first, second = seen[2], seen[4]
    fresh = [jax.tree.leaves(params)[0] for params, _ in (first, second)]
    assert np.abs(fresh[0]).max() < 4 and np.all(fresh[0] != fresh[1])  # another one each time
    assert (optax.tree.get(first[1].inner, "count") == 0) == reset_state
    assert_close(seen[3][0], plain(1, first[0], first[1].inner)[0])


@pytest.mark.parametrize("reset_state", [True, False])
def test_the_head_is_fresh_and_the_body_goes_on(reset_state):
    inner = adam(0.1)  # counts the steps of every weight
    tx = reset_head_at_boundary(inner, head="Dense_1", reset_state=reset_state, init=init, key=KEY)
    seen, alone = run(tx, [False, True]), run(optax.with_extra_args_support(inner), [False, False])
    (before, _), (after, state), (expected, expected_state) = seen[0], seen[1], alone[1]
    assert_equal(after["Dense_0"], expected["Dense_0"])
    assert np.all(np.abs(np.asarray(after["Dense_1"]["bias"])) < 4) and np.all(before["Dense_1"]["bias"] > 6)
    ours, theirs = (jax.tree.leaves_with_path(each) for each in (state.inner, expected_state))
    of_head = [leaf for path, leaf in ours if "Dense_1" in jax.tree_util.keystr(path)]
    assert len(of_head) == 4 and all(not leaf.any() for leaf in of_head) == reset_state
    for (path, leaf), (_, expected_leaf) in zip(ours, theirs, strict=True):
        if not (reset_state and "Dense_1" in jax.tree_util.keystr(path)):
            np.testing.assert_array_equal(leaf, expected_leaf)


def test_weights_that_inner_freezes_stay():
    frozen = optax.multi_transform(
        {"go": optax.sgd(0.1), "stay": optax.set_to_zero()}, {"Dense_0": "go", "Dense_1": "stay"}
    )
    params, _ = run(reset_network_at_boundary(frozen, init=init, key=KEY), [False, True])[1]
    assert_equal(params["Dense_1"], PARAMS["Dense_1"])
    assert np.all(params["Dense_0"]["kernel"] != PARAMS["Dense_0"]["kernel"])


def test_what_is_missing_is_told_in_one_line():
    tx: Any = reset_optimizer_at_boundary(INNER)
    with pytest.raises(ValueError, match="reset_optimizer_at_boundary: update needs the extra argument boundary"):
        tx.update(GRADIENT, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="needs `params`"):
        tx.update(GRADIENT, tx.init(PARAMS), boundary=True)
    tx = reset_head_at_boundary(INNER, head="Dense_9", init=init, key=KEY)
    with pytest.raises(ValueError, match="head='Dense_9' names no parameter; there are: Dense_0/kernel, Dense_1/bias"):
        tx.update(GRADIENT, tx.init(PARAMS), PARAMS, boundary=True)
    tx = reset_network_at_boundary(INNER, init=lambda key: jnp.zeros(3), key=KEY)
    with pytest.raises(ValueError, match="init must be a tree like the parameters"):
        tx.update(GRADIENT, tx.init(PARAMS), PARAMS, boundary=True)
