"""Measurements by task on known numbers; wider bins; what is refused."""

import dataclasses

import numpy as np
import pytest

from launch.analysis.by_task import (
    after_tasks,
    coarser,
    edges_every,
    every_text,
    steps_until,
    task_starts,
    within_tasks,
)
from launch.errors import InputError
from launch.storage.run_folder import Run

NAN = np.nan
STARTS = (0, 20, 50, 60)  # bins of 10 steps: tasks of 2, 3 and 1 bins
ACCURACY = ((0.5, 0.7, 0.4, NAN, 0.8, 0.6), (0.2, 0.3, 0.3, 0.5, 0.1, NAN))


def run_of(values=ACCURACY, starts=STARTS, count=None, **meta):
    values = np.asarray(values, float)
    count = np.full(values.shape[1], 10) if count is None else np.asarray(count)
    lanes = [{"method": "m", "seed": seed, "hyper": {}} for seed in range(len(values))]
    about = {"lanes": lanes, **({"task_starts": list(starts)} if starts is not None else {}), **meta}
    return Run("label", about, np.cumsum(count), count, {"accuracy": values})


def test_mean_within_and_last_measurement_of_every_task():
    np.testing.assert_allclose(within_tasks(run_of(), "accuracy"), [[0.6, 0.6, 0.6], [0.25, 0.3, NAN]])
    np.testing.assert_allclose(after_tasks(run_of(), "accuracy"), [[0.7, 0.8, 0.6], [0.3, 0.1, NAN]])


def test_what_stands_in_the_last_bin_of_a_task_only_is_found():
    once = [[NAN, 0.7, NAN, NAN, 0.8, 0.6]]
    for read in (within_tasks, after_tasks):
        np.testing.assert_allclose(read(run_of(once), "accuracy"), [[0.7, 0.8, 0.6]])


def test_steps_until_a_threshold_count_from_the_tasks_start():
    steps, reached = steps_until(run_of(), "accuracy", np.array([[0.7, 0.7, 0.7], [0.3, 0.3, 0.3]]))
    np.testing.assert_allclose(steps, [[20, 30, 10], [20, 10, NAN]])
    np.testing.assert_array_equal(reached, [[True, True, False], [True, True, False]])


def test_a_task_that_never_reaches_it_counts_its_length_and_an_unknown_threshold_nothing():
    steps, reached = steps_until(run_of(), "accuracy", np.array([[0.9, 0.9, NAN], [0.9, NAN, 0.9]]))
    np.testing.assert_allclose(steps, [[20, 30, NAN], [20, NAN, NAN]])
    assert not reached.any()


def test_a_lane_that_failed_does_not_reach_its_failure():
    values = [[0.1] * 6, [0.1] * 6]
    _, reached = steps_until(run_of(values, diverged=[1]), "accuracy", np.full((2, 3), 0.1))
    assert reached.tolist() == [[True] * 3, [False] * 3]


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
        after_tasks(run_of(), "acuracy")
