"""Units of work, from where they stand to their end: resume, chunks, checkpoints, the signal to stop."""

import contextlib
import dataclasses
import functools
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch import hosts
from launch.branch import Source
from launch.checkpoint import Checkpoints, Saved, describe, versions
from launch.devices import AXIS, Parallel, own_copy, put_data, put_lanes
from launch.errors import InputError
from launch.experiment import Job, Lane, Plan, experiment_of, lane_keys, resolve
from launch.lanes import Unit, hyper_arrays, job_program, load_data
from launch.lives import PREFIX
from launch.locks import LOCK, locked
from launch.loop import RunState, compiled_chunk, initial, means, run_chunks
from launch.machine import commit
from launch.processes import Report
from launch.programs import Mean, Program, continued
from launch.run_folder import unit_folders
from launch.stopping import Stop, Stopped
from launch.syntax import Every
from plastic_jax import biography

Arrays = dict[str, np.ndarray]
SUM, COUNT = "sum/", "count/"


TEN_MINUTES = Every(seconds=600.0)


@dataclasses.dataclass(frozen=True)
class Keeping:
    """When checkpoints are written, and which stay; the last step's always is.

    Attributes:
        every: how often.
        keep: how many of the newest stay, `None` for all; 0 keeps none once the run is over.
        at: steps whose checkpoints stay for good.
    """

    every: Every = TEN_MINUTES
    keep: int | None = 2
    at: tuple[int, ...] = ()


KEEPING = Keeping()


class Place(NamedTuple):
    """Where the units of a label keep their checkpoints, and how."""

    folder: Path
    keeping: Keeping


class Devices(NamedTuple):
    """How many devices share the work, and which way."""

    number: int = 1
    parallel: Parallel = "lanes"

    @property
    def axis_name(self) -> str | None:
        """The mapped axis that a program has to average over."""
        return AXIS if self.parallel == "batch" else None


ONE_DEVICE = Devices()


def run_unit(plan: Plan, unit: Unit) -> Arrays:
    """Run one unit in this process and keep nothing, see `run_units`."""
    return run_units(plan, [unit])[0]


def run_units(
    plan: Plan,
    units: Sequence[Unit],
    place: Place | None = None,
    devices: Devices = ONE_DEVICE,
    stop: Stop | None = None,
    report: Report = lambda label, lane_steps: None,
) -> list[Arrays]:
    """Run units of one label, at most one a device, from their newest good checkpoints to the end of the run.

    Returns:
        Per unit `[lane, bin]` per metric, `diverged` bool `[lane]`, and unit biographies if any.

    Raises:
        Stopped: `stop` was requested; checkpoints have been written.
        TakenError: another process runs one of the units.
        StorageError: a checkpoint could not be written.
        InputError: no checkpoint of a unit that has some is readable, or they are of another structure.
    """
    job = plan.job(units[0].label)
    program = program_of(plan, job, devices.axis_name)
    stores = [_store(plan, unit, place) for unit in units]
    with contextlib.ExitStack() as locks:
        for store in stores:
            if store is not None and hosts.is_first():
                locks.enter_context(locked(store.folder / LOCK))
        data = put_data(load_data(plan), devices.number)
        saved = [_resumed(plan, unit, store, program, data) for unit, store in zip(units, stores, strict=True)]
        found: dict[str, Arrays] = {}
        for step in sorted({one.step if one else plan.start for one in saved}):
            part = [i for i, one in enumerate(saved) if (one.step if one else plan.start) == step]
            worker = _Worker(plan, job, program, [units[i] for i in part], [stores[i] for i in part], devices)
            found |= worker.run([saved[i] for i in part], data, place, stop, report)
    return [found[unit.name] for unit in units]


def ended(plan: Plan, unit: Unit, folder: Path) -> bool:
    """Whether a unit has a checkpoint of the last step, good or damaged; `folder` holds its label's checkpoints."""
    return plan.steps in Checkpoints(folder / unit.name).steps()


def seconds_spent(plan: Plan, unit: Unit, folder: Path) -> float:
    """Seconds of work on a unit that is over, in all launches."""
    return describe(folder / unit.name / str(plan.steps))["about"].get("seconds", 0.0)


