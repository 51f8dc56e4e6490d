"""Running units of work from where they stand to their end: resume, chunks, checkpoints, the signal to stop."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.config.experiment import Job, Lane, Plan, lane_keys
from launch.engine import hosts
from launch.engine.build import hyper_arrays, job_program, load_data
from launch.engine.checkpoint_policy import CheckpointPolicy, Place, Timer, abstract_lanes, store_of
from launch.engine.devices import ONE_DEVICE, Devices, Parallel, part, put_data, put_lanes, put_state
from launch.engine.lane_program import Program, continued
from launch.engine.loop import RunState, compiled_chunk, initial, run_chunks
from launch.engine.processes import Log, Report
from launch.engine.resume import entries_of
from launch.engine.sinks import Curves
from launch.engine.source_lanes import source_lanes
from launch.engine.stopping import Stop, Stopped
from launch.engine.unit_of_work import Unit
from launch.storage.bins import Arrays, joined, measured, packed, unpacked
from launch.storage.checkpoint import Checkpoints, Saved, format_versions
from launch.storage.locks import LOCK, locked
from launch.storage.machine import commit
from launch.storage.replacements import PREFIX
from plastic_jax.replacement import replacement_log


def run_units(
    plan: Plan,
    units: Sequence[Unit],
    place: Place,
    devices: Devices = ONE_DEVICE,
    stop: Stop | None = None,
    report: Report | None = None,
    log: Log | None = None,
) -> list[Arrays]:
    """Run units of one label, at most one a device, from their newest good checkpoints to the end of the run.

    Returns:
        Per unit `[lane, bin]` per metric, `diverged` bool `[lane]`, and the replacement log if any.

    Raises:
        Stopped: `stop` was requested; checkpoints have been written.
        TakenError: another process runs one of the units.
        StorageError: a checkpoint could not be written.
        InputError: no checkpoint of a unit that has some is readable, or they are of another structure.
    """
    job = plan.job(units[0].label)
    program = job_program(plan, job, devices.axis_name)
    stores = [store_of(plan, unit, place) for unit in units]
    with contextlib.ExitStack() as locks:
        for store in stores if hosts.is_first() else ():
            locks.enter_context(locked(store.folder / LOCK))
        data = put_data(load_data(plan), devices.number)
        saved: list[Saved | None] = [_resumed(plan, *pair, program, data) for pair in zip(units, stores, strict=True)]
        steps = [one.step if one else plan.start for one in saved]
        found: dict[str, Arrays] = {}
        for step in sorted(set(steps)):
            alike = [i for i, other in enumerate(steps) if other == step]
            together = _SideBySide(plan, job, program, [units[i] for i in alike], [stores[i] for i in alike], devices)
            begun = together.begin([saved[i] for i in alike], data)
            for i in alike:
                saved[i] = None  # their state is on the devices now, and the host's memory free for other things
            found |= together.run(begun, data, place.policy, stop, report, log)
    return [found[unit.name] for unit in units]


class _Begun(NamedTuple):
    """Where units stand: their state, their lanes' numbers on the devices, and the seconds spent on each so far."""

    state: RunState
    hyper: Any
    seconds: float


