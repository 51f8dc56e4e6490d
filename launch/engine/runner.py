"""`run(experiment)`: the whole of a launch but its flags."""

import concurrent.futures
import contextlib
import functools
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch.config.branch import check_readable
from launch.config.experiment import Experiment, Plan, resolve
from launch.engine import hosts
from launch.engine.devices import Parallel
from launch.engine.job_program import job_program, load_data
from launch.engine.keeping import KEEPING, Keeping, Place, finished
from launch.engine.label_folder import begin, finish, over
from launch.engine.lanes import Unit
from launch.engine.processes import CONTEXT, Report, enter, one_thread_each, reporting
from launch.engine.resume import Block, Resume, Work, check_resume, work_of
from launch.engine.stopping import Stop, Stopped, blocked_for_children
from launch.engine.work import Devices, run_units
from launch.errors import InputError
from launch.storage.bins import Arrays
from launch.storage.locks import LOCK, locked
from launch.storage.run_folder import CHECKPOINTS, RUN, Run


class Done(NamedTuple):
    """Units that are over: what they measured, and the seconds it took."""

    units: Sequence[Unit]
    arrays: Sequence[Arrays]
    seconds: float


def run(
    experiment: Experiment,
    workdir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    report: Report = lambda label, lane_steps: None,
    *,
    resume: Resume = "auto",
    keeping: Keeping = KEEPING,
    devices: int | None = None,
    parallel: Parallel = "lanes",
    block: Block | None = None,
    stop: Stop | None = None,
) -> dict[str, Run]:
    """Run every lane of the experiment, or go on with it.

    Args:
        experiment: what to run.
        workdir: where to keep the results, a folder per label; nothing is kept where `None`. What is already there of
            equal settings is gone on with: a label that is over is read, one on its way continues from its newest
            checkpoints, a longer run continues from the end, and new seeds run beside the old ones.
        workers: processes that share the work; by default one a core on CPUs, and none beside this one elsewhere. A
            script that calls this with more than one needs `if __name__ == "__main__":` around it.
        report: called with a label and the lane-steps done since the last call.
        resume: `"auto"`, `"never"` (refuse a folder that holds a run) or `"must"` (refuse one that does not).
        keeping: when checkpoints are written, and which stay.
        devices: devices that share the work; by default all of them, on CPUs one.
        parallel: `"lanes"`, lanes of their own for every device, or `"batch"`, all devices share every lane's batch.
        block: every how many of each label's units of work this launch runs, see `launch.merge`; by default all.
        stop: a flag to look at between chunks.

    Returns:
        What was measured, by label.

    Raises:
        InputError: something asked for cannot be; nothing has been compiled or written.
        Stopped: `stop` was requested; the same call goes on.
        StorageError: a checkpoint could not be written; the last good ones stand.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers: {workers} is not a positive number")
    if (workers or 1) > 1 and ((devices or 1) > 1 or parallel == "batch"):
        raise InputError(f"--workers={workers}: several devices are worked on by one process; leave --workers out")
    check_resume(resume)
    plan = resolve(experiment)
    layout = Devices(_devices(devices, plan, parallel), parallel)
    backend, root = jax.default_backend(), None if workdir is None else Path(workdir)

    def looked() -> tuple[dict[str, Work], dict[str, Run]]:
        """What is to be done, and what is over."""
        count = layout.number if parallel == "lanes" else 1
        folders = {job.label: root and root / job.label for job in plan.jobs}
        found = {
            j.label: work_of(plan, j, folders[j.label], resume, backend, block, count, parallel) for j in plan.jobs
        }
        ready = {n: r for n, w in found.items() if root is not None and (r := over(plan, w, root / n))}
        return {n: w for n, w in found.items() if n not in ready}, ready

    works, runs = looked()
    check(plan, list(works.values()), root, keeping)
    hosts.highest(0)  # every process has looked before the first one writes
    with contextlib.ExitStack() as locks:
        if root is not None and hosts.is_first():
            for label in works:
                locks.enter_context(locked(root / label / CHECKPOINTS / LOCK))
            works, runs = looked()  # somebody may have come before
            for label, work in works.items():
                begin(plan, work, root / label)
        done: dict[str, list[Done]] = {}
        for label, part in _run_all(plan, list(works.values()), root, keeping, layout, workers, stop, report):
            done.setdefault(label, []).append(part)
            if sum(len(d.units) for d in done[label]) == len(works[label].units):
                runs[label] = _joined(plan, works[label], done.pop(label), root and root / label, keeping)
    return {job.label: runs[job.label] for job in plan.jobs}


def _joined(plan: Plan, work: Work, parts: Sequence[Done], folder: Path | None, keeping: Keeping) -> Run:
    measured = {unit.name: arrays for part in parts for unit, arrays in zip(part.units, part.arrays, strict=True)}
    return finish(plan, work, measured, folder, keeping, sum(part.seconds for part in parts))


def _devices(asked: int | None, plan: Plan, parallel: Parallel) -> int:
    there = jax.device_count() if parallel == "batch" else jax.local_device_count()
    alone = jax.process_count() == 1
    if not alone and (parallel != "batch" or asked not in (None, there)):
        raise InputError(
            "--num_processes: several processes share batches over all devices, --parallel=batch; for lanes see --block"
        )
    number = asked or (1 if jax.default_backend() == "cpu" and alone else there)
    if not 1 <= number <= there:
        raise InputError(f"--devices: {number} asked, this machine has {there}")
    if parallel == "batch" and plan.learner is not None:
        raise InputError("--parallel=batch: devices cannot share environments; allowed is lanes")
    if parallel == "batch" and plan.task.spec.batch % number:
        raise InputError(f"--parallel=batch: {number} devices cannot share batches of {plan.task.spec.batch} equally")
    return number


def check(plan: Plan, works: Sequence[Work], root: Path | None, keeping: Keeping) -> None:
    """All that can be known to fail, before anything is compiled or written."""
    for work in works:
        job_program(plan, work.job)
        for step, chunk in itertools.product(keeping.at, sorted({unit.chunk for unit in work.units})):
            if step % chunk or not plan.start < step <= plan.steps:
                raise InputError(
                    f"--checkpoint_at: {step} is not a multiple of {chunk}, the steps between two looks, "
                    f"up to {plan.steps}"
                )
    if plan.source is not None and any(work.meta is None for work in works):
        check_readable(plan.source)
    if root is not None and (root / RUN).is_file():
        raise InputError(f"--workdir: {root} is itself a run; give the folder above it")
    load_data(plan)
    for path in [] if root is None else [root, *(root / work.job.label for work in works)]:
        _check_writable(path)


def _run_all(
    plan: Plan,
    works: Sequence[Work],
    root: Path | None,
    keeping: Keeping,
    devices: Devices,
    workers: int | None,
    stop: Stop | None,
    report: Report,
) -> Iterable[tuple[str, Done]]:
    """Every label's units, as they end."""
    tasks: list[tuple[Sequence[Unit], Place | None]] = []
    together = devices.number if devices.parallel == "lanes" else 1
    for work in works:
        place = None if root is None else Place(root / work.job.label / CHECKPOINTS, keeping)
        ended = {unit.name: arrays for unit in work.units if place and (arrays := finished(plan, unit, place))}
        for unit in work.units:
            if unit.name in ended:
                report(unit.label, len(unit.lanes) * (plan.steps - plan.start))
                yield unit.label, Done([unit], [ended[unit.name]], 0.0)
        left = [unit for unit in work.units if unit.name not in ended]
        alike: dict[tuple[int, int], list[Unit]] = {}
        for unit in left:
            alike.setdefault((unit.size, unit.chunk), []).append(unit)
        for same in alike.values():
            tasks += [(same[i : i + together], place) for i in range(0, len(same), together)]
    if workers is None:
        workers = min(len(tasks), os.cpu_count() or 1) if jax.default_backend() == "cpu" and devices.number == 1 else 1
    if workers <= 1:
        for units, place in tasks:
            if stop is not None and stop.signal:
                raise Stopped(stop.signal)
            began = time.perf_counter()
            arrays = run_units(plan, units, place, devices, stop, report)
            yield units[0].label, Done(units, arrays, time.perf_counter() - began)
        return
    yield from _in_processes(plan, tasks, workers, stop, report)


