"""Step sizes of known distributions, and their correlation with what is known of units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, continual_backprop, l2_init, metaoptimize, smd, sparse, trace_units
from plastic_jax.diagnostics.step_sizes import step_size_metrics

NETWORK = MLP(widths=(4,), outputs=2)
X = jnp.ones((3, 3))
PARAMS = NETWORK.init(jax.random.key(0), X)["params"]
UNITS = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), PARAMS, X)


def test_quantiles_are_by_layer_and_what_is_below_a_thousandth_of_the_first_has_collapsed():
    state = metaoptimize(0.1, blocks="weight").init(PARAMS)
    betas = state.log_step_size
    betas["Dense_0"]["kernel"] = betas["Dense_0"]["kernel"].at[0, :3].add(jnp.log(1e-4))  # 3 of 16 + 10 weights
    found = step_size_metrics((state._replace(log_step_size=betas),), first=0.1)
    assert set(found) == {f"log10_step_size_{q}.Dense_{i}" for q in ("low", "median", "high") for i in (0, 1)} | {
        "collapsed_step_sizes"
    }
    np.testing.assert_allclose(found["collapsed_step_sizes"], 3 / 26, rtol=1e-6)
    np.testing.assert_allclose(found["log10_step_size_low.Dense_0"], -5.0, atol=1e-5)
    np.testing.assert_allclose(found["log10_step_size_median.Dense_0"], -1.0, atol=1e-5)
    np.testing.assert_allclose(found["log10_step_size_low.Dense_1"], -1.0, atol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_units_whose_step_sizes_grow_with_age_are_seen(sign):
    """The logarithm is linear in the age of the unit whose incoming weights they are; utilities are all the same."""
    tx = continual_backprop(
        metaoptimize(0.1, blocks="weight"), UNITS, replacement_rate=0.1, maturity_threshold=1, key=jax.random.key(1)
    )
    state = tx.init(PARAMS)
    ages = jnp.array([5, 1, 9, 3], jnp.int32)
    betas = state.inner.log_step_size
    betas["Dense_0"]["kernel"] = betas["Dense_0"]["kernel"] + sign * 0.1 * ages
    state = state._replace(age={"Dense_0": ages}, inner=state.inner._replace(log_step_size=betas))
    around = sparse(tx, density=0.5, key=jax.random.key(2)).init(PARAMS)  # which knows an age of its own
    for each in (state, around._replace(inner=state)):
        found = step_size_metrics(each, UNITS)
        np.testing.assert_allclose(found["step_size_age_correlation"], sign, rtol=1e-4)
    assert np.isnan(found["step_size_utility_correlation"])
    assert "collapsed_step_sizes" not in found


def test_steps_that_smd_shortened_are_counted_inside_of_methods():
    state = l2_init(smd(0.1), strength=0.1).init(PARAMS)
    state = state._replace(inner=state.inner._replace(shortened=jnp.int32(7)))
    assert float(step_size_metrics(state)["shortened_steps"]) == 7


def test_shared_step_sizes_have_a_distribution_and_other_optimizers_none():
    found = step_size_metrics(metaoptimize(0.01).init(PARAMS), UNITS)
    np.testing.assert_allclose([float(value) for value in found.values()], -2.0, atol=1e-5)
    assert step_size_metrics(optax.adam(0.1).init(PARAMS), UNITS, first=0.1) == {}
