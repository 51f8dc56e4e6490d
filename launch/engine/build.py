"""Building the program of a job from task, network, method and learner; and what is known of it uncompiled."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from launch.config.experiment import Job, Lane, Plan
from launch.config.hyperparameters import Hyperparameter
from launch.config.methods import BuildContext
from launch.engine.lane_program import Program, acting, ppo_program, supervised_program
from launch.engine.loop import measured
from launch.engine.memory import Memory, memory
from launch.errors import InputError
from launch.storage.leaves import digest_of
from plastic_jax.learners.ppo import PPO, initial_memory, ppo_units
from plastic_jax.learners.supervised import SupervisedLearner, network_units
from plastic_jax.networks.convolutions import as_products
from plastic_jax.optimizers.curvature import local_curvature
from plastic_jax.units import UnitGraph, jaxprs
from tasks.base import Environment, Task

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
    return (_supervised if plan.learner is None else _acting)(plan, job, axis_name)


def _supervised(plan: Plan, job: Job, axis_name: str | None) -> Program:
    task = plan.task
    assert isinstance(task, Task)
    _parameters(plan, job)
    _check_dropout(job)
    if job.method.normalise_inputs and task.spec.input_type != "float32":
        raise InputError(f"--methods: {job.label} normalises inputs, and those of {plan.spec.name} are tokens")
    if axis_name is not None:
        _check_shared_batches(plan, job)
    network = job.network.clone(axis_name=axis_name) if hasattr(job.network, "axis_name") else job.network
    _check_curvature(plan, job, network, axis_name)
    units = _network_units(plan, job, network, axis_name)
    learner = SupervisedLearner(
        network=network,
        input_shape=task.spec.input_shape,
        loss=task.spec.loss,
        transformation=_transformation(plan, job, network, units, axis_name),
        units=units,
        restart=job.method.restart,
        restart_all=job.static.get("restart_all", True),
        head=_head(task, plan, job),
        fresh_head=job.method.fresh_head,
        normalise_inputs=job.method.normalise_inputs,
        selects=task.selects,
        dropout=job.method.dropout,
        transform=_layout(plan, job),
        probe_in_training=task.probe_in_training,
        ordered=not job.method.needs_units,
        axis_name=axis_name,
        feature_gradients=job.method.needs_feature_gradients,
        input_type=task.spec.input_type,
        curvature="curvature" in job.method.needs,
        hvp="hvp" in job.method.needs,
    )
    return supervised_program(task, learner, plan.bin)


def _acting(plan: Plan, job: Job, axis_name: str | None) -> Program:
    task = plan.task
    assert isinstance(task, Environment) and plan.learner is not None and axis_name is None
    if len(task.spec.input_shape) != 1:
        raise InputError(
            f"--task: {plan.spec.name} has observations {task.spec.input_shape}; PPO takes those of one axis"
        )
    _parameters(plan, job)
    _check_curvature(plan, job, job.network, None)
    units = _network_units(plan, job, job.network, None)
    transformation = _transformation(plan, job, job.network, units, None)
    settings = plan.learner
    if job.method.normalise_inputs:
        settings = dataclasses.replace(settings, normalise_observations=True)
    try:
        learner = PPO(
            job.network,
            acting(task),
            transformation,
            settings,
            units,
            restart=job.method.restart,
            restart_all=job.static.get("restart_all", True),
            feature_gradients=job.method.needs_feature_gradients,
            curvature="curvature" in job.method.needs,
            hvp="hvp" in job.method.needs,
        )
    except ValueError as error:
        raise InputError(f"--learner: {error}") from None
    return ppo_program(task, learner, plan.bin)


def _transformation(
    plan: Plan, job: Job, network: nn.Module, units: UnitGraph | None, axis_name: str | None
) -> Callable[..., Any]:
    one = _one_input(plan)

    def init_params(key: jax.Array) -> Any:
        return network.init(key, jax.numpy.zeros(one.shape, one.dtype))["params"]

    return lambda hyper, key: job.method.build(hyper, job.static, BuildContext(units, init_params, key, axis_name))


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


def _check_curvature(plan: Plan, job: Job, network: nn.Module, axis_name: str | None) -> None:
    """What the optimizer is told of the loss's curvature can be had."""
    if axis_name is not None and job.method.needs & {"curvature", "hvp"}:
        raise InputError(f"--parallel=batch: optimizer={job.method.optimizer} needs the whole batch on one device")
    if "curvature" not in job.method.needs:
        return

    def curvature(key: Any, x: Any) -> Any:
        variables = network.init(key, x)
        return local_curvature(
            lambda params, x: network.apply({**variables, "params": params}, x), variables["params"], x
        )

    try:
        jax.eval_shape(curvature, _key(), _one_input(plan))
    except NotImplementedError as error:
        raise InputError(f"--network: optimizer={job.method.optimizer} reads its program; {error}") from None


def _head(task: Task, plan: Plan, job: Job) -> str | None:
    """The name of the network's output layer; `None` where nothing ever resets it."""
    if not (task.resets_head or job.method.fresh_head):
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


@functools.lru_cache(_KEPT)
def group_widths(plan: Plan, job: Job) -> dict[str, int]:
    """Units by group that a method may replace; empty for one that replaces none. Nothing is compiled."""
    units = _network_units(plan, job, job.network, None) if job.method.needs_units else None
    return {} if units is None else {group.name: group.width for group in units.groups}


def _network_units(plan: Plan, job: Job, network: nn.Module, axis_name: str | None) -> UnitGraph | None:
    """The network's units; `None` where they cannot be found and the method does without."""
    shape = plan.task.spec.input_shape
    if plan.learner is None:
        find = functools.partial(network_units, network, shape, axis_name, _one_input(plan).dtype)
    else:
        find = functools.partial(ppo_units, network, shape[0])
    try:
        units = find()
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
    hyper = {name: jax.ShapeDtypeStruct((), _dtype(number)) for name, number in job.method.hyperparameters.items()}
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
        for name, number in job.method.hyperparameters.items()
    }


def _dtype(number: Hyperparameter) -> Any:
    return np.int32 if number.integer else np.float32


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _one_input(plan: Plan) -> jax.ShapeDtypeStruct:
    spec = plan.task.spec
    return jax.ShapeDtypeStruct((1, *spec.input_shape), getattr(spec, "input_type", jax.numpy.float32))


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
    got, wanted = _shape_of(output), (1, *getattr(plan.task.spec, "target_shape", ()), plan.task.spec.outputs)
    if plan.learner is not None:
        _check_acts(job, got, wanted, plan.task.spec.discrete)
    elif got != wanted:
        raise InputError(f"--network: {type(job.network).__name__} gives {got}, the task needs {wanted}")
    return params


def _shape_of(output: Any) -> Any:
    if isinstance(output, tuple | list):
        return tuple(_shape_of(each) for each in output)
    return getattr(output, "shape", type(output).__name__)


def _check_acts(job: Job, got: Any, wanted: tuple[int, int], discrete: bool) -> None:
    """A policy and a value: what `PPO` needs."""
    if initial_memory(job.network, 1) is not None:
        got = got[0] if isinstance(got, tuple) and got else got
    needs, ways = "mean, log_std and value", [(wanted, std, (1,)) for std in (wanted[1:], wanted, ())]
    if discrete:
        needs, ways = "logits and value", [(wanted, (1,))]
    if got not in ways:
        raise InputError(f"--network: {type(job.network).__name__} gives {got}, the task needs {needs}, {ways[0]}")
