"""`run(experiment)`: the whole of a launch but its flags."""

import concurrent.futures
import functools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.errors import InputError
from launch.experiment import Experiment, Job, Lane, Plan, lane_keys, resolve
from launch.lanes import Unit, hyper_arrays, job_program, load_data, units_of
from launch.lives import PREFIX, gathered
from launch.loop import initial, means, run_chunks
from launch.machine import commit, machine, versions
from launch.programs import continued
from launch.run_folder import Run, read_run, write_run
from plastic_jax import biography

Report = Callable[[str, int], None]
_queue: Any = None


def run(
    experiment: Experiment,
    workdir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    report: Report = lambda label, lane_steps: None,
) -> dict[str, Run]:
    """Run every lane of the experiment.

    Args:
        experiment: what to run.
        workdir: where to keep the results, a folder per label; nothing is kept where `None`. Labels that are already
            there, finished and of equal settings are read and not run again.
        workers: processes that share the work; by default one a core on CPUs, and none beside this one elsewhere. A
            script that calls this with more than one needs `if __name__ == "__main__":` around it.
        report: called with a label and the lane-steps done since the last call.

    Returns:
        What was measured, by label.

    Raises:
        InputError: something asked for cannot be; nothing has been compiled or written.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers: {workers} is not a positive number")
    plan = resolve(experiment)
    finished = _finished(plan, workdir)
    jobs = [job for job in plan.jobs if job.label not in finished]
    for job in jobs:
        job_program(plan, job)
    load_data(plan)
    for path in [] if workdir is None else [Path(workdir), *(Path(workdir) / job.label for job in jobs)]:
        _check_writable(path)
    backend = jax.default_backend()
    units = [unit for job in jobs for unit in units_of(plan, job, backend)]
    results: dict[str, list[tuple[Unit, dict[str, np.ndarray], float]]] = {}
    runs = dict(finished)
    for unit, arrays, seconds in _run_units(plan, units, workers, report):
        results.setdefault(unit.label, []).append((unit, arrays, seconds))
        job = next(j for j in jobs if j.label == unit.label)
        if sum(u.stop - u.start for u, _, _ in results[unit.label]) == len(job.lanes):
            runs[job.label] = _finish(plan, job, results.pop(unit.label), workdir)
    return {job.label: runs[job.label] for job in plan.jobs}


def run_unit(plan: Plan, unit: Unit, report: Report = lambda label, lane_steps: None) -> dict[str, np.ndarray]:
    """Run one unit in this process: `[lane, bin]` per metric, `diverged` bool `[lane]`, and unit biographies if any.

    The units of a plan's job share one compiled program.
    """
    job = next(j for j in plan.jobs if j.label == unit.label)
    data = jax.device_put(load_data(plan))
    done = 0

    def progress(step: int) -> None:
        nonlocal done
        report(unit.label, (step - done) * (unit.stop - unit.start))
        done = step

    start, carry = 0, None
    if job.first is not None:
        carry = _advance(plan, job.first, unit, data, None, 0, job.switch_at, progress)
        start = job.switch_at
    carry = _advance(plan, job, unit, data, carry, start, plan.steps, progress)
    diverged = np.asarray(jax.vmap(_program(plan, job).diverged)(carry.lanes))
    kept = unit.stop - unit.start
    arrays = means(carry) | {"diverged": diverged} | _biographies(carry.lanes)
    return {name: values[:kept] for name, values in arrays.items()}


def _biographies(lanes: Any) -> dict[str, np.ndarray]:
    """The arrays of the biography in the lanes' state, `{}` where there is none."""
    told = biography.find(lanes)
    if told is None:
        return {}
    found, age = told
    arrays = {"rows": found.rows, "written": found.written} | {f"age/{name}": values for name, values in age.items()}
    arrays |= {f"usefulness/{name}": counts for name, counts in found.usefulness.items()}
    return {PREFIX + name: np.asarray(values) for name, values in arrays.items()}


def _advance(
    plan: Plan, job: Job, unit: Unit, data: Any, earlier: Any, start: int, stop: int, progress: Callable[[int], None]
) -> Any:
    program = _program(plan, job)
    lanes = _batch(job.lanes, unit)
    hyper = hyper_arrays(job, lanes)
    carry = initial(program, lane_keys(lanes), hyper, data, plan.steps)
    if earlier is not None:
        carry = carry._replace(lanes=continued(carry.lanes, earlier.lanes), bins=earlier.bins)
    return run_chunks(program, carry, hyper, data, start, stop, progress)


