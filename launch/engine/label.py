"""One label of a run folder from its beginning to its end: its units of work, `run.json` first, the results last."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.config.experiment import Job, Lane, Plan
from launch.config.syntax import without
from launch.engine.build import data_digest
from launch.engine.checkpoint_policy import CheckpointPolicy, ended, finished, forget, said_at_the_end
from launch.engine.devices import ONE_DEVICE, Devices
from launch.engine.lane_program import task_key
from launch.engine.resume import Manner, Resume, differences, entries_of, identity, lanes_of, manner_here
from launch.engine.unit_of_work import Unit, unit_of, units_of
from launch.errors import InputError
from launch.storage.bins import Arrays
from launch.storage.machine import commit, machine, versions
from launch.storage.replacements import PREFIX, gathered
from launch.storage.run_folder import (
    CHECKPOINTS,
    DONE,
    LIVES,
    METRICS,
    RUN,
    lanes_by_unit,
    read_meta,
    write_meta,
    write_run,
)  # fmt: skip
from launch.storage.seal import MANIFEST
from plastic_jax.replacement import replacement_log
from tasks.base import Environment


@dataclasses.dataclass(frozen=True)
class Label:
    """One label of a launch, and what its folder says of earlier launches.

    Attributes:
        plan: the plan that it is part of.
        job: the job, its lanes in the units' order.
        folder: its folder in the run folder.
        units: all units, those of earlier launches first.
        meta: `run.json` of the earlier launches, or `None`.
        manner: how the work is done, where the last bits depend on it.
        devices: how many devices share the work, and which way.
        parts: the fewest units that new lanes are cut into, where lanes are enough.
    """

    plan: Plan
    job: Job
    folder: Path
    units: tuple[Unit, ...]
    meta: Mapping[str, Any] | None
    manner: Manner
    devices: Devices
    parts: int

    @property
    def name(self) -> str:
        """The label itself."""
        return self.job.label

    @property
    def checkpoints(self) -> Path:
        """Where its units keep their checkpoints."""
        return self.folder / CHECKPOINTS

    def is_over(self) -> bool:
        """Whether the label's results stand, at this length and of all these lanes."""
        if not (self.folder / DONE).exists():
            return False
        return _same_length(self, read_meta(self.folder))

    def left(self, verified: bool = False) -> list[Unit]:
        """The units that are not over; with `verified`, also those whose last checkpoint is damaged."""
        if self.is_over():
            return []
        if verified:
            return [unit for unit in self.units if finished(self.plan, unit, self.checkpoints) is None]
        return [unit for unit in self.units if not ended(self.plan, unit, self.checkpoints)]

    def again(self, resume: Resume = "auto") -> "Label":
        """The label by what its folder says now; refused where that has become another run."""
        return find_label(self.plan, self.plan.job(self.name), self.folder, resume, self.devices, self.parts)

    def begin(self) -> None:
        """Write down what will be run, unless an earlier launch has; results that stand there stay as they are."""
        if self.meta is None:
            write_meta(self.folder, _description(self))
            return
        known = {entry["name"] for entry in (*self.meta.get("units", ()), *self.meta.get("begun", ()))}
        added = [_entry(unit) | {"of": entries_of(unit.lanes)} for unit in self.units if unit.name not in known]
        longest = max(self.plan.steps, self.meta.get("begun_steps", 0))
        if added or longest > max(self.meta["settings"]["steps"], self.meta.get("begun_steps", 0)):
            begun = [*self.meta.get("begun", ()), *added]
            write_meta(self.folder, self.meta | {"begun": begun, "begun_steps": longest})

    def finish(self, measured: Sequence[Arrays], policy: CheckpointPolicy) -> None:
        """Join what the units have measured, in their order, and write it down."""
        arrays = {name: np.concatenate([one[name] for one in measured]) for name in measured[0]}
        diverged = np.flatnonzero(arrays.pop("diverged")).tolist()
        found = {name.removeprefix(PREFIX): arrays.pop(name) for name in list(arrays) if name.startswith(PREFIX)}
        lives = gathered(found, replacement_log.AGES, self.plan.start, self.plan.steps) if found else None
        step = np.minimum(np.arange(1, -(-self.plan.steps // self.plan.bin) + 1) * self.plan.bin, self.plan.steps)
        said = [said_at_the_end(self.plan, unit, self.checkpoints) for unit in self.units]
        seconds = round(sum(one.get("seconds", 0.0) for one in said), 3)
        _tell_commits(self.folder, {one.get("commit", "") for one in said})
        meta = _description(self) | {"diverged": diverged, "wall_seconds": seconds}
        mine = {unit.name for unit in self.units}
        others = [entry for entry in (self.meta or {}).get("begun", ()) if entry["name"] not in mine]
        if others:  # what other launches have begun
            meta |= {"begun": others}
        write_run(self.folder, meta, step, np.diff(step, prepend=0), arrays, lives=lives)
        if policy.keep == 0:
            forget(self.checkpoints)


def find_label(
    plan: Plan, job: Job, folder: Path, resume: Resume = "auto", devices: Devices = ONE_DEVICE, parts: int = 1
) -> Label:
    """A job's units, with what its folder says of earlier launches.

    Where lanes per batch were not asked for, new lanes are cut into at least `parts` units, if they are enough.

    Raises:
        InputError: the folder holds a run of other settings, or something where nothing may be, or nothing where
            something must be, or no checkpoints from which a longer run could go on.
    """
    there = (folder / RUN).exists()
    if resume == "never" and there:
        raise InputError(f"--resume=never: {folder} holds a run; choose another folder or label")
    if resume == "must" and not there:
        raise InputError(f"--resume=must: there is no run in {folder}")
    stale = [name for name in (METRICS, LIVES, DONE) if (folder / name).exists()]
    if stale and not there:
        raise InputError(f"--workdir: {folder} holds {stale[0]} without {RUN}; choose another folder or label")
    backend = jax.default_backend()
    manner = manner_here(devices.parallel, backend)
    if not there:
        return Label(plan, job, folder, tuple(units_of(plan, job, backend, parts=parts)), None, manner, devices, parts)
    meta = read_meta(folder)
    if resume == "must" and not meta["finished"] and not any((folder / CHECKPOINTS).glob(f"*/*/{MANIFEST}")):
        raise InputError(f"--resume=must: {folder} holds a run that is not over, and no checkpoint of it")
    if bool(meta.get("tuning")) != plan.experiment.tuning:
        made = "not made for tuning" if plan.experiment.tuning else "made for tuning"
        raise InputError(f"--workdir: {folder} holds a run that was {made}; choose another folder or label")
    differ = differences(plan, job, meta, manner)
    if differ:
        raise InputError(f"--workdir: {folder} holds another run ({'; '.join(differ)}); choose another folder or label")
    units = [*_known_units(plan, job, meta)]
    added = _lanes_without(job, units)
    units = (*units, *units_of(plan, job, backend, added, parts))
    job = dataclasses.replace(job, lanes=tuple(lane for unit in units for lane in unit.lanes))
    label = Label(plan, job, folder, units, meta, manner, devices, parts)
    _check_checkpoints(label, meta)
    return label


def _known_units(plan: Plan, job: Job, meta: Mapping[str, Any]) -> list[Unit]:
    """The units of earlier launches, those among them that launches with more lanes have begun, and not joined yet."""
    pairs = zip(meta.get("units", ()), lanes_by_unit(meta), strict=True)
    units = [_known_unit(plan, job, entry, lanes) for entry, lanes in pairs]
    for entry in meta.get("begun", ()):
        unit = _known_unit(plan, job, entry, entry["of"])
        if {identity(lane) for lane in unit.lanes} <= {identity(lane) for lane in _lanes_without(job, units)}:
            units.append(unit)
    return units


def _known_unit(plan: Plan, job: Job, entry: Mapping[str, Any], lanes: Sequence[Mapping[str, Any]]) -> Unit:
    """A unit under the name that it was begun with."""
    unit = unit_of(plan, job, lanes_of(lanes), entry["size"], entry["chunk"])
    return dataclasses.replace(unit, name=entry["name"])


def _lanes_without(job: Job, units: Sequence[Unit]) -> list[Lane]:
    """The lanes that are in none of the units."""
    known = {identity(lane) for unit in units for lane in unit.lanes}
    return [lane for lane in job.lanes if identity(lane) not in known]


def _same_length(label: Label, meta: Mapping[str, Any]) -> bool:
    return meta["settings"].get("steps") == label.plan.steps and len(meta["lanes"]) == len(label.job.lanes)


def _check_checkpoints(label: Label, meta: Mapping[str, Any]) -> None:
    """Refuse to go on from the end of a run whose checkpoints were not kept."""
    if not meta["finished"] or _same_length(label, meta):
        return
    if not all((label.checkpoints / unit["name"]).is_dir() for unit in meta.get("units", ())):
        raise InputError(f"--workdir: {label.folder} holds no checkpoints to go on from; they were not kept (--keep)")


def _entry(unit: Unit) -> dict[str, Any]:
    return {"name": unit.name, "lanes": len(unit.lanes), "size": unit.size, "chunk": unit.chunk}


def _description(label: Label) -> dict[str, Any]:
    """`run.json` as it is known before anything is run."""
    plan, job = label.plan, label.job
    return {
        "label": job.label,
        "method": job.method.name,
        "task": plan.spec.name,
        "settings": plan.settings(job),
        **_of_task(plan, job),
        "experiment": dataclasses.asdict(plan.experiment) | {"task": without(plan.experiment.task, "data_dir")},
        "lanes": entries_of(job.lanes),
        "units": [_entry(unit) for unit in label.units],
        "lanes_per_batch": label.units[0].size,
        "chunk": label.units[0].chunk,
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "task_aware": job.method.task_aware,
        "data": data_digest(plan),
        **label.manner._asdict(),
        "tuned_on": plan.experiment.tuned_on,
        "tuning": plan.experiment.tuning,
    }


def _of_task(plan: Plan, job: Job) -> dict[str, Any]:
    """What the task says of itself; of an environment, step and value of every change by seed; of a stream, where tasks
    begin if more than one bin is measured in each.
    """
    found: dict[str, Any] = {"note": plan.task.note} if plan.task.note else {}
    abruptness = getattr(plan.task, "abruptness", 1)
    if found and abruptness < 1:
        found["note"] += f"; tasks mixed over the first {1 - abruptness:.0%} of each"
    schedule = plan.task.schedule
    if isinstance(plan.task, Environment):
        seeds = dict.fromkeys(lane.seed for lane in job.lanes)
        changes = {str(seed): plan.task.changes_until(task_key(jax.random.key(seed)), plan.steps) for seed in seeds}
        return found | ({"changes": changes} if any(changes.values()) else {})
    if schedule.evaluate_every not in (None, schedule.change_every) or schedule.starts:
        found["task_starts"] = list(schedule.starts_until(plan.steps))
    return found


def _tell_commits(folder: Path, commits: set[str]) -> None:
    if len(commits) > 1:
        print(
            f"warning: {folder}: units of several versions ({', '.join(sorted(commits))}) are joined", file=sys.stderr
        )
