"""How many lanes share a compiled program: a pure function of program and backend, so that results can be repeated."""

import dataclasses
import math
from typing import Any

import jax

from launch.experiment import Job, Plan
from launch.programs import Program, supervised_program
from launch.methods import BuildContext
from launch.errors import InputError
from plastic_jax.learners.supervised import SupervisedLearner
from plastic_jax.networks import MLP
from plastic_jax.units import mlp_units

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
        InputError: the method replaces units and the network's are not known.
    """
    shape = jax.ShapeDtypeStruct((1, *plan.task.spec.input_shape), jax.numpy.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(job.network.init, key, shape)["params"]
    units = mlp_units(job.network, params) if isinstance(job.network, MLP) else None
    if job.method.needs_units and units is None:
        raise InputError(f"--network: {job.method.name} needs the units of the network; known for: mlp")

    def init_params(key: jax.Array) -> Any:
        return job.network.init(key, jax.numpy.zeros(shape.shape))["params"]

    learner = SupervisedLearner(
        network=job.network,
        input_shape=plan.task.spec.input_shape,
        loss=plan.task.spec.loss,
        transformation=lambda hyper, key: job.method.build(hyper, job.static, BuildContext(units, init_params, key)),
        units=units,
        restart=job.method.restart,
    )
    return supervised_program(plan.task, learner, plan.bin)


def parameter_count(plan: Plan, job: Job) -> int:
    """Number of parameters of one lane's network."""
    shape = jax.ShapeDtypeStruct((1, *plan.task.spec.input_shape), jax.numpy.float32)
    params = jax.eval_shape(job.network.init, jax.eval_shape(lambda: jax.random.key(0)), shape)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


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