# Kept, so that the units of a job share what is compiled: a job's program and the one before its switch.
_program = functools.lru_cache(maxsize=2)(job_program)
_resolved = functools.lru_cache(maxsize=1)(resolve)


def _batch(lanes: tuple[Lane, ...], unit: Unit) -> tuple[Lane, ...]:
    chosen = lanes[unit.start : unit.stop]
    return chosen + (chosen[-1],) * (unit.size - len(chosen))


def _run_units(
    plan: Plan, units: list[Unit], workers: int | None, report: Report
) -> Iterable[tuple[Unit, dict[str, np.ndarray], float]]:
    if workers is None:
        workers = min(len(units), os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    if workers <= 1:
        for unit in units:
            began = time.perf_counter()
            yield unit, run_unit(plan, unit, report), time.perf_counter() - began
        return
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    # Small programs lose more to XLA's thread pool than they gain: one thread per worker, one worker per core.
    threads = os.environ.get("NPROC")
    os.environ["NPROC"] = "1"
    listener = threading.Thread(target=_listen, args=(queue, report), daemon=True)
    listener.start()
    try:
        with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (queue, sys.path)) as pool:
            futures = [pool.submit(_work, plan.experiment, unit) for unit in units]
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
    finally:
        os.environ.pop("NPROC") if threads is None else os.environ.update(NPROC=threads)
        queue.put(None)
        listener.join()


def _start_worker(queue: Any, path: list[str]) -> None:
    global _queue
    _queue = queue
    sys.path[:] = path
    enable_compilation_cache()


def _work(experiment: Experiment, unit: Unit) -> tuple[Unit, dict[str, np.ndarray], float]:
    began = time.perf_counter()
    arrays = run_unit(_resolved(experiment), unit, lambda label, lane_steps: _queue.put((label, lane_steps)))
    return unit, arrays, time.perf_counter() - began


def _listen(queue: Any, report: Report) -> None:
    while (item := queue.get()) is not None:
        report(*item)


def _finish(plan: Plan, job: Job, parts: list[tuple[Unit, dict[str, np.ndarray], float]], workdir: Any) -> Run:
    parts = sorted(parts, key=lambda part: part[0].start)
    arrays = {name: np.concatenate([p[1][name] for p in parts]) for name in parts[0][1]}
    diverged = np.flatnonzero(arrays.pop("diverged")).tolist()
    found = {name.removeprefix(PREFIX): arrays.pop(name) for name in list(arrays) if name.startswith(PREFIX)}
    lives = gathered(found, biography.AGES, job.switch_at if job.first else 0, plan.steps) if found else None
    bins = -(-plan.steps // plan.bin)
    step = np.minimum(np.arange(1, bins + 1) * plan.bin, plan.steps)
    count = np.diff(step, prepend=0)
    meta = {
        "label": job.label,
        "method": job.method.name,
        "task": plan.spec.name,
        "settings": plan.settings(job),
        "lanes": [{"method": n.method, "seed": n.seed, "hyper": dict(n.hyper)} for n in job.lanes],
        "lanes_per_batch": parts[0][0].size,
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "diverged": diverged,
        "task_aware": job.method.task_aware,
        "wall_seconds": round(sum(p[2] for p in parts), 3),
    }
    if workdir is None:
        return Run(job.label, {"schema": 1, "finished": True} | meta, step, count, arrays, lives)
    folder = Path(workdir) / job.label
    write_run(folder, meta, step, count, arrays, lives=lives)
    return read_run(folder)


def _finished(plan: Plan, workdir: Any) -> dict[str, Run]:
    """The labels that are already there; one of other settings is refused."""
    runs: dict[str, Run] = {}
    for job in plan.jobs if workdir is not None else ():
        folder = Path(workdir) / job.label
        if not (folder / "run.json").exists():
            continue
        found = read_run(folder)
        wanted = {str(k): _text(v) for k, v in plan.settings(job).items()}
        there = {k: _text(v) for k, v in found.meta["settings"].items()}
        differ = [
            f"{k} {there.get(k)} there, {wanted.get(k)} asked" for k in wanted | there if wanted.get(k) != there.get(k)
        ]
        lanes = [(n.seed, dict(n.hyper)) for n in job.lanes]
        if lanes != [(n["seed"], n["hyper"]) for n in found.lanes]:
            differ.append(f"{len(found.lanes)} lanes there, {len(lanes)} asked, with other seeds or numbers")
        if differ:
            raise InputError(
                f"--workdir: {folder} holds another run ({'; '.join(differ)}); choose another folder or label"
            )
        if found.meta["finished"]:
            runs[job.label] = found
    return runs


def _text(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


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
