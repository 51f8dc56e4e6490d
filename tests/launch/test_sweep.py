"""`launch.sweep`: a grid becomes units, units become results, winners are told and reported; whatever is asked that
cannot be is one line, and nothing is written."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from launch import sweep as command
from launch.config.experiment import resolve
from launch.config.grid import read_grid
from launch.engine import scheduler
from launch.engine.label import Label
from launch.engine.sweep_folder import SWEEP, read_experiments
from launch.errors import InputError
from launch.storage.locks import locked
from launch.storage.run_folder import read_run, read_runs
from tests.launch import tiny

HEAD = f'task = "{tiny.TASK}"\nnetwork = "{tiny.NETWORK}"\nbin = 20\nchunk = 5\nlanes_per_batch = 2\n'
GRID = HEAD + 'methods = ["backprop", "l2"]\nseeds = "{seeds}"\nsteps = {steps}\n[sweep]\nstep_size = [0.01, 0.1]\n'


@dataclasses.dataclass(frozen=True)
class Stored(tiny.Drift):
    """A task whose data have a folder."""

    data_dir: str = ""


def sweep(*arguments):
    """The command in this process, with frequent checkpoints; its exit status."""
    values = flags.FlagValues()
    command.define_flags(values)
    return command.main(values(["sweep", "--checkpoint_every=10", "--workers=1", *arguments])[1:], values)


def grid(folder, seeds="100:102", steps=60, text=GRID):
    path = folder / "grid.toml"
    path.write_text(text.replace("{seeds}", seeds).replace("{steps}", str(steps)))
    return f"--grid={path}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that is over: two methods of two settings on two seeds, two units each."""
    folder = tmp_path_factory.mktemp("whole")
    assert sweep(grid(folder), f"--workdir={folder / 'runs'}") == 0
    return folder / "runs"


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "runs")
    return tmp_path / "runs"


def test_the_list_has_every_unit_with_its_lanes(whole):
    listed = json.loads((whole / SWEEP).read_text())
    units = listed["units"]
    assert [(unit["label"], unit["lanes"], unit["seeds"], unit["steps"]) for unit in units] == [
        (label, 2, "100:102", 60) for label in ("backprop", "backprop", "l2", "l2")
    ]
    folders = {path.parent.name for path in whole.glob("*/checkpoints/*/LOCK")}
    assert {unit["name"] for unit in units} == folders and len(folders) == 4
    assert all(unit["bytes"] > 8 for unit in units)
    assert read_experiments(whole)[0].seeds == (100, 101)


def test_runs_of_a_sweep_say_that_they_are_for_tuning_and_what_they_took(whole):
    for run in read_runs(whole).values():
        assert run.meta["tuning"] is True and run.meta["finished"] and run.meta["wall_seconds"] > 0


def test_a_sweep_that_is_over_does_nothing_when_run_again(whole, monkeypatch, capsys):
    def never(*arguments, **options):
        raise AssertionError("something was run")

    monkeypatch.setattr(scheduler, "run_units", never)
    monkeypatch.setattr(Label, "finish", never)
    before = {path: seen for path, seen in tiny.snapshot(whole).items() if path.name not in (SWEEP, "sensitivity.png")}
    assert sweep(f"--workdir={whole}") == 0
    after = tiny.snapshot(whole)
    assert {path: after[path] for path in before if path != whole} == {p: s for p, s in before.items() if p != whole}
    assert "step_size=0.1" in capsys.readouterr().out


def test_the_same_numbers_come_from_flags(whole, tmp_path):
    sweep(
        f"--task={tiny.TASK}", f"--network={tiny.NETWORK}", "--bin=20", "--chunk=5", "--lanes_per_batch=2",
        "--steps=60", "--methods=backprop,l2", "--seeds=100:102", "--sweep=step_size=0.01,0.1",
        f"--workdir={tmp_path / 'runs'}",
    )  # fmt: skip
    assert tiny.assert_same_ends(tmp_path / "runs", whole) > 20


