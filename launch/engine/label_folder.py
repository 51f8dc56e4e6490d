"""One label of a run folder from its beginning to its end: `run.json` at the start, what was measured at the end."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.config.experiment import Plan
from launch.config.syntax import without
from launch.engine import hosts
from launch.engine.job_program import data_digest
from launch.engine.keeping import Keeping, forget, seconds_spent
from launch.engine.lanes import Unit
from launch.engine.programs import task_key
from launch.engine.resume import Work, entries_of
from launch.errors import InputError
from launch.storage.bins import Arrays
from launch.storage.machine import commit, machine, versions
from launch.storage.replacements import PREFIX, gathered
from launch.storage.run_folder import CHECKPOINTS, Run, read_run, write_meta, write_run
from plastic_jax.replacement import replacement_log
from tasks.base import Environment


def over(plan: Plan, work: Work, folder: Path) -> Run | None:
    """The run as it stands, where nothing is left to do."""
    if work.meta is None or not work.meta["finished"]:
        return None
    same = work.meta["settings"].get("steps") == plan.steps and len(work.meta["lanes"]) == len(work.job.lanes)
    if not same and not all((folder / CHECKPOINTS / unit["name"]).is_dir() for unit in work.meta["units"]):
        raise InputError(f"--workdir: {folder} holds no checkpoints to go on from; they were not kept (--keep)")
    return read_run(folder) if same else None


def begin(plan: Plan, work: Work, folder: Path) -> None:
    """Write down what will be run, unless an earlier launch has; results that stand there stay as they are."""
    if work.meta is None:
        write_meta(folder, description(plan, work))
        return
    known = {entry["name"] for entry in (*work.meta.get("units", ()), *work.meta.get("begun", ()))}
    added = [_entry(unit) | {"of": entries_of(unit.lanes)} for unit in work.units if unit.name not in known]
    longest = max(plan.steps, work.meta.get("begun_steps", 0))
    if added or longest > max(work.meta["settings"]["steps"], work.meta.get("begun_steps", 0)):
        write_meta(folder, work.meta | {"begun": [*work.meta.get("begun", ()), *added], "begun_steps": longest})


def _entry(unit: Unit) -> dict[str, Any]:
    return {"name": unit.name, "lanes": len(unit.lanes), "size": unit.size, "chunk": unit.chunk}


def description(plan: Plan, work: Work) -> dict[str, Any]:
    """`run.json` as it is known before anything is run."""
    return {
        "label": work.job.label,
        "method": work.job.method.name,
        "task": plan.spec.name,
        "settings": plan.settings(work.job),
        **_of_task(plan, work),
        "experiment": dataclasses.asdict(plan.experiment) | {"task": without(plan.experiment.task, "data_dir")},
        "lanes": entries_of(work.job.lanes),
        "units": [_entry(unit) for unit in work.units],
        "lanes_per_batch": work.units[0].size,
        "chunk": work.units[0].chunk,
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "task_aware": work.job.method.task_aware,
        "data": data_digest(plan),
        **work.manner._asdict(),
        "tuned_on": plan.experiment.tuned_on,
        "tuning": plan.experiment.tuning,
        **({"block": work.block} if work.block else {}),
    }


def finish(
    plan: Plan, work: Work, measured: Mapping[str, Arrays], folder: Path | None, keeping: Keeping, seconds: float
) -> Run:
    """Join what a label's units have measured, by their names, and write it down (where there is a folder).

    `seconds` is what it took, for runs of which nothing is kept.
    """
    ordered = [measured[unit.name] for unit in work.units]
    arrays = {name: np.concatenate([one[name] for one in ordered]) for name in ordered[0]}
    diverged = np.flatnonzero(arrays.pop("diverged")).tolist()
    found = {name.removeprefix(PREFIX): arrays.pop(name) for name in list(arrays) if name.startswith(PREFIX)}
    lives = gathered(found, replacement_log.AGES, plan.start, plan.steps) if found else None
    step = np.minimum(np.arange(1, -(-plan.steps // plan.bin) + 1) * plan.bin, plan.steps)
    count = np.diff(step, prepend=0)
    if folder is not None and hosts.is_first():
        seconds = sum(seconds_spent(plan, unit, folder / CHECKPOINTS) for unit in work.units)
    meta = description(plan, work) | {"diverged": diverged, "wall_seconds": round(seconds, 3)}
    mine = {unit.name for unit in work.units}
    others = [entry for entry in (work.meta or {}).get("begun", ()) if entry["name"] not in mine]
    if others:  # what other launches have begun
        meta |= {"begun": others}
    if folder is None or not hosts.is_first():
        return Run(work.job.label, {"schema": 1, "finished": True} | meta, step, count, arrays, lives)
    write_run(folder, meta, step, count, arrays, lives=lives)
    if keeping.keep == 0:
        forget(folder / CHECKPOINTS)
    return read_run(folder)


def _of_task(plan: Plan, work: Work) -> dict[str, Any]:
    """What the task says of itself; of an environment, step and value of every change by seed; of a stream, where tasks
    begin if more than one bin is measured in each.
    """
    found: dict[str, Any] = {"note": plan.task.note} if plan.task.note else {}
    schedule = plan.task.schedule
    if isinstance(plan.task, Environment):
        seeds = dict.fromkeys(lane.seed for lane in work.job.lanes)
        changes = {str(seed): plan.task.changes_until(task_key(jax.random.key(seed)), plan.steps) for seed in seeds}
        return found | ({"changes": changes} if any(changes.values()) else {})
    if schedule.evaluate_every not in (None, schedule.change_every) or schedule.starts:
        found["task_starts"] = list(schedule.starts_until(plan.steps))
    return found