@dataclasses.dataclass(frozen=True)
class _SideBySide:
    """Units that stand at the same step, run at once, each on a device of its own or one on all of them."""

    plan: Plan
    job: Job
    program: Program
    units: Sequence[Unit]
    stores: Sequence[Checkpoints]
    devices: Devices

    def begin(self, saved: Sequence[Saved | None], data: Any) -> _Begun:
        """From the checkpoints, or from the plan's start, onto the devices."""
        first = saved[0]
        batch = [lane for unit in self._filled(self.units) for lane in unit.batch]
        hyper = put_lanes(hyper_arrays(self.job, batch), *self._layout)
        if first is None:
            return _Begun(self._anew(batch, hyper, data), hyper, 0.0)
        every = self._filled([one for one in saved if one is not None])
        lanes = jax.tree.map(lambda *parts: np.concatenate(parts), *(one.tree for one in every))
        sizes = [unit.size for unit in self._filled(self.units)]
        bins = joined([unpacked(one.arrays, size) for one, size in zip(every, sizes, strict=True)])
        state = RunState(first.step, put_state(lanes, first.keys, *self._layout), bins)
        return _Begun(state, hyper, first.about.get("seconds", 0.0))

    def _anew(self, batch: Sequence[Lane], hyper: Any, data: Any) -> RunState:
        keys = put_lanes(lane_keys(tuple(batch)), *self._layout)
        lanes, bins = initial(self.program, keys, hyper, data, self.devices.abreast), {}
        if self.plan.source is not None:
            earlier = source_lanes(self.plan.source, [lane.seed for lane in batch], self.plan.experiment.task)
            network = put_state(earlier.tree, earlier.keys, *self._layout)
            lanes, bins = continued(self.program, lanes, network), earlier.bins
        return RunState(self.plan.start, lanes, bins)

    def run(
        self,
        begun: _Begun,
        data: Any,
        policy: CheckpointPolicy,
        stop: Stop | None,
        report: Report | None,
        log: Log | None,
    ) -> dict[str, Arrays]:
        """To the end; what was measured, by unit."""
        plan, chunk, lanes = self.plan, self.units[0].chunk, sum(len(unit.lanes) for unit in self.units)
        last_grid, done = plan.steps - plan.steps % chunk, begun.state.step
        hosts.check_equal("checkpoints", [done])
        report = report or (lambda label, lane_steps: None)
        report(self.job.label, (done - plan.start) * lanes)
        timer, start = Timer(policy, done), time.perf_counter()
        curves = [Curves(plan, self.job, unit, i * unit.size, done) for i, unit in enumerate(self.units)] if log else []

        def between(state: RunState) -> None:
            nonlocal done
            report(self.job.label, (state.step - done) * lanes)
            done = state.step
            for one in curves:
                one.send(state.step, state.bins, log)
            asked = hosts.highest(stop.signal if stop is not None else 0)
            if asked or timer.due(state.step) or state.step in (last_grid, plan.steps):
                seconds = round(begun.seconds + (time.perf_counter() - start) / len(self.units), 3)
                self._save(state, {"kept": timer.stays(state.step), "seconds": seconds})
                timer.saved(state.step)
            if asked and state.step < plan.steps:
                self._wait()
                raise Stopped(asked)

        compiled = compiled_chunk(self.program, *self._layout)
        state = run_chunks(self.program, begun.state, begun.hyper, data, chunk, plan.steps, between, compiled)
        self._wait()
        return {unit.name: measured(self._arrays(state, i)) for i, unit in enumerate(self.units)}

    def _save(self, state: RunState, note: dict[str, Any]) -> None:
        if not hosts.is_first():
            return
        for i, (unit, store) in enumerate(zip(self.units, self.stores, strict=True)):
            said = about(self.plan, self.job, unit, state.step) | note
            store.save(state.step, part(state.lanes, i, *self._layout), self._arrays(state, i), said)

    def _wait(self) -> None:
        for store in self.stores:
            store.wait()

    def _arrays(self, state: RunState, i: int) -> Arrays:
        """What unit `i` has measured so far, for its lanes alone."""
        unit, lanes = self.units[i], part(state.lanes, i, *self._layout)
        own = slice(0, len(unit.lanes))
        arrays = packed(state.bins, slice(i * unit.size, i * unit.size + len(unit.lanes)))
        arrays |= {"diverged": np.asarray(jax.vmap(self.program.diverged)(lanes))[own]}
        return arrays | {name: values[own] for name, values in _replacement_log(lanes).items()}

    @property
    def _layout(self) -> tuple[int, Parallel]:
        return self.devices.number, self.devices.parallel

    def _filled(self, items: Sequence[Any]) -> list[Any]:
        """As many as there are places side by side; the last one again where units are fewer."""
        return [*items, *[items[-1]] * (-len(items) % self.devices.abreast)]


def _resumed(plan: Plan, unit: Unit, store: Checkpoints, program: Program, data: Any) -> Saved | None:
    """The newest good checkpoint from which the unit can go on exactly: at the end of a whole chunk, or at the end."""

    def exact(step: int) -> bool:
        return step == plan.steps or (plan.start < step < plan.steps and step % unit.chunk == 0)

    saved = store.latest_good(abstract_lanes(program, plan.job(unit.label), unit, data), accept=exact)
    if saved is not None:
        _tell_versions(saved)
    return saved


def _tell_versions(saved: Saved) -> None:
    here = format_versions() | {"program": commit()}
    there = saved.about["versions"] | {"program": saved.about["commit"]}
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
        "lanes": entries_of(unit.lanes),
        "lanes_per_batch": unit.size,
        "chunk": unit.chunk,
        "commit": commit(),
    }


def _replacement_log(lanes: Any) -> Arrays:
    """The arrays of the replacement log in the lanes' state, `{}` where there is none."""
    told = replacement_log.find(lanes)
    if told is None:
        return {}
    found, age = told
    arrays = {"rows": found.rows, "written": found.written} | {f"age/{name}": values for name, values in age.items()}
    arrays |= {f"usefulness/{name}": counts for name, counts in found.usefulness.items()}
    return {PREFIX + name: np.asarray(values) for name, values in arrays.items()}