def test_units_run_one_by_one_are_the_sweep(whole, tmp_path, capsys):
    here = f"--workdir={tmp_path / 'runs'}"
    names = [unit["name"] for unit in json.loads((whole / SWEEP).read_text())["units"]]
    for left, name in zip((3, 2, 1, 0), reversed(names), strict=True):
        assert sweep(grid(tmp_path), here, f"--unit={name}") == 0
        assert capsys.readouterr().out == f"{name}: over now; units left: {left}\n"
    assert sweep(here, f"--unit={names[0]}") == 0
    assert capsys.readouterr().out == f"{names[0]}: was over; units left: 0\n"
    tiny.assert_same_ends(tmp_path / "runs", whole)
    with pytest.raises(InputError, match=rf"^--unit: there is no '{names[0][:-1]}' in .*\(did you mean '{names[0]}'"):
        sweep(here, f"--unit={names[0][:-1]}")


def test_longer_runs_and_more_seeds_go_on(whole, copy):
    assert sweep(grid(copy.parent, "100:103", 80), f"--workdir={copy}") == 0
    for label, before in read_runs(whole).items():
        after = read_run(copy / label)
        assert after.step.tolist() == [20, 40, 60, 80] and sorted(set(after.seeds)) == [100, 101, 102]
        assert after.lanes[:4] == before.lanes
        np.testing.assert_array_equal(after.metrics["squared_error"][:4, :3], before.metrics["squared_error"])
    with pytest.raises(InputError, match="steps 80 there, 60 asked"):
        sweep(grid(copy.parent, "100:103", 60), f"--workdir={copy}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("bin = 20", "bin = 30"), "backprop holds another run (bin 20 there, 30 asked)"),
        (("[0.01, 0.1]", "[0.01, 0.2]"), "with other seeds or numbers"),
        (("100:102", "100:101"), "with other seeds or numbers"),
        (('["backprop", "l2"]', '["l2"]'), "labels that are not asked for (backprop); keep them, or"),
    ],
)
def test_another_sweep_in_the_folder_is_refused_and_nothing_is_touched(copy, change, words):
    before = tiny.snapshot(copy)
    text = GRID.replace("{seeds}", "100:102").replace(*change)
    with pytest.raises(InputError, match=re.escape(words)) as error:
        sweep(grid(copy.parent, text=text), f"--workdir={copy}")
    assert str(error.value).startswith("--workdir: ") and "\n" not in str(error.value)
    assert tiny.snapshot(copy) == before


def test_a_run_that_is_not_for_tuning_is_not_taken_for_one(tmp_path):
    tiny.run(tiny.experiment(seeds=(100, 101)), tmp_path / "runs")
    before = tiny.snapshot(tmp_path / "runs")
    text = HEAD + 'methods = "backprop"\nseeds = "100:102"\nsteps = 60\n'
    with pytest.raises(InputError, match="backprop holds a run that was not made for tuning; choose another folder"):
        sweep(grid(tmp_path, text=text.replace("lanes_per_batch = 2\n", "")), f"--workdir={tmp_path / 'runs'}")
    assert tiny.snapshot(tmp_path / "runs") == before


def test_without_checkpoints_results_stay_and_cannot_grow(whole, tmp_path):
    root = tmp_path / "runs"
    assert sweep(grid(tmp_path), f"--workdir={root}", "--keep=0") == 0
    assert not list(root.glob("*/checkpoints"))
    for label, run in read_runs(whole).items():
        assert read_run(root / label).metrics["squared_error"].tobytes() == run.metrics["squared_error"].tobytes()
    before = tiny.snapshot(root)
    with pytest.raises(InputError, match="holds no checkpoints to go on from"):
        sweep(grid(tmp_path, steps=80), f"--workdir={root}")
    assert tiny.snapshot(root) == before


