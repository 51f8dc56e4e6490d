"""How far a sweep is, in all the states in which it may be."""

import os
import re

from launch.engine.status import status
from launch.engine.workers import Sweep, labels_of, prepare, work_through
from launch.storage.locks import locked
from tests.launch import tiny

SEEDS = (1, 2, 3)


def made(root, **fields):
    asked = tiny.experiment(methods="backprop", seeds=SEEDS, lanes_per_batch=2, **fields)
    return Sweep(root, (asked,), tiny.keeping())


def row(sweep):
    return status(sweep).splitlines()[1].split()


def test_from_the_beginning_to_the_end(tmp_path):
    sweep = made(tmp_path)
    assert row(sweep) == ["backprop", "3", "2", "0", "0", "2", "0%"]
    assert not list(tmp_path.iterdir())
    prepare(sweep)
    first, second = labels_of(sweep)[0].work.units
    lines = status(sweep).splitlines()
    assert lines[3:] == [
        f"{first.name} backprop: 2 lanes, step 0 of 60", f"{second.name} backprop: 1 lane, step 0 of 60"
    ]  # fmt: skip
    assert tiny.stopped(sweep.experiments[0], tmp_path, reports=6)  # in its first unit
    at = max(int(path.name) for path in tiny.checkpoints(tmp_path).values())
    assert 0 < at < 60
    assert row(sweep)[-1] == f"{int(100 * 2 * at / 180)}%"
    assert f"{first.name} backprop: 2 lanes, step {at} of 60\n" in status(sweep)
    with locked(tmp_path / "backprop" / "checkpoints" / second.name / "LOCK"):
        assert row(sweep) == ["backprop", "3", "2", "0", "1", "1", f"{int(100 * 2 * at / 180)}%"]
        wanted = rf"{second.name} backprop: 1 lane, step 0 of 60, process {os.getpid()} on \S+"
        assert re.fullmatch(wanted, status(sweep).splitlines()[-1])
        work_through(sweep)
        assert row(sweep) == ["backprop", "3", "2", "1", "1", "0", "66%"]
    work_through(sweep)
    assert row(sweep) == ["backprop", "3", "2", "2", "0", "0", "100%"]
    assert status(sweep).splitlines()[2:] == ["", "all units are over"]
    (tmp_path / "backprop" / "DONE").unlink()
    assert status(sweep).splitlines()[2:] == ["", "backprop: to be joined; the same command does"]
    longer = made(tmp_path, steps=120)
    assert row(longer) == ["backprop", "3", "2", "0", "0", "2", "50%"]
