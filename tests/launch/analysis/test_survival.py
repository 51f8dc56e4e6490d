"""Kaplan-Meier against published numbers, closed forms, and itself; intervals that resample whole lanes."""

import numpy as np
import pytest

from launch.analysis.survival import kaplan_meier, pooled


def study(text):
    """Times, `+` behind those who left the study."""
    words = text.split()
    return np.array([float(word.strip("+")) for word in words]), np.array([not word.endswith("+") for word in words])


# Weeks in remission of Freireich et al. (1963), the example of most textbooks.
TREATED = study("6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+")
PLACEBO = study("1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23")


def test_the_textbook_example():
    found = kaplan_meier(*TREATED)
    assert found.time.tolist() == [6, 7, 10, 13, 16, 22, 23]
    np.testing.assert_allclose(found.share, [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], atol=5e-4)
    assert found.median() == 23
    assert kaplan_meier(*PLACEBO).median() == 8


def test_without_censoring_it_is_the_share_left_and_the_mean():
    time = np.random.default_rng(0).integers(1, 9, 40).astype(float)
    found = kaplan_meier(time, np.ones(40, bool))
    np.testing.assert_allclose(found.share, [(time > t).mean() for t in found.time], atol=1e-12)
    assert found.restricted_mean(100) == pytest.approx(time.mean())
    assert found.restricted_mean(4) == pytest.approx(np.minimum(time, 4).mean())


def test_who_leaves_at_the_time_of_an_event_is_still_counted_there():
    """3 watched, an event and a leaving at 1: (1 - 1/3); one left, whose event is at 2."""
    found = kaplan_meier(np.array([1.0, 1.0, 2.0]), np.array([True, False, True]))
    np.testing.assert_allclose(found.share, [2 / 3, 0])
    assert found.median() == 2 and found.restricted_mean(2) == pytest.approx(1 + 2 / 3)


def test_nothing_happens():
    found = kaplan_meier(np.array([5.0, 5.0]), np.zeros(2, bool))
    assert len(found.time) == 0 and found.median() == np.inf and found.restricted_mean(5) == 5


def test_exactly_half_left_is_the_median():
    assert kaplan_meier(np.arange(1.0, 11), np.ones(10, bool)).median() == 5


@pytest.mark.parametrize("time", [[1.0, 2.0], [0.0], [np.nan], [np.inf], [[1.0]]])
def test_what_no_time_can_be(time):
    with pytest.raises(ValueError, match="kaplan_meier"):
        kaplan_meier(np.array(time), np.array([True]))


def test_lanes_are_pooled_and_missing_tasks_left_out():
    time, happened = TREATED
    lanes = np.append(time, [np.nan] * 3).reshape(4, 6), np.append(happened, [True] * 3).reshape(4, 6)
    found, alone = pooled(*lanes, horizon=35), kaplan_meier(time, happened)
    np.testing.assert_allclose(found.curve.share, alone.share)
    np.testing.assert_array_equal(found.curve.time, alone.time)
    assert found.mean.value == pytest.approx(alone.restricted_mean(35)) and found.median.value == 23
    assert found.never.value == pytest.approx(12 / 21) and found.tasks == 21
    assert found.mean.low < found.mean.value < found.mean.high
    assert ((found.low <= found.curve.share) & (found.curve.share <= found.high)).all()


def test_the_interval_resamples_lanes_not_tasks():
    """Two lanes, one always at 1 and one never, whatever the number of tasks: the ends are those lanes."""
    time = np.stack([np.full(500, 1.0), np.full(500, 4.0)])
    found = pooled(time, time == 1, horizon=4)
    assert found.never == (0.5, 0.0, 1.0) and found.mean == (2.5, 1.0, 4.0)
    assert found.median == (1.0, 1.0, np.inf)
    assert found.low.tolist() == [0.0] and found.high.tolist() == [1.0]


def test_a_lane_without_any_time_counts_as_none():
    time = np.array([[1.0, 2.0], [2.0, 3.0], [np.nan, np.nan]])
    some = pooled(time, np.ones((3, 2), bool), 3)
    assert some.mean == pooled(time[:2], np.ones((2, 2), bool), 3).mean and some.tasks == 4
    with pytest.raises(ValueError, match="no time"):
        pooled(time[2:], np.ones((1, 2), bool), 3)


def test_a_single_lane_has_no_interval():
    found = pooled(np.array([[1.0, 2.0]]), np.ones((1, 2), bool), 2)
    assert found.mean.value == 1.5 and np.isnan([found.mean.low, found.mean.high, *found.low, *found.high]).all()


def test_the_same_lanes_have_the_same_interval_and_a_spread_shrinks_with_their_number():
    time = np.random.default_rng(1).exponential(5, (40, 6)) + 0.1
    happened = time < 8
    few, many = (pooled(np.minimum(time, 8)[:n], happened[:n], 8) for n in (5, 40))
    assert many.mean == pooled(np.minimum(time, 8), happened, 8).mean
    assert many.mean.high - many.mean.low < 0.6 * (few.mean.high - few.mean.low)