def test_parts_folder_of_the_data_and_diverged_lanes(tmp_path, capsys):
    """A sweep of two parts with lengths of their own; where the data are is asked each time, and kept nowhere."""
    text = HEAD.replace(tiny.TASK, "tests.launch.test_sweep:Stored") + (
        '[[grid]]\nmethods = "backprop"\nseeds = "5:7"\nsteps = 20\nsweep = { step_size = [0.1, 100] }\n'
        '[[grid]]\nmethods = "mild=l2"\nseeds = "5:7"\nsteps = 40\nsweep = { weight_decay = [0.1, 0.2] }\n'
    )
    root = tmp_path / "runs"
    assert sweep(grid(tmp_path, text=text), f"--workdir={root}", f"--data_dir={tmp_path}") == 0
    runs = read_runs(root)
    assert {label: run.meta["settings"]["steps"] for label, run in runs.items()} == {"backprop": 20, "mild": 40}
    assert all(str(tmp_path) not in (root / name).read_text() for name in (SWEEP, "mild/run.json"))
    assert runs["backprop"].meta["diverged"] == [2, 3]
    assert np.isfinite(runs["backprop"].metrics["squared_error"]).all()
    said = capsys.readouterr().out
    assert "backprop: 2 lanes diverged, none of the best setting, and count as failures." in said
    assert sweep(f"--workdir={root}", f"--data_dir={tmp_path}", "--report_seeds=0:2") == 0
    assert {label: run.meta["settings"]["steps"] for label, run in read_runs(root / "report").items()} == {
        "backprop": 20, "mild": 40,
    }  # fmt: skip


# What is told ---------------------------------------------------------------------------------------------------------


def test_before_it_begins_a_sweep_can_be_looked_at(tmp_path, capsys):
    for flag in ("--dry_run", "--status"):
        assert sweep(grid(tmp_path), f"--workdir={tmp_path / 'runs'}", flag) == 0
        costs, _, table = capsys.readouterr().out.rpartition("\n\nlabel ")
        assert ("backprop: 4 lanes in 2 x 2" in costs and "about" in costs) == (flag == "--dry_run")
        said = table.splitlines()
        assert said[1].split() == ["backprop", "4", "2", "0", "0", "2", "0%"]
        assert len([line for line in said if "step 0 of 60" in line]) == 4
    assert not (tmp_path / "runs").exists()
    with pytest.raises(InputError, match=r"^--workdir: .*/runs holds no sweep \(no sweep.json\)"):
        sweep(f"--workdir={tmp_path / 'runs'}", "--status")


def test_the_best_by_another_window_is_another_figure_and_text(copy, capsys):
    (copy / "sensitivity.png").unlink()
    assert sweep(f"--workdir={copy}", "--best", "--window=0.4", "--metric=squared_error") == 0
    said = capsys.readouterr().out
    assert "the last 40% of the run" in said and f"figure: {copy / 'sensitivity.png'}" in said
    assert "Tuned on seeds 100:102, 2 settings a method." in said
    assert "warning: l2: the best step_size=0.1 lies on the edge of the 2 values tried, 0.01 to 0.1" in said
    assert (copy / "sensitivity.png").stat().st_size > 4000


def test_the_best_of_an_unfinished_sweep_says_what_is_missing(copy, capsys):
    (copy / "l2" / "DONE").unlink()
    (copy / "l2" / "metrics.npz").unlink()
    assert sweep(f"--workdir={copy}", "--best") == 0
    out, err = capsys.readouterr()
    assert "l2" not in out and err == "warning: l2: not over, 0 units are left\n"
    with pytest.raises(InputError, match=r"^--report_seeds: .*/runs is not over \(l2\); --status says how far"):
        sweep(f"--workdir={copy}", "--report_seeds=0:3")