def finished(plan: Plan, unit: Unit, place: Place) -> Arrays | None:
    """What a unit has measured, where it is over; nothing is computed."""
    job = plan.job(unit.label)
    store = Checkpoints(place.folder / unit.name)
    if not ended(plan, unit, place.folder):
        return None
    lanes = abstract_lanes(program_of(plan, job), job, unit, abstract_data(plan))
    with contextlib.suppress(InputError):
        saved = store.latest_good(lanes, at=plan.steps)
        return _measured(saved.arrays) if saved else None
    return None


@dataclasses.dataclass(frozen=True)
class _Worker:
    """Units that stand at the same step, run side by side."""

    plan: Plan
    job: Job
    program: Program
    units: Sequence[Unit]
    stores: Sequence[Checkpoints | None]
    devices: Devices

    def run(
        self, saved: Sequence[Saved | None], data: Any, place: Place | None, stop: Stop | None, report: Report
    ) -> dict[str, Arrays]:
        """From the checkpoints to the end; what was measured, by unit."""
        plan, chunk, lanes = self.plan, self.units[0].chunk, sum(len(unit.lanes) for unit in self.units)
        last_grid = plan.steps - plan.steps % chunk
        number = self.devices.number if self.devices.parallel == "lanes" else 1
        batch = [lane for unit in self._filled(self.units, number) for lane in unit.batch]
        hyper = put_lanes(hyper_arrays(self.job, batch), self.devices.number, self.devices.parallel)
        state = self._begin(self._filled(saved, number), batch, hyper, data)
        hosts.check_equal("checkpoints", [state.step])
        report(self.job.label, (state.step - plan.start) * lanes)
        timer = _Timer(place.keeping if place else Keeping(Every()), state.step)
        done, began = state.step, time.perf_counter()
        spent = saved[0].about.get("seconds", 0.0) if saved[0] else 0.0

        def between(state: RunState) -> None:
            nonlocal done
            report(self.job.label, (state.step - done) * lanes)
            done = state.step
            asked = hosts.highest(stop.signal if stop is not None else 0)
            if asked or timer.due(state.step) or state.step in (last_grid, plan.steps):
                seconds = round(spent + (time.perf_counter() - began) / len(self.units), 3)
                self._save(state, {"kept": timer.stays(state.step), "seconds": seconds})
                timer.saved(state.step)
            if asked and state.step < plan.steps:
                self._wait()
                raise Stopped(asked)

        compiled = compiled_chunk(self.program, *self.devices)
        state = run_chunks(self.program, state, hyper, data, chunk, plan.steps, between, compiled)
        self._wait()
        return {unit.name: _measured(self._arrays(state, i)) for i, unit in enumerate(self.units)}

    def _begin(self, saved: Sequence[Saved | None], batch: Sequence[Lane], hyper: Any, data: Any) -> RunState:
        """The state at the step where the units stand."""
        if saved[0] is not None:
            lanes = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(one.tree for one in saved))
            bins = [
                _bins(one.arrays, unit.size)
                for one, unit in zip(saved, self._filled(self.units, len(saved)), strict=True)
            ]
            joined = {n: Mean(*(np.concatenate(p) for p in zip(*(b[n] for b in bins), strict=True))) for n in bins[0]}
            return RunState(saved[0].step, put_lanes(lanes, self.devices.number, self.devices.parallel), joined)
        number = self.devices.number if self.devices.parallel == "lanes" else 1
        keys = put_lanes(lane_keys(tuple(batch)), self.devices.number, self.devices.parallel)
        lanes, bins = initial(self.program, keys, hyper, data, number), {}
        if self.plan.source is not None:
            earlier, bins = source_lanes(self.plan.source, [lane.seed for lane in batch], self.plan.experiment.task)
            lanes = continued(lanes, put_lanes(earlier, self.devices.number, self.devices.parallel))
        return RunState(self.plan.start, lanes, bins)

    def _save(self, state: RunState, note: dict[str, Any]) -> None:
        if not hosts.is_first():
            return
        lanes = own_copy(state.lanes)
        for i, (unit, store) in enumerate(zip(self.units, self.stores, strict=True)):
            if store is not None:
                part = jax.tree.map(lambda leaf, i=i, n=unit.size: leaf[i * n : (i + 1) * n], lanes)
                said = about(self.plan, self.job, unit, state.step) | note
                store.save(state.step, part, self._arrays(state, i), said)

    def _wait(self) -> None:
        for store in self.stores:
            if store is not None:
                store.wait()

    def _arrays(self, state: RunState, i: int) -> Arrays:
        """What unit `i` has measured so far, for its lanes alone."""
        unit = self.units[i]
        rows = slice(i * unit.size, i * unit.size + len(unit.lanes))
        arrays = {SUM + name: bins.sum[rows] for name, bins in state.bins.items()}
        arrays |= {COUNT + name: bins.count[rows] for name, bins in state.bins.items()}
        lanes = own_copy(state.lanes)
        arrays |= {"diverged": np.asarray(jax.vmap(self.program.diverged)(lanes))[rows]}
        return arrays | {name: values[rows] for name, values in _biographies(lanes).items()}

    @staticmethod
    def _filled(items: Sequence[Any], number: int) -> list[Any]:
        """As many as there are devices; the last one again where units are fewer."""
        return [*items, *[items[-1]] * (-len(items) % number)]


