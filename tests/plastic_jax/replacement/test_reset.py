"""The reset machine on a channel group: a convolution, normalised, read after flattening at 2 x 2 positions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, Initializer, Slice, UnitGraph, UnitGroup, adam, trace_units
from plastic_jax.paths import leaf_key
from plastic_jax.replacement.draw import Replacement, choose_and_draw, draw_replacement
from plastic_jax.replacement.initializers import unit_initializer
from plastic_jax.replacement.inner_state import reset_inner_state
from plastic_jax.replacement.reset import check_units, just_replaced, reset_mask, reset_updates, transferred_bias

GROUP = UnitGroup(
    name="Conv_0",
    width=3,
    copies=4,
    incoming=(
        Slice("Conv_0/kernel", (2, 2, 1, 3), (3,), "kernel"),
        Slice("Norm_0/scale", (3,), (0,), "scale"),
        Slice("Norm_0/bias", (3,), (0,), "shift"),
    ),
    outgoing=(Slice("Dense_0/kernel", (2, 2, 3, 5), (2,), "kernel", copy_dims=(0, 1), bias="Dense_0/bias"),),
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
ROWS = Initializer("torch_default", linspace=True)


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


@pytest.mark.parametrize(
    ("s", "message"),
    [
        (Slice("w", (2, 4), (1,), "kernel", window=((0, 2), (3, 7))), r"window .* is not inside 'w' of shape \(6, 6\)"),
        (Slice("w", (2, 4), (1,), "kernel", window=((0, 2),)), r"window .* is not inside 'w' of shape \(6, 6\)"),
        (Slice("w", (3, 4), (1,), "kernel", window=((0, 2), (0, 4))), r"view \(3, 4\) of 'w\[0:2,0:4\]' does not fit"),
        (Slice("w", (6, 6), (1,), "kernel", copy_dims=(1,)), r"no distinct axes \(1, 1\) for units and copies"),
        (Slice("w", (6, 2, 3), (1, 2), "kernel"), r"axes \(1, 2\) of 'w' \(6, 2, 3\) has not 4 units"),
    ],
    ids=["outside", "too few axes", "size", "axis twice", "width"],
)
def test_slice_that_does_not_fit_is_refused(s, message):
    units = UnitGraph((UnitGroup("g", 4, 1, (s,), ()),), lambda params, x: (x, {}))
    with pytest.raises(ValueError, match=message):
        check_units(units, {"w": jnp.zeros((6, 6))}, "here")


# The leaf's shape and a slice of it: every way in which units can lie in a parameter.
LAYOUTS = {
    "rows": ((6, 5), Slice("w", (6, 5), (0,), "kernel")),
    "columns in a window": ((6, 5), Slice("w", (6, 3), (1,), "kernel", window=((0, 6), (2, 5)))),
    "window in a fan": ((6, 5), Slice("w", (2, 5), (1,), "kernel", window=((3, 5), (0, 5)))),
    "gates": ((5, 12), Slice("w", (5, 4, 3), (2,), "kernel", copy_dims=(1,))),
    "flattened map": ((12, 5), Slice("w", (2, 2, 3, 5), (2,), "kernel", copy_dims=(0, 1))),
    "flattened, channels first": ((12, 5), Slice("w", (3, 4, 5), (0,), "kernel", copy_dims=(1,))),
    "grouped convolution": ((3, 3, 2, 6), Slice("w", (3, 3, 2, 3, 2), (3, 2), "kernel")),
    "heads": ((2, 3, 5), Slice("w", (6, 5), (0,), "kernel")),
    "layer of a stack": ((4, 6, 5), Slice("w", (2, 3, 5), (1,), "kernel", (0,), window=((2, 3), (0, 6), (0, 5)))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_spread_values_stand_where_their_units_are(layout):
    shape, s = LAYOUTS[layout]
    numbers = 1 + np.arange(s.width * s.copies).reshape(s.width, s.copies)
    window = tuple(slice(*edges) for edges in s.window) if s.window else ()
    expected = np.zeros(shape, int)
    view = np.zeros(s.view_shape, int)
    for index in np.ndindex(*s.view_shape):
        unit = np.ravel_multi_index([index[d] for d in s.unit_dims], [s.view_shape[d] for d in s.unit_dims])
        place = [index[d] for d in s.copy_dims], [s.view_shape[d] for d in s.copy_dims]
        view[index] = numbers[unit, np.ravel_multi_index(*place) if s.copy_dims else 0]
    expected[window] = view.reshape(expected[window].shape)
    spread = s.spread(jnp.asarray(numbers), shape)
    np.testing.assert_array_equal(np.broadcast_to(spread, shape), expected)
    if layout != "window in a fan":  # there the edges of the window are in the fan
        assert spread.size < expected.size  # values are not repeated along a fan
    per_unit = np.broadcast_to(s.spread(jnp.asarray(numbers[:, 0]), shape), shape)
    np.testing.assert_array_equal(per_unit, np.where(expected > 0, numbers[(expected - 1) // s.copies, 0], 0))
    np.testing.assert_array_equal(s.view(jnp.asarray(expected)), view)


@pytest.mark.parametrize("going", [2, 9])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fresh_rows_stand_where_their_units_are(layout, going):
    # One row after another, or, when there are many, all at once.
    shape, s = LAYOUTS[layout]
    params = {"w": np.full(shape, 99, np.float32)}
    group = UnitGroup("g", s.width, 1, (s,), ())
    units = UnitGraph((group,), lambda params, x: (x, {}))

    def numbered(key, n, fan_in, fan_out, dtype):
        return jnp.arange(n * fan_in, dtype=dtype).reshape(n, fan_in)

    index = jnp.arange(going) % s.width

    @jax.jit
    def replace(params):
        replacement = draw_replacement(group, index, jnp.arange(going) < 2, jax.random.key(0), numbered, params)
        return reset_updates(units, {"g": replacement}, params, {"w": jnp.zeros(shape)})["w"] + params["w"]

    after = np.asarray(replace(params))
    order = (*s.unit_dims, *s.copy_dims, *s.fan_dims)
    rows = np.transpose(s.view(after), order).reshape(s.width, -1)
    np.testing.assert_array_equal(rows[:2].ravel(), np.arange(2 * s.copies * s.fan))
    assert (rows[2:] == 99).all()
    assert (after != 99).sum() == 2 * s.copies * s.fan


def test_two_windows_of_a_kernel_are_drawn_independently():
    halves = tuple(Slice("w", (6, 2), (1,), "kernel", window=((0, 6), (a, a + 2))) for a in (0, 2))
    group = UnitGroup("g", 2, 1, halves, ())
    rows = draw_replacement(
        group, jnp.arange(1), jnp.array([True]), jax.random.key(0), Initializer(), {"w": jnp.ones((6, 4))}
    )
    value, gate = (rows.fresh[s.name] for s in halves)
    assert value.shape == gate.shape == (1, 6)
    assert (value != gate).all()


def test_transferred_contribution_of_grouped_channels_goes_to_their_own_outputs():
    kernel = (
        np.random.default_rng(0).normal(size=(3, 3, 2, 6)).astype(np.float32)
    )  # three groups of two channels, two outputs each
    reads = Slice("w", (3, 3, 2, 3, 2), (3, 2), "kernel", bias="b")
    units = UnitGraph((UnitGroup("g", 6, 1, (), (reads,)),), lambda params, x: (x, {}))
    going = {"g": Replacement(jnp.array([3]), jnp.array([True]), {})}  # the second channel of the second group
    gains = transferred_bias(units, going, {"w": jnp.asarray(kernel), "b": jnp.zeros(6)}, {"g": jnp.full((6, 1), 2.0)})
    expected = np.zeros(6)
    expected[2:4] = 2 * kernel[:, :, 1, 2:4].sum((0, 1))
    np.testing.assert_allclose(gains["b"], expected, rtol=1e-5)


def test_kernel_whose_outputs_come_first_has_no_transfer():
    units = UnitGraph(
        (UnitGroup("g", 3, 1, (), (Slice("w", (4, 3), (1,), "kernel", bias="b"),)),), lambda p, x: (x, {})
    )
    going = {"g": Replacement(jnp.array([0]), jnp.array([True]), {})}
    with pytest.raises(ValueError, match=r"last axes of 'w' \(4, 3\) are not those of 'b' \(4,\)"):
        transferred_bias(units, going, {"w": jnp.ones((4, 3)), "b": jnp.ones(4)}, {"g": jnp.ones((3, 1))})


def test_running_statistics_of_replaced_units_start_afresh():
    group = UnitGroup(
        "Conv_0",
        3,
        1,
        (),
        (),
        variables=(
            Slice("Norm_0/mean", (3,), (0,), "mean", window=((2, 5),)),
            Slice("Norm_0/var", (3,), (0,), "var", window=((2, 5),)),
        ),
    )
    units = UnitGraph((group,), lambda params, x: (x, {}))
    variables = {"Norm_0": {"mean": jnp.full(6, 5.0), "var": jnp.full(6, 7.0)}, "other": jnp.ones(2)}
    after = units.reset_variables({"Conv_0": jnp.array([False, True, False])}, variables)
    assert after["Norm_0"]["mean"].tolist() == [5, 5, 5, 0, 5, 5]
    assert after["Norm_0"]["var"].tolist() == [7, 7, 7, 1, 7, 7]
    assert after["other"].tolist() == [1, 1]
    assert units.reset_variables({}, variables)["Norm_0"]["mean"].tolist() == [5] * 6
    with pytest.raises(ValueError, match=r"no group 'Conv_1' \(did you mean 'Conv_0'\?\)"):
        units.reset_variables({"Conv_1": jnp.zeros(3, bool)}, variables)


def test_units_that_have_just_gone_are_those_of_age_zero_in_any_method_of_a_chain():
    class Method(NamedTuple):
        age: dict[str, jax.Array]

    one, other = Method({"a": jnp.array([0, 3]), "b": jnp.array([1])}), Method({"a": jnp.array([2, 1])})
    gone = just_replaced((optax.EmptyState(), {"inner": one}, other))
    assert {name: mask.tolist() for name, mask in gone.items()} == {"a": [True, False], "b": [False]}
    assert just_replaced(optax.adam(0.1).init(jnp.ones(2))) == {}


def test_counts_by_row_and_column_begin_again_for_the_weights_of_a_channel_and_for_no_others():
    tx: Any = adam(0.1)
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(PARAMS, state, PARAMS)
    mask: Any = reset_mask(UNITS, going([1, 2], [True, False]), PARAMS)
    reset = reset_inner_state(tx, state, PARAMS, mask)
    assert jax.tree.map(jnp.shape, reset) == jax.tree.map(jnp.shape, state)
    counts = jax.tree.map(lambda mask, *lines: jnp.minimum(*lines) + 0 * mask, mask, reset.rows, reset.columns)
    jax.tree.map(lambda n, m: np.testing.assert_array_equal(n, np.where(m, 0, 3)), counts, mask)


@pytest.mark.parametrize("depth", [2, 6])
def test_layers_that_are_alike_draw_what_each_draws_alone(depth):
    """Five of the six layers after the first have the same shape, and a loop draws for them."""
    network = MLP(widths=(5,) * (depth + 1), outputs=2)
    params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    groups = trace_units(network.apply, params, jnp.ones((1, 3))).groups
    laws = {g.name: unit_initializer("kaiming_uniform", g.activation) for g in groups}
    goes = {g.name: (jnp.array([i % 5, 1]), jnp.array([True, i % 2 == 0])) for i, g in enumerate(groups)}
    key = jax.random.key(7)
    together = choose_and_draw(groups, lambda index, valid: (index, valid), goes, key, laws, params)
    assert list(together) == [g.name for g in groups]
    for g in groups:
        alone = draw_replacement(g, *goes[g.name], leaf_key(key, g.name), laws[g.name], params)
        jax.tree.map(np.testing.assert_array_equal, together[g.name], alone)
