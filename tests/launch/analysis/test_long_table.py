"""Measurements by task on known numbers; wider bins; what is refused."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from launch.analysis.curves import Curve, curves
from launch.analysis.long_table import (
    OWN,
    by_task,
    coarser,
    edges_every,
    every_text,
    late_mean,
    long_table,
    of_metric,
    task_starts,
    waits,
)
from launch.errors import InputError
from launch.storage.run_folder import Progress, Run

NAN = np.nan
STARTS = (0, 20, 50, 60)  # bins of 10 steps: tasks of 2, 3 and 1 bins
ACCURACY = ((0.5, 0.7, 0.4, NAN, 0.8, 0.6), (0.2, 0.3, 0.3, 0.5, 0.1, NAN))


def run_of(values=ACCURACY, starts=STARTS, count=None, **meta):
    values = np.asarray(values, float)
    count = np.full(values.shape[1], 10) if count is None else np.asarray(count)
    lanes = [{"method": "m", "seed": seed, "hyper": {}} for seed in range(len(values))]
    about = {
        "lanes": lanes,
        "method": "m",
        "task": "toy",
        "settings": {},
        **({"task_starts": list(starts)} if starts is not None else {}),
        **meta,
    }
    return Run("label", about, np.cumsum(count), count, {"accuracy": values})


def table_of(*given, **meta):
    run = run_of(*given, **meta)
    return of_metric(Curve(run, np.arange(len(run.lanes))), "accuracy")


def test_a_row_is_what_a_lane_measured_in_a_bin():
    run = run_of(diverged=[1])
    run.meta["lanes"][0]["hyper"] = {"step_size": 0.1, "metric": 2.0}
    table = long_table(curves([run]))
    assert set(table.columns) == {*OWN, "step_size", "hyper_metric"} and len(table) == 12
    row = table.iloc[4]
    told = ("label", "method", "seed", "lane", "task", "step", "steps", "metric", "value", "diverged")
    assert row[list(told)].tolist() == ["label", "m", 0, 0, 2, 50, 10, "accuracy", 0.8, False]
    assert (row["step_size"], row["hyper_metric"], row["setting"]) == (0.1, 2.0, "step size 0.1, metric 2")
    last = table.iloc[11]
    assert np.isnan([last["value"], last["step_size"]]).all() and last["diverged"] and last["task"] == 3
    assert long_table(curves([run]), ["loss"]).empty and long_table([]).columns.tolist() == list(OWN)


def test_mean_within_and_last_measurement_of_every_task():
    table = table_of()
    np.testing.assert_allclose(by_task(table, "mean"), [[0.6, 0.6, 0.6], [0.25, 0.3, NAN]])
    np.testing.assert_allclose(by_task(table), [[0.7, 0.8, 0.6], [0.3, 0.1, NAN]])
    np.testing.assert_allclose(by_task(table, "max"), [[0.7, 0.8, 0.6], [0.3, 0.5, NAN]])


def test_what_stands_in_the_last_bin_of_a_task_only_is_found():
    once = [[NAN, 0.7, NAN, NAN, 0.8, np.inf]]
    for what in ("mean", "last", "max"):
        np.testing.assert_allclose(by_task(table_of(once), what), [[0.7, 0.8, NAN]])


def test_a_run_under_way_has_the_tasks_that_are_over():
    run = dataclasses.replace(run_of(starts=(0, 20, 50, 90)), progress=Progress(np.array([60, 60]), 90, 2))
    assert task_starts(run).tolist() == [0, 20, 50]
    table = of_metric(Curve(run, np.arange(2)), "accuracy")
    assert table["task"].tolist() == [1, 1, 2, 2, 2, 0] * 2
    np.testing.assert_allclose(by_task(table), [[0.7, 0.8], [0.3, 0.1]])
    early = dataclasses.replace(run, step=np.array([10]), count=np.array([10]))
    with pytest.raises(InputError, match="partial: 2 of 2 lanes, 60 of 90 steps; the first task is not over yet"):
        task_starts(early)


def waited(table, threshold):
    """Steps and whether they reach the threshold, [lane, task]."""
    found = waits(table, pd.DataFrame(threshold, columns=[1, 2, 3])).pivot(index="lane", columns="task")
    found = found.reindex(columns=pd.MultiIndex.from_product([["time", "happened"], [1, 2, 3]]))
    return found["time"].to_numpy(float), found["happened"].to_numpy() == 1


def test_steps_until_a_threshold_count_from_the_tasks_start():
    steps, reached = waited(table_of(), np.array([[0.7, 0.7, 0.7], [0.3, 0.3, 0.3]]))
    np.testing.assert_allclose(steps, [[20, 30, 10], [20, 10, NAN]])
    np.testing.assert_array_equal(reached, [[True, True, False], [True, True, False]])


def test_a_task_that_never_reaches_it_counts_its_length_and_an_unknown_threshold_nothing():
    steps, reached = waited(table_of(), np.array([[0.9, 0.9, NAN], [0.9, NAN, 0.9]]))
    np.testing.assert_allclose(steps, [[20, 30, NAN], [20, NAN, NAN]])
    assert not reached.any()


def test_a_lane_that_failed_does_not_reach_its_failure():
    values = [[0.1] * 6, [0.1] * 6]
    _, reached = waited(table_of(values, diverged=[1]), np.full((2, 3), 0.1))
    assert reached.tolist() == [[True] * 3, [False] * 3]


def late(values, share=0.1, count=None):
    run = run_of(values, starts=None, count=count)
    return late_mean(Curve(run, np.arange(len(values))), "accuracy", share)


def test_late_mean_weighs_bins_by_their_steps_and_is_in_per_cent_where_the_axis_is():
    assert late([[9.0, 1.0, 4.0], [9.0, 2.0, 2.0]], 0.6, [10, 20, 10]).tolist() == pytest.approx([2.0, 2.0])
    run = run_of([[0.5, 0.25]], starts=None)
    run = dataclasses.replace(run, metrics={"test_accuracy": run.metrics["accuracy"]})
    assert late_mean(Curve(run, np.array([0])), "test_accuracy", 1.0).to_dict() == {0: 37.5}


def test_late_mean_leaves_out_what_was_not_measured():
    found = late([[1.0, np.nan, 3.0], [1.0, np.nan, np.nan]], 0.6)
    assert found[0] == 3.0 and np.isnan(found[1])
    with pytest.raises(InputError, match="label: accuracy was not measured in the last"):
        late([[1.0, np.nan]], 0.5)


def test_wider_bins_hold_the_mean_of_what_was_measured():
    wide = coarser(run_of(), np.array([0, 20, 50, 60]))
    assert wide.step.tolist() == [20, 50, 60] and wide.count.tolist() == [20, 30, 10]
    np.testing.assert_allclose(wide.metrics["accuracy"], [[0.6, 0.6, 0.6], [0.25, 0.3, NAN]])


def test_a_measurement_weighs_the_same_however_many_steps_its_bin_holds():
    wide = coarser(run_of([[1.0, 4.0]], starts=None, count=[10, 5]), np.array([0, 15]))
    assert wide.metrics["accuracy"].item() == 2.5


def test_bins_as_they_are_change_nothing():
    run = run_of()
    same = coarser(run, edges_every(run, "10"))
    np.testing.assert_array_equal(same.step, run.step)
    np.testing.assert_array_equal(same.metrics["accuracy"], run.metrics["accuracy"])


@pytest.mark.parametrize(
    ("every", "edges"),
    [
        ("1task", [0, 20, 50, 60]),
        ("2tasks", [0, 50, 60]),
        ("9tasks", [0, 60]),
        ("40", [0, 40, 60]),
        ("30", [0, 30, 60]),
    ],
)
def test_edges_by_tasks_and_by_steps(every, edges):
    assert edges_every(run_of(), every).tolist() == edges


@pytest.mark.parametrize("every", ["", "0", "-5", "1.5", "tasks", "50 tasks", "0tasks", "5task5", "9" * 30])
def test_text_that_is_no_number_of_steps_or_tasks(every):
    with pytest.raises(InputError, match=r"--every: .* neither"):
        edges_every(run_of(), every)


def test_edges_within_a_bin_or_that_do_not_rise_to_the_end():
    run = run_of()
    with pytest.raises(InputError, match="a wider bin begins at step 15, within the bin that ends at step 20"):
        coarser(run, edges_every(run, "15"))
    for edges in ([0, 40], [20, 60], [0, 40, 20, 60], [60], []):
        with pytest.raises(InputError, match=r"edges|the run ends at step 60"):
            coarser(run, np.array(edges))


def test_runs_without_bins_hold_nothing_to_join():
    with pytest.raises(InputError, match="holds no bins"):
        edges_every(run_of(np.ones((1, 0))), "10")


def test_what_is_said_of_wider_bins():
    assert "bins of 50 tasks," in every_text("50tasks") and "of 1 task," in every_text("1tasks")
    assert "of 500 steps," in every_text("500")


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        (None, "run.json lacks task_starts"),
        ([0], "at least two"),
        ([10, 60], "rise from 0"),
        ([0, 30, 30, 60], "rise from 0"),
        ([0.0, 60.0], "whole numbers"),
        ([0, True, 60], "whole numbers"),
        ([0, 10**30], "whole numbers"),
        ("060", "whole numbers"),
        ([0, 20, 70], "ends at step 60, not at 70"),
        ([0, 25, 60], "a task begins at step 25, within the bin that ends at step 30"),
    ],
)
def test_tasks_that_cannot_be(starts, words):
    run = run_of()
    meta = {**run.meta, "task_starts": starts, "folder": "runs/m"}
    with pytest.raises(InputError, match=f"runs/m: .*{words}") as told:
        task_starts(dataclasses.replace(run, meta=meta))
    assert "\n" not in str(told.value)


def test_an_unknown_metric():
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        of_metric(Curve(run_of(), np.arange(2)), "acuracy")
