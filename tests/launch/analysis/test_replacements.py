"""The replacement log: on disk, as lifetimes, tables and figures, and the option that records it."""

import dataclasses

import jax
import numpy as np
import pytest
from absl import flags

import launch
from launch import train
from launch.analysis.curves import curves, read
from launch.analysis.replacements import (
    group_names,
    lifetimes,
    replaced_within,
    report,
    time_to_usefulness,
    useful_share,
)
from launch.analysis.text import printed
from launch.config.experiment import branched
from launch.errors import InputError
from launch.figures.parts import draw_replacements
from launch.storage.replacements import gathered
from launch.storage.run_folder import read_run, write_run

AGES = (1, 2, 4, 8, 16)
SIZE, STEPS = 3, 20
# step, number of the group, unit, age, utility; the second lane has one more than the buffer holds
STORIES = (
    ((3, 0, 0, 4, 0.5), (5, 1, 1, 6, 0.25)),
    ((3, 0, 0, 4, 0.5), (5, 1, 1, 6, 0.25), (9, 0, 0, 6, -1.0), (12, 0, 1, 13, 1.5)),
)


def lives():
    """What is kept of the stories above; group 0 is `Dense_10` and group 1 is `Dense_2`, of two units each."""
    rows = np.zeros((2, SIZE, 5), np.int32)
    for lane, story in enumerate(STORIES):
        for i, (*whole, utility) in enumerate(story):
            rows[lane, i % SIZE] = [*whole, np.float32(utility).view(np.int32)]
    usefulness = np.zeros((2, len(AGES), 2), np.int32)
    usefulness[:, 1:, 0], usefulness[:, 1:, 1] = (10, 20, 5, 50), (2, 15, 5, 40)
    arrays = {
        "rows": rows,
        "written": np.array([len(story) for story in STORIES], np.int32),
        "age/Dense_2": np.array([[20, 14], [20, 14]], np.int32),
        "age/Dense_10": np.array([[16, 20], [10, 7]], np.int32),
        "usefulness/Dense_2": usefulness,
        "usefulness/Dense_10": np.zeros_like(usefulness),
    }
    return gathered(arrays, AGES, start=100, stop=100 + STEPS)


def write(folder, label="continual_backprop", lives=None):
    lanes = [{"method": label, "seed": s, "hyper": {"maturity_threshold": 5.0}} for s in (0, 1)]
    meta = {"label": label, "method": label, "task": "toy", "settings": {"steps": 120}, "lanes": lanes}
    write_run(folder / label, meta, [120], [120], {"loss": np.ones((2, 1))}, lives=lives)
    return read_run(folder / label)


@pytest.fixture
def run(tmp_path):
    return write(tmp_path, lives=lives())


def test_what_is_kept_is_what_the_buffers_hold_in_order():
    kept = lives()
    assert kept["lane"].tolist() == [0, 0, 1, 1, 1] and kept["lost"].tolist() == [0, 1]
    assert kept["born"].tolist() == [[3, -1, -1, 5], [9, 12, -1, 5]]
    assert kept["step"].tolist() == [3, 5, 5, 9, 12] and kept["age"].tolist() == [4, 6, 6, 6, 13]
    np.testing.assert_array_equal(kept["utility"], np.float32([0.5, 0.25, 0.25, -1.0, 1.5]))
    assert kept["groups"].tolist() == ["Dense_10", "Dense_2"] and group_names(kept) == ["Dense_2", "Dense_10"]


def test_lives_read_back_and_go_away_with_the_next_write(run, tmp_path):
    for name, values in lives().items():
        np.testing.assert_array_equal(run.lives[name], values)
    path = tmp_path / "continual_backprop" / "lives.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"lives.npz: cannot be read, truncated or damaged"):
        read_run(path.parent)
    assert write(tmp_path).lives is None and not path.exists()


def of_seeds(run, *seeds):
    (curve,) = curves([run])
    return dataclasses.replace(curve, lanes=np.array(seeds))


def test_lifetimes_of_a_full_and_of_an_overflown_log(run):
    full = lifetimes(of_seeds(run, 0), "Dense_10")
    assert full["time"].tolist() == [4, 16, 20] and full["entry"].tolist() == [0, 0, 0]
    assert full["happened"].tolist() == [True, False, False] and full["first"].tolist() == [True, False, True]
    cut = lifetimes(of_seeds(run, 1), "Dense_10")  # nothing is known up to step 5
    assert cut["time"].tolist() == [6, 13, 10, 7] and cut["entry"].tolist() == [2, 6, 0, 0]
    assert cut["happened"].tolist() == [True, True, False, False]
    assert cut["first"].tolist() == [False, True, False, False]
    both = lifetimes(of_seeds(run, 0, 1), "Dense_10")
    assert both["seed"].tolist() == [0] * 3 + [1] * 4


