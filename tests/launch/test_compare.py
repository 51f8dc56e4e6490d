"""Paired comparisons on known numbers, in three formats, and what they refuse."""

import numpy as np
import pytest
from absl import flags

from launch import compare as command
from launch.compare import compare, text
from launch.errors import InputError
from launch.storage.run_folder import write_run


def write(folder, label, values, hypers=({},), seeds=(0, 1, 2), metric="squared_error", **about):
    """A run with `values` [lane, bin], lanes being hypers x seeds, in bins of 10 steps."""
    values = np.asarray(values, float)
    lanes = [{"method": label, "seed": s, "hyper": dict(h)} for h in hypers for s in seeds]
    settings = {"steps": 10 * values.shape[1]} | about.pop("settings", {})
    meta = {"label": label, "method": label, "task": "toy", "settings": settings, "lanes": lanes, **about}
    bins = values.shape[1]
    write_run(folder / label, meta, 10 * np.arange(1, bins + 1), np.full(bins, 10), {metric: values})


def late(*by_seed):
    """Twenty bins, the last two of which hold the values."""
    return np.concatenate([np.full((len(by_seed), 18), 99.0), np.repeat(np.array(by_seed)[:, None], 2, 1)], 1)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "a", late(1.0, 2.0, 3.0))
    write(tmp_path, "b", late(2.0, 4.0, 3.0))
    return tmp_path


def test_known_numbers(folder):
    (row,) = compare(folder / "a", folder / "b")
    half = 4.302652729911275 / np.sqrt(3)  # Student's 97.5% point with 2 degrees of freedom; differences -1, -2, 0
    assert (row.metric, row.a, row.b, row.mean_a, row.mean_b) == ("squared_error", "a", "b", 2.0, 3.0)
    assert (row.difference.mean, row.difference.n, row.difference.wins) == (-1.0, 3, 2)
    assert row.difference.low == pytest.approx(-1 - half) and row.difference.high == pytest.approx(-1 + half)


def test_the_window_is_a_share_of_the_run(folder):
    (row,) = compare(folder / "a", folder / "b", window=0.2)
    assert row.mean_a == pytest.approx((2.0 + 99.0) / 2)


def test_bins_without_a_measurement_are_passed_over(folder):
    for label, scale in (("c", 1.0), ("d", 0.5)):
        values = np.full((3, 40), np.nan)
        values[:, 3::4] = scale * np.arange(10) / 10  # ten tasks, measured at their ends
        write(folder, label, values, metric="test_accuracy")
    (row,) = compare(folder / "c", folder / "d", window=0.25)
    assert (row.mean_a, row.mean_b, row.difference.mean) == pytest.approx((80, 40, 40))


def test_pairs_are_the_common_seeds_in_their_own_order(folder):
    write(folder, "c", late(30.0, 20.0, 70.0), seeds=(2, 1, 9))
    (row,) = compare(folder / "a", folder / "c")
    assert (row.difference.n, row.mean_a, row.mean_b, row.difference.mean) == (2, 2.5, 25.0, -22.5)


def test_accuracies_are_in_percent_and_more_is_better(folder):
    write(folder, "c", late(0.5, 0.5, 0.5), metric="test_accuracy")
    write(folder, "d", late(0.25, 0.75, 0.25), metric="test_accuracy")
    (row,) = compare(folder / "c", folder / "d")
    assert row.mean_a == 50 and row.difference.wins == 2


def test_one_folder_compares_all_pairs_of_its_labels(folder):
    write(folder, "c", late(0.0, 0.0, 0.0))
    assert [(row.a, row.b) for row in compare(folder)] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_two_run_folders_compare_their_common_labels(tmp_path):
    for name, labels in (("one", "ab"), ("two", "bc")):
        for label in labels:
            write(tmp_path / name, label, late(1.0, 2.0, 3.0), settings={"network": name})
    (row,) = compare(tmp_path / "one", tmp_path / "two")
    assert (row.a, row.b) == ("b, network one", "b, network two")


def test_a_method_folder_is_compared_with_every_label_of_a_run_folder_but_itself(folder):
    write(folder, "c", late(0.0, 0.0, 0.0))
    assert [(row.a, row.b) for row in compare(folder / "a", folder)] == [("a", "b"), ("a", "c")]


