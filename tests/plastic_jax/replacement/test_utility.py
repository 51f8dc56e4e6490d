from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import UTILITIES, UnitStats, Utility
from plastic_jax.replacement.statistics import mean_magnitude, unit_means
from plastic_jax.replacement.utility import unit_utility

STATS = UnitStats(
    incoming_magnitude=jnp.array([[2.0], [4.0]]),
    outgoing_magnitude=jnp.array([[3.0], [0.5]]),
    mean_absolute=jnp.array([[5.0], [6.0]]),
    mean_absolute_centred=jnp.array([[1.0], [8.0]]),
    key=jax.random.key(0),
    lifetime_absolute=jnp.array([[7.0], [2.0]]),
    outgoing_gradient=jnp.array([[-6.0], [4.0]]),
    worth=jnp.array([[0.5], [1.0]]),
)
EXPECTED = {
    "weight": [3, 0.5],
    "contribution": [15, 3],
    "adaptation": [0.5, 0.25],
    "zero_contribution": [3, 4],
    "adaptable_contribution": [1.5, 1],
    "feature_by_input": [0.5, 2],
    "lifetime_contribution": [21, 1],
    "first_order": [6, 4],
    "recursive": [0.5, 1],
    "recursive_adaptable": [0.25, 0.25],
    "most_useful_first": [-1.5, -1],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_measures_on_known_statistics(name):
    np.testing.assert_allclose(UTILITIES[name](STATS)[:, 0], EXPECTED[name])


def test_every_named_measure_is_covered_and_two_are_taken_when_a_unit_is_chosen():
    assert set(UTILITIES) == {*EXPECTED, "random"}
    assert {name for name, utility in UTILITIES.items() if not utility.averaged} == {"random", "lifetime_contribution"}


def test_a_measure_says_what_else_it_needs():
    bare = STATS._replace(lifetime_absolute=None, outgoing_gradient=None, worth=None)
    for utility in UTILITIES.values():
        utility(bare._replace(**{name: getattr(STATS, name) for name in utility.needs}))
        for name in utility.needs:
            with pytest.raises(TypeError):
                _ = utility(STATS._replace(**{name: None})) + 0
    with pytest.raises(ValueError, match="Utility: needs names 'worths'; allowed: lifetime_absolute, outgoing_grad"):
        Utility(lambda stats: stats.worth, needs=("worths",))
    bare_name: Any = "worth"
    with pytest.raises(ValueError, match=r"^Utility: needs must be a tuple: \('worth',\)"):
        Utility(lambda stats: stats.worth, needs=bare_name)


def test_random_is_drawn_anew_for_each_key():
    drawn = UTILITIES["random"](STATS)
    assert drawn.shape == (2, 1)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert (drawn != UTILITIES["random"](STATS._replace(key=jax.random.key(1)))).all()


def test_a_measure_may_be_given_by_name_or_by_hand():
    own = Utility(lambda stats: stats.mean_absolute)
    assert unit_utility(own) is own
    assert unit_utility("weight") is UTILITIES["weight"]
    with pytest.raises(ValueError, match=r"utility: unknown 'wieght'; allowed: adaptable_contribution, .*weight"):
        unit_utility("wieght")
    function: Any = own.measure
    with pytest.raises(ValueError, match=r"^utility: <function .* is no name and no Utility; wrap .*; names: adap"):
        unit_utility(function)


def test_means_keep_units_and_copies_in_the_order_of_their_axes():
    values = jnp.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    np.testing.assert_allclose(unit_means(values, (-1,), 1)[:, 0], values.mean((0, 1, 2)))
    copies = unit_means(values, (3, 1), 3)
    assert copies.shape == (5, 3)
    np.testing.assert_allclose(copies, values.mean((0, 2)).T)


@pytest.mark.parametrize("shape", [(3, 5), (64, 128), (128, 63), (100, 90)])
@pytest.mark.parametrize("axis", [0, 1])
def test_fast_sums_of_magnitudes_are_the_means(shape, axis):
    weights = jax.random.normal(jax.random.key(0), shape)
    ours = jax.jit(lambda w: mean_magnitude(w, (axis,), 1))(weights)
    assert ours.shape == (shape[axis], 1)
    np.testing.assert_allclose(ours[:, 0], np.abs(weights).mean(1 - axis), rtol=1e-5)
