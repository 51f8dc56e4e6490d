"""Intervals against closed forms and known coverage; differences paired by seed; the late window."""

import numpy as np
import pytest

from launch.analysis.statistics import interval, late_bins, late_mean, paired_difference
from launch.errors import InputError
from launch.storage.run_folder import Run

T_975_3 = 3.182446305284263  # Student's 97.5% point with 3 degrees of freedom
Z_975 = 1.959963984540054


def run_of(values, count=None):
    lanes, bins = np.shape(values)
    about = [{"method": "m", "seed": seed, "hyper": {}} for seed in range(lanes)]
    count = np.full(bins, 10) if count is None else np.asarray(count)
    return Run("label", {"lanes": about}, np.cumsum(count), count, {"loss": np.asarray(values, float)})


def test_student_interval_in_closed_form():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    mean, low, high = interval(values, kind="se")
    half = T_975_3 * values.std(ddof=1) / 2
    assert mean == pytest.approx(3.0)
    assert low == pytest.approx(3.0 - half) and high == pytest.approx(3.0 + half)


def test_bootstrap_of_two_lanes_in_closed_form():
    """The mean of a resampling of {0, 1} is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4."""
    mean, low, high = interval(np.array([0.0, 1.0]), level=0.9)
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    assert interval(np.array([0.0, 1.0]), level=0.4)[1:] == (0.5, 0.5)


def test_bootstrap_approaches_the_normal_interval():
    values = np.random.default_rng(1).normal(size=400)
    mean, low, high = interval(values)
    se = values.std() / 20
    assert low == pytest.approx(mean - Z_975 * se, abs=0.1 * se)
    assert high == pytest.approx(mean + Z_975 * se, abs=0.1 * se)


@pytest.mark.parametrize(("kind", "tolerance"), [("se", 0.02), ("bootstrap", 0.03)])
def test_coverage_of_a_known_mean(kind, tolerance):
    """1500 samples of 30 standard normal lanes, one per column: the interval should hold 0 in 95 of 100."""
    values = np.random.default_rng(2).normal(size=(30, 1500))
    _, low, high = interval(values, kind)
    assert ((low < 0) & (high > 0)).mean() == pytest.approx(0.95, abs=tolerance)


def test_same_seed_same_interval_and_columns_share_their_resamplings():
    values = np.random.default_rng(3).normal(size=(8, 3))
    many = interval(np.tile(values, (1, 400)))
    np.testing.assert_allclose(many.low.reshape(400, 3), np.tile(many.low[:3], (400, 1)))
    np.testing.assert_allclose(interval(values).low, many.low[:3])
    np.testing.assert_array_equal(interval(values).low, interval(values).low)
    np.testing.assert_allclose(interval(values + 5).low, interval(values).low + 5)
    assert (interval(values, seed=1).low != interval(values).low).any()


@pytest.mark.parametrize("kind", ["se", "bootstrap"])
def test_shape_is_that_of_a_lane(kind):
    for each in interval(np.zeros((4, 2, 3)), kind):
        assert each.shape == (2, 3)


@pytest.mark.parametrize("kind", ["se", "bootstrap"])
def test_a_single_lane_has_a_mean_and_no_interval(kind):
    mean, low, high = interval(np.array([[1.0, 2.0]]), kind)
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan(low).all() and np.isnan(high).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["se", "bootstrap"])
def test_missing_values_are_left_out_bin_by_bin(kind):
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan], [2.0, np.inf, np.nan]])
    mean, low, high = interval(values, kind)
    np.testing.assert_array_equal(mean, [2.0, 5.0, np.nan])
    assert np.isfinite(low[0]) and np.isnan(low[1:]).all() and np.isnan(high[1:]).all()


def test_a_missing_lane_counts_as_no_lane():
    values = np.random.default_rng(4).normal(size=(6, 2))
    with_missing = np.concatenate([values, np.full((1, 2), np.nan)])
    np.testing.assert_allclose(interval(with_missing, "se").low, interval(values, "se").low)


def test_wrong_kind_and_level():
    with pytest.raises(InputError, match="did you mean 'bootstrap'"):
        interval(np.zeros(3), kind="bootstap")
    with pytest.raises(InputError, match="level"):
        interval(np.zeros(3), level=95)


def test_paired_difference_of_shifted_seeds_is_the_shift_without_spread():
    seeds = np.random.default_rng(5).normal(size=20) * 100
    found = paired_difference(seeds - 0.5, seeds)
    assert found.mean == pytest.approx(-0.5) and found.low == pytest.approx(-0.5) and found.high == pytest.approx(-0.5)
    assert (found.n, found.wins) == (20, 20)
    assert paired_difference(seeds - 0.5, seeds, better="higher").wins == 0


def test_paired_difference_in_closed_form():
    found = paired_difference([1.0, 2.0, 3.0, 8.0], [0.0, 0.0, 0.0, 2.0])
    half = T_975_3 * np.std([1.0, 2.0, 3.0, 6.0], ddof=1) / 2
    assert (found.mean, found.n, found.wins) == (3.0, 4, 0)
    assert found.low == pytest.approx(3.0 - half) and found.high == pytest.approx(3.0 + half)


def test_a_tie_is_no_win_and_a_missing_pair_does_not_count():
    found = paired_difference([1.0, 0.0, np.nan], [1.0, 1.0, 5.0])
    assert (found.mean, found.n, found.wins) == (-0.5, 2, 1)


def test_one_pair_has_no_interval():
    found = paired_difference([1.0], [3.0])
    assert found.mean == -2.0 and found.n == 1 and np.isnan(found.low)
    assert paired_difference([np.nan], [3.0]).n == 0


def test_paired_difference_needs_equal_shapes():
    with pytest.raises(ValueError, match="shapes"):
        paired_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("bins", "share", "first"), [(50, 0.1, 45), (100, 0.07, 93), (3, 0.1, 2), (7, 1, 0), (25, 0.1, 22)]
)
def test_late_bins(bins, share, first):
    assert late_bins(bins, share) == slice(first, bins)


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_window_outside_its_range_is_refused(share):
    with pytest.raises(InputError, match="--window"):
        late_bins(10, share)


def test_late_mean_weighs_bins_by_their_steps():
    run = run_of([[9.0, 1.0, 4.0], [9.0, np.nan, 4.0]], count=[10, 10, 5])
    np.testing.assert_allclose(late_mean(run, "loss", 2 / 3), [2.0, 4.0])


def test_late_mean_of_what_is_measured_at_the_end_of_every_task_only():
    """Ten tasks of four bins: the last quarter are three tasks, each of the same weight."""
    values = np.full((2, 40), np.nan)
    values[:, 3::4] = np.arange(10) + np.array([[0.0], [100.0]])
    np.testing.assert_allclose(late_mean(run_of(values), "loss", 0.25), [8.0, 108.0])
    np.testing.assert_allclose(late_mean(run_of(values), "loss", 0.01), [9.0, 109.0])


def test_late_mean_of_what_was_not_measured():
    run = run_of([[1.0, np.nan], [1.0, np.nan]])
    with pytest.raises(InputError, match="widen --window"):
        late_mean(run, "loss", 0.5)
    with pytest.raises(InputError, match="did you mean 'loss'"):
        late_mean(run, "los")
