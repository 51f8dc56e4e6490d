"""Counts of Adam's steps where a unit has only parts of rows and columns."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import Initializer, adam, continual_backprop, redo, trace_units
from plastic_jax.paths import get_leaf
from plastic_jax.replacement.draw import Replacement, draw_replacement
from plastic_jax.replacement.reset import replace_units
from plastic_jax.replacement.step_counts import count_by_weight


class Grouped(nn.Module):
    """Its second convolution reads a channel by a part of its kernel's row: outputs of the channel's group alone."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (1, 1))(x))
        x = nn.relu(nn.Conv(6, (1, 1), feature_group_count=2)(x))
        return nn.Dense(1)(x.mean((1, 2)))


X = jax.random.normal(jax.random.key(0), (2, 3, 3, 2))
READER = "params/Conv_1/kernel"


@pytest.fixture(scope="module")
def grouped():
    params = Grouped().init(jax.random.key(1), X)
    return trace_units(Grouped().apply, params, X, check=False), params


def counts_after_a_replacement(units, params):
    """Adam's count of every weight after three steps and the replacement of unit 1 of the first group, by leaf."""
    tx = adam(0.1)
    state = count_by_weight(tx.init(params), units, params)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
    first, *others = units.groups
    going = draw_replacement(
        first, jnp.array([1]), jnp.array([True]), jax.random.key(2), Initializer("kaiming_uniform"), params
    )
    replacements = {first.name: going} | {g.name: Replacement.of_none() for g in others}
    _, state = replace_units(tx, units, replacements, params, updates, state, reset_state=True)
    return jax.tree.map(
        lambda m, *lines: np.broadcast_to(np.minimum(*lines), m.shape), state.mu, state.rows, state.columns
    )


def test_a_unit_with_a_part_of_a_row_gets_new_counts_and_others_keep_theirs(grouped):
    units, params = grouped
    counts = counts_after_a_replacement(units, params)
    reader = get_leaf(counts, READER)  # [1, 1, 2, 6]: channels 0, 1 feed outputs 0 to 2, channels 2, 3 outputs 3 to 5
    np.testing.assert_array_equal(reader[0, 0], [[3] * 6, [0, 0, 0, 3, 3, 3]])
    np.testing.assert_array_equal(get_leaf(counts, "params/Conv_0/kernel")[0, 0], [[3, 0, 3, 3]] * 2)
    np.testing.assert_array_equal(get_leaf(counts, "params/Dense_0/kernel"), np.full((6, 1), 3))


@pytest.mark.parametrize("method", [continual_backprop, redo])
def test_methods_begin_with_such_counts_only_where_they_need_them(grouped, method):
    units, params = grouped
    state = method(optax.chain(optax.clip(1.0), adam(0.1)), units, key=jax.random.key(3)).init(params)
    rows = state.inner[1].rows
    assert get_leaf(rows, READER).shape == (1, 1, 2, 6)
    assert get_leaf(rows, "params/Conv_0/kernel").shape == (1, 1, 2, 1)
