import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax.replacement.counting import expected_replacements, owed, rate_warnings

KEY = jax.random.key(0)


def one(rule, expected, most=9, before=(0.0, 0.0)):
    accumulator, n = owed(rule, jnp.array(before), jnp.float32(expected), jnp.int32(most), KEY)
    return accumulator.tolist(), int(n)


@pytest.mark.parametrize(("eligible", "by_eligible", "by_all"), [(0, 0, 0), (1, 0.5, 4), (8, 4, 4)])
def test_rate_is_a_share_of_the_eligible_or_of_all_once_one_is(eligible, by_eligible, by_all):
    for units, expected in (("eligible", by_eligible), ("all", by_all)):
        assert expected_replacements(jnp.float32(0.5), jnp.int32(eligible), 8, units) == expected


def test_a_fraction_stays_owed_and_whole_units_beyond_the_bound_do_not():
    assert one("accumulate", 0.5, before=(0.25, 0.0)) == ([0.75, 0.0], 0)
    assert one("accumulate", 0.5, before=(0.75, 0.0)) == ([0.25, 0.0], 1)
    assert one("accumulate", 3.5) == ([0.5, 0.0], 3)
    assert one("accumulate", 3.5, most=1) == ([0.5, 0.0], 1)
    assert one("accumulate", 0.0, before=(1.0, 0.0))[1] == 0


def test_bernoulli_and_functions_owe_nothing():
    assert one("bernoulli", 0.0) == one(lambda key, expected: jnp.ones([]), 0.0) == ([0, 0], 0)
    assert one("bernoulli", 1.0) == ([0, 0], 1)
    assert one("bernoulli", 2.75) == ([0, 0], 2)
    assert one("bernoulli", 2.75, most=1) == ([0, 0], 1)
    assert one(lambda key, expected: jnp.ceil(expected), 2.25) == ([0, 0], 3)


def test_drawn_with_the_fraction_as_probability():
    keys = jax.random.split(KEY, 4000)
    draw = jax.jit(jax.vmap(lambda key: owed("bernoulli", jnp.zeros(2), jnp.float32(0.3), jnp.int32(9), key)[1]))
    assert abs(np.mean(draw(keys)) - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


def test_rounding_error_of_the_sum_is_carried_along():
    """Near 1, float32 numbers are 6e-8 apart: 1e-8 added a thousand times must still be 1e-5."""

    def step(accumulator, _):
        return owed("accumulate", accumulator, jnp.float32(1e-8), jnp.int32(9), KEY)[0], None

    after, _ = jax.lax.scan(step, jnp.array([0.75, 0.0]), length=1000)
    np.testing.assert_allclose(after[0], 0.75001, rtol=0, atol=1e-7)


WIDTHS = {"a": 100, "b": 10}


def test_a_rate_is_too_small_where_less_than_one_replacement_is_expected():
    at = lambda rate, steps=1100: rate_warnings(WIDTHS, steps, replacement_rate=rate)  # noqa: E731
    assert at(2e-5) == [
        "replacement_rate=2e-05: less than one replacement is expected in 1100 steps in b (at most 0.2)"
    ]
    assert at(5e-6) == [
        "replacement_rate=5e-06: less than one replacement is expected in 1100 steps in any group (at most 0.5)"
    ]
    assert "in any group (at most 0)" in at(0.01, steps=100)[0]  # none is mature before step 101
    assert at(2e-4) == at(0.0) == rate_warnings({}, 5, replacement_rate=0.1) == []


def test_a_rate_is_bound_where_a_step_asks_for_more_than_it_may_replace():
    at = lambda rate, most=1: rate_warnings(WIDTHS, 10**6, replacement_rate=rate, max_replacements=most)  # noqa: E731
    assert at(0.01) == at(0.02, 2) == at(1.0, 100) == []
    assert at(0.1) == [
        "replacement_rate=0.1: max_replacements=1 bounds the replacements of a; "
        "rates above 0.01 give nearly the same run"
    ]
    assert "of a, b; rates above 0.1 give" in at(1.0)[0]
