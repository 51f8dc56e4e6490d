"""`run(experiment)`: the whole of a launch but its flags."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from launch import hosts
from launch.devices import Parallel
from launch.errors import InputError
from launch.experiment import Experiment, Plan, resolve
from launch.lanes import Unit, job_program, load_data
from launch.lives import PREFIX, gathered
from launch.machine import commit, machine, versions
from launch.resume import Block, Resume, Work, check_resume, work_of
from launch.run_folder import CHECKPOINTS, Run, read_run, write_meta, write_run
from launch.stopping import Stop, Stopped, held, in_worker
from launch.syntax import without
from launch.work import KEEPING, Arrays, Devices, Keeping, Place, Report, finished, run_units
from plastic_jax import biography


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
    works = {job.label: work_of(plan, job, root and root / job.label, resume, backend, block) for job in plan.jobs}
    runs = {} if root is None else {label: r for label, w in works.items() if (r := _over(plan, w, root / label))}
    works = {label: work for label, work in works.items() if label not in runs}
    _check(plan, list(works.values()), root, keeping)
    hosts.highest(0)  # every process has looked before the first one writes
    if root is not None and hosts.is_first():
        for label, work in works.items():
            if work.meta is None:
                write_meta(root / label, _meta(plan, work))
    done: dict[str, list[Done]] = {}
    for label, part in _run_all(plan, list(works.values()), root, keeping, layout, workers, stop, report):
        done.setdefault(label, []).append(part)
        if sum(len(d.units) for d in done[label]) == len(works[label].units):
            runs[label] = _finish(plan, works[label], done.pop(label), root, keeping)
    return {job.label: runs[job.label] for job in plan.jobs}


def _devices(asked: int | None, plan: Plan, parallel: Parallel) -> int:
    there = jax.device_count() if parallel == "batch" else jax.local_device_count()
    alone = jax.process_count() == 1
    if not alone and (parallel != "batch" or asked not in (None, there)):
        raise InputError(
            "--hosts: several hosts share batches over all devices, --parallel=batch; for lanes see --block"
        )
    number = asked or (1 if jax.default_backend() == "cpu" and alone else there)
    if not 1 <= number <= there:
        raise InputError(f"--devices: {number} asked, this machine has {there}")
    if parallel == "batch" and plan.task.spec.batch % number:
        raise InputError(f"--parallel=batch: {number} devices cannot share batches of {plan.task.spec.batch} equally")
    return number


def _check(plan: Plan, works: Sequence[Work], root: Path | None, keeping: Keeping) -> None:
    """All that can be known to fail, before anything is compiled or written."""
    for work in works:
        job_program(plan, work.job)
        for step in keeping.at:
            if step % work.units[0].chunk or not plan.start < step <= plan.steps:
                raise InputError(
                    f"--checkpoint_at: {step} is not a multiple of {work.units[0].chunk}, the steps between two looks, "
                    f"up to {plan.steps}"
                )
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
        over = {unit.name: arrays for unit in work.units if place and (arrays := finished(plan, unit, place))}
        for unit in work.units:
            if unit.name in over:
                report(unit.label, len(unit.lanes) * (plan.steps - plan.start))
                yield unit.label, Done([unit], [over[unit.name]], 0.0)
        left = [unit for unit in work.units if unit.name not in over]
        alike: dict[tuple[int, int], list[Unit]] = {}
        for unit in left:
            alike.setdefault((unit.size, unit.chunk), []).append(unit)
        for same in alike.values():
            tasks += [(same[i : i + together], place) for i in range(0, len(same), together)]
    if workers is None:
        workers = min(len(tasks), os.cpu_count() or 1) if jax.default_backend() == "cpu" and devices.number == 1 else 1
    if workers <= 1:
        for units, place in tasks:
            began = time.perf_counter()
            arrays = run_units(plan, units, place, devices, stop, report)
            yield units[0].label, Done(units, arrays, time.perf_counter() - began)
        return
    yield from _in_processes(plan, tasks, workers, stop, report)


def _in_processes(
    plan: Plan, tasks: Sequence[tuple[Sequence[Unit], Place | None]], workers: int, stop: Stop | None, report: Report
) -> Iterable[tuple[str, Done]]:
    stop = stop or Stop()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    listener = threading.Thread(target=_listen, args=(queue, report), daemon=True)
    listener.start()
    try:
        # Small programs lose more to XLA's thread pool than they gain: one thread per worker, one worker per core.
        with (
            _environment(NPROC="1"),
            concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (queue, sys.path, stop)) as pool,
        ):
            with held():  # a signal to the whole group must not kill workers that do not listen yet
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
    finally:
        queue.put(None)
        listener.join()


_queue: Any = None
_stop: Stop | None = None


def _start_worker(queue: Any, path: list[str], stop: Stop | None) -> None:
    global _queue, _stop
    _queue, _stop = queue, stop
    in_worker(stop)
    sys.path[:] = path
    enable_compilation_cache()


def _work(experiment: Experiment, units: Sequence[Unit], place: Place | None) -> Done:
    if _stop is not None and _stop.signal:
        raise Stopped(_stop.signal)
    began = time.perf_counter()
    arrays = run_units(
        _resolved(experiment), units, place, stop=_stop, report=lambda label, steps: _queue.put((label, steps))
    )
    return Done(units, arrays, time.perf_counter() - began)


_resolved = functools.lru_cache(maxsize=1)(resolve)


def _listen(queue: Any, report: Report) -> None:
    while (item := queue.get()) is not None:
        report(*item)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables set while the block runs."""
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _over(plan: Plan, work: Work, folder: Path) -> Run | None:
    """The run as it stands, where nothing is left to do."""
    if work.meta is None or not work.meta["finished"]:
        return None
    same = work.meta["settings"].get("steps") == plan.steps and len(work.meta["lanes"]) == len(work.job.lanes)
    if not same and not all((folder / CHECKPOINTS / unit["name"]).is_dir() for unit in work.meta["units"]):
        raise InputError(f"--workdir: {folder} holds no checkpoints to go on from; they were not kept (--keep)")
    return read_run(folder) if same else None


