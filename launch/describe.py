"""What there is, what a method's settings mean, and what an experiment would do: text for `--list`, `--explain`, `--dry_run`."""

import math

import jax

from launch.experiment import Job, Plan
from launch.lanes import job_program, parameter_count, units_of
from launch.loop import LONGEST_CHUNK, chunk_length
from launch.methods import METHODS, Choice, Number
from launch.registry import NETWORKS, PRESETS, TASKS, find_method
from launch.runner import load_data
from launch.syntax import Call

# Seconds per lane-step on one CPU core: a start, and per parameter in and out of the cache (see results/benchmarks).
SECONDS_PER_STEP = 3e-7
SECONDS_PER_PARAMETER = 4e-10
SECONDS_PER_PARAMETER_FROM_MEMORY = 1.7e-9
CACHE_PARAMETERS = 500_000


def everything() -> str:
    """Tasks, methods and networks, a line each."""
    lines = ["tasks (--task)"]
    lines += [f"  {s.name}{_aliases(s.aliases)}: {s.summary}; network {s.network}" for s in TASKS.values()]
    lines += ["methods (--methods); --explain=NAME shows the settings"]
    lines += [f"  {s.name}: {s.summary}{' (told of task changes)' if s.task_aware else ''}" for s in METHODS.values()]
    lines += ["networks (--network)", *[f"  {name}" for name in NETWORKS]]
    lines += [f"presets (--preset): {', '.join(PRESETS)}"]
    return "\n".join(lines)


def method(name: str) -> str:
    """Every setting of a method: meaning, default, per task the values of the presets, range.

    Raises:
        InputError: no method has that name.
    """
    spec = find_method(Call(name, {}))
    lines = [f"{spec.name}: {spec.summary}", f"source: {spec.source}"]
    for setting, number in spec.numbers.items():
        kind = "whole number" if number.integer else "number"
        lines += [f"  {setting} ({kind} from {number.low:g} to {number.high:g}, default {number.default:g})"]
        lines += [f"    {number.meaning}", *_presets(name, setting, number)]
    for setting, choice in spec.static.items():
        allowed = ", ".join(map(str, choice.allowed)) if choice.allowed else "a positive whole number"
        lines += [f"  {setting} ({allowed}; default {choice.default})"]
        lines += [f"    {choice.meaning}", *_presets(name, setting, choice)]
    return "\n".join(lines)


def plan(plan: Plan) -> str:
    """Programs, lanes, memory, compilations and estimated time of an experiment; nothing is compiled."""
    backend = jax.default_backend()
    data = sum(leaf.nbytes for leaf in jax.tree.leaves(load_data(plan)))
    tasks = plan.steps / plan.task.schedule.change_every
    lines = [f"{plan.spec.name}: {plan.steps} steps, {tasks:g} tasks, bins of {plan.bin}; data {_size(data)}"]
    total = 0.0
    for job in plan.jobs:
        units = units_of(plan, job, backend)
        program = job_program(plan, job)
        lengths = {chunk_length(program)} | {plan.steps % chunk_length(program)} - {0}
        compiles = len(lengths) + (len(lengths) if job.first else 0)
        memory = _lane_bytes(plan, job) * units[0].size
        seconds = _seconds(parameter_count(plan, job)) * plan.steps * len(job.lanes)
        total += seconds
        lines.append(
            f"  {job.label}: {len(job.lanes)} lanes in {len(units)} x {units[0].size}, {parameter_count(plan, job)} "
            f"parameters, {_size(memory)} of state, {compiles} compilation{'s' * (compiles > 1)} "
            f"of at most {LONGEST_CHUNK} steps, about {_time(seconds)} on one CPU core"
        )
    lines.append(f"{sum(len(j.lanes) for j in plan.jobs)} lanes, about {_time(total)} of one CPU core in all")
    return "\n".join(lines)


def _lane_bytes(plan: Plan, job: Job) -> int:
    program = job_program(plan, job)
    data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), load_data(plan))
    hyper = {name: jax.ShapeDtypeStruct((), jax.numpy.float32) for name in job.method.numbers}
    carry = jax.eval_shape(lambda hyper, data: program.init(jax.random.key(0), hyper, data), hyper, data)
    sizes = [math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 8) for leaf in jax.tree.leaves(carry)]
    return sum(sizes)


def _seconds(parameters: int) -> float:
    rate = SECONDS_PER_PARAMETER if parameters <= CACHE_PARAMETERS else SECONDS_PER_PARAMETER_FROM_MEMORY
    return SECONDS_PER_STEP + rate * parameters


def _presets(method_name: str, setting: str, field: Number | Choice) -> list[str]:
    """The tasks' own values where a preset differs from the default."""
    found = []
    for task in TASKS.values():
        values = {p: task.presets[p].get(method_name, {}).get(setting, field.default) for p in PRESETS}
        if set(values.values()) != {field.default}:
            found.append(f"{task.name} " + ", ".join(f"{p} {v}" for p, v in values.items()))
    return [f"    {text}" for text in found]


def _aliases(names: tuple[str, ...]) -> str:
    return f" (or {', '.join(names)})" if names else ""


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} seconds"
