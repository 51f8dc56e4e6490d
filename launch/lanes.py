"""Programs of jobs, and work in units: how many lanes share a program, and for how many steps it runs at once.

Both are pure functions of program and backend, so that results can be repeated.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from launch.errors import InputError
from launch.experiment import Job, Lane, Plan
from launch.identity import digest_of
from launch.loop import LONGEST_CHUNK, common_divisor, measured
from launch.memory import Memory, device_budget, fitting, memory
from launch.methods import BuildContext, Number
from launch.programs import Program, supervised_program
from plastic_jax.convolutions import as_products
from plastic_jax.learners.supervised import SupervisedLearner, network_units
from plastic_jax.units import UnitGraph, jaxprs

# Largest number of parameters -> lanes per program. On CPUs vmap wins for tiny networks and loses for others.
CPU_LANES = ((5_000, 100), (math.inf, 1))
ACCELERATOR_LANES = ((5_000, 4096), (1_000_000, 128), (20_000_000, 16), (math.inf, 1))


# Seconds per lane-step on one CPU core: a start, and per parameter in and out of the cache (see results/benchmarks).
SECONDS_PER_STEP = 3e-7
SECONDS_PER_PARAMETER = 4e-10
SECONDS_PER_PARAMETER_FROM_MEMORY = 1.7e-9
CACHE_PARAMETERS = 500_000
SECONDS_PER_MULTIPLICATION = 1e-10  # of narrow convolutions, which are bound by memory; wide ones take a third
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


# Plans and jobs are equal to themselves only. Units of a job share what is compiled, and large networks are costly to
# ask again and again.
_KEPT = 16


def job_program(plan: Plan, job: Job, axis_name: str | None = None) -> Program:
    """The program of a job, the same object for the same job; with `axis_name`, of one device of several that share
    every batch.

    Raises:
        InputError: the network does not fit the task, or the method replaces units and the network's are not known.
    """
    return _job_program(plan, job, axis_name)


@functools.lru_cache(_KEPT)
def _job_program(plan: Plan, job: Job, axis_name: str | None) -> Program:
    shape = _one_input(plan)
    _parameters(plan, job)
    _check_dropout(job)
    if axis_name is not None:
        _check_shared_batches(plan, job)
    network = job.network.clone(axis_name=axis_name) if hasattr(job.network, "axis_name") else job.network
    units = _units(job, network, plan.task.spec.input_shape, axis_name)

    def init_params(key: jax.Array) -> Any:
        return network.init(key, jax.numpy.zeros(shape.shape))["params"]

    learner = SupervisedLearner(
        network=network,
        input_shape=plan.task.spec.input_shape,
        loss=plan.task.spec.loss,
        transformation=lambda hyper, key: job.method.build(
            hyper, job.static, BuildContext(units, init_params, key, axis_name)
        ),
        units=units,
        restart=job.method.restart,
        restart_all=job.static.get("restart_all", True),
        head=_head(plan, job),
        fresh_head=job.method.fresh_head,
        selects=plan.task.selects,
        dropout=job.method.dropout,
        transform=_layout(plan, job),
        probe_in_training=plan.task.probe_in_training,
        ordered=not job.method.needs_units,
        axis_name=axis_name,
    )
    return supervised_program(plan.task, learner, plan.bin)


def _check_dropout(job: Job) -> None:
    network = type(job.network)
    if job.method.dropout and "dropout_rate" not in inspect.signature(network.__call__).parameters:
        raise InputError(
            f"--network: {job.method.name} needs a network with an argument dropout_rate, {network.__name__} has none"
        )


def _check_shared_batches(plan: Plan, job: Job) -> None:
    collections = jax.eval_shape(job.network.init, _key(), _one_input(plan))
    if "batch_stats" in collections and not hasattr(job.network, "axis_name"):
        raise InputError(
            f"--parallel=batch: {type(job.network).__name__} normalises by batch and has no field axis_name, so that "
            "every device would normalise by its own part"
        )


def _head(plan: Plan, job: Job) -> str | None:
    """The name of the network's output layer; `None` where nothing ever resets it."""
    if not (plan.task.resets_head or job.method.fresh_head):
        return None
    head = getattr(job.network, "head", None)
    if head not in _parameters(plan, job):
        raise InputError(
            f"--network: {type(job.network).__name__} does not say which layer its outputs come from, and the output "
            "layer is reset: give it a property 'head', the name of that layer's parameters"
        )
    return head


def _layout(plan: Plan, job: Job) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """How convolutions are computed: as the network has them, or on CPUs as matrix products."""
    convolves = forward_multiplications(plan, job).get("conv_general_dilated", 0) > 0
    return as_products if convolves and jax.default_backend() == "cpu" else _as_it_is


def _as_it_is(apply: Callable[..., Any]) -> Callable[..., Any]:
    return apply