class _Timer:
    """When the next checkpoint is due."""

    def __init__(self, keeping: Keeping, step: int):
        self._keeping = keeping
        self.saved(step)

    def saved(self, step: int) -> None:
        self._step, self._time = step, time.monotonic()

    def stays(self, step: int) -> bool:
        """Whether the checkpoint of that step was asked to stay for good."""
        return step in self._keeping.at

    def due(self, step: int) -> bool:
        steps, seconds = self._keeping.every
        crossed = steps is not None and step // steps > self._step // steps
        return step in self._keeping.at or crossed or (seconds is not None and time.monotonic() - self._time >= seconds)


def _store(plan: Plan, unit: Unit, place: Place | None) -> Checkpoints | None:
    if place is None:
        return None
    keeping, last_grid = place.keeping, plan.steps - plan.steps % unit.chunk
    keep = None if keeping.keep is None else max(keeping.keep, 1)
    folder = place.folder / unit.name
    return Checkpoints(folder, keep, {*keeping.at, *_kept(folder), last_grid})


def _kept(folder: Path) -> set[int]:
    """The steps of a unit's checkpoints that were asked to stay for good, by whatever launch."""
    kept = set()
    for step in Checkpoints(folder).steps():
        with contextlib.suppress(InputError):
            if describe(folder / str(step))["about"].get("kept"):
                kept.add(step)
    return kept


def forget(folder: Path) -> None:
    """Remove the checkpoints of a label that is over, but those that were asked to stay for good."""
    stay = {unit.name: _kept(unit) for unit in folder.glob("*/")}
    if not any(stay.values()):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for name, steps in stay.items():
        for step in set(Checkpoints(folder / name).steps()) - steps:
            shutil.rmtree(folder / name / str(step), ignore_errors=True)


def _resumed(plan: Plan, unit: Unit, store: Checkpoints | None, program: Program, data: Any) -> Saved | None:
    """The newest good checkpoint from which the unit can go on exactly: at the end of a whole chunk, or at the end."""
    if store is None:
        return None

    def exact(step: int) -> bool:
        return step == plan.steps or (plan.start < step < plan.steps and step % unit.chunk == 0)

    saved = store.latest_good(abstract_lanes(program, plan.job(unit.label), unit, data), accept=exact)
    if saved is not None:
        _tell_versions(saved)
    return saved


def _tell_versions(saved: Saved) -> None:
    here, there = versions() | {"program": commit()}, saved.about["versions"] | {"program": saved.about["commit"]}
    differ = [f"{name} {there[name]}, now {here[name]}" for name in here if there.get(name, here[name]) != here[name]]
    if differ:
        print(f"warning: {saved.path} was written by another version ({'; '.join(differ)})", file=sys.stderr)


