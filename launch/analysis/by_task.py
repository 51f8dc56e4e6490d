"""What a run measured, by task in place of by bin: accuracy after a task, mean within it, steps until a threshold.

A run says where its tasks begin in `task_starts` of `run.json`: the first step of every task, and the run's end. Task k
holds steps starts[k] to starts[k + 1], exclusive. Every task begins where a bin begins.
"""

import dataclasses
import re

import numpy as np

from launch.errors import InputError, unknown
from launch.storage.run_folder import RUN, Run

STARTS = "task_starts"


def task_starts(run: Run) -> np.ndarray:
    """The first step of every task and the run's end, int64 [task + 1].

    Raises:
        InputError: `run.json` does not say, says nonsense, or a task begins within a bin.
    """
    given = run.meta.get(STARTS)
    if given is None:
        raise InputError(f"{_place(run)}: {RUN} lacks {STARTS}, the first step of every task and the run's end")
    whole = isinstance(given, (list, tuple)) and all(type(each) is int and abs(each) < 2**62 for each in given)
    if not whole or len(given) < 2 or given[0] != 0 or (np.diff(given) < 1).any():
        raise InputError(f"{_place(run)}: {STARTS} in {RUN} are not at least two whole numbers that rise from 0")
    starts = np.array(given, np.int64)
    _first_bins(run, starts)
    return starts


def _place(run: Run) -> str:
    return str(run.meta.get("folder", run.label))


def _first_bins(run: Run, edges: np.ndarray, what: str = "a task begins") -> np.ndarray:
    """The bin with which every stretch between two edges begins, int64 [stretch]."""
    begins = np.concatenate([[0], run.step])
    if edges[-1] != begins[-1]:
        raise InputError(f"{_place(run)}: the run ends at step {begins[-1]}, not at {edges[-1]}")
    places = np.searchsorted(begins, edges)
    within = begins[places] != edges
    if within.any():
        end = begins[places[within][0]]
        raise InputError(f"{_place(run)}: {what} at step {edges[within][0]}, within the bin that ends at step {end}")
    return places[:-1]


def values_of(run: Run, metric: str) -> np.ndarray:
    """A metric's values [lane, bin]; InputError where the run lacks it."""
    if metric not in run.metrics:
        raise unknown(f"{run.label}: metric", metric, run.metrics)
    return run.metrics[metric]


def _means(values: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Means [lane, stretch] over the bins that hold a measurement, each with the same weight; NaN where none does."""
    present = np.isfinite(values)
    total = np.add.reduceat(np.where(present, values, 0.0), firsts, axis=1)
    number = np.add.reduceat(present.astype(np.int64), firsts, axis=1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def within_tasks(run: Run, metric: str) -> np.ndarray:
    """Learning-curve area: mean of the evaluations within each task, float64 [lane, task].

    Evaluations count alike; where they are evenly spaced this is the area under the task's learning curve, divided by
    its length.
    """
    return _means(values_of(run, metric), _first_bins(run, task_starts(run)))


def after_tasks(run: Run, metric: str) -> np.ndarray:
    """The last measurement within each task, float64 [lane, task]; NaN where the task holds none."""
    values = values_of(run, metric)
    firsts = _first_bins(run, task_starts(run))
    last = np.maximum.reduceat(np.where(np.isfinite(values), np.arange(values.shape[1]), -1), firsts, axis=1)
    return np.where(last < 0, np.nan, np.take_along_axis(values, np.maximum(last, 0), axis=1))


def steps_until(run: Run, metric: str, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps within each task until `metric` first reaches `threshold` [lane, task], and whether it does.

    Both [lane, task]: the steps float64, the task's length where the threshold is not reached (censored), NaN where
    threshold or metric is missing; whether it is reached, bool. The metric is known at the ends of bins only, so the
    steps are rounded up to the next measurement. A lane that diverged holds the task's failure value from then on: it
    has to exceed its threshold, or it would reach at once what it had when it failed.
    """
    values, starts = values_of(run, metric), task_starts(run)
    firsts, length = _first_bins(run, starts), np.diff(starts)
    counts = np.diff(firsts, append=values.shape[1])
    wanted = np.repeat(threshold, counts, axis=1)
    diverged = np.isin(np.arange(len(values)), list(run.meta.get("diverged", ())))[:, None]
    passed = np.where(diverged, values > wanted, values >= wanted)
    clock = run.step - np.repeat(starts[:-1], counts)
    first = np.minimum.reduceat(np.where(passed, clock, np.inf), firsts, axis=1)
    reached = np.isfinite(first)
    known = np.isfinite(threshold) & np.logical_or.reduceat(np.isfinite(values), firsts, axis=1)
    return np.where(known, np.where(reached, first, length), np.nan), reached


def coarser(run: Run, edges: np.ndarray) -> Run:
    """The run in wider bins, from each of `edges` (steps, int64 [bin + 1]) to the next.

    A wide bin's value is the mean over those of its bins that hold a measurement, each with the same weight, however
    many steps it holds; NaN where none does.

    Raises:
        InputError: the edges do not rise from 0 to the run's end, or one lies within a bin.
    """
    edges = np.asarray(edges, np.int64)
    if edges.ndim != 1 or len(edges) < 2 or edges[0] != 0 or (np.diff(edges) < 1).any():
        raise InputError(f"{_place(run)}: edges of bins have to rise from 0 to the run's end")
    firsts = _first_bins(run, edges, "a wider bin begins")
    metrics = {name: _means(values, firsts) for name, values in run.metrics.items()}
    return dataclasses.replace(run, step=edges[1:], count=np.add.reduceat(run.count, firsts), metrics=metrics)


def edges_every(run: Run, every: str) -> np.ndarray:
    """Edges for `coarser` out of text: `50tasks`, or a number of steps; the last bin is narrower where it must be."""
    found = re.fullmatch(r"([1-9]\d{0,17})(tasks?)?", every)
    if not found:
        raise InputError(f"--every: '{every}' is neither a number of steps nor of tasks, as in 50tasks")
    if not len(run.step):
        raise InputError(f"{_place(run)}: holds no bins to join (--every)")
    number, end = int(found[1]), int(run.step[-1])
    begins = task_starts(run)[:-1:number] if found[2] else np.arange(0, end, number)
    return np.append(begins, end)


def every_text(every: str) -> str:
    """What a caption says of `coarser` runs."""
    number = every.removesuffix("s").removesuffix("task")
    unit = "step" if number == every else "task"
    return f"Means over bins of {number} {unit}{'s' * (number != '1')}, every measurement with the same weight."