def test_settings_are_compared_one_by_one(folder):
    hypers = [{"step_size": 0.1}, {"step_size": 0.01}]
    write(folder, "c", late(1.0, 2.0, 3.0, 5.0, 6.0, 7.0), hypers=hypers)
    write(folder, "d", late(1.0, 1.0, 1.0, 2.0, 2.0, 2.0), hypers=hypers[::-1])
    rows = compare(folder / "c", folder / "d")
    assert [row.difference.mean for row in rows] == [0.0, 5.0]
    assert rows[0].a == "c, step size 0.1" and rows[0].b == "d, step size 0.1"
    assert [row.difference.mean for row in compare(folder / "a", folder / "c")] == [0.0, -4.0]


def test_sweeps_without_a_common_setting_are_refused(folder):
    write(folder, "c", late(*range(6)), hypers=[{"rate": 0.1}, {"rate": 0.2}])
    write(folder, "d", late(*range(6)), hypers=[{"rate": 0.3}, {"rate": 0.4}])
    with pytest.raises(InputError, match="no setting in common of rate"):
        compare(folder / "c", folder / "d")


def test_one_pair_says_so_and_diverged_lanes_are_counted(folder):
    write(folder, "c", late(5.0), seeds=(1,), diverged=[0])
    (row,) = compare(folder / "a", folder / "c")
    assert row.b == "c (1 diverged)" and "n=1" in row.cells()


def test_seeds_in_common_are_needed(folder):
    write(folder, "c", late(1.0, 2.0), seeds=(7, 8))
    with pytest.raises(InputError, match="no seed in common"):
        compare(folder / "a", folder / "c")


def test_other_tasks_steps_labels_and_metrics_are_refused(folder, tmp_path):
    write(folder, "c", late(1.0, 2.0, 3.0), task="other")
    with pytest.raises(InputError, match="different tasks, toy and other"):
        compare(folder / "a", folder / "c")
    write(folder, "c", np.ones((3, 5)))
    with pytest.raises(InputError, match="different numbers of steps, 200 and 50"):
        compare(folder / "a", folder / "c")
    write(folder, "c", late(1.0, 2.0, 3.0), metric="loss")
    with pytest.raises(InputError, match="no metric in common"):
        compare(folder / "a", folder / "c")
    with pytest.raises(InputError, match="did you mean 'squared_error'"):
        compare(folder / "a", folder / "b", metrics=["square_error"])
    write(tmp_path / "apart", "z", late(1.0, 2.0, 3.0))
    with pytest.raises(InputError, match="no label in common"):
        compare(folder, tmp_path / "apart")
    with pytest.raises(InputError, match="holds the one label z"):
        compare(tmp_path / "apart")


def words(folder, format):
    return text(compare(folder / "a", folder / "b"), 0.1, format)


def test_text(folder):
    head, row, blank, *remarks = words(folder, "text").splitlines()
    assert head.index("A - B") == row.index("-1") and head.index("pairs") == row.index("3  ", head.index("pairs"))
    assert row.split() == ["squared", "error", "a", "b", "2", "3", "-1", "[-3.484,", "1.484]", "3", "2/3"]
    assert blank == "" and "last 10% of the run" in remarks[0] and remarks[1] == "squared error: lower is better."


def test_markdown(folder):
    head, rule, row, *_ = words(folder, "markdown").splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row == "| squared error | a | b | 2 | 3 | -1 | [-3.484, 1.484] | 3 | 2/3 |"


def test_latex(folder):
    told = words(folder, "latex")
    assert r"squared error & a & b & 2 & 3 & $-1$ & $[-3.484,$ 1.484] & 3 & 2/3 \\" in told
    assert all(line.startswith("%") for line in told.splitlines()[:2]) and "100" not in told
    assert told.endswith("\\end{tabular}")


def test_latex_escapes_what_it_would_read(folder):
    hypers = [{"step_size": 0.1}, {"step_size": 0.01}]
    write(folder, "c", late(*range(6)), hypers=hypers, metric="test_accuracy")
    write(folder, "d", late(*range(6)), hypers=hypers, metric="test_accuracy")
    table = text(compare(folder / "c", folder / "d"), format="latex")
    assert r"test accuracy (\%)" in table and "step size 0.1" in table


def test_an_unknown_format(folder):
    with pytest.raises(InputError, match="did you mean 'latex'"):
        words(folder, "latx")


def test_the_command(folder, capsys):
    values = flags.FlagValues()
    command.define_flags(values)
    rest = values(["compare", str(folder / "a"), str(folder / "b"), "--format=markdown", "--window=0.1"])
    command.main(rest[1:], values)
    assert "| -1 |" in capsys.readouterr().out
    with pytest.raises(InputError, match="0 folders"):
        command.main([], values)
