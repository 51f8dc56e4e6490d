import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import MLP, Slice, mlp_units

NETWORK = MLP(widths=(4, 3), outputs=2, activation="tanh")
X = jax.random.normal(jax.random.key(0), (5, 2, 3))
PARAMS = NETWORK.init(jax.random.key(1), X)["params"]
UNITS = mlp_units(NETWORK, PARAMS)


def test_graph_of_an_mlp_names_what_enters_and_leaves_each_layer():
    first, second = UNITS.groups
    assert (first.name, first.width, first.activation) == ("Dense_0", 4, "tanh")
    assert first.incoming == (
        Slice("Dense_0/kernel", (6, 4), (1,), "kernel"),
        Slice("Dense_0/bias", (4,), (0,), "bias"),
    )
    assert second.outgoing == (Slice("Dense_2/kernel", (3, 2), (0,), "kernel", bias="Dense_2/bias"),)
    assert [s.fan for s in (*first.incoming, *second.outgoing)] == [6, 1, 2]


def test_features_are_the_hidden_values_and_the_output_is_the_networks():
    output, features = UNITS.apply(PARAMS, X)
    np.testing.assert_array_equal(output, NETWORK.apply({"params": PARAMS}, X))
    hidden = jnp.tanh(X.reshape(5, 6) @ PARAMS["Dense_0"]["kernel"] + PARAMS["Dense_0"]["bias"])
    np.testing.assert_allclose(features["Dense_0"], hidden, atol=1e-6)
    np.testing.assert_allclose(features["Dense_1"] @ PARAMS["Dense_2"]["kernel"], output, atol=1e-5)


def test_graph_can_be_made_from_shapes_and_of_no_hidden_layer():
    shapes = jax.eval_shape(lambda: PARAMS)
    assert mlp_units(NETWORK, shapes).groups == UNITS.groups
    linear = MLP(widths=(), outputs=2)
    params = linear.init(jax.random.key(0), X)["params"]
    units = mlp_units(linear, params)
    assert units.groups == ()
    assert units.apply(params, X)[1] == {}


def test_replace_changes_one_group_only():
    changed = UNITS.replace("Dense_1", function_preserving=False)
    assert [g.function_preserving for g in changed.groups] == [True, False]
    assert [g.function_preserving for g in UNITS.groups] == [True, True]
    with pytest.raises(ValueError, match=r"no group 'Dense_l' .did you mean 'Dense_1'.*groups: Dense_0, Dense_1"):
        UNITS.replace("Dense_l", width=2)
    with pytest.raises(ValueError, match=r"no field 'with'; fields: .*width"):
        UNITS.replace("Dense_1", **{"with": 2})


def test_printed_graph_has_a_line_for_each_group():
    lines = str(UNITS).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["Dense_0", "4", "1", "Dense_0/kernel,", "Dense_0/bias", "Dense_1/kernel", "yes"]


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((4, 5), "layer 'Dense_1' has 3 units, 'Dense_2' reads 3, expected 5"),
        ((4, 3, 2), "no layer 'Dense_3'.*Dense_0"),
    ],
)
def test_parameters_of_another_network_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        mlp_units(NETWORK.clone(widths=widths), PARAMS)
