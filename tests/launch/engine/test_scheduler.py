"""Workers on one folder: whoever does what, and whoever is killed, the end has the same bytes, and nothing is done
twice."""

import os
import re
import shutil
import signal
import threading
import time

import pytest

from launch.engine import scheduler
from launch.engine.label import Label
from launch.engine.scheduler import ALL, Block, labels_of, parse_block, prepare, run_workers
from launch.engine.stopping import Stop, Stopped
from launch.engine.sweep_folder import status
from launch.errors import InputError
from launch.storage.locks import TakenError, locked
from launch.storage.run_folder import METRICS
from tests.launch import tiny


def made(root, policy=None, block=ALL, **fields):
    """A sweep of two methods, two units each, ready to be worked through."""
    asked = tiny.experiment(**({"methods": "backprop,l2", "seeds": (5, 6, 7), "lanes_per_batch": 2} | fields))
    sweep = tiny.launch_of(root, asked, policy=policy or tiny.policy(), block=block)
    prepare(sweep)
    return sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    sweep = made(tmp_path_factory.mktemp("whole"))
    assert tiny.units_left(sweep) == 4 and tiny.work(sweep) == 4 and tiny.units_left(sweep) == 0
    return sweep.root


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "runs")
    return made(tmp_path / "runs")


def begun_again(sweep, label="backprop"):
    """As if the label's units were over and nobody had joined them."""
    (sweep.root / label / "DONE").unlink()
    (sweep.root / label / METRICS).unlink()


def test_a_sweep_and_a_run_of_the_same_settings_are_equal(whole, tmp_path):
    tiny.run(tiny.experiment(methods="backprop,l2", seeds=(5, 6, 7), lanes_per_batch=2), tmp_path)
    tiny.assert_same_ends(tmp_path, whole)


def test_two_processes_come_to_the_same_end_and_tell_their_steps(whole, tmp_path):
    told = []
    sweep = made(tmp_path)
    tiny.work_with(sweep, 2, report=lambda *steps: told.append(steps))
    tiny.assert_same_ends(tmp_path, whole)
    assert sum(steps for label, steps in told if label == "l2") == 3 * 60


def test_nothing_is_started_where_nothing_is_left(copy, monkeypatch):
    monkeypatch.setattr(scheduler, "_run_processes", None)
    tiny.work_with(copy, 8)


def test_a_unit_that_somebody_else_runs_is_left_to_them(whole, tmp_path):
    sweep = made(tmp_path)
    label, unit = tiny.units(sweep)[0]
    with locked(label.checkpoints / unit.name / "LOCK"):
        with pytest.raises(InputError, match=r"^--workers: others are still running, 1 unit left; the same command"):
            tiny.work_with(sweep, 1)
        assert [unit.name] == [one.name for one in label.left()] and not label.is_over()
        said = status(labels_of(sweep))
        assert re.search(rf"{unit.name} backprop: 2 lanes, step 0 of 60, process {os.getpid()} on \S+$", said)
        with pytest.raises(TakenError, match=f"{unit.name}: being run by process {os.getpid()}"):
            tiny.work(sweep, unit.name)
    assert tiny.work(sweep) == 1
    tiny.assert_same_ends(tmp_path, whole)


def test_what_another_has_done_meanwhile_is_not_done_again(whole, tmp_path, monkeypatch):
    """The other works through all of the sweep, and removes its checkpoints, while this one runs its first unit."""
    sweep, ran, really = made(tmp_path, tiny.policy(keep=0)), [], scheduler.run_units

    def slow(plan, some, *arguments, **options):
        ran.append(some[0].name)
        if len(ran) == 1:
            tiny.work(sweep)
        return really(plan, some, *arguments, **options)

    monkeypatch.setattr(scheduler, "run_units", slow)
    tiny.work(sweep)
    names = [unit.name for _, unit in tiny.units(sweep)]
    # The first unit had not been locked yet when the other came, so it alone is run by both.
    assert sorted(ran) == sorted([*names, names[0]])


def test_units_of_a_killed_worker_are_taken_up_in_another_round(tmp_path, monkeypatch):
    """The first unit is held by another worker, which is killed while this one runs its last."""
    sweep, really = made(tmp_path), scheduler.run_units
    found = tiny.units(sweep)
    held = locked(found[0][0].checkpoints / found[0][1].name / "LOCK")
    held.__enter__()

    def run_units(plan, some, *arguments, **options):
        if some[0].name == found[-1][1].name:
            held.__exit__(None, None, None)
        return really(plan, some, *arguments, **options)

    monkeypatch.setattr(scheduler, "run_units", run_units)
    assert tiny.work(sweep) == 4 and tiny.units_left(sweep) == 0