@functools.lru_cache(_KEPT)
def forward_multiplications(plan: Plan, job: Job) -> dict[str, int]:
    """Multiply-adds of the network for one input, in dense layers and in convolutions."""
    _parameters(plan, job)
    shapes = _key(), _one_input(plan)
    variables = jax.eval_shape(job.network.init, *shapes)
    return jaxprs.multiplications(jaxprs.trace(job.network.apply, variables, shapes[1])[0])


def _units(job: Job, network: nn.Module, input_shape: tuple[int, ...], axis_name: str | None) -> UnitGraph | None:
    """The network's units; `None` where they cannot be found and the method does without."""
    try:
        units = network_units(network, input_shape, axis_name)
    except NotImplementedError as error:
        if job.method.needs_units:
            raise InputError(f"--network: {job.method.name} needs the units of the network; {error}") from None
        return None
    if job.method.needs_units and not units.groups:
        raise InputError(f"--network: {job.method.name} replaces hidden units; {type(job.network).__name__} has none")
    pattern = job.static.get("leave_out", "nothing")
    try:
        return units if pattern == "nothing" else units.without(pattern)
    except ValueError as error:
        raise InputError(f"{job.label}: leave_out: {error}") from None


def load_data(plan: Plan) -> Any:
    """The task's data.

    Raises:
        InputError: they are missing or unreadable.
    """
    try:
        return plan.task.load()
    except (OSError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from None


@functools.lru_cache(maxsize=2)
def data_digest(plan: Plan) -> str:
    """SHA-256 of the task's data, by which a run knows whether it still sees the same; empty where there are none."""
    return digest_of(load_data(plan))


def parameter_count(plan: Plan, job: Job) -> int:
    """Number of parameters of one lane's network."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_parameters(plan, job)))


def metric_names(plan: Plan, job: Job) -> list[str]:
    """What a job will measure; nothing is compiled."""
    program = job_program(plan, job)
    carry, hyper, data = abstract_carry(plan, job)
    return measured(program, carry, hyper, data)


@functools.lru_cache(_KEPT)
def abstract_carry(plan: Plan, job: Job) -> tuple[Any, Any, Any]:
    """Shapes of one lane's carry, of its numbers, and of the data."""
    data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), load_data(plan))
    hyper = {name: jax.ShapeDtypeStruct((), _dtype(number)) for name, number in job.method.numbers.items()}
    return jax.eval_shape(job_program(plan, job).init, _key(), hyper, data), hyper, data


def state_bytes(plan: Plan, job: Job) -> int:
    """Bytes of one lane's state."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_carry(plan, job)[0]))


def lane_memory(plan: Plan, job: Job) -> Memory:
    """The memory that a job takes on a device; nothing is compiled."""
    return memory(job_program(plan, job), *abstract_carry(plan, job))


def hyper_arrays(job: Job, lanes: Sequence[Lane]) -> dict[str, np.ndarray]:
    """The lanes' numbers by name, `[lane]`."""
    return {
        name: np.asarray([lane.hyper[name] for lane in lanes]).astype(_dtype(number))
        for name, number in job.method.numbers.items()
    }


def _dtype(number: Number) -> Any:
    return np.int32 if number.integer else np.float32


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _one_input(plan: Plan) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *plan.task.spec.input_shape), jax.numpy.float32)


@functools.lru_cache(_KEPT)
def _parameters(plan: Plan, job: Job) -> Any:
    try:
        output, variables = jax.eval_shape(job.network.init_with_output, _key(), _one_input(plan))
        params = variables.get("params", {})
    except Exception as error:  # whatever a network of one's own raises on these inputs
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"--network: {type(job.network).__name__} fails on inputs {_one_input(plan).shape}: {reason}"
        ) from error
    wanted = (1, plan.task.spec.outputs)
    if getattr(output, "shape", None) != wanted:
        got = getattr(output, "shape", type(output).__name__)
        raise InputError(f"--network: {type(job.network).__name__} gives {got}, the task needs {wanted}")
    return params


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
    schedule = plan.task.schedule
    periods = (plan.bin, schedule.probe_every, schedule.evaluate_every)
    if plan.experiment.chunk is not None:
        return common_divisor(periods, plan.experiment.chunk)
    speed = 1.0 if backend == "cpu" else ACCELERATOR_SPEED
    seconds = seconds_per_step(plan, job) * size / speed
    return common_divisor(periods, min(LONGEST_CHUNK, max(1, int(LONGEST_CHUNK_SECONDS / seconds))))


def seconds_per_step(plan: Plan, job: Job) -> float:
    """Estimated seconds per lane and step on one CPU core."""
    parameters, multiplications = parameter_count(plan, job), sum(forward_multiplications(plan, job).values())
    rate = SECONDS_PER_PARAMETER if parameters <= CACHE_PARAMETERS else SECONDS_PER_PARAMETER_FROM_MEMORY
    # The backward pass has twice the multiplications of the forward pass.
    of_example = SECONDS_PER_STEP + max(rate * parameters, 3 * SECONDS_PER_MULTIPLICATION * multiplications)
    return of_example * plan.task.spec.batch
