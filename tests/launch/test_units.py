"""Unit biographies on disk, the survival of units, the command that draws them, and the option that records them."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags

import launch
from launch import train
from launch import units as command
from launch.analysis.lives import (
    Lifetimes,
    group_names,
    lifetimes,
    survival,
    time_to_usefulness,
    useful_share,
)
from launch.config.experiment import branched
from launch.errors import InputError
from launch.storage.replacements import gathered
from launch.storage.run_folder import read_run, write_run
from launch.units import table, units, with_history

AGES = (1, 2, 4, 8, 16)
SIZE, STEPS = 3, 20
FIRST_BYTES = b"\x89PNG"
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


def test_lifetimes_of_a_full_and_of_an_overflown_history(run):
    full = lifetimes(run, [0], "Dense_10")
    assert full.exit.tolist() == [4, 16, 20] and full.entry.tolist() == [0, 0, 0]
    assert full.replaced.tolist() == [True, False, False] and full.first.tolist() == [True, False, True]
    cut = lifetimes(run, [1], "Dense_10")  # nothing is known up to step 5
    assert cut.exit.tolist() == [6, 13, 10, 7] and cut.entry.tolist() == [2, 6, 0, 0]
    assert cut.replaced.tolist() == [True, True, False, False] and cut.first.tolist() == [False, True, False, False]
    assert [len(part) for part in lifetimes(run, [0, 1], "Dense_10")] == [7] * 4


def test_survival_of_a_textbook_example():
    """Remission times of 21 patients (Freireich et al. 1963), as every text on survival tabulates them."""
    replaced = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    there = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    exit = np.array(replaced + there)
    known = np.arange(21) < len(replaced)
    found = survival(Lifetimes(np.zeros(21), exit, known, known))
    np.testing.assert_array_equal(found.age, [6, 7, 10, 13, 16, 22, 23])
    np.testing.assert_allclose(found.share, [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], atol=6e-4)
    np.testing.assert_allclose([found.low[0], found.high[0]], [0.620, 0.952], atol=6e-4)
    np.testing.assert_allclose([found.low[-1], found.high[-1]], [0.188, 0.680], atol=6e-4)
    assert found.median() == 23 and found.longest == 35
    assert found.at(9)[0] == pytest.approx(0.807, abs=6e-4) and found.at(5)[0] == 1 and np.isnan(found.at(36)[0])


def test_survival_does_not_depend_on_how_much_the_buffer_has_lost():
    """Units that go with probability 1/50 a step after 20 steps, seen from the start and from step 500 of 1000 on."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(20 + rng.geometric(1 / 50, (400, 60)), axis=1)
    births = np.concatenate([np.zeros((400, 1)), ends[:, :-1]], axis=1)
    curves = []
    for start in (0, 500):
        seen = (births < 1000) & (ends > start)
        birth, end = births[seen], np.minimum(ends[seen], 1000)
        found = survival(Lifetimes(np.maximum(start - birth, 0), end - birth, ends[seen] <= 1000, birth == 0))
        curves.append([found.at(age)[0] for age in (19, 30, 50, 100, 150)])
        np.testing.assert_allclose(curves[-1], [1, *(0.98 ** np.array([10, 30, 80, 130]))], atol=0.02)


def test_nothing_replaced_and_all_replaced():
    none = survival(Lifetimes(np.zeros(2), np.array([9, 9]), np.zeros(2, bool), np.ones(2, bool)))
    assert none.median() == np.inf and none.at(9)[0] == 1 and np.isnan(none.at(10)[0])
    every = survival(Lifetimes(np.zeros(2), np.array([3, 5]), np.array([True, True]), np.ones(2, bool)))
    assert every.share.tolist() == [0.5, 0] and every.at(1000)[0] == 0 and every.high[-1] == 0


def test_usefulness_by_age(run):
    ages, share = useful_share(run, [0, 1], "Dense_2")
    assert ages.tolist() == list(AGES)
    np.testing.assert_array_equal(share, [np.nan, 0.2, 0.75, np.nan, 0.8])  # 10 sightings in two lanes are too few
    assert time_to_usefulness(ages, share) == (4, True)
    assert time_to_usefulness(ages[2:], share[2:]) == (4, False)
    assert np.isnan(time_to_usefulness(*useful_share(run, [0, 1], "Dense_10"))[0])


def test_the_table(run):
    lines = table(with_history([run.meta["folder"]])).splitlines()
    assert [line.count("|") for line in lines] == [9] * 4
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert cells[:5] == ["continual backprop (2 seeds)", "Dense_10", "2", "1.5", "0.5"]
    assert cells[6] == "never seen" and cells[7].endswith("within 10")
    assert " % of 4 [" in cells[7]  # lives that began with a replacement, in both seeds
    assert "| 4 |" in lines[2]
    assert table(with_history([run.meta["folder"]]), ["Dense_2"], soon=7).splitlines()[2].endswith("within 7 |")


def test_the_figure_and_the_command(run, tmp_path, capsys):
    write(tmp_path, "backprop")  # has no history, and is left out
    assert units(tmp_path).read_bytes().startswith(FIRST_BYTES)
    values = flags.FlagValues()
    command.define_flags(values)
    rest = values(["units", str(tmp_path), "--groups=Dense_10", f"--out={tmp_path / 'one.svg'}"])
    command.main(rest[1:], values)
    printed = capsys.readouterr().out
    assert "Dense_10" in printed and "Dense_2" not in printed and "backprop (2" in printed
    assert (tmp_path / "one.svg").read_bytes().startswith(b"<?xml")


def test_wrong_input_is_one_line(run, tmp_path):
    write(tmp_path / "without", "backprop")
    with pytest.raises(
        InputError, match=r"no unit biographies \(lives.npz\) in backprop; run launch.train with --hist"
    ):
        units(tmp_path / "without")
    with pytest.raises(InputError, match=r"--groups: unknown 'Dense_3' \(did you mean 'Dense_2'"):
        units(tmp_path, ["Dense_3"])
    with pytest.raises(InputError, match=r"--format=pdf: --out=a.png already says it"):
        units(tmp_path, out="a.png", format="pdf")
    with pytest.raises(InputError, match="no run folder given"):
        units([])


def test_wrong_flags_end_with_one_line_and_no_jax_is_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.units", str(tmp_path), "--soon=0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    code = "import sys, launch.units; print({'jax', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


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
    assert "late: history=6 is" in warned and "replacements too short" in warned
    run = read_run(tmp_path / "late")
    found = run.lives
    assert run.meta["settings"]["history"] == 6
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
