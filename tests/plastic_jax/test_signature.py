"""A method's signature is what its calls are checked against."""

from typing import Annotated, Literal, get_args

import jax
import jax.numpy as jnp
import optax
import pytest

from plastic_jax.replacement.utility import UTILITIES, UtilityName
from plastic_jax.signature import Range, method, static_args


@method("boundary")
def scaled(
    inner: optax.GradientTransformation,
    *,
    factor: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.5,
    period: Annotated[int | jax.Array, Range(1)] = 1,
    bound: Annotated[int | None, Range(1, 9)] = None,
    kind: Literal["a", "b"] | Range = "a",
    key: jax.Array | None = None,
):
    """Returns what it was given."""
    return factor, period, bound, kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 1.0}, r"^scaled: factor=1.0 is not in \[0, 1\)"),
        ({"factor": "much"}, "^scaled: factor='much' is neither a number nor an array"),
        ({"period": 1.5}, "^scaled: period=1.5 is not a whole number"),
        ({"bound": 0}, "^scaled: bound=0 is not an integer from 1 on"),
        ({"bound": 10}, r"^scaled: bound=10 is not in \[1, 9\]"),
        ({"kind": "c"}, "^scaled: kind='c'; allowed: a, b"),
    ],
)
def test_a_call_outside_the_signature_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        scaled(optax.sgd(0.1), **arguments)


def test_a_call_within_it_goes_through_unchanged():
    assert scaled(optax.sgd(0.1)) == (0.5, 1, None, "a")
    assert scaled(optax.sgd(0.1), factor=0, period=3, bound=2, kind=Range(0)) == (0, 3, 2, Range(0))
    traced = jax.jit(lambda factor: scaled(optax.sgd(0.1), factor=factor)[0])(jnp.float32(2.0))
    assert traced == 2.0  # what is traced cannot be checked
    assert scaled.needs == ("boundary",)


def test_numbers_are_not_static_and_options_are():
    assert static_args(scaled) == ("bound", "kind", "key")


def test_a_need_that_no_learner_meets_is_refused():
    with pytest.raises(ValueError, match="allowed: features, boundary"):
        method("weather")


def test_the_names_of_utilities_are_those_of_the_table():
    assert get_args(UtilityName) == tuple(UTILITIES)
