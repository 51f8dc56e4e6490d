"""Checkpoint policy: when to save and what to keep; and what the last checkpoint of a unit of work says."""

import contextlib
import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch.config.experiment import Job, Plan, lane_keys
from launch.config.syntax import Every
from launch.engine.build import hyper_arrays, load_data
from launch.engine.lane_program import Program
from launch.engine.unit_of_work import Unit
from launch.errors import InputError
from launch.storage.bins import Arrays, measured
from launch.storage.checkpoint import Checkpoints, describe

TEN_MINUTES = Every(seconds=600.0)


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
    """When checkpoints are written, and which stay; the last step's always is.

    Attributes:
        every: how often.
        keep: how many of the newest stay, `None` for all; 0 keeps none once the run is over.
        at: steps whose checkpoints stay for good.
    """

    every: Every = TEN_MINUTES
    keep: int | None = 2
    at: tuple[int, ...] = ()


DEFAULT = CheckpointPolicy()


class Place(NamedTuple):
    """Where the units of a label keep their checkpoints, and how."""

    folder: Path
    policy: CheckpointPolicy = DEFAULT


class Timer:
    """When the next checkpoint is due."""

    def __init__(self, policy: CheckpointPolicy, step: int):
        self._policy = policy
        self.saved(step)

    def saved(self, step: int) -> None:
        """Count from this step and from now on."""
        self._step, self._time = step, time.monotonic()

    def stays(self, step: int) -> bool:
        """Whether the checkpoint of that step was asked to stay for good."""
        return step in self._policy.at

    def due(self, step: int) -> bool:
        """Whether one is to be written at that step."""
        steps, seconds = self._policy.every
        crossed = steps is not None and step // steps > self._step // steps
        return step in self._policy.at or crossed or (seconds is not None and time.monotonic() - self._time >= seconds)


def store_of(plan: Plan, unit: Unit, place: Place) -> Checkpoints:
    """The checkpoints of a unit, of which those stay that were asked for, by this launch or an earlier one."""
    policy, last_grid = place.policy, plan.steps - plan.steps % unit.chunk
    keep = None if policy.keep is None else max(policy.keep, 1)
    folder = place.folder / unit.name
    return Checkpoints(folder, keep, {*policy.at, *_kept(folder), last_grid})


def ended(plan: Plan, unit: Unit, folder: Path) -> bool:
    """Whether a unit has a checkpoint of the last step, good or damaged; `folder` holds its label's checkpoints."""
    return plan.steps in Checkpoints(folder / unit.name).steps()


def finished(plan: Plan, unit: Unit, folder: Path) -> Arrays | None:
    """What a unit has measured, where it is over and its last checkpoint is good; nothing is computed."""
    arrays = Checkpoints(folder / unit.name).arrays(plan.steps)
    return None if arrays is None else measured(arrays)


def said_at_the_end(plan: Plan, unit: Unit, folder: Path) -> dict[str, Any]:
    """What the last checkpoint of a unit that is over says of itself: `seconds` in all launches, `commit`, ..."""
    return describe(folder / unit.name / str(plan.steps))["about"]


def forget(folder: Path) -> None:
    """Remove the checkpoints of a label that is over, but those that were asked to stay for good."""
    stay = {unit.name: _kept(unit) for unit in folder.glob("*/")}
    if not any(stay.values()):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for name, steps in stay.items():
        for step in set(Checkpoints(folder / name).steps()) - steps:
            shutil.rmtree(folder / name / str(step), ignore_errors=True)


def _kept(folder: Path) -> set[int]:
    """The steps of a unit's checkpoints that were asked to stay for good, by whatever launch."""
    kept = set()
    for step in Checkpoints(folder).steps():
        with contextlib.suppress(InputError):
            if describe(folder / str(step))["about"].get("kept"):
                kept.add(step)
    return kept


def abstract_data(plan: Plan) -> Any:
    """Shapes of the data."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), load_data(plan))


def abstract_lanes(program: Program, job: Job, unit: Unit, data: Any) -> Any:
    """Shapes of a unit's lanes, as its checkpoints hold them."""
    init = jax.vmap(program.init, in_axes=(0, 0, None))
    return jax.eval_shape(init, jax.eval_shape(lambda: lane_keys(unit.batch)), hyper_arrays(job, unit.batch), data)
