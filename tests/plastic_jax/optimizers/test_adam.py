from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.optimizers.adam import AdamState
from plastic_jax.optimizers.adam import adam as typed_adam

# optax types a state as any tree of arrays; the tests look inside it.
adam: Any = typed_adam
PARAMS: Any = {"kernel": jnp.array([[1.0, -2.0], [0.5, 4.0]]), "bias": jnp.array([3.0, -1.0])}


def gradients(steps):
    keys = jax.random.split(jax.random.key(0), steps)
    return [{"kernel": jax.random.normal(key, (2, 2)), "bias": jax.random.normal(key, (2,))} for key in keys]


def constant_gradient_steps(tx, steps, state=None):
    """Size of each update under a gradient of 1, in a net of one weight."""
    params = jnp.zeros(1)

    def step(state, _):
        updates, state = tx.update(jnp.ones(1), state, params)
        return state, -updates[0]

    state, sizes = jax.lax.scan(step, tx.init(params) if state is None else state, length=steps)
    return np.asarray(sizes), state


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.99, 0.99), (0.0, 0.9)])
def test_is_optax_adam_while_nothing_is_reset(betas):
    ours, theirs = adam(0.1, *betas), optax.adam(0.1, *betas)
    state, other_state = ours.init(PARAMS), theirs.init(PARAMS)
    for gradient in gradients(5):
        updates, state = ours.update(gradient, state, PARAMS)
        expected, other_state = theirs.update(gradient, other_state, PARAMS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updates, expected)
    assert all((count == 5).all() for count in jax.tree.leaves((state.rows, state.columns)))


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((), (), ()), ((3,), (3,), (3,)), ((4, 3), (4, 1), (1, 3)), ((3, 3, 8, 4), (3, 3, 8, 1), (3, 3, 1, 4))],
)
def test_counts_are_those_of_rows_and_columns(shape, rows, columns):
    state = adam(0.1).init(jnp.zeros(shape))
    assert (state.rows.shape, state.columns.shape) == (rows, columns)
    assert state.rows.dtype == state.columns.dtype == jnp.int32


def test_a_row_and_a_column_begin_again_in_place():
    """Weights of both a row and a column that were reset count from the later reset."""
    tx, params = adam(0.1), jnp.zeros((3, 4))
    gradient = jnp.cos(jnp.arange(12.0)).reshape(3, 4)
    new = state = tx.init(params)
    begun = np.zeros((3, 4), int)
    for step, (row, column) in enumerate([(3, 4), (1, 4), (3, 2), (1, 4), (3, 4)]):
        mask = (np.arange(3)[:, None] == row) | (np.arange(4) == column)
        begun[mask] = step
        state = AdamState(
            jnp.where(mask.all(1, keepdims=True), 0, state.rows),
            jnp.where(mask.all(0, keepdims=True), 0, state.columns),
            *(jnp.where(mask, 0, moment) for moment in (state.mu, state.nu)),
        )
        updates, state = tx.update(gradient, state, params)
    assert state.rows.shape == (3, 1) and state.columns.shape == (1, 4)
    for start in np.unique(begun):
        fresh = new
        for _ in range(5 - start):
            expected, fresh = tx.update(gradient, fresh, params)
        np.testing.assert_allclose(updates[begun == start], expected[begun == start], rtol=1e-6)


def test_reset_weight_steps_like_a_new_one_and_the_others_like_before():
    tx = adam(0.1)
    state = tx.init(PARAMS)
    for gradient in gradients(50):
        _, state = tx.update(gradient, state, PARAMS)
    mask = {"kernel": jnp.array([[True, False], [False, False]]), "bias": jnp.array([False, True])}
    reset = optax.tree.map_params(tx, lambda s, m: jnp.where(m, 0, s), state, mask)
    gradient = gradients(51)[-1]
    after, _ = tx.update(gradient, reset, PARAMS)
    untouched, _ = tx.update(gradient, state, PARAMS)
    new, _ = tx.update(gradient, tx.init(PARAMS), PARAMS)
    jax.tree.map(lambda a, m, n, u: np.testing.assert_array_equal(a, np.where(m, n, u)), after, mask, new, untouched)


def test_step_after_a_reset_overshoots_only_if_the_count_is_kept():
    tx = adam(1.0)
    _, state = constant_gradient_steps(tx, 5000)
    full, _ = constant_gradient_steps(tx, 30, tx.init(jnp.zeros(1)))
    kept, _ = constant_gradient_steps(tx, 30, state._replace(mu=jnp.zeros(1), nu=jnp.zeros(1)))
    np.testing.assert_allclose(full, 1.0, rtol=1e-4)
    assert 6.4 < kept.max() < 6.7
    assert kept.argmax() + 1 == 12


def test_published_form_warms_up():
    sizes, _ = constant_gradient_steps(adam(1.0, bias_correction="published"), 2000)
    np.testing.assert_allclose(sizes[[0, 99, 999, 1999]], [0.0032, 0.31, 0.80, 0.93], rtol=0.02)
    t = np.arange(1, 2001)
    np.testing.assert_allclose(sizes, (1 - 0.9**t) * np.sqrt(1 - 0.999**t), rtol=1e-4)


def test_counts_saturate():
    tx = adam(0.1)
    last = jnp.full(1, jnp.iinfo(jnp.int32).max)
    updates, state = tx.update(jnp.ones(1), AdamState(last, last, jnp.ones(1), jnp.ones(1)), jnp.zeros(1))
    assert state.rows[0] == state.columns[0] == last[0]
    np.testing.assert_allclose(updates, -0.1, rtol=1e-5)


def test_numbers_can_be_mapped_over_and_the_type_is_kept():
    gradient: Any = optax.tree.cast(gradients(1)[0], jnp.bfloat16)
    params = optax.tree.cast(PARAMS, jnp.bfloat16)

    @jax.jit
    @jax.vmap
    def first_update(step_size, b1, b2):
        tx = adam(step_size, b1, b2)
        updates, state = tx.update(gradient, tx.init(params), params, clock=0, boundary=True)
        return updates, state.mu, state.nu

    out = first_update(jnp.array([0.1, 0.2]), jnp.array([0.9, 0.99]), jnp.array([0.999, 0.99]))
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(
        out[0]["bias"].astype(jnp.float32), -jnp.array([[0.1], [0.2]]) * jnp.sign(gradient["bias"]), rtol=0.02
    )


@pytest.mark.parametrize(
    "arguments", [{"step_size": -1.0}, {"b1": 1.0}, {"b2": -0.1}, {"eps": float("nan")}, {"bias_correction": "none"}]
)
def test_wrong_arguments_name_themselves(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name} must be .* got '?{value}"):
        adam(**({"step_size": 0.1} | arguments))


def test_replays_the_published_code(replay, traces):
    _, _, assert_tree_close = traces
    trace, ours = replay("mlp_bp_adam", lambda config, units, extra: adam(config["lr"]))
    if trace.full:
        assert_tree_close(ours.state.mu, trace.tree("f64/opt/exp_avg"))
        assert_tree_close(ours.state.nu, trace.tree("f64/opt/exp_avg_sq"))
