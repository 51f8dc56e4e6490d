"""How many lanes share a compiled program: a pure function of program and backend, so that results can be repeated."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from launch.errors import InputError
from launch.experiment import Job, Lane, Plan
from launch.loop import measured
from launch.methods import BuildContext, Number
from launch.programs import Program, supervised_program
from plastic_jax.learners.supervised import SupervisedLearner
from plastic_jax.units import UnitGraph, trace_units

# Largest number of parameters -> lanes per program. On CPUs vmap wins for tiny networks and loses for others.
CPU_LANES = ((5_000, 100), (math.inf, 1))
ACCELERATOR_LANES = ((5_000, 4096), (1_000_000, 128), (20_000_000, 16), (math.inf, 1))


@dataclasses.dataclass(frozen=True)
class Unit:
    """Work for one process: lanes `start` to `stop` of the job `label`, run as `size` lanes."""

    label: str
    start: int
    stop: int
    size: int


def job_program(plan: Plan, job: Job) -> Program:
    """The program of a job.

    Raises:
        InputError: the network does not fit the task, or the method replaces units and the network's are not known.
    """
    shape = _one_input(plan)
    params = _parameters(plan, job)
    units = _units(job, params, shape)

    def init_params(key: jax.Array) -> Any:
        return job.network.init(key, jax.numpy.zeros(shape.shape))["params"]

    learner = SupervisedLearner(
        network=job.network,
        input_shape=plan.task.spec.input_shape,
        loss=plan.task.spec.loss,
        transformation=lambda hyper, key: job.method.build(hyper, job.static, BuildContext(units, init_params, key)),
        units=units,
        restart=job.method.restart,
        ordered=not job.method.needs_units,
    )
    return supervised_program(plan.task, learner, plan.bin)


def _units(job: Job, params: Any, x: jax.ShapeDtypeStruct) -> UnitGraph | None:
    """The network's units; `None` where they cannot be found and the method does without."""
    try:
        units = trace_units(lambda params, x: job.network.apply({"params": params}, x), params, x)
    except NotImplementedError as error:
        if job.method.needs_units:
            raise InputError(f"--network: {job.method.name} needs the units of the network; {error}") from None
        return None
    if job.method.needs_units and not units.groups:
        raise InputError(f"--network: {job.method.name} replaces hidden units; {type(job.network).__name__} has none")
    return units


def load_data(plan: Plan) -> Any:
    """The task's data.

    Raises:
        InputError: they are missing or unreadable.
    """
    try:
        return plan.task.load()
    except (OSError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from None


def parameter_count(plan: Plan, job: Job) -> int:
    """Number of parameters of one lane's network."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_parameters(plan, job)))


def metric_names(plan: Plan, job: Job) -> list[str]:
    """What a job will measure; nothing is compiled."""
    program = job_program(plan, job)
    carry, hyper, data = abstract_carry(plan, job)
    return measured(program, carry, hyper, data)


def abstract_carry(plan: Plan, job: Job) -> tuple[Any, Any, Any]:
    """Shapes of one lane's carry, of its numbers, and of the data."""
    data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), load_data(plan))
    hyper = {name: jax.ShapeDtypeStruct((), _dtype(number)) for name, number in job.method.numbers.items()}
    return jax.eval_shape(job_program(plan, job).init, _key(), hyper, data), hyper, data


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


def units_of(plan: Plan, job: Job, backend: str) -> list[Unit]:
    """The job's lanes in batches of equal size; the last one is filled up with copies that are thrown away."""
    most = plan.experiment.lanes_per_batch or lanes_per_batch(parameter_count(plan, job), backend)
    total = len(job.lanes)
    batches = -(-total // most)
    size = -(-total // batches)
    return [Unit(job.label, start, min(start + size, total), size) for start in range(0, total, size)]
