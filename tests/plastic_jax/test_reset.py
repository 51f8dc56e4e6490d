"""The reset machine on a channel group: a convolution, normalised, read after flattening at 2 x 2 positions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import Law, Slice, UnitGraph, UnitGroup
from plastic_jax.reset import Replacement, check_units, draw_replacement, reset_mask, reset_updates, transferred_bias

GROUP = UnitGroup(
    name="Conv_0",
    width=3,
    copies=4,
    incoming=(
        Slice("Conv_0/kernel", (2, 2, 1, 3), (3,), "kernel"),
        Slice("Norm_0/scale", (3,), (0,), "scale"),
        Slice("Norm_0/bias", (3,), (0,), "shift"),
    ),
    outgoing=(Slice("Dense_0/kernel", (2, 2, 3, 5), (2, 0, 1), "kernel", bias="Dense_0/bias"),),
    feature_axes=(3, 1, 2),
)
UNITS = UnitGraph((GROUP,), lambda params, x: (x, {}))
SHAPES = {
    "Conv_0": {"kernel": (2, 2, 1, 3)},
    "Norm_0": {"scale": (3,), "bias": (3,)},
    "Dense_0": {"kernel": (12, 5), "bias": (5,)},
}
PARAMS: Any = jax.tree.map(
    lambda shape: jnp.arange(2.0, 2 + np.prod(shape)).reshape(shape), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
)
ROWS = Law("torch_default", linspace=True)


def going(index, valid):
    index, valid = jnp.array(index, jnp.int32), jnp.array(valid)
    return {"Conv_0": draw_replacement(GROUP, index, valid, jax.random.key(0), ROWS, PARAMS)}


def test_channel_is_made_fresh_at_all_its_positions():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates = reset_updates(UNITS, going([1, 2], [True, False]), PARAMS, zeros)
    expected: Any = jax.tree.map(np.array, PARAMS)
    expected["Conv_0"]["kernel"][..., 1] = np.linspace(-0.5, 0.5, 4).reshape(2, 2, 1)
    expected["Norm_0"]["scale"][1], expected["Norm_0"]["bias"][1] = 1, 0
    expected["Dense_0"]["kernel"][1::3] = 0
    after = jax.tree.map(jnp.add, PARAMS, updates)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6), after, expected)


def test_mask_is_true_for_what_belongs_to_the_unit():
    mask: Any = reset_mask(UNITS, going([1, 2], [True, False]), PARAMS)
    assert np.argwhere(mask["Dense_0"]["kernel"].any(1)).ravel().tolist() == [1, 4, 7, 10]
    assert mask["Conv_0"]["kernel"].sum() == 4
    assert mask["Norm_0"]["scale"].tolist() == mask["Norm_0"]["bias"].tolist() == [False, True, False]
    assert not mask["Dense_0"]["bias"].any()


def test_transferred_contribution_is_summed_over_positions_each_with_its_own_mean():
    mean = np.random.default_rng(0).normal(size=(3, 4))  # [channel, position]
    gains = transferred_bias(UNITS, going([2], [True]), PARAMS, {"Conv_0": jnp.asarray(mean, jnp.float32)})
    kernel = np.asarray(PARAMS["Dense_0"]["kernel"]).reshape(4, 3, 5)
    np.testing.assert_allclose(gains["Dense_0/bias"], mean[2] @ kernel[:, 2], rtol=1e-4)


def test_no_unit_is_marked_where_no_entry_is_valid():
    nothing = Replacement(jnp.array([1, 2]), jnp.array([False, False]), {})
    assert nothing.mask(3).tolist() == [False, False, False]
    assert Replacement(jnp.array([0, 2]), jnp.array([True, True]), {}).mask(3).tolist() == [True, False, True]


def test_graph_that_does_not_fit_is_refused():
    check_units(UNITS, PARAMS, "here")
    small = PARAMS | {"Dense_0": {"kernel": jnp.ones((9, 5)), "bias": jnp.ones(5)}}
    with pytest.raises(
        ValueError, match=r"here: view \(2, 2, 3, 5\) of 'Dense_0/kernel' does not fit its shape \(9, 5\)"
    ):
        check_units(UNITS, small, "here")
    with pytest.raises(ValueError, match=r"axis 3 of 'Conv_0/kernel' \(2, 2, 1, 3\) has not 4 units"):
        check_units(UNITS.replace("Conv_0", width=4), PARAMS, "here")