def about(plan: Plan, job: Job, unit: Unit, step: int) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return {
        "label": job.label,
        "unit": unit.name,
        "step": step,
        "steps": plan.steps,
        "settings": plan.settings(job),
        "lanes": [{"method": lane.method, "seed": lane.seed, "hyper": dict(lane.hyper)} for lane in unit.lanes],
        "lanes_per_batch": unit.size,
        "chunk": unit.chunk,
        "commit": commit(),
    }


def abstract_data(plan: Plan) -> Any:
    """Shapes of the data."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), load_data(plan))


def abstract_lanes(program: Program, job: Job, unit: Unit, data: Any) -> Any:
    """Shapes of a unit's lanes."""
    init = jax.vmap(program.init, in_axes=(0, 0, None))
    return jax.eval_shape(init, jax.eval_shape(lambda: lane_keys(unit.batch)), hyper_arrays(job, unit.batch), data)


def source_lanes(source: Source, seeds: Sequence[int], task: str) -> tuple[Any, dict[str, Mean]]:
    """The lanes of a source by seed, and what was measured in them so far; `task` as flags write it, with its data."""
    plan = resolve(dataclasses.replace(experiment_of(source.meta), branch_from="", task=task))
    job, wanted = plan.job(source.meta["label"]), set(seeds)
    program, data = job_program(plan, job), abstract_data(plan)
    found: dict[int, tuple[Any, dict[str, Mean]]] = {}
    lanes = [Lane(lane["method"], lane["seed"], lane["hyper"]) for lane in source.meta["lanes"]]
    for entry, folder in zip(source.meta["units"], unit_folders(source.folder, source.meta), strict=True):
        part, lanes = tuple(lanes[: entry["lanes"]]), lanes[entry["lanes"] :]
        if wanted.isdisjoint(lane.seed for lane in part):
            continue
        unit = Unit(job.label, part, entry["size"], entry["chunk"], entry["name"])
        saved = Checkpoints(folder).latest_good(abstract_lanes(program, job, unit, data), at=source.step)
        assert saved is not None, "checked when the source was found"
        bins = _bins(saved.arrays, len(part))
        for i, lane in enumerate(part):
            one = {name: Mean(b.sum[i], b.count[i]) for name, b in bins.items()}
            found[lane.seed] = (jax.tree.map(lambda leaf, i=i: leaf[i], saved.tree), one)
    chosen = [found[seed] for seed in seeds]
    joined = jax.tree.map(lambda *parts: jnp.stack(parts), *(lane for lane, _ in chosen))
    names = chosen[0][1]
    return joined, {n: Mean(*(np.stack(p) for p in zip(*(bins[n] for _, bins in chosen), strict=True))) for n in names}


def _bins(arrays: Arrays, lanes: int) -> dict[str, Mean]:
    """Sums and counts of `lanes` lanes out of a checkpoint's arrays; those that only fill up repeat the last one."""
    names = [name.removeprefix(SUM) for name in arrays if name.startswith(SUM)]

    def filled(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.repeat(values[-1:], lanes - len(values), axis=0)])

    return {name: Mean(filled(arrays[SUM + name]), filled(arrays[COUNT + name])) for name in names}


def _measured(arrays: Arrays) -> Arrays:
    """Means in place of sums and counts."""
    rest = {name: values for name, values in arrays.items() if not name.startswith((SUM, COUNT))}
    lanes = len(arrays["diverged"])
    return means(_bins(arrays, lanes)) | rest


def _biographies(lanes: Any) -> Arrays:
    """The arrays of the biography in the lanes' state, `{}` where there is none."""
    told = biography.find(lanes)
    if told is None:
        return {}
    found, age = told
    arrays = {"rows": found.rows, "written": found.written} | {f"age/{name}": values for name, values in age.items()}
    arrays |= {f"usefulness/{name}": counts for name, counts in found.usefulness.items()}
    return {PREFIX + name: np.asarray(values) for name, values in arrays.items()}


# Kept, so that the units of a job share what is compiled.
@functools.lru_cache(maxsize=2)
def program_of(plan: Plan, job: Job, axis_name: str | None = None) -> Program:
    """The job's program, the same object for the same plan."""
    return job_program(plan, job, axis_name)
