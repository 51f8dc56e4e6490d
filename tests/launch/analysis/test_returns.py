"""Best, final, drop and collapse on known returns, beside a reference and a fresh network, and what is refused."""

import numpy as np
import pytest

from launch.analysis.returns import compared, report, returns
from launch.analysis.text import joined
from launch.errors import InputError
from launch.storage.run_folder import read_runs, write_run


def write(folder, label, values, metric="episode_return", hyper=None, last=10, **settings):
    """A run with `values` [seed, bin] in bins of 10 steps, the last one of `last`."""
    values = np.asarray(values, float)
    lanes = [{"method": label, "seed": seed, "hyper": hyper or {}} for seed in range(len(values))]
    count = np.full(values.shape[1], 10)
    count[-1] = last
    step = np.cumsum(count)
    meta = {"label": label, "method": label, "task": "toy", "settings": {"steps": int(step[-1])} | settings}
    write_run(folder / label, meta | {"lanes": lanes}, step, count, {metric: values})


@pytest.fixture
def runs(tmp_path):
    rise_and_fall = [0, 10, 20, 30, 40, 30, 20, 10, 10, 12]
    write(tmp_path, "standard", [rise_and_fall, np.minimum(rise_and_fall, 15), [-9] * 10])
    write(tmp_path, "continual_backprop", [np.arange(10.0), np.arange(10.0) + 5, np.arange(10.0) + 7])
    return list(read_runs(tmp_path).values())


def of(found, label):
    return next(each.lanes for each in found if each.curve.run.label == label)


def only(folder, **asked):
    (found,) = returns(list(read_runs(folder).values()), **asked)
    return found.lanes


def text(runs, **asked):
    return joined(*report(runs, **asked))


def test_every_seed_has_its_own_peak(runs):
    plain = of(returns(runs, window=0.2), "standard")
    np.testing.assert_allclose(plain.best, [35, 15, -9])
    np.testing.assert_array_equal(plain.step, [50, 40, 20])  # the first of equal windows
    np.testing.assert_allclose(plain.final, [11, 11, -9])
    np.testing.assert_allclose(plain["drop"], [24, 4, 0])
    np.testing.assert_array_equal(plain.collapsed, [True, False, False])  # a peak below 0 has no half
    rising = of(returns(runs, window=0.2), "continual_backprop")
    np.testing.assert_allclose(rising["drop"], 0)
    assert not rising.collapsed.any()


def test_bins_in_which_no_episode_ended_are_passed_over(tmp_path):
    write(tmp_path, "standard", [[1, np.nan, np.nan, np.nan, 8, np.nan, 4, np.nan]])
    assert only(tmp_path, window=0.25).iloc[0].tolist() == [8, 50, 4, 4, False]
    with pytest.raises(InputError, match=r"no episode ended in the last 0\.1 of the run; widen --window"):
        returns(list(read_runs(tmp_path).values()), window=0.1)


def test_a_window_is_as_long_as_an_episode_of_all(tmp_path):
    """Two environments whose episodes of 15 steps end together: in every third bin."""
    ends = {"task.environments": 2, "task.episode_length": 15}
    write(tmp_path, "standard", [[np.nan, np.nan, 6, np.nan, np.nan, 9, np.nan, np.nan, 3, np.nan]], **ends)
    assert only(tmp_path, window=0.1).iloc[0, :3].tolist() == [9, 60, 3]
    short = {"task.environments": 2, "task.episode_length": 100}
    write(tmp_path / "short", "standard", [[2.0, 4.0]], **short)  # shorter than an episode
    assert only(tmp_path / "short")[["best", "final"]].iloc[0].tolist() == [3, 3]


def test_a_short_last_bin_weighs_as_many_steps_as_it_has(tmp_path):
    write(tmp_path, "standard", [[1.0, 1.0, 7.0]], last=5)
    assert only(tmp_path, window=0.6)["final"].item() == pytest.approx(3)


def test_differences_are_paired_by_seed(runs):
    final, drop = compared(returns(runs, window=0.2), "standard")
    assert final.difference.mean == pytest.approx(np.mean([8.5 - 11, 13.5 - 11, 15.5 + 9]))
    assert (final.difference.n, final.difference.wins, drop.difference.wins) == (3, 2, 2)
    assert drop.difference.mean == pytest.approx(-28 / 3)


def test_the_tables_and_what_is_shown_beside_a_fresh_network(runs, tmp_path):
    told = text(runs, window=0.2)
    assert "1 of 3" in told and "0 of 3" in told and "50" in told
    assert "shown" not in told
    write(tmp_path, "fresh_network", np.array([[20.0] * 10, [21.0] * 10, [22.0] * 10]))
    with_fresh = list(read_runs(tmp_path).values())
    assert "not shown at this scale" in text(with_fresh, window=0.2).splitlines()[-2]
    write(tmp_path / "far", "standard", np.array([[0.0] * 10, [1.0] * 10, [2.0] * 10]))
    write(tmp_path / "far", "fresh_network", np.array([[20.0] * 10, [21.5] * 10, [22.0] * 10]))
    last = text(list(read_runs(tmp_path / "far").values())).splitlines()[-1]
    assert "shown" in last and "not shown" not in last


def test_what_differs_from_a_fresh_network_in_the_past_alone_is_judged_too(tmp_path):
    for label, hyper in (
        ("standard", {"b1": 0.9}),
        ("tuned_adam", {"b1": 0.99, "weight_decay": 0.0}),
        ("l2", {"b1": 0.99, "weight_decay": 1e-3}),
        ("fresh_network", {"b1": 0.99}),
    ):
        write(tmp_path, label, np.arange(20.0).reshape(2, 10), hyper=hyper)
    judged = [line for line in text(list(read_runs(tmp_path).values())).splitlines() if line.startswith("Loss of")]
    assert len(judged) == 2
    assert any("standard" in line and "more than the past: b1 0.9 and 0.99" in line for line in judged)
    assert any("tuned adam" in line and "more than the past" not in line for line in judged)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"metric": "loss"}, "metric"),
        ({"window": 0.0}, "--window: 0 is not in"),
        ({"reference": "nobody"}, "--reference"),
    ],
)
def test_bad_input(runs, asked, told):
    with pytest.raises(InputError, match=told):
        report(runs, **asked)


def test_a_metric_of_which_less_is_better(tmp_path):
    write(tmp_path, "standard", [[1.0, 2.0]], metric="loss")
    with pytest.raises(InputError, match="--metric: of loss lower values are better; a return is needed"):
        returns(list(read_runs(tmp_path).values()), "loss")