def test_usefulness_by_age(run):
    share = useful_share(of_seeds(run, 0, 1), "Dense_2")
    assert share.index.tolist() == list(AGES)
    np.testing.assert_array_equal(share, [np.nan, 0.2, 0.75, np.nan, 0.8])  # 10 sightings in two lanes are too few
    assert time_to_usefulness(share) == (4, True)
    assert time_to_usefulness(share.iloc[2:]) == (4, False)
    assert np.isnan(time_to_usefulness(useful_share(of_seeds(run, 0, 1), "Dense_10"))[0])


def test_how_many_are_replaced_within_some_steps(run):
    """New units of Dense_10: one is there to age 16; of the other seed's, one goes at 6 and two stay to 10 and 7."""
    lives = lifetimes(of_seeds(run, 0, 1), "Dense_10")
    assert replaced_within(lives[~lives["first"]], 6).value == pytest.approx(25)


def test_the_table(run):
    rows = report(curves([run])).rows
    assert [len(row) for row in rows] == [8] * 3
    assert rows[2][:5] == ("continual backprop (2 seeds)", "Dense_10", "2", "1.5", "0.5")
    assert rows[2][6] == "never seen" and rows[2][7].endswith("within 10")
    assert " % of 4 [" in rows[2][7]  # lives that began with a replacement, in both seeds
    assert rows[1][6] == "4"
    (_, row) = report(curves([run]), ["Dense_2"], soon=7).rows
    assert row[7].endswith("within 7") and "Dense_2" in printed(report(curves([run])), "markdown")


def test_the_figure(run, tmp_path):
    write(tmp_path, "backprop")  # has no log, and is left out
    _, axes = draw_replacements(curves(read(tmp_path)))
    assert [ax.get_title() for ax in axes] == ["Dense_2", "Dense_2", "Dense_10", "Dense_10"]
    _, (lives, _) = draw_replacements(curves(read(tmp_path)), ["Dense_10"])
    (line,) = lives.get_lines()
    assert line.get_xydata()[0, 1] == 100 and not lives.collections  # two seeds have no band


def test_wrong_input_is_one_line(run, tmp_path):
    with pytest.raises(InputError, match=r"no replacement log \(lives.npz\) of backprop; run launch.train with --hist"):
        report(curves([write(tmp_path / "without", "backprop")]))
    with pytest.raises(InputError, match=r"--groups: unknown 'Dense_3' \(did you mean 'Dense_2'"):
        report(curves([run]), ["Dense_3"])


def trained(tmp_path, *more, task="slowly_changing_regression(change_every=200)"):
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", *([f"--task={task}"] if task else []), f"--workdir={tmp_path}", "--workers=1", *more])
    return train.main([], values)


@pytest.fixture
def hasty_compiler():
    """Compiling takes most of the time of a short run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("hasty_compiler")
def test_the_option_records_what_a_method_replaces_and_changes_nothing_else(tmp_path, capsys):
    """What is recorded agrees with the clock, and the metrics are those of the same run without a history."""
    settings = ("replacement_rate=0.02", "maturity_threshold=10")
    first = ("--methods=backprop", "--seeds=2", "--steps=200", "--bin=100", "--chunk=100", "--checkpoint_at=100")
    assert trained(tmp_path, *first) == 0
    late, source = "late=continual_backprop", f"{tmp_path / 'backprop'}@100"
    given = (f"--methods={late}", f"--branch_from={source}", *(f"--set={text}" for text in settings))
    assert trained(tmp_path, *given, "--history=6", task=None) == 0
    warned = capsys.readouterr().err
    assert "late: --history=6 is" in warned and "replacements too short" in warned
    run = read_run(tmp_path / "late")
    found = run.lives
    assert run.meta["settings"]["log_size"] == 6
    assert (found["start"], found["stop"]) == (100, 200) and found["widths"].tolist() == [5]
    for lane in (0, 1):
        steps, ages, of_unit = (found[n][found["lane"] == lane] for n in ("step", "age", "unit"))
        assert len(steps) == 6 and found["lost"][lane] > 0 and (np.diff(steps) > 0).all()
        assert (ages > 10).all() and steps.max() < 100
        for unit in range(5):
            born = found["born"][lane, unit]
            if unit in of_unit:
                assert born == steps[of_unit == unit].max()
            else:  # never replaced, or before all that is kept
                assert -1 <= born < steps.min()
            assert (np.diff(steps[of_unit == unit]) == ages[of_unit == unit][1:]).all()
    other = launch.run(branched(source, methods=late, set=settings), workers=1)["late"]
    assert other.lives is None
    for name, values in run.metrics.items():
        np.testing.assert_array_equal(values, other.metrics[name], err_msg=name)


def test_a_history_of_methods_that_replace_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="--history=9: none of these methods replaces units: backprop, l2"):
        trained(tmp_path / "new", "--methods=backprop,l2", "--history=9")
    assert not (tmp_path / "new").exists()
