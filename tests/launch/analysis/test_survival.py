"""Kaplan-Meier against published numbers, closed forms, and itself; intervals over seeds and how often they hold."""

import numpy as np
import pandas as pd
import pytest

from launch.analysis.survival import kaplan_meier, never

T_975_3 = 3.182446305284263  # Student's 97.5% point with 3 degrees of freedom


def watched(time, happened, seed=0, **columns):
    """The table of some tasks: `seed` for each, or one for all."""
    return pd.DataFrame({"seed": seed, "time": np.asarray(time, float), "happened": happened, **columns})


def study(text):
    """Times, `+` behind those who left the study."""
    words = text.split()
    return watched([float(word.strip("+")) for word in words], [not word.endswith("+") for word in words])


# Weeks in remission of Freireich et al. (1963), the example of most textbooks.
TREATED = study("6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+")
PLACEBO = study("1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23")


def test_the_textbook_example():
    found = kaplan_meier(TREATED)
    assert found.time.tolist() == [6, 7, 10, 13, 16, 22, 23]
    np.testing.assert_allclose(found.share, [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], atol=5e-4)
    assert found.median().value == 23 and kaplan_meier(PLACEBO).median().value == 8
    assert found.at(9).value == pytest.approx(0.807, abs=5e-4) and found.at(5).value == 1
    assert found.longest == 35 and np.isnan(found.at(36).value) and found.number == 21


def test_without_censoring_it_is_the_share_left_and_the_mean():
    time = np.random.default_rng(0).integers(1, 9, 40).astype(float)
    found = kaplan_meier(watched(time, True))
    np.testing.assert_allclose(found.share, [(time > t).mean() for t in found.time], atol=1e-12)
    assert found.restricted_mean(100).value == pytest.approx(time.mean())
    assert found.restricted_mean(4).value == pytest.approx(np.minimum(time, 4).mean())


def test_who_leaves_at_the_time_of_an_event_is_still_counted_there():
    """3 watched, an event and a leaving at 1: (1 - 1/3); one left, whose event is at 2."""
    found = kaplan_meier(watched([1, 1, 2], [True, False, True]))
    np.testing.assert_allclose(found.share, [2 / 3, 0], atol=1e-12)
    assert found.median().value == 2 and found.restricted_mean(2).value == pytest.approx(1 + 2 / 3)
    assert found.at(1000).value == pytest.approx(0)  # nobody is left, so nothing more can happen


def test_who_comes_into_view_late_counts_from_then_on():
    """At 2, the first two are watched: 1/2 stay. At 4 the late one is there too, without the first: 1/2 of them go."""
    found = kaplan_meier(watched([2, 4, 5, 3], [True, True, False, True], entry=[0, 0, 2, 3]))
    np.testing.assert_allclose(found.share, [1 / 2, 1 / 4])
    assert found.number == 3  # the last one left as it came


def test_it_does_not_depend_on_when_watching_begins():
    """What goes with probability 1/50 a step after 20 steps, seen from the start and from step 500 of 1000 on."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(20 + rng.geometric(1 / 50, (400, 60)), axis=1)
    births = np.concatenate([np.zeros((400, 1)), ends[:, :-1]], axis=1)
    for start in (0, 500):
        seen = (births < 1000) & (ends > start)
        birth, end = births[seen], np.minimum(ends[seen], 1000)
        found = kaplan_meier(watched(end - birth, ends[seen] <= 1000, entry=np.maximum(start - birth, 0)))
        shares = [found.at(age).value for age in (19, 30, 50, 100, 150)]
        np.testing.assert_allclose(shares, [1, *(0.98 ** np.array([10, 30, 80, 130]))], atol=0.02)


def test_nothing_happens():
    found = kaplan_meier(watched([5, 5], False))
    assert len(found.time) == 0 and found.median().value == np.inf and found.restricted_mean(5).value == 5
    assert found.at(5).value == 1 and np.isnan(found.at(6).value)


def test_exactly_half_left_is_the_median():
    assert kaplan_meier(watched(np.arange(1.0, 11), True)).median().value == 5


@pytest.mark.parametrize("time", [[1.0, 0.0], [np.nan], [np.inf]])
def test_what_no_time_can_be(time):
    with pytest.raises(ValueError, match="kaplan_meier"):
        kaplan_meier(watched(time, True))


def test_the_tasks_of_all_seeds_are_pooled():
    seeds = TREATED.assign(seed=np.arange(21) % 4)
    found, alone = kaplan_meier(seeds), kaplan_meier(TREATED)
    np.testing.assert_allclose(found.share, alone.share)
    assert found.restricted_mean(35).value == pytest.approx(alone.restricted_mean(35).value)
    assert never(seeds).value == pytest.approx(12 / 21)
    for each in (found.restricted_mean(35), found.median(), never(seeds), found.at(10)):
        assert each.low <= each.value <= each.high
    low, high = found.band
    assert ((low <= found.share) & (found.share <= high)).all() and low.min() >= 0 and high.max() <= 1


def test_the_interval_is_students_where_the_estimate_is_a_mean_of_seeds():
    """Four seeds of 50 tasks each, that all happen at one time of their own: tasks add nothing, seeds do."""
    own = np.array([3.0, 4.0, 5.0, 8.0])
    found = kaplan_meier(watched(np.repeat(own, 50), True, np.repeat(np.arange(4), 50))).restricted_mean(20)
    half = T_975_3 * own.std(ddof=1) / 2
    assert found == pytest.approx((5, 5 - half, 5 + half))
    missed = never(watched(np.ones(40), np.repeat([0, 1, 1, 1], 10) == 1, np.repeat(np.arange(4), 10)))
    assert missed == pytest.approx((0.25, 0, min(1, 0.25 + T_975_3 * 0.25)))


def test_the_medians_interval_is_where_the_band_crosses_one_half():
    found = kaplan_meier(watched(np.tile(np.arange(1.0, 9), 6), True, np.repeat(np.arange(6), 8)))
    assert found.median() == (4, 4, 4)  # all seeds alike
    found = kaplan_meier(watched([1] * 8 + [4] * 8, [True] * 8 + [False] * 8, [0] * 8 + [1] * 8))
    assert found.median() == (1, 1, np.inf) and found.band[0].tolist() == [0] and found.band[1].tolist() == [1]


def test_a_single_seed_has_no_interval():
    found = kaplan_meier(watched([1, 2], True))
    ends = [*found.restricted_mean(2)[1:], *found.median()[1:], *found.at(1)[1:], *np.concatenate(found.band)]
    assert found.restricted_mean(2).value == 1.5 and np.isnan([*ends, *never(watched([1, 2], True))[1:]]).all()


def test_how_often_the_intervals_hold_the_truth():
    """Tasks that happen at a rate of their seed's own, watched for 4: means of the seeds' own means and shares."""
    rng = np.random.default_rng(5)
    held, runs, seeds, tasks = np.zeros(2), 150, 5, 40
    for _ in range(runs):
        rate = rng.uniform(0.2, 0.6, seeds)
        time = rng.exponential(1 / rate[:, None], (seeds, tasks)).ravel()
        found = watched(np.minimum(time, 4), time < 4, np.repeat(np.arange(seeds), tasks))
        u = np.linspace(0.2, 0.6, 2001)
        truth = np.mean((1 - np.exp(-4 * u)) / u), np.mean(np.exp(-4 * u))
        for i, each in enumerate((kaplan_meier(found).restricted_mean(4), never(found))):
            held[i] += each.low <= truth[i] <= each.high
    assert (held / runs >= 0.9).all()  # of 150: 94 % +- 2 %