def _in_processes(
    plan: Plan, tasks: Sequence[tuple[Sequence[Unit], Place | None]], workers: int, stop: Stop | None, report: Report
) -> Iterable[tuple[str, Done]]:
    stop = stop or Stop()
    with (
        reporting(report) as queue,
        one_thread_each(),
        concurrent.futures.ProcessPoolExecutor(workers, CONTEXT, _start_worker, (queue, sys.path, stop)) as pool,
    ):
        with blocked_for_children():  # a signal to the whole group must not kill workers that do not listen yet
            futures = [pool.submit(_work, plan.experiment, *task) for task in tasks]
        try:
            for future in concurrent.futures.as_completed(futures):
                done = future.result()
                yield done.units[0].label, done
        except concurrent.futures.process.BrokenProcessPool:
            if stop.signal:
                raise Stopped(stop.signal) from None
            raise InputError(
                "--workers: a worker process was killed, perhaps for its memory; the same command goes on"
            ) from None
        finally:
            if not all(future.done() for future in futures):
                stop.request(signal.SIGTERM)  # one has failed: the others need not come to their end first
            for future in futures:
                future.cancel()


_queue: Any = None
_stop: Stop | None = None


def _start_worker(queue: Any, path: list[str], stop: Stop | None) -> None:
    global _queue, _stop
    _queue, _stop = queue, stop
    enter(path, stop)


def _work(experiment: Experiment, units: Sequence[Unit], place: Place | None) -> Done:
    if _stop is not None and _stop.signal:
        raise Stopped(_stop.signal)
    began = time.perf_counter()
    arrays = run_units(
        _resolved(experiment), units, place, stop=_stop, report=lambda label, steps: _queue.put((label, steps))
    )
    return Done(units, arrays, time.perf_counter() - began)


_resolved = functools.lru_cache(maxsize=1)(resolve)


def _check_writable(workdir: Path) -> None:
    existing = workdir.absolute()
    if existing.exists() and not existing.is_dir():
        raise InputError(f"--workdir: {workdir} is a file, not a folder")
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--workdir: cannot write in {existing}")