def _meta(plan: Plan, work: Work) -> dict[str, Any]:
    """`run.json` as it is known before anything is run."""
    return {
        "label": work.job.label,
        "method": work.job.method.name,
        "task": plan.spec.name,
        "settings": plan.settings(work.job),
        "experiment": dataclasses.asdict(plan.experiment) | {"task": without(plan.experiment.task, "data_dir")},
        "lanes": [{"method": n.method, "seed": n.seed, "hyper": dict(n.hyper)} for n in work.job.lanes],
        "units": [
            {"name": unit.name, "lanes": len(unit.lanes), "size": unit.size, "chunk": unit.chunk} for unit in work.units
        ],
        "lanes_per_batch": work.units[0].size,
        "chunk": work.units[0].chunk,
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "task_aware": work.job.method.task_aware,
        **({"block": work.block} if work.block else {}),
    }


def _finish(plan: Plan, work: Work, parts: Sequence[Done], root: Path | None, keeping: Keeping) -> Run:
    """Join what a label's units have measured, and write it down."""
    measured = {unit.name: arrays for part in parts for unit, arrays in zip(part.units, part.arrays, strict=True)}
    ordered = [measured[unit.name] for unit in work.units]
    arrays = {name: np.concatenate([one[name] for one in ordered]) for name in ordered[0]}
    diverged = np.flatnonzero(arrays.pop("diverged")).tolist()
    found = {name.removeprefix(PREFIX): arrays.pop(name) for name in list(arrays) if name.startswith(PREFIX)}
    lives = gathered(found, biography.AGES, plan.start, plan.steps) if found else None
    step = np.minimum(np.arange(1, -(-plan.steps // plan.bin) + 1) * plan.bin, plan.steps)
    count = np.diff(step, prepend=0)
    meta = _meta(plan, work) | {"diverged": diverged, "wall_seconds": round(sum(part.seconds for part in parts), 3)}
    if root is None or not hosts.is_first():
        return Run(work.job.label, {"schema": 1, "finished": True} | meta, step, count, arrays, lives)
    folder = root / work.job.label
    write_run(folder, meta, step, count, arrays, lives=lives)
    if keeping.keep == 0:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return read_run(folder)


def _check_writable(workdir: Path) -> None:
    existing = workdir.absolute()
    if existing.exists() and not existing.is_dir():
        raise InputError(f"--workdir: {workdir} is a file, not a folder")
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--workdir: cannot write in {existing}")


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX has been told of another."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(base, "plastic_jax", "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
