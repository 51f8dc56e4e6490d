"""Means of weights and of activations where a unit has copies, or several readers."""

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax import Slice, UnitGroup
from plastic_jax.replacement.statistics import unit_stats

RNG = np.random.default_rng(0)
PARAMS = {
    "made": RNG.normal(size=(5, 3)),
    "flat": RNG.normal(size=(12, 7)),  # reads 3 channels at 2 x 2 positions
    "conv": RNG.normal(size=(3, 3, 3, 2)),  # reads them at all positions alike
}
FLAT = Slice("flat", (2, 2, 3, 7), (2,), "kernel", copy_dims=(0, 1))
CONV = Slice("conv", (3, 3, 3, 2), (2,), "kernel")
FEATURE = RNG.normal(size=(10, 2, 2, 3))


def stats(outgoing, copies, feature_axes, centre):
    group = UnitGroup("g", 3, copies, (Slice("made", (5, 3), (1,), "kernel"),), outgoing, feature_axes=feature_axes)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, PARAMS)
        return unit_stats(group, params, jnp.asarray(FEATURE), jnp.asarray(centre), jax.random.key(0))


def test_means_are_per_unit_and_position():
    got = stats((FLAT,), 4, (3, 1, 2), np.zeros((3, 4)))
    np.testing.assert_allclose(got.incoming_magnitude[:, 0], np.abs(PARAMS["made"]).mean(0))
    flat = np.abs(PARAMS["flat"]).reshape(4, 3, 7).mean(-1).T
    np.testing.assert_allclose(got.outgoing_magnitude, flat)
    np.testing.assert_allclose(got.mean_absolute, np.abs(FEATURE).mean(0).reshape(4, 3).T)


def test_magnitude_is_centred_on_the_mean_over_all_positions():
    centre = RNG.normal(size=(3, 4))
    got = stats((FLAT,), 4, (3, 1, 2), centre)
    expected = np.abs(FEATURE - centre.mean(1)).mean(0).reshape(4, 3).T
    np.testing.assert_allclose(got.mean_absolute_centred, expected)


def test_readers_count_by_their_number_of_weights():
    # With a position's weights of the flattened reader, or, where the group has no positions, with all of them.
    flat, conv = np.abs(PARAMS["flat"]).reshape(4, 3, 7), np.abs(PARAMS["conv"])
    got = stats((FLAT, CONV), 4, (3, 1, 2), np.zeros((3, 4))).outgoing_magnitude
    np.testing.assert_allclose(got, (flat.sum(-1).T + conv.sum((0, 1, 3))[:, None]) / (7 + 18))
    got = stats((FLAT, CONV), 1, (3,), np.zeros((3, 1))).outgoing_magnitude
    np.testing.assert_allclose(got[:, 0], (flat.sum((0, 2)) + conv.sum((0, 1, 3))) / (4 * 7 + 18))
