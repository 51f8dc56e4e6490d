"""Sums over outgoing weights that look at the readers: against derivatives, loops and closed forms."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from plastic_jax import Slice, UnitGraph, UnitGroup
from plastic_jax.replacement.propagation import outgoing_gradient, per_unit, recursive_worth

RNG = np.random.default_rng(0)


def normal(*shape) -> Any:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def group(name, width, incoming, outgoing, copies=1, feature_axes=(-1,)):
    return UnitGroup(name, width, copies, incoming, outgoing, feature_axes=feature_axes)


def dense(path, shape, unit, **fields):
    return Slice(path, shape, (unit,), "kernel", **fields)


def chain(*widths) -> tuple[Any, UnitGraph]:
    """Dense layers `W0`, `W1`, ... and their hidden units."""
    shapes = list(itertools.pairwise(widths))
    groups = [
        group(f"h{i}", b, (dense(f"W{i}", (a, b), 1),), (dense(f"W{i + 1}", shapes[i + 1], 0),))
        for i, (a, b) in enumerate(shapes[:-1])
    ]
    return {f"W{i}": normal(*shape) for i, shape in enumerate(shapes)}, UnitGraph(tuple(groups), lambda p, x: (x, {}))


def conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


# A convolution read by a convolution, which is flattened and read by a dense layer: 5x5 -> 4x4x3 -> 3x3x4 -> 36 -> 5.
PICTURE = {"K0": normal(2, 2, 1, 3), "K1": normal(2, 2, 3, 4), "W2": normal(36, 5), "W3": normal(5, 2)}
PICTURE_UNITS = UnitGraph(
    (
        group("h0", 3, (dense("K0", (2, 2, 1, 3), 3),), (dense("K1", (2, 2, 3, 4), 2),)),
        group(
            "h1",
            4,
            (dense("K1", (2, 2, 3, 4), 3),),
            (dense("W2", (3, 3, 4, 5), 2, copy_dims=(0, 1)),),
            copies=9,
            feature_axes=(3, 1, 2),
        ),
        group("h2", 5, (dense("W2", (36, 5), 1),), (dense("W3", (5, 2), 0),)),
    ),
    lambda p, x: (x, {}),
)


def picture_network(params, x, added):
    h = {"h0": jnp.maximum(conv(x, params["K0"]), 0.1) + added["h0"]}
    h["h1"] = jnp.maximum(conv(h["h0"], params["K1"]), 0.1) + added["h1"]
    h["h2"] = jnp.tanh(h["h1"].reshape(len(x), -1) @ params["W2"]) + added["h2"]
    return h["h2"] @ params["W3"], h


def test_sums_per_unit_are_those_of_the_view():
    leaf, factor = normal(36, 5), normal(36, 1)
    s = dense("W2", (3, 3, 4, 5), 2, copy_dims=(0, 1))
    view = np.asarray(leaf).reshape(9, 4, 5)
    np.testing.assert_allclose(per_unit(s, leaf), view.sum(2).T, rtol=1e-5)
    scaled = np.asarray(leaf * factor).reshape(9, 4, 5)
    np.testing.assert_allclose(per_unit(s, leaf, factor), scaled.sum(2).T, rtol=1e-5)
    reader = normal(1, 5)
    np.testing.assert_allclose(per_unit(s, leaf, reader), (view * np.asarray(reader)).sum(2).T, rtol=1e-5)
    np.testing.assert_allclose(per_unit(dense("W2", (36, 5), 1), leaf, factor)[:, 0], (leaf * factor).sum(0), rtol=1e-4)


def test_sums_per_unit_stay_inside_the_window():
    leaf = normal(7, 6)
    s = dense("W", (2, 3, 4), 1, window=((1, 7), (2, 6)))
    assert per_unit(s, leaf).shape == (3, 1)
    part = np.asarray(leaf)[1:7, 2:6].reshape(2, 3, 4)
    np.testing.assert_allclose(per_unit(s, leaf)[:, 0], part.sum((0, 2)), rtol=1e-5)


def test_sum_of_weights_times_gradients_is_activation_times_its_gradient():
    """Of dense units, of channels read by a convolution and of flattened channels, for a loss that is a batch mean."""
    x, y = normal(6, 5, 5, 1), normal(6, 2)
    added = {"h0": jnp.zeros((6, 4, 4, 3)), "h1": jnp.zeros((6, 3, 3, 4)), "h2": jnp.zeros((6, 5))}

    def loss(params, x, y, added):
        output, h = picture_network(params, x, added)
        return jnp.sum(jnp.sin(output - y) ** 2), h

    (_, h), (to_params, to_features) = jax.value_and_grad(
        lambda p, a: (loss(p, x, y, a)[0] / 6, loss(p, x, y, a)[1]), (0, 1), has_aux=True
    )(PICTURE, added)
    for g in PICTURE_UNITS.groups:
        expected = np.sum(np.asarray(h[g.name] * to_features[g.name]).reshape(-1, g.width), 0)
        assert np.abs(expected).min() > 1e-3
        ours = outgoing_gradient(g, PICTURE, to_params)
        np.testing.assert_allclose(ours[:, 0], expected, rtol=1e-3, atol=1e-5)


def test_a_unit_that_feeds_only_a_useless_unit_is_worth_nothing():
    params, units = chain(2, 2, 2, 1)
    params["W1"] = jnp.array([[100.0, 0.0], [0.0, 0.01]])  # unit 0 feeds unit 0 of the next layer, unit 1 unit 1
    params["W2"] = jnp.array([[0.0], [0.5]])
    activity = {"h0": jnp.ones((2, 1)), "h1": jnp.ones((2, 1))}
    worth = recursive_worth(units, params, activity)
    np.testing.assert_allclose(worth["h0"][:, 0], [0, 1], atol=1e-6)
    np.testing.assert_allclose(worth["h1"][:, 0], [0, 1], atol=1e-6)


def test_worth_by_hand():
    params, units = chain(1, 2, 2, 1)
    params["W1"] = jnp.array([[1.0, -2.0], [3.0, 4.0]])
    params["W2"] = jnp.array([[1.0], [-1.0]])
    worth = recursive_worth(units, params, {"h0": jnp.array([[1.0], [0.5]]), "h1": jnp.array([[3.0], [1.0]])})
    np.testing.assert_allclose(worth["h1"][:, 0], [3 / 4, 1 / 4])
    first = 3 / 4 * 1 / 2.5 + 1 / 4 * 2 / 4
    np.testing.assert_allclose(worth["h0"][:, 0], [first, 1 - first], rtol=1e-6)


def test_silent_units_and_readers_of_nothing_are_worth_nothing():
    params, units = chain(2, 3, 2, 2)
    params["W1"] = params["W1"].at[:, 1].set(0.0)
    activity = {"h0": jnp.array([[0.0], [1.0], [2.0]]), "h1": jnp.array([[1.0], [1.0]])}
    worth = recursive_worth(units, params, activity)
    assert worth["h0"][0] == 0
    np.testing.assert_allclose(worth["h0"].sum(), worth["h1"][0], rtol=1e-6)
    nothing = recursive_worth(units, params, jax.tree.map(jnp.zeros_like, activity))
    assert all((w == 0).all() for w in nothing.values())


def picture_activity():
    return {g.name: jnp.abs(normal(g.width, g.copies)) for g in PICTURE_UNITS.groups}


def test_every_layer_is_worth_as_much_as_there_are_outputs():
    params, units = chain(3, 5, 4, 6, 7)
    activity = {g.name: jnp.abs(normal(g.width, 1)) for g in units.groups}
    for worth in (
        recursive_worth(units, params, activity),
        recursive_worth(PICTURE_UNITS, PICTURE, picture_activity()),
    ):
        outputs = 7 if len(worth["h0"]) == 5 else 2
        for w in worth.values():
            assert (w > 0).all()
            np.testing.assert_allclose(w.sum(), outputs, rtol=1e-5)


def test_worth_through_convolutions_and_flattening_is_that_of_loops():
    activity = picture_activity()
    a = {n: np.asarray(v) for n, v in activity.items()}
    k1 = np.abs(PICTURE["K1"]).sum((0, 1))
    w2, w3 = np.abs(PICTURE["W2"]).reshape(9, 4, 5), np.abs(PICTURE["W3"])
    last = (a["h2"] * w3 / (a["h2"] * w3).sum(0)).sum(1)
    flow = np.einsum("cp,pco->co", a["h1"], w2)
    middle = (flow / flow.sum(0)) @ last
    flow = a["h0"] * k1
    first = (flow / flow.sum(0)) @ middle
    worth = recursive_worth(PICTURE_UNITS, PICTURE, activity)
    for name, expected in (("h2", last), ("h1", middle), ("h0", first)):
        np.testing.assert_allclose(worth[name][:, 0], expected, rtol=1e-5)


def test_several_readers_each_pay_their_share():
    """h0 (3) is read by h1 (4) and, concatenated with h1, by h2 (2); h1's kernel is the right half of a wider one."""
    params = {"W0": normal(2, 3), "W1": normal(3, 8), "W2": normal(7, 2), "W3": normal(2, 5)}
    right, left = ((0, 3), (4, 8)), ((0, 3), (0, 4))
    units = UnitGraph(
        (
            group("h0", 3, (dense("W0", (2, 3), 1),),
                  (dense("W1", (3, 8), 0), dense("W2", (3, 2), 0, window=((0, 3), (0, 2))))),
            group("h1", 4, (dense("W1", (3, 4), 1, window=right), dense("W1", (3, 4), 1, window=left)),
                  (dense("W2", (4, 2), 0, window=((3, 7), (0, 2))),)),
            group("h2", 2, (dense("W2", (7, 2), 1),), (dense("W3", (2, 5), 0),)),
        ),
        lambda p, x: (x, {}),
    )  # fmt: skip
    activity = {g.name: jnp.abs(normal(g.width, 1)) for g in units.groups}
    a = {n: np.asarray(v) for n, v in activity.items()}
    w = {n: np.abs(v) for n, v in params.items()}
    r2 = (a["h2"] * w["W3"] / (a["h2"] * w["W3"]).sum(0)).sum(1)
    both = np.concatenate([a["h0"], a["h1"]]) * w["W2"]
    paid = (both / both.sum(0)) @ r2
    gated = a["h0"] * (w["W1"][:, :4] + w["W1"][:, 4:])
    r0 = paid[:3] + (gated / gated.sum(0)) @ paid[3:]
    worth = recursive_worth(units, params, activity)
    for name, expected in (("h2", r2), ("h1", paid[3:]), ("h0", r0)):
        np.testing.assert_allclose(worth[name][:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(r0.sum(), 5, rtol=1e-5)


def test_numbering_the_units_otherwise_changes_nothing():
    params, units = chain(3, 5, 4, 2)
    activity = {g.name: jnp.abs(normal(g.width, 1)) for g in units.groups}
    order = np.array([3, 0, 4, 1, 2])
    turned = params | {"W0": params["W0"][:, order], "W1": params["W1"][order]}
    worth = recursive_worth(units, params, activity)
    other = recursive_worth(units, turned, activity | {"h0": activity["h0"][order]})
    np.testing.assert_allclose(other["h0"], worth["h0"][order], rtol=1e-6)
    np.testing.assert_allclose(other["h1"], worth["h1"], rtol=1e-6)


@pytest.mark.parametrize("bias", ["b", None])
def test_an_output_convolution_has_as_many_outputs_as_channels(bias):
    params = {"K0": normal(1, 1, 1, 3), "K1": normal(3, 3, 3, 5), "b": jnp.zeros(5)}
    units = UnitGraph(
        (group("h0", 3, (dense("K0", (1, 1, 1, 3), 3),), (dense("K1", (3, 3, 3, 5), 2, bias=bias),)),),
        lambda p, x: (x, {}),
    )
    worth = recursive_worth(units, params, {"h0": jnp.ones((3, 1))})["h0"]
    np.testing.assert_allclose(worth.sum(), 5, rtol=1e-5)


def test_nothing_larger_than_a_leaf_is_made_and_no_type_is_widened():
    with jax.enable_x64(True):
        activity = jax.tree.map(lambda a: a.astype(jnp.float32), picture_activity())
        jaxpr = jax.make_jaxpr(lambda p, a: recursive_worth(PICTURE_UNITS, p, a))(PICTURE, activity)
    made = [v.aval for equation in jaxpr.eqns for v in equation.outvars]
    assert max(v.size for v in made) <= max(leaf.size for leaf in jax.tree.leaves(PICTURE))
    assert all(v.dtype != jnp.float64 for v in jaxpr.jaxpr.outvars for v in [v.aval])