def test_winners_alone_are_reported_on_other_seeds(copy, capsys):
    assert sweep(f"--workdir={copy}", "--report_seeds=0:3") == 0
    said = capsys.readouterr().out
    assert said.startswith("| method |") and f"figure: {copy / 'report' / 'figure.png'}" in said
    runs = read_runs(copy / "report")
    assert list(runs) == ["backprop", "l2"]
    for run in runs.values():
        assert run.seeds.tolist() == [0, 1, 2] and {lane["hyper"]["step_size"] for lane in run.lanes} == {0.1}
        assert run.meta["tuned_on"] == "seeds 100:102, 2 settings a method" and run.meta["tuning"] is False
    assert sweep(f"--workdir={copy / 'report'}") == 0
    assert capsys.readouterr().out == said
    with pytest.raises(InputError, match="was not made for tuning"):
        sweep(f"--workdir={copy / 'report'}", "--report_seeds=5:6")


def test_reporting_on_tuning_seeds_is_refused_before_anything_is_written(copy):
    before = tiny.snapshot(copy)
    with pytest.raises(InputError, match=r"^--report_seeds: 0:101 holds 1 of the tuning seeds 100:102, 100 among them"):
        sweep(f"--workdir={copy}", "--report_seeds=0:101")
    assert tiny.snapshot(copy) == before


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--workdir="], "--workdir: missing"),
        (["x"], "'x' is not a flag"),
        (["--seeds=5"], "--task: missing"),
        (["GRID", "--seeds=5"], "--grid and --seeds: give one of them"),
        (["GRID", "--task=x", "--methods=l2"], "--grid and --task: give one of them"),
        (["--grid=absent.toml"], "absent.toml: no such grid file"),
        (["GRID", "--unit=0123456789ab"], "--unit: there is no '0123456789ab'"),
        (["GRID", "--status", "--best"], "--status and --best: give one of them"),
        (["GRID", "--unit=a", "--submit=slurm"], "--unit and --submit: give one of them"),
        (["GRID", "--best", "--report_seeds=1:2"], "--best and --report_seeds: give one of them"),
        (["GRID", "--slurm=timeout_min=5"], "--slurm: settings of jobs"),
        (["GRID", "--report_dir=x"], "--report_dir: needs --report_seeds"),
        (["GRID", "--workers=0"], "--workers: 0 is not a positive number"),
        (["GRID", "--window=0"], "--window: 0 is not in (0, 1]"),
        (["GRID", "--metric=squared_eror"], "did you mean 'squared_error'"),
        (["GRID", "--metric=a,b"], "--metric: a,b are 2; settings are judged by one"),
        (["GRID", "--devices=2"], "--devices: belongs to launch.train"),
        (["GRID", "--block=0/2"], "--block: belongs to launch.train"),
        (["GRID", "--checkpoint_at=7"], "--checkpoint_at: 7 is not a multiple of 5"),
        (["GRID", "--checkpoint_every=soon"], "--checkpoint_every"),
        (["GRID", "--report_seeds=0:3"], "is not over (backprop, l2)"),
        (["GRID", "--best"], "is over yet"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(given, words, tmp_path):
    given = [grid(tmp_path) if text == "GRID" else text for text in given]
    before = tiny.snapshot(tmp_path)
    values = flags.FlagValues()
    command.define_flags(values)
    with pytest.raises(InputError, match=re.escape(words)) as error:
        command.main(values(["sweep", f"--workdir={tmp_path / 'runs'}", *given])[1:], values)
    assert "\n" not in str(error.value)
    assert [path for path in tiny.snapshot(tmp_path) if path not in before] in ([], [tmp_path / "runs"])


def test_a_unit_that_somebody_else_runs_is_refused_by_name(copy):
    name = json.loads((copy / SWEEP).read_text())["units"][0]["name"]
    shutil.rmtree(copy / "backprop" / "checkpoints" / name / "60")
    (copy / "backprop" / "DONE").unlink()
    with (
        locked(copy / "backprop" / "checkpoints" / name / "LOCK"),
        pytest.raises(InputError, match=rf"{name}: being run by process \d+ on "),
    ):
        sweep(f"--workdir={copy}", f"--unit={name}")


def test_experiments_read_back_are_those_that_were_asked_for(whole):
    (read,) = read_experiments(whole)
    assert read.tuning and [len(job.lanes) for job in resolve(read).jobs] == [4, 4]


# The page ------------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
COMMANDS = re.findall(r"^python -m launch\.sweep ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("text", COMMANDS)
def test_commands_of_the_page_have_flags_that_go_together(text):
    values = flags.FlagValues()
    command.define_flags(values)
    assert values(["sweep", *shlex.split(text.replace("\\\n", " "))])[1:] == []
    command._check_flags(values)


def test_the_grid_of_the_page_is_one(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "tuning.toml").write_text(text)
    (experiment,) = read_grid(tmp_path / "tuning.toml")
    assert [len(job.lanes) // 20 for job in resolve(experiment).jobs] == [5, 15, 15]
    assert len(COMMANDS) == 10


def test_a_setting_of_the_task_is_swept_and_drawn_over(tmp_path, capsys):
    asked = (f"--task={tiny.TASK}", f"--network={tiny.NETWORK}", "--methods=backprop,slow=backprop(step_size=0.001)")
    size = ("--seeds=2", "--steps=60", "--bin=20", "--chunk=5", f"--workdir={tmp_path / 'runs'}")
    assert sweep(*asked, *size, "--sweep=task.abruptness=0.5,1") == 0
    runs = read_runs(tmp_path / "runs")
    assert set(runs) == {f"{label}_abruptness_{value}" for value in ("0.5", "1") for label in ("backprop", "slow")}
    assert runs["slow_abruptness_0.5"].meta["settings"]["task.abruptness"] == 0.5
    assert "task.abruptness" not in runs["slow_abruptness_1"].meta["settings"]
    assert not any(run.meta["tuning"] for run in runs.values())
    one, two = (runs[f"backprop_abruptness_{value}"].metrics["squared_error"] for value in ("0.5", "1"))
    np.testing.assert_array_equal(one[:, 0], two[:, 0])  # nothing is mixed into the first task
    assert (one[:, 1:] != two[:, 1:]).all()
    assert (tmp_path / "runs" / "against_abruptness.png").is_file()
    printed = capsys.readouterr().out
    assert "against_abruptness.png" in printed and "| slow abruptness 0.5, step size 0.001 |" in printed
    assert sweep(f"--workdir={tmp_path / 'runs'}", "--status") == 0  # the folder says what is swept


def test_settings_of_the_task_that_cannot_be_swept_are_one_line(tmp_path):
    asked = (f"--task={tiny.TASK}", f"--network={tiny.NETWORK}", "--methods=backprop", f"--workdir={tmp_path / 'runs'}")
    for swept, told in (
        ("task.abruptness=0.5,2", "abruptness: got 2, allowed are numbers from 0 to 1"),
        ("task.abruptnes=0.5", "setting of .* 'abruptnes'.*did you mean"),
        ("task.abruptness=a,b", "'a,b' is not v1,v2"),
        ("task.abruptness=0.5,0.5", "names a value twice"),
    ):
        with pytest.raises(InputError, match=told):
            sweep(*asked, f"--sweep={swept}")
    assert not (tmp_path / "runs").exists()
    text = HEAD + 'methods = ["backprop", "l2"]\nseeds = "2"\nsteps = 60\n[sweep]\n"task.abruptness" = [0, 0.5, 1]\n'
    (tmp_path / "grid.toml").write_text(text)
    found = read_grid(tmp_path / "grid.toml")
    assert [one.task for one in found] == [f"{tiny.TASK}(abruptness={value})" for value in (0, 0.5, 1)]
    assert found[1].methods == "backprop_abruptness_0.5=backprop,l2_abruptness_0.5=l2"
