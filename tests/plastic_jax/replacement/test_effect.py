"""How far a replacement moves the output; graphs of which some or no units are silent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import ReplacementWarning, continual_backprop, redo, replacement_effect, trace_units
from plastic_jax.replacement.reset import check_units

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (16, 4))


def normed(x):
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-5)


def forward(params, x):
    """Units of `a` are silent when new; those of `b` go through a layer norm, which mixes them."""
    return normed(jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"])) @ params["c"]


SHAPES = {"a": (4, 8), "b": (8, 6), "c": (6, 2)}
PARAMS = {name: jax.random.normal(jax.random.fold_in(KEY, i), s) for i, (name, s) in enumerate(SHAPES.items())}
UNITS = trace_units(forward, PARAMS, X)
METHODS = {
    "continual_backprop": lambda units: continual_backprop(optax.identity(), units, replacement_rate=0.1, key=KEY),
    "redo": lambda units: redo(optax.identity(), units, key=KEY),
}


def test_effect_of_a_replacement_is_what_the_output_moves_by():
    effect = replacement_effect(UNITS, PARAMS, X)
    assert set(effect) == {"a", "b"}
    before = forward(PARAMS, X)
    zeroed = PARAMS | {"b": PARAMS["b"].at[4].set(0.0)}  # unit 4 of a, without its outgoing weights
    lost = jnp.linalg.norm(forward(zeroed, X) - before) / jnp.linalg.norm(before)
    np.testing.assert_allclose(effect["a"][0], lost, rtol=1e-4)
    assert effect["a"][1] == 0 < effect["b"][1]


def test_isolated_leaves_out_groups_that_are_not_silent():
    isolated = UNITS.isolated()
    assert [g.name for g in isolated.groups] == ["a"] and [g.name for g in isolated.left_out] == ["b"]
    check_units(isolated, PARAMS, "here")
    assert isolated.isolated() == isolated


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_which_groups_are_not_silent_and_that_there_are_none(method):
    with pytest.warns(
        ReplacementWarning, match=rf"{method}: in 1 of 2 groups new units are not silent.*: b \("
    ) as told:
        METHODS[method](UNITS)
    assert {warning.filename for warning in told} == {__file__}  # the user's line, and none of the library's
    METHODS[method](UNITS.isolated())  # warnings are errors
    linear = trace_units(lambda params, x: x @ params["a"], PARAMS, X)
    with pytest.raises(ReplacementWarning, match=f"{method}: the graph has no units that can be replaced"):
        METHODS[method](linear)
