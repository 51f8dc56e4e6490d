"""Workers that share a folder: each takes units of work that nobody else runs, until none is left.

They know of each other only what the folder says: the lock of a unit, its checkpoints, and that of its last step, by
which it is over. So they may be processes of one machine, jobs of a cluster, or somebody's terminal, and any of them
may be killed at any moment.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch.cli import CANNOT_WRITE
from launch.config.experiment import Experiment, Plan, resolve
from launch.engine.keeping import Keeping, Place, ended, finished
from launch.engine.label_folder import begin, finish, over
from launch.engine.lanes import Unit
from launch.engine.processes import CONTEXT, Report, enter, one_thread_each, reporting
from launch.engine.resume import Work, work_of
from launch.engine.runner import check
from launch.engine.stopping import Stop, Stopped, blocked_for_children
from launch.engine.work import run_units
from launch.errors import InputError, nearest
from launch.storage.durable import StorageError
from launch.storage.locks import LOCK, TakenError, holder, locked
from launch.storage.run_folder import CHECKPOINTS, DONE, read_meta


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What workers share: a folder, the experiments whose labels lie in it, and when checkpoints are written."""

    root: Path
    experiments: tuple[Experiment, ...]
    keeping: Keeping


class Label(NamedTuple):
    """One label of a sweep: the plan that it is part of, its work, and its folder."""

    plan: Plan
    work: Work
    folder: Path

    @property
    def name(self) -> str:
        """The label itself."""
        return self.work.job.label

    @property
    def place(self) -> Path:
        """Where its units keep their checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def over(self) -> bool:
        """Whether the label's results stand, at this length and of all these lanes."""
        if not (self.folder / DONE).exists():
            return False
        meta = read_meta(self.folder)
        return meta["settings"]["steps"] == self.plan.steps and len(meta["lanes"]) == len(self.work.job.lanes)

    @property
    def left(self) -> list[Unit]:
        """The units that are not over."""
        return [] if self.over else [u for u in self.work.units if not ended(self.plan, u, self.place)]


@functools.lru_cache(maxsize=2)
def labels_of(sweep: Sweep) -> tuple[Label, ...]:
    """All labels of a sweep, in the order asked for.

    Raises:
        InputError: an experiment cannot be, or the folder holds a run of other settings.
    """
    found = []
    for experiment in sweep.experiments:
        plan = resolve(experiment)
        for job in plan.jobs:
            folder = sweep.root / job.label
            found.append(Label(plan, work_of(plan, job, folder, "auto", jax.default_backend()), folder))
    return tuple(found)


def units(sweep: Sweep) -> Iterator[tuple[Label, Unit]]:
    """Every unit with its label."""
    for label in labels_of(sweep):
        for unit in label.work.units:
            yield label, unit


def units_left(sweep: Sweep) -> int:
    """How many units are not over."""
    return sum(len(label.left) for label in labels_of(sweep))


def check_unit(sweep: Sweep, name: str | None) -> None:
    """Refuse the name of a unit that there is not."""
    names = [unit.name for _, unit in units(sweep)]
    if name is not None and name not in names:
        raise InputError(
            f"--unit: there is no '{name}' in {sweep.root}{nearest(name, names)}; --status lists the units of work"
        )


def prepare(sweep: Sweep) -> None:
    """Check all that can be known to fail; then write down every label's settings and units, which workers read.

    Raises:
        InputError: see `labels_of` and `launch.engine.runner.check`; or the folder holds a run of one of the labels
            that was not made for tuning where this one is, or no checkpoints from which a longer run could go on.
    """
    labels_of.cache_clear()  # the folder may be another one since this process has looked
    found = labels_of(sweep)
    todo = [label for label in found if not over(label.plan, label.work, label.folder)]
    for plan in dict.fromkeys(label.plan for label in todo):
        check(plan, [label.work for label in todo if label.plan is plan], sweep.root, sweep.keeping)
    for label in todo:
        with locked(label.place / LOCK):
            begin(label.plan, _again(label), label.folder)
    labels_of.cache_clear()


