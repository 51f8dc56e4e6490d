import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import metrics as typed_metrics

metrics: Any = typed_metrics  # the tests also give it what its types forbid

DATA = np.load(pathlib.Path(__file__).parents[2] / "data" / "diagnostics.npz")
MATRICES = sorted({key.split("/")[0] for key in DATA.files})
GOLDEN = pathlib.Path(__file__).parents[3].parent / "shared" / "golden"


def with_singular_values(sigma, samples=40):
    """A matrix `[samples, len(sigma)]` that has exactly these singular values."""
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(samples, len(sigma))))
    right, _ = np.linalg.qr(rng.normal(size=(len(sigma), len(sigma))))
    return jnp.asarray(left * np.asarray(sigma) @ right, jnp.float32)


def test_ranks_of_known_spectra():
    equal = with_singular_values([2.0] * 5 + [0.0] * 3)
    assert metrics.rank(equal) == 5
    np.testing.assert_allclose(metrics.effective_rank(equal), 5, rtol=1e-4)
    assert metrics.stable_rank(equal) == metrics.approximate_rank(equal) == 5
    np.testing.assert_allclose(metrics.numerical_stable_rank(equal), 5, rtol=1e-5)

    graded = with_singular_values([90.0, 8.5, 1.0, 0.5])
    assert metrics.rank(graded) == 4
    assert metrics.rank(graded, relative_tolerance=0.05) == 2
    assert metrics.stable_rank(graded) == 3  # 90 + 8.5 of 100 is less than 99 %
    assert metrics.stable_rank(graded, share=0.9) <= 2
    assert metrics.approximate_rank(graded) == 1  # 8100 of 8173.5 is more than 99 %
    np.testing.assert_allclose(metrics.numerical_stable_rank(graded), 8173.5 / 8100, rtol=1e-5)
    p = np.array([0.9, 0.085, 0.01, 0.005])
    np.testing.assert_allclose(metrics.effective_rank(graded), np.exp(-(p * np.log(p)).sum()), rtol=1e-4)


