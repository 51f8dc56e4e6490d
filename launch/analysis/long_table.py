"""Runs as one long pandas table, and what is read off it: values by task, waits for a threshold, late means.

A row is what one lane measured of one metric in one bin:

    label, method, setting   whose curve it is; `setting` in words, empty where nothing has to be told apart
    seed, lane               the seed, and the number of the lane in its run
    <hyperparameters>        a column each, NaN where the method has no such number
    task                     the task, from 1 on; 0 where the run has none, or has not finished it
    step, steps              the step at which the bin ends, and how many it holds
    metric, value            as measured (shares, not percent); NaN where the bin holds no measurement
    diverged                 whether the lane diverged in the end
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from launch.analysis.curves import Curve, place
from launch.analysis.metrics import metric_style
from launch.analysis.statistics import late_bins
from launch.errors import InputError, unknown
from launch.storage.run_folder import RUN, Run

STARTS = "task_starts"
OWN = ("label", "method", "setting", "seed", "lane", "task", "step", "steps", "metric", "value", "diverged")


def long_table(found: Sequence[Curve], metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """The table of some curves, of all their metrics or some; curves, then lanes, then metrics, then bins."""
    parts = [_of_curve(curve, metrics) for curve in found]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(OWN))


def _of_curve(curve: Curve, metrics: Sequence[str] | None) -> pd.DataFrame:
    run = curve.run
    names = [name for name in run.metrics if metrics is None or name in metrics]
    shape = (len(curve.lanes), len(names), len(run.step))
    values = np.stack([run.metrics[name][curve.lanes] for name in names], 1) if names else np.empty(shape)

    def along(axis: int, given: object) -> np.ndarray:
        each = np.asarray(given).reshape([-1 if i == axis else 1 for i in range(3)])
        return np.broadcast_to(each, shape).ravel()

    def words(text: str) -> pd.Categorical:
        return pd.Categorical.from_codes(np.zeros(values.size, np.int8), [text])

    columns = {
        "label": words(run.label),
        "method": words(curve.run.lanes[curve.lanes[0]]["method"] if len(curve.lanes) else run.meta["method"]),
        "setting": words(curve.setting),
        "seed": along(0, curve.seeds),
        "lane": along(0, curve.lanes),
        **{hyper_column(name): np.full(values.size, value, float) for name, value in curve.hyper.items()},
        "task": along(2, _tasks(run)),
        "step": along(2, run.step),
        "steps": along(2, run.count),
        "metric": pd.Categorical.from_codes(along(1, np.arange(len(names))).astype(np.int16), names),
        "value": values.ravel(),
        "diverged": along(0, np.isin(curve.lanes, list(run.meta.get("diverged", ())))),
    }
    return pd.DataFrame(columns)


def hyper_column(name: str) -> str:
    """The column of a hyperparameter."""
    return f"hyper_{name}" if name in OWN else name


def of_metric(curve: Curve, metric: str) -> pd.DataFrame:
    """The long table of one metric of a curve; InputError where its run lacks it."""
    if metric not in curve.run.metrics:
        raise unknown(f"{curve.run.label}: metric", metric, curve.run.metrics)
    return long_table([curve], [metric])


# Tasks --------------------------------------------------------------------------------------------------------------


def task_starts(run: Run) -> np.ndarray:
    """The first step of every task and the end of the last one, int64 [task + 1]; of a run under way, of those over.

    Raises:
        InputError: `run.json` does not say, says nonsense, or a task begins within a bin.
    """
    given = run.meta.get(STARTS)
    if given is None:
        raise InputError(f"{place(run)}: {RUN} lacks {STARTS}, the first step of every task and the run's end")
    whole = isinstance(given, (list, tuple)) and all(type(each) is int and abs(each) < 2**62 for each in given)
    if not whole or len(given) < 2 or given[0] != 0 or (np.diff(given) < 1).any():
        raise InputError(f"{place(run)}: {STARTS} in {RUN} are not at least two whole numbers that rise from 0")
    starts = np.array(given, np.int64)
    if run.progress:
        starts = starts[starts <= run.step[-1]]
        if len(starts) < 2:
            raise InputError(f"{place(run)}: {run.progress}; the first task is not over yet")
        return starts
    _first_bins(run, starts)
    return starts


def _first_bins(run: Run, edges: np.ndarray, what: str = "a task begins") -> np.ndarray:
    """The bin with which every stretch between two edges begins, int64 [stretch]."""
    begins = np.concatenate([[0], run.step])
    if edges[-1] != begins[-1]:
        raise InputError(f"{place(run)}: the run ends at step {begins[-1]}, not at {edges[-1]}")
    places = np.searchsorted(begins, edges)
    within = begins[places] != edges
    if within.any():
        end = begins[places[within][0]]
        raise InputError(f"{place(run)}: {what} at step {edges[within][0]}, within the bin that ends at step {end}")
    return places[:-1]


def _tasks(run: Run) -> np.ndarray:
    """The task of every bin, from 1 on; 0 where it is not known or not over."""
    try:
        starts = task_starts(run)
    except InputError:
        return np.zeros(len(run.step), np.int64)
    tasks = np.searchsorted(starts, run.step - run.count, side="right")
    return np.where(tasks < len(starts), tasks, 0)


def by_task(table: pd.DataFrame, what: str = "last") -> pd.DataFrame:
    """One value for every lane and task, [lane, task], NaN where the task holds no measurement.

    `what` is `last` (the task's last measurement), `mean` (learning-curve area: where evaluations are evenly spaced,
    the area under the task's learning curve divided by its length), or `max`.
    """
    held = table["value"].where(np.isfinite(table["value"]))[table["task"] > 0]
    return held.groupby([table["lane"], table["task"]]).agg(what).unstack("task")


def waits(table: pd.DataFrame, threshold: pd.DataFrame, better: str = "higher") -> pd.DataFrame:
    """Steps within each task until the metric first reaches `threshold` [lane, task], for `survival.kaplan_meier`.

    Where lower values are better it is reached from above.

    A row for every lane and task: `seed`, `lane`, `task`, `time`, and `happened`, false where the threshold is not
    reached (the time is then the task's length: censored); none where threshold or metric is missing. The metric is
    known at the ends of bins only, so the steps are rounded up to the next measurement. A lane that diverged holds the
    task's failure value from then on: it has to exceed its threshold, or it would reach at once what it had when it
    failed.
    """
    rows = table[(table["task"] > 0) & np.isfinite(table["value"])]
    begins = (table["step"] - table["steps"]).groupby(table["task"]).min()
    length = table["step"].groupby(table["task"]).max() - begins
    wanted = threshold.rename_axis(index="lane", columns="task").unstack().rename("wanted").dropna()
    rows = rows.join(wanted, on=["task", "lane"], how="inner")
    beyond = (rows["value"] - rows["wanted"]) * (1 if better == "higher" else -1)
    passed = np.where(rows["diverged"], beyond > 0, beyond >= 0)
    rows = rows.assign(clock=rows["step"] - rows["task"].map(begins), passed=passed)
    rows["reached_at"] = rows["clock"].where(rows["passed"])
    found = rows.groupby(["lane", "task"]).agg(seed=("seed", "first"), reached=("reached_at", "min")).reset_index()
    found["happened"] = found["reached"].notna()
    found["time"] = found.pop("reached").fillna(found["task"].map(length)).astype(float)
    return found


# Windows ------------------------------------------------------------------------------------------------------------


def late_mean(curve: Curve, metric: str, share: float = 0.1) -> pd.Series:
    """Mean of a metric over the last `share` of the bins by seed, in the unit of its axis.

    A bin weighs as many steps as it holds. A seed without any measurement there is NaN.

    Raises:
        InputError: the run lacks the metric, or holds no measurement of it there; a share that cannot be.
    """
    table = of_metric(curve, metric)
    ends = curve.run.step[late_bins(len(curve.run.step), share)]
    late = table[table["step"].isin(ends)]
    late = late.assign(weight=late["steps"].where(np.isfinite(late["value"]), 0))
    if not late["weight"].any():
        raise InputError(
            f"{curve.run.label}: {metric} was not measured in the last {share:g} of the run; widen --window"
        )
    late["sum"] = (late["value"] * late["weight"]).where(late["weight"] > 0, 0.0)
    sums = late.groupby("lane")[["sum", "weight"]].sum()
    means = (sums["sum"] / sums["weight"].where(sums["weight"] > 0)).to_numpy(float)
    return pd.Series(means * metric_style(metric).scale, curve.seeds)


# Wider bins ---------------------------------------------------------------------------------------------------------


def coarser(run: Run, edges: np.ndarray) -> Run:
    """The run in wider bins, from each of `edges` (steps, int64 [bin + 1]) to the next.

    A wide bin's value is the mean over those of its bins that hold a measurement, each with the same weight, however
    many steps it holds; NaN where none does.

    Raises:
        InputError: the edges do not rise from 0 to the run's end, or one lies within a bin.
    """
    edges = np.asarray(edges, np.int64)
    if edges.ndim != 1 or len(edges) < 2 or edges[0] != 0 or (np.diff(edges) < 1).any():
        raise InputError(f"{place(run)}: edges of bins have to rise from 0 to the run's end")
    firsts = _first_bins(run, edges, "a wider bin begins")
    bins = np.repeat(np.arange(len(firsts)), np.diff(firsts, append=len(run.step)))
    metrics = {
        name: pd.DataFrame(values.T).where(lambda each: np.isfinite(each)).groupby(bins).mean().to_numpy().T
        for name, values in run.metrics.items()
    }
    return dataclasses.replace(run, step=edges[1:], count=np.add.reduceat(run.count, firsts), metrics=metrics)


def edges_every(run: Run, every: str) -> np.ndarray:
    """Edges for `coarser` out of text: `50tasks`, or a number of steps; the last bin is narrower where it must be."""
    found = re.fullmatch(r"([1-9]\d{0,17})(tasks?)?", every)
    if not found:
        raise InputError(f"--every: '{every}' is neither a number of steps nor of tasks, as in 50tasks")
    if not len(run.step):
        raise InputError(f"{place(run)}: holds no bins to join (--every)")
    number, end = int(found[1]), int(run.step[-1])
    begins = task_starts(run)[:-1:number] if found[2] else np.arange(0, end, number)
    return np.append(begins, end)


def every_text(every: str) -> str:
    """What a caption says of `coarser` runs."""
    number = every.removesuffix("s").removesuffix("task")
    unit = "step" if number == every else "task"
    return f"Means over bins of {number} {unit}{'s' * (number != '1')}, every measurement with the same weight."