def _again(label: Label) -> Work:
    """The label's work by what its folder says now, which is locked: refused where that has become another run."""
    job = label.plan.job(label.name)
    return work_of(label.plan, job, label.folder, "auto", jax.default_backend())


def work_through(
    sweep: Sweep, only: str | None = None, stop: Stop | None = None, report: Report = lambda label, lane_steps: None
) -> int:
    """Run every unit (or the one called `only`) that is neither over nor run by somebody else; how many these were.

    Raises:
        InputError: no unit is called `only`, or it is run by somebody else.
        Stopped, StorageError: see `launch.engine.work.run_units`.
    """
    check_unit(sweep, only)
    total = 0
    while True:  # again, since another worker may have been killed meanwhile
        number = sum(_work_on(label, sweep.keeping, only, stop, report) for label in labels_of(sweep))
        total += number
        if not number or only is not None:
            return total


def _work_on(label: Label, keeping: Keeping, only: str | None, stop: Stop | None, report: Report) -> int:
    """Run a label's units that nobody else runs, and join them where they were the last."""
    number = 0
    for unit in label.left:
        if only not in (None, unit.name):
            continue
        if stop is not None and stop.signal:
            raise Stopped(stop.signal)
        taken = only is None and holder(label.place / unit.name / LOCK)
        if taken or label.over or ended(label.plan, unit, label.place):  # as somebody else has left it by now
            continue
        try:
            run_units(label.plan, [unit], Place(label.place, keeping), stop=stop, report=report)
            number += 1
        except TakenError:
            if only is not None:
                raise
    _join(label, keeping, stop)
    return number


def _join(label: Label, keeping: Keeping, stop: Stop | None = None) -> None:
    """Join the units of a label that is over, unless somebody has, or is doing so."""
    if label.over or label.left:
        return
    place, measured = Place(label.place, keeping), {}
    try:
        with locked(label.place / LOCK):
            work = _again(label)
            if label.over or work.units != label.work.units:
                return
            for unit in label.work.units:
                # A last checkpoint that is no longer as it was written is computed again from the one before.
                arrays = finished(label.plan, unit, place) or run_units(label.plan, [unit], place, stop=stop)[0]
                measured[unit.name] = arrays
            finish(label.plan, work, measured, label.folder, keeping, 0.0)
    except TakenError:
        return


def run_workers(sweep: Sweep, workers: int, stop: Stop | None, report: Report) -> None:
    """Work through a sweep with that many processes of this machine; one is this process itself.

    Raises:
        Stopped: `stop` was requested.
        InputError: workers were killed, or gave up, before all was done; the same command goes on.
    """
    wanted = min(workers, units_left(sweep))
    early = _run_processes(sweep, wanted, stop, report) if wanted > 1 else work_through(sweep, None, stop, report) * 0
    if stop is not None and stop.signal:
        raise Stopped(stop.signal)
    for label in labels_of(sweep):  # a worker may have been killed while it joined
        _join(label, sweep.keeping, stop)
    left = units_left(sweep)
    if left:
        why = f"{early} of {wanted} workers ended early" if early else "others are still running"
        raise InputError(f"--workers: {why}, {left} unit{'s' * (left != 1)} left; the same command goes on")


def _run_processes(sweep: Sweep, workers: int, stop: Stop | None, report: Report) -> int:
    """Work through a sweep with worker processes; how many of them ended early."""
    with reporting(report) as queue, one_thread_each():
        processes = [CONTEXT.Process(target=_worker, args=(sweep, stop, queue, sys.path)) for _ in range(workers)]
        with blocked_for_children():  # a signal to the whole group must not kill workers that do not listen yet
            for process in processes:
                process.start()
        for process in processes:
            process.join()
    if any(process.exitcode == CANNOT_WRITE for process in processes):
        raise StorageError("--workers: a worker could not write; the last good checkpoints stand")
    return sum(process.exitcode != 0 for process in processes)


def _worker(sweep: Sweep, stop: Stop | None, queue: Any, path: list[str]) -> None:
    enter(path, stop)
    try:
        work_through(sweep, None, stop, lambda label, steps: queue.put((label, steps)))
    except Stopped:
        pass
    except (InputError, StorageError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(CANNOT_WRITE if isinstance(error, StorageError) else 1)