def test_outer_product_has_rank_one_in_every_sense():
    features = jnp.outer(jnp.arange(1.0, 9.0), jnp.arange(1.0, 4.0))
    for measure in (
        metrics.rank,
        metrics.effective_rank,
        metrics.approximate_rank,
        metrics.stable_rank,
        metrics.numerical_stable_rank,
    ):
        np.testing.assert_allclose(measure(features), 1, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_degenerate_features_have_rank_zero(value):
    features = jnp.full((6, 3), value)
    assert metrics.rank(features) == metrics.stable_rank(features) == metrics.approximate_rank(features) == 0
    assert metrics.effective_rank(features) == metrics.numerical_stable_rank(features) == 0


def test_net_with_known_dead_units():
    weights = jnp.array([[1.0, -1.0, 0.0, 2.0], [1.0, -1.0, 0.0, -3.0]])
    bias = jnp.array([0.0, -0.5, 0.0, -1.0])
    inputs = jnp.array([[0.2, 0.1], [1.0, 0.0], [0.5, 0.5]])  # never negative, so units 1 and 2 can never be active
    features = jax.nn.relu(inputs @ weights + bias)
    assert metrics.dead_units(features) == 0.5
    assert metrics.dormant_units(features, 0.4) == 0.75  # unit 3 is active on one sample of three


def test_dormancy_at_exactly_the_threshold():
    features = np.zeros((200, 4), np.float32)
    features[0, 0], features[:2, 1], features[:3, 2], features[:, 3] = 1, 1, 1, -1
    assert metrics.dormant_units(features, rule="nonzero") == 0.25  # exactly 1 % (unit 1) counts as active
    assert metrics.dormant_units(features, rule="positive") == 0.75  # and as dormant; always negative is dormant
    assert metrics.dead_units(features) == 0


def test_positions_of_a_convolution_count_as_samples():
    features = np.zeros((10, 5, 4, 2), np.float32)
    features[0, 0, :3, 0], features[:, 2, 2, 1] = 1, 1
    assert metrics.dormant_units(features) == 0
    assert metrics.dormant_units(features, threshold=0.02) == 0.5
    assert metrics.dead_units(features) == 0


def test_saturated_units():
    features = jnp.array([[0.95, -0.95, 0.95, 0.5], [-0.95, -0.99, 0.1, 0.5]])
    assert metrics.saturated_units(features) == 0.5
    assert metrics.saturated_units((features + 1) / 2, activation="sigmoid") == 0.5
    assert metrics.saturated_units(features, share=0.5) == 0.75


def test_weight_magnitude_and_change():
    params = {"Dense_0": {"kernel": jnp.array([[1.0, -3.0], [0.0, 4.0]]), "bias": jnp.array([10.0, 0.0])}}
    assert metrics.mean_weight_magnitude(params) == 2
    assert metrics.mean_weight_magnitude(params, "all") == 3
    moved = jax.tree.map(lambda leaf: leaf - 0.5, params)
    assert metrics.weight_change(params, moved) == 2
    assert metrics.weight_change(params, moved, "all") == 3
    moved["Dense_0"]["bias"] += 2.0
    assert metrics.largest_weight_change(params, moved) == 0.5
    assert metrics.largest_weight_change(params, moved, "all") == 1.5


def test_everything_can_be_mapped_over():
    features = jax.nn.relu(jax.random.normal(jax.random.key(0), (3, 20, 6)))
    measures = (
        metrics.rank,
        metrics.effective_rank,
        metrics.approximate_rank,
        metrics.stable_rank,
        metrics.numerical_stable_rank,
        metrics.dead_units,
        metrics.dormant_units,
        metrics.saturated_units,
        metrics.mean_weight_magnitude,
    )
    mapped = jax.jit(jax.vmap(lambda x: [measure(x) for measure in measures]))(features)
    for measure, values in zip(measures, mapped, strict=True):
        np.testing.assert_allclose(values, [measure(one) for one in features], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.dormant_units(jnp.ones((3, 2)), rule="zero"), "rule must be .* got 'zero'"),
        (lambda: metrics.dormant_units(jnp.ones((3, 2)), threshold=2), "threshold must be in .* got 2"),
        (lambda: metrics.saturated_units(jnp.ones((3, 2)), activation="relu"), "activation 'relu' has no two limits"),
        (lambda: metrics.mean_weight_magnitude({"w": jnp.ones(3)}), "nothing to measure with include='kernels'"),
        (lambda: metrics.mean_weight_magnitude({"w": jnp.ones(3)}, "biases"), "include must be .* got 'biases'"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", MATRICES)
def test_agrees_with_the_published_functions(name):
    recorded = {key.split("/")[1]: DATA[key] for key in DATA.files if key.startswith(name + "/")}
    features = jnp.asarray(recorded["matrix"])
    sigma = metrics.singular_values(features)
    np.testing.assert_allclose(sigma, recorded["singular_values_f64"], atol=1e-6 * float(sigma[0]) * 5)
    assert metrics.rank_of(sigma) == recorded["rank_f64_relative_1e_5"]
    np.testing.assert_allclose(metrics.effective_rank_of(sigma), recorded["effective_rank"], rtol=1e-5)
    for measure, key in (
        (metrics.stable_rank_of, "abs_approximate_rank"),
        (metrics.approximate_rank_of, "approximate_rank"),
    ):
        # Where a cumulative share falls on 99 % up to float32 rounding, an off-by-one is nobody's fault.
        slack = int(recorded[f"margin_{key}_99"] < 1e-5)
        assert abs(int(measure(sigma)) - recorded[f"{key}_99"]) <= slack
        assert measure(sigma, 0.9) == recorded[f"{key}_90"]
    assert metrics.stable_rank_of(sigma) == recorded["stable_rank_cifar"]
    assert round(float(metrics.dead_units(features)) * features.shape[1]) == recorded["dead_exact_count"]
    assert metrics.dormant_units(features) == recorded["dormant_nonzero_below_1pct_fraction"]
    assert metrics.dormant_units(features, rule="positive") == recorded["dormant_positive_at_most_1pct_fraction"]


def test_weight_change_of_a_recorded_policy_update():
    path = GOLDEN / "ppo_update_std.npz"
    if not path.exists():
        pytest.skip(f"recorded trace {path} is not there")
    recorded = np.load(path)
    before, after = ([recorded[f"{at}/pol/W{i}"] for i in range(3)] for at in ("init", "f64/final"))
    np.testing.assert_allclose(metrics.weight_change(before, after), recorded["f64/weight_change"], rtol=1e-5)


@pytest.mark.parametrize("measure", ["dead_units", "dormant_units", "saturated_units"])
def test_shares_of_units_are_the_nearest_numbers_to_count_over_width(measure):
    """Compiled, alone and in lanes, for all counts of a width whose inverse is no float."""
    width = 49
    silent = jnp.arange(width) < jnp.arange(width + 1)[:, None]
    features = jnp.broadcast_to(
        jnp.where(silent, 1.0 if measure == "saturated_units" else 0.0, 0.5)[:, None], (50, 3, 49)
    )
    found = jax.jit(jax.vmap(getattr(metrics, measure)))(features)
    np.testing.assert_array_equal(found, (np.arange(width + 1) / width).astype(np.float32))
