"""Workers on one folder: whoever does what, and whoever is killed, the end has the same bytes, and nothing is done
twice."""

import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from launch.engine import workers
from launch.engine.status import status
from launch.engine.stopping import Stop, Stopped
from launch.engine.workers import Sweep, labels_of, prepare, run_workers, units, units_left, work_through
from launch.errors import InputError
from launch.storage.locks import TakenError, locked
from launch.storage.run_folder import METRICS
from tests.launch import tiny

ROOT = Path(__file__).parents[3]


def silent(label, lane_steps):
    pass


def made(root, keeping=None, **fields):
    """A sweep of two methods, two units each, ready to be worked through."""
    asked = tiny.experiment(**({"methods": "backprop,l2", "seeds": (5, 6, 7), "lanes_per_batch": 2} | fields))
    sweep = Sweep(Path(root), (asked,), keeping or tiny.keeping())
    prepare(sweep)
    return sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    sweep = made(tmp_path_factory.mktemp("whole"))
    assert units_left(sweep) == 4 and work_through(sweep) == 4 and units_left(sweep) == 0
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
    run_workers(sweep, 2, Stop(), lambda label, steps: told.append((label, steps)))
    tiny.assert_same_ends(tmp_path, whole)
    assert sum(steps for label, steps in told if label == "l2") == 3 * 60


def test_nothing_is_started_where_nothing_is_left(copy, monkeypatch):
    monkeypatch.setattr(workers, "_run_processes", None)
    run_workers(copy, 8, Stop(), silent)


def test_a_unit_that_somebody_else_runs_is_left_to_them(whole, tmp_path):
    sweep = made(tmp_path)
    label, unit = next(units(sweep))
    with locked(label.place / unit.name / "LOCK"):
        with pytest.raises(InputError, match=r"^--workers: others are still running, 1 unit left; the same command"):
            run_workers(sweep, 1, Stop(), silent)
        assert [unit.name] == [one.name for one in label.left] and not label.over
        said = status(sweep)
        assert re.search(rf"{unit.name} backprop: 2 lanes, step 0 of 60, process {os.getpid()} on \S+$", said)
        with pytest.raises(TakenError, match=f"{unit.name}: being run by process {os.getpid()}"):
            work_through(sweep, unit.name)
    assert work_through(sweep) == 1
    tiny.assert_same_ends(tmp_path, whole)


def test_what_another_has_done_meanwhile_is_not_done_again(whole, tmp_path, monkeypatch):
    """The other works through all of the sweep, and removes its checkpoints, while this one runs its first unit."""
    sweep, ran, really = made(tmp_path, tiny.keeping(keep=0)), [], workers.run_units

    def slow(plan, some, *arguments, **options):
        ran.append(some[0].name)
        if len(ran) == 1:
            work_through(sweep)
        return really(plan, some, *arguments, **options)

    monkeypatch.setattr(workers, "run_units", slow)
    work_through(sweep)
    names = [unit.name for _, unit in units(sweep)]
    # The first unit had not been locked yet when the other came, so it alone is run by both.
    assert sorted(ran) == sorted([*names, names[0]])


def test_units_of_a_killed_worker_are_taken_up_in_another_round(tmp_path, monkeypatch):
    """The first unit is held by another worker, which is killed while this one runs its last."""
    sweep, really = made(tmp_path), workers.run_units
    found = list(units(sweep))
    held = locked(found[0][0].place / found[0][1].name / "LOCK")
    held.__enter__()

    def run_units(plan, some, *arguments, **options):
        if some[0].name == found[-1][1].name:
            held.__exit__(None, None, None)
        return really(plan, some, *arguments, **options)

    monkeypatch.setattr(workers, "run_units", run_units)
    assert work_through(sweep) == 4 and units_left(sweep) == 0


def test_a_label_is_joined_by_one_worker(copy, monkeypatch):
    begun_again(copy)
    joined, really = [], workers.finish

    def slow(*arguments):
        joined.append(threading.get_ident())
        time.sleep(0.5)
        return really(*arguments)

    monkeypatch.setattr(workers, "finish", slow)
    threads = [threading.Thread(target=work_through, args=(copy,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(joined) == 1 and labels_of(copy)[0].over


def test_units_that_nobody_joined_are_joined_without_running_anything(whole, copy, monkeypatch):
    begun_again(copy, "l2")
    assert "l2: to be joined; the same command does" in status(copy)
    monkeypatch.setattr(workers, "run_units", None)
    run_workers(copy, 2, Stop(), silent)
    assert status(copy).endswith("all units are over")
    tiny.assert_same_ends(copy.root, whole)


def test_a_last_checkpoint_that_was_damaged_before_joining_is_computed_again(whole, copy, capsys):
    begun_again(copy)
    (unit, *_) = labels_of(copy)[0].work.units
    last = copy.root / "backprop" / "checkpoints" / unit.name / "60"
    tiny.damage(last)
    assert work_through(copy) == 0
    assert f"{last}: damaged checkpoint, the one before is taken" in capsys.readouterr().err
    tiny.assert_same_ends(copy.root, whole)


def test_the_signal_to_stop_is_heard_between_units(tmp_path):
    sweep, stop = made(tmp_path), Stop()
    stop.request(signal.SIGTERM)
    with pytest.raises(Stopped):
        run_workers(sweep, 1, stop, silent)
    assert units_left(sweep) == 4 and not tiny.checkpoints(tmp_path)
