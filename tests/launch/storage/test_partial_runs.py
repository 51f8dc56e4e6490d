"""A run under way, read from its checkpoints: the complete bins of the lanes that have begun."""

import numpy as np
import pytest

from launch.errors import InputError
from launch.storage.run_folder import read_run, read_runs
from tests.launch import tiny

ASKED = tiny.experiment(seeds=(0, 1, 2, 3, 4), lanes_per_batch=2)  # units of 2, 2 and 1 lanes, 12 chunks each


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stopped at step 45 of the second unit's 60: at the 11th report, where the first unit has taken 13."""
    folder = tmp_path_factory.mktemp("partial")
    assert tiny.stopped(ASKED, folder, 13 + 10)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.run(ASKED, tmp_path_factory.mktemp("whole"))["backprop"]


def test_complete_bins_are_those_of_the_finished_run_and_others_are_nan(folder, whole):
    run = read_run(folder / "backprop", partial=True)
    assert run.seeds.tolist() == [0, 1, 2, 3] and run.progress.done.tolist() == [60, 60, 45, 45]
    assert str(run.progress) == "partial: 4 of 5 lanes, 45 to 60 of 60 steps"
    assert run.step.tolist() == [20, 40, 60] and run.count.tolist() == [20, 20, 20]
    assert run.metrics.keys() == whole.metrics.keys()
    for name, values in run.metrics.items():
        expected = whole.metrics[name][:4].copy()
        expected[2:, 2] = np.nan
        np.testing.assert_array_equal(values, expected, err_msg=name)
    assert not run.meta["finished"] and run.lives is None


def test_bins_that_no_lane_has_completed_are_left_out(tmp_path, whole):
    assert tiny.stopped(ASKED, tmp_path, 8)
    run = read_run(tmp_path / "backprop", partial=True)
    assert run.step.tolist() == [20] and str(run.progress) == "partial: 2 of 5 lanes, 35 of 60 steps"
    np.testing.assert_array_equal(run.metrics["squared_error"], whole.metrics["squared_error"][:2, :1])


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    assert tiny.stopped(ASKED, tmp_path, 10)
    newest = list(tiny.checkpoints(tmp_path).values())[-1]
    assert read_run(tmp_path / "backprop", partial=True).progress.done.tolist() == [45, 45]
    tiny.damage(newest)
    assert read_run(tmp_path / "backprop", partial=True).progress.done.tolist() == [40, 40]


def test_a_run_that_is_over_is_read_as_ever(tmp_path):
    tiny.run(ASKED, tmp_path)
    assert read_run(tmp_path / "backprop", partial=True).progress is None


def test_without_partial_it_is_refused_and_without_a_complete_bin_too(folder, tmp_path):
    with pytest.raises(InputError, match="not over yet"):
        read_runs(folder)
    assert tiny.stopped(ASKED, tmp_path, 3)
    for read in (read_runs, lambda folder, **how: read_run(folder / "backprop", **how)):
        with pytest.raises(InputError, match="no checkpoint holds a complete bin of 20 steps"):
            read(tmp_path, partial=True)


def test_among_several_runs_those_that_have_not_begun_are_left_out(tmp_path):
    two = tiny.experiment(methods="backprop,l2")
    assert tiny.stopped(two, tmp_path, 13 + 2)
    assert list(read_runs(tmp_path, partial=True)) == ["backprop"]
    assert tiny.stopped(two, tmp_path, 5)
    assert list(read_runs(tmp_path, partial=True)) == ["backprop", "l2"]
    assert list(read_runs(tmp_path)) == ["backprop"]
