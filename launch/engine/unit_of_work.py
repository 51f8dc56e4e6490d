"""Work in units: how many lanes share a program, and for how many steps it runs at once.

Both are pure functions of program and backend, so that results can be repeated.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence

from launch.config.experiment import Job, Lane, Plan
from launch.engine.build import forward_multiplications, lane_memory, parameter_count
from launch.engine.loop import LONGEST_CHUNK, common_divisor
from launch.engine.memory import device_budget, fitting

# Largest number of parameters -> lanes per program. On CPUs vmap wins for tiny networks and loses for others.
CPU_LANES = ((5_000, 100), (math.inf, 1))
ACCELERATOR_LANES = ((5_000, 4096), (1_000_000, 128), (20_000_000, 16), (math.inf, 1))


# Seconds per lane-step on one CPU core: a start, and per parameter in and out of the cache (see results/benchmarks).
SECONDS_PER_STEP = 3e-7
SECONDS_PER_PARAMETER = 4e-10
SECONDS_PER_PARAMETER_FROM_MEMORY = 1.7e-9
CACHE_PARAMETERS = 500_000
SECONDS_PER_MULTIPLICATION = 1e-10  # of narrow convolutions, which are bound by memory; wide ones take a third
SECONDS_PER_DENSE_MULTIPLICATION = 2e-11  # of dense layers, in minibatches
SECONDS_OF_PHYSICS = 8e-5
# Python looks up between chunks only: for signals, clocks and checkpoints.
LONGEST_CHUNK_SECONDS = 3.0
ACCELERATOR_SPEED = 50.0


@dataclasses.dataclass(frozen=True)
class Unit:
    """Work for one process: some lanes of a job, run as `size` lanes of one program; the atom of resume and of sweeps.

    Attributes:
        label: the job.
        lanes: the runs, at most `size`; the batch is filled up with copies of the last one, which are thrown away.
        size: lanes in the compiled program.
        chunk: steps in one compiled call.
        name: 12 hexadecimal digits, a hash of all that decides its numbers but its length.
    """

    label: str
    lanes: tuple[Lane, ...]
    size: int
    chunk: int
    name: str

    @property
    def batch(self) -> tuple[Lane, ...]:
        """The lanes, filled up."""
        return self.lanes + (self.lanes[-1],) * (self.size - len(self.lanes))


def lanes_per_batch(parameters: int, backend: str) -> int:
    """Lanes that share one compiled program, by the committed table."""
    table = CPU_LANES if backend == "cpu" else ACCELERATOR_LANES
    return next(lanes for limit, lanes in table if parameters <= limit)


def units_of(plan: Plan, job: Job, backend: str, lanes: Sequence[Lane] | None = None, parts: int = 1) -> list[Unit]:
    """The job's lanes (or those given) in batches of equal size, at least `parts` of them where lanes are enough."""
    lanes = job.lanes if lanes is None else tuple(lanes)
    if not lanes:
        return []
    most = plan.experiment.lanes_per_batch or lanes_per_batch(parameter_count(plan, job), backend)
    if plan.experiment.lanes_per_batch is None and backend != "cpu":
        most = fitting(most, device_budget(), lane_memory(plan, job))
    if plan.experiment.lanes_per_batch is None:
        most = min(most, -(-len(lanes) // parts))
    size = -(-len(lanes) // -(-len(lanes) // most))
    chunk = chunk_of(plan, job, size, backend)
    batches = [tuple(lanes[start : start + size]) for start in range(0, len(lanes), size)]
    return [unit_of(plan, job, batch, size, chunk) for batch in batches]


def unit_of(plan: Plan, job: Job, lanes: tuple[Lane, ...], size: int, chunk: int) -> Unit:
    """A unit with its name."""
    settings = {name: value for name, value in plan.settings(job).items() if name != "steps"}
    numbers = [[lane.method, lane.seed, sorted(lane.hyper.items())] for lane in lanes]
    text = json.dumps([job.label, settings, numbers, size, chunk], sort_keys=True, default=str)
    return Unit(job.label, lanes, size, chunk, hashlib.sha256(text.encode()).hexdigest()[:12])


def chunk_of(plan: Plan, job: Job, size: int, backend: str) -> int:
    """Steps in one compiled call of `size` lanes: what was asked for, or what takes a few seconds at most."""
    if plan.experiment.chunk is not None:
        return common_divisor(plan.periods, plan.experiment.chunk, plan.stride)
    speed = 1.0 if backend == "cpu" else ACCELERATOR_SPEED
    seconds = seconds_per_step(plan, job) * size / speed
    longest = min(LONGEST_CHUNK * plan.stride, max(1, int(LONGEST_CHUNK_SECONDS / seconds)))
    return common_divisor(plan.periods, longest, plan.stride)


def seconds_per_step(plan: Plan, job: Job) -> float:
    """Estimated seconds per lane and step on one CPU core."""
    multiplications = sum(forward_multiplications(plan, job).values())
    if plan.learner is not None:
        return SECONDS_OF_PHYSICS + 3 * SECONDS_PER_DENSE_MULTIPLICATION * multiplications * plan.learner.epochs
    parameters = parameter_count(plan, job)
    rate = SECONDS_PER_PARAMETER if parameters <= CACHE_PARAMETERS else SECONDS_PER_PARAMETER_FROM_MEMORY
    # The backward pass has twice the multiplications of the forward pass.
    of_example = SECONDS_PER_STEP + max(rate * parameters, 3 * SECONDS_PER_MULTIPLICATION * multiplications)
    return of_example * plan.task.spec.batch
