"""Two workers on one sweep, ten times: every unit is run by one of them and once, and the results are equal; in
between, one of the two is killed."""

import os
import re
import signal

from launch.engine.processes import CONTEXT
from launch.engine.scheduler import labels_of, prepare
from tests.launch import tiny

ROUNDS, KILLS = 10, 3
UNITS = 6


def made(root):
    """Six units that last long enough for two processes to meet."""
    asked = tiny.experiment(methods="backprop,l2", seeds=(1, 2, 3), lanes_per_batch=1, steps=2000, bin=1000)
    sweep = tiny.launch_of(root, asked, policy=tiny.policy(200))
    prepare(sweep)
    return sweep


def worker(sweep, barrier, folder):
    """Works through the sweep, and notes what it ran, one line a unit, in a file of its own."""
    from launch.engine import scheduler

    really = scheduler.run_units

    def noted(plan, some, *arguments, **options):
        arrays = really(plan, some, *arguments, **options)
        with open(folder / f"{os.getpid()}.log", "a") as file:
            file.write("".join(f"{unit.name}\n" for unit in some))
        return arrays

    scheduler.run_units = noted
    barrier.wait(tiny.HANG)
    tiny.work(sweep)


def raced(sweep, folder):
    """Two workers that begin at the same moment."""
    folder.mkdir()
    barrier = CONTEXT.Barrier(2)
    both = [CONTEXT.Process(target=worker, args=(sweep, barrier, folder)) for _ in range(2)]
    for process in both:
        process.start()
    return barrier, both  # a barrier that nobody holds is gone before the processes find it


def test_two_workers_race_and_no_unit_is_run_twice(tmp_path, record_property, monkeypatch):
    monkeypatch.setenv("NPROC", "1")
    whole = made(tmp_path / "whole")
    assert tiny.work(whole) == UNITS
    shared, numbers = 0, 0
    for number in range(ROUNDS):
        sweep, folder = made(tmp_path / str(number)), tmp_path / f"{number}.logs"
        barrier, both = raced(sweep, folder)
        for process in both:
            process.join(300)
            assert process.exitcode == 0
        del barrier
        logs = [path.read_text().split() for path in folder.iterdir()]
        ran = [name for log in logs for name in log]
        assert sorted(ran) == sorted(unit.name for _, unit in tiny.units(sweep)), "each once"
        assert all(label.is_over() for label in labels_of(sweep))
        shared += len(logs) == 2
        numbers += tiny.assert_same_ends(sweep.root, whole.root)
    assert shared > ROUNDS // 2
    record_property(
        "count", f"{ROUNDS} races over {UNITS} units, both workers ran some in {shared}; no unit run twice, "
        f"{numbers} arrays equal"
    )  # fmt: skip


def test_a_worker_that_is_killed_leaves_its_units_to_the_other(tmp_path, record_property, monkeypatch):
    monkeypatch.setenv("NPROC", "1")
    whole = made(tmp_path / "whole")
    tiny.work(whole)
    alone = 0
    for number in range(KILLS):
        sweep, folder = made(tmp_path / str(number)), tmp_path / f"{number}.logs"
        barrier, (one, other) = raced(sweep, folder)
        while one.exitcode is None and not any(holds(sweep, one.pid)):
            one.join(0.01)
        one.kill()
        one.join(60)
        other.join(300)
        del barrier
        assert one.exitcode == -signal.SIGKILL and other.exitcode == 0
        alone += all(label.is_over() for label in labels_of(sweep))
        tiny.work(sweep)
        tiny.assert_same_ends(sweep.root, whole.root)
    record_property("count", f"{KILLS} workers killed, the other one finished in {alone}; the ends are equal")


def holds(sweep, process):
    """Whether that process took each of the locks last."""
    for path in sweep.root.glob("*/checkpoints/*/LOCK"):
        yield bool(re.match(rf"process {process} ", path.read_text()))
