"""Intervals against closed forms and known coverage; differences paired by seed; the late window."""

import numpy as np
import pytest

from launch.analysis.statistics import RESAMPLED_FROM, interval, jackknife, late_bins, paired_difference
from launch.errors import InputError

T_975_3 = 3.182446305284263  # Student's 97.5% point with 3 degrees of freedom
Z_975 = 1.959963984540054
NUMBERS = (4, RESAMPLED_FROM + 1)  # one of Student's interval, one of the bootstrap's


def test_student_interval_in_closed_form():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    mean, low, high = interval(values)
    half = T_975_3 * values.std(ddof=1) / 2
    assert mean == pytest.approx(3.0)
    assert low == pytest.approx(3.0 - half) and high == pytest.approx(3.0 + half)


def test_bootstrap_of_ones_and_zeros_has_the_quantiles_of_a_binomial():
    """The mean of a resampling of 20 zeros and 20 ones is binomial / 40: 2.5 % lie at 14 or below, 97.5 at 26."""
    mean, low, high = interval(np.repeat([0.0, 1.0], 20))
    assert mean == 0.5 and low == pytest.approx(14 / 40, abs=1e-9) and high == pytest.approx(26 / 40, abs=1e-9)


def test_bootstrap_approaches_the_normal_interval():
    values = np.random.default_rng(1).normal(size=400)
    mean, low, high = interval(values)
    se = values.std() / 20
    assert low == pytest.approx(mean - Z_975 * se, abs=0.1 * se)
    assert high == pytest.approx(mean + Z_975 * se, abs=0.1 * se)


@pytest.mark.parametrize("seeds", range(2, 31))
def test_ninety_five_per_cent_hold_the_truth_whatever_the_number_of_seeds(seeds):
    """4000 samples of normal seeds, one per column; the standard error of the share is 0.35 %."""
    values = np.random.default_rng(seeds).normal(size=(seeds, 4000))
    _, low, high = interval(values)
    assert 0.93 <= ((low < 0) & (high > 0)).mean() <= 0.965


def test_a_bootstrap_below_thirty_would_hold_it_too_seldom():
    """Why Student's interval is taken there: normal quantiles of the resamplings' spread cover 90 % at ten seeds."""
    values = np.random.default_rng(10).normal(size=(10, 4000))
    half = Z_975 * values.std(axis=0) / np.sqrt(10)
    assert (np.abs(values.mean(axis=0)) < half).mean() < 0.92


def test_the_same_values_have_the_same_interval_and_columns_share_their_resamplings():
    values = np.random.default_rng(3).normal(size=(40, 3))
    many = interval(np.tile(values, (1, 400)))
    np.testing.assert_allclose(many.low.reshape(400, 3), np.tile(many.low[:3], (400, 1)))
    np.testing.assert_allclose(interval(values).low, many.low[:3])
    np.testing.assert_array_equal(interval(values).low, interval(values).low)
    np.testing.assert_allclose(interval(values + 5).low, interval(values).low + 5)


@pytest.mark.parametrize("lanes", NUMBERS)
def test_shape_is_that_of_a_lane(lanes):
    for each in interval(np.zeros((lanes, 2, 3))):
        assert each.shape == (2, 3)


def test_a_single_lane_has_a_mean_and_no_interval():
    mean, low, high = interval(np.array([[1.0, 2.0]]))
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan(low).all() and np.isnan(high).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lanes", NUMBERS)
def test_missing_values_are_left_out_bin_by_bin(lanes):
    values = np.full((lanes, 3), np.nan)
    values[:3] = [[1.0, np.nan, np.nan], [3.0, 5.0, np.nan], [2.0, np.inf, np.nan]]
    mean, low, high = interval(values)
    np.testing.assert_array_equal(mean, [2.0, 5.0, np.nan])
    assert np.isfinite(low[0]) and np.isnan(low[1:]).all() and np.isnan(high[1:]).all()


def test_a_missing_lane_counts_as_no_lane():
    values = np.random.default_rng(4).normal(size=(6, 2))
    with_missing = np.concatenate([values, np.full((1, 2), np.nan)])
    np.testing.assert_allclose(interval(with_missing).low, interval(values).low)


def test_wrong_level():
    with pytest.raises(InputError, match="level"):
        interval(np.zeros(3), level=95)


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    without = (values.sum() - values) / 3
    np.testing.assert_allclose(jackknife(values.mean(), without), interval(values)[1:])
    assert np.isnan(jackknife(1.0, np.ones(1))).all()


def test_a_paired_difference_of_many_seeds_is_students_too():
    values = np.random.default_rng(5).normal(size=50)
    found = paired_difference(values, np.zeros(50))
    half = 2.009575234489209 * values.std(ddof=1) / np.sqrt(50)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))


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