def test_a_label_is_joined_by_one_worker(copy, monkeypatch):
    begun_again(copy)
    joined, really = [], Label.finish

    def slow(*arguments):
        joined.append(threading.get_ident())
        time.sleep(0.5)
        return really(*arguments)

    monkeypatch.setattr(Label, "finish", slow)
    threads = [threading.Thread(target=tiny.work, args=(copy,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(joined) == 1 and labels_of(copy)[0].is_over()


def test_units_that_nobody_joined_are_joined_without_running_anything(whole, copy, monkeypatch):
    begun_again(copy, "l2")
    assert "l2: to be joined; the same command does" in status(labels_of(copy))
    monkeypatch.setattr(scheduler, "run_units", None)
    tiny.work_with(copy, 2)
    assert status(labels_of(copy)).endswith("all units are over")
    tiny.assert_same_ends(copy.root, whole)


def test_a_last_checkpoint_that_was_damaged_before_joining_is_computed_again(whole, copy, capsys):
    begun_again(copy)
    (unit, *_) = labels_of(copy)[0].units
    last = copy.root / "backprop" / "checkpoints" / unit.name / "60"
    tiny.damage(last)
    assert tiny.work(copy) == 0
    assert f"{last}: damaged checkpoint, the one before is taken" in capsys.readouterr().err
    tiny.assert_same_ends(copy.root, whole)


def test_the_signal_to_stop_is_heard_between_units(tmp_path):
    sweep, stop = made(tmp_path), Stop()
    stop.request(signal.SIGTERM)
    with pytest.raises(Stopped):
        tiny.work_with(sweep, 1, stop=stop)
    assert tiny.units_left(sweep) == 4 and not tiny.checkpoints(tmp_path)


def test_an_error_of_one_worker_is_that_of_the_launch_and_stops_the_others(tmp_path):
    """The first unit has checkpoints of which none is readable; the others would be long at work."""
    asked = tiny.experiment(seeds=(0, 1), lanes_per_batch=1, steps=2_000_000, bin=1_000_000, chunk=500)
    sweep = tiny.launch_of(tmp_path, asked, policy=tiny.policy(1_000_000))
    (label,) = prepare(sweep)
    (label.checkpoints / label.units[0].name / "500").mkdir(parents=True)
    with pytest.raises(InputError, match="no readable checkpoint, nothing was deleted"):
        run_workers(sweep, [label], 2)


def test_blocks_of_machines_that_share_nothing_are_joined_by_the_command_without_a_block(whole, tmp_path, monkeypatch):
    for index in range(2):
        part = made(tmp_path / str(index), block=Block(index, 2))
        assert tiny.work(part) == 2 and tiny.units_left(part) == 2
        assert not any(label.is_over() for label in labels_of(part))
        shutil.copytree(part.root, tmp_path / "all", dirs_exist_ok=True)
    joined = made(tmp_path / "all")
    monkeypatch.setattr(scheduler, "run_units", None)
    assert tiny.work(joined) == 0
    tiny.assert_same_ends(joined.root, whole)


def test_what_another_block_has_not_done_is_done_after_joining(whole, tmp_path):
    tiny.work(made(tmp_path, block=Block(1, 2)))
    assert tiny.work(made(tmp_path)) == 2
    tiny.assert_same_ends(tmp_path, whole)


def test_a_block_without_units_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^--block=2/3: backprop has only 2 units of work"):
        made(tmp_path, block=Block(2, 3))
    assert not list(tmp_path.iterdir())


def test_where_lanes_are_not_cut_yet_there_is_a_unit_for_every_block(tmp_path):
    (label,) = labels_of(tiny.launch_of(tmp_path, tiny.experiment(), block=Block(0, 3)))
    assert [len(unit.lanes) for unit in label.units] == [1, 1, 1]


@pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "a/b", "1/0", "/", "0/2/4"])
def test_what_is_no_block(text):
    with pytest.raises(InputError, match=r"--block: '.*' is not I/N"):
        parse_block(text)


def test_units_made_by_several_versions_are_joined_with_a_warning(tmp_path, monkeypatch, capsys):
    for index, commit in enumerate(("abc", "def")):
        monkeypatch.setattr("launch.engine.execution.commit", lambda commit=commit: commit)
        tiny.work(made(tmp_path, methods="backprop", block=Block(index, 2)))
    tiny.work(made(tmp_path, methods="backprop"))
    assert "backprop: units of several versions (abc, def) are joined" in capsys.readouterr().err
