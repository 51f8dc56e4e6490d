"""The text of `--list`, `--explain` and `--dry_run`: what there is, what settings mean, what would be done."""

import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

import jax

from launch.config.experiment import Plan
from launch.config.methods import METHODS, Choice, MethodSpec, Number
from launch.config.registry import NETWORKS, PRESETS, TASKS, TaskSpec, find_learner, find_method, find_task
from launch.config.syntax import Call
from launch.engine.build import lane_memory, load_data, parameter_count, state_bytes
from launch.engine.loop import chunk_lengths
from launch.engine.unit_of_work import seconds_per_step, units_of
from launch.errors import unknown
from launch.texts import size_text, time_text
from tasks.base import Environment


def everything() -> str:
    """Tasks, methods and networks, a line each."""
    lines = ["tasks (--task); --explain=NAME shows the settings"]
    lines += [f"  {s.name}{_aliases(s.aliases)}: {s.summary}; network {s.network}" for s in TASKS.values()]
    lines += ["methods (--methods); --explain=NAME shows the settings"]
    lines += [f"  {s.name}: {s.summary}{' (told of task changes)' if s.task_aware else ''}" for s in METHODS.values()]
    lines += ["networks (--network)", *[f"  {name}" for name in NETWORKS]]
    every = {name: [s.name for s in TASKS.values() if name in s.presets] for name in _presets_of(*TASKS.values())}
    told = [name if name in PRESETS else f"{name} ({', '.join(tasks)})" for name, tasks in every.items()]
    return "\n".join([*lines, f"presets (--preset): {', '.join(told)}"])


def explain(name: str) -> str:
    """Every setting of a method or of a task.

    Raises:
        InputError: neither a method nor a task has that name.
    """
    tasks = {alias: spec for spec in TASKS.values() for alias in (spec.name, *spec.aliases)}
    methods = [alias for spec in METHODS.values() for alias in (spec.name, *spec.aliases)]
    if ":" not in name and name not in (*methods, *tasks):
        raise unknown("--explain", name, [*methods, *tasks])
    return task(tasks[name]) if name in tasks else method(find_method(Call(name, {})))


def method(spec: MethodSpec) -> str:
    """Every setting of a method: meaning, default, what the presets make of it in which task, range."""
    lines = [f"{spec.name}: {spec.summary}", f"source: {spec.source}"]
    for setting, number in spec.numbers.items():
        lines += [*_number(setting, number), *_presets(spec.name, setting, number)]
    for setting, choice in spec.static.items():
        allowed = ", ".join(map(str, choice.allowed)) if choice.allowed else choice.whole_numbers
        lines += [f"  {setting} ({allowed}; default {choice.default})"]
        lines += [f"    {choice.meaning}", *_presets(spec.name, setting, choice)]
    return "\n".join(lines)


def task(spec: TaskSpec) -> str:
    """A task's settings, its learner's and the numbers that the learner gives every method, with their defaults."""
    _, made = find_task(Call(spec.name, {}))
    lines = [f"{spec.name}{_aliases(spec.aliases)}: {spec.summary}; network {spec.network}"]
    lines += _fields(f"--task='{spec.name}(setting=value)'", made, spec.task_presets)
    learner = find_learner(spec, None, PRESETS[0])
    if learner is not None:
        lines += _fields(f"--learner='{spec.learner}(setting=value)'", learner, spec.learner_presets)
        lines += ["numbers that every method has here, --set NAME=VALUE:"]
        lines += [line for setting, number in spec.numbers.items() for line in _number(setting, number)]
    return "\n".join([*lines, f"presets (--preset): {', '.join(_presets_of(spec))}"])


def plan(plan: Plan) -> str:
    """Programs, lanes, memory, compilations and estimated time of an experiment; nothing is compiled."""
    backend = jax.default_backend()
    data = sum(leaf.nbytes for leaf in jax.tree.leaves(load_data(plan)))
    tasks = f"{len(plan.task.schedule.starts_until(plan.steps)) - 1} tasks, "
    if isinstance(plan.task, Environment) and not plan.task.changes:
        tasks = ""
    lines = [f"{plan.spec.name}: {plan.steps} steps, {tasks}bins of {plan.bin}; data {size_text(data)}"]
    total = 0.0
    for job in plan.jobs:
        units = units_of(plan, job, backend)
        lengths = set(chunk_lengths(units[0].chunk, plan.start, plan.steps))
        memory = state_bytes(plan, job) * units[0].size
        seconds = seconds_per_step(plan, job) * (plan.steps - plan.start) * len(job.lanes)
        total += seconds
        lines.append(
            f"  {job.label}: {len(job.lanes)} lanes in {len(units)} x {units[0].size}, {parameter_count(plan, job)} "
            f"parameters, {size_text(memory)} of state, {len(lengths)} compilation{'s' * (len(lengths) > 1)} "
            f"of at most {max(lengths)} steps, about {time_text(seconds)} on one CPU core and "
            f"{size_text(lane_memory(plan, job).of(units[0].size))} of memory a program"
        )
    lines.append(f"{sum(len(j.lanes) for j in plan.jobs)} lanes, about {time_text(total)} of one CPU core in all")
    return "\n".join(lines)


def _number(setting: str, number: Number) -> list[str]:
    kind = "whole number" if number.integer else "number"
    head = f"  {setting} ({kind} from {number.low:g} to {number.high:.10g}, default {number.default:g})"
    return [head, f"    {number.meaning}"]


def _fields(head: str, made: Any, presets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings of a dataclass, what its docstring says of them, and those that presets make other."""
    lines = [head, *textwrap.indent(inspect.getdoc(type(made)) or "", "  ").splitlines(), "", "  Defaults:"]
    lines += [f"    {field.name}={getattr(made, field.name)!r}" for field in dataclasses.fields(made)]
    for preset, values in presets.items():
        lines += [f"  --preset={preset}: {', '.join(f'{name}={value!r}' for name, value in values.items())}"]
    return lines


def _presets_of(*specs: TaskSpec) -> list[str]:
    return list(dict.fromkeys([*PRESETS, *(preset for spec in specs for preset in spec.presets)]))


def _presets(method_name: str, setting: str, field: Number | Choice) -> list[str]:
    """A line for presets that do the same: values other than the default with their tasks, and the default."""
    presets: dict[str, list[str]] = {}
    for preset in _presets_of(*TASKS.values()):
        tasks: dict[Any, list[str]] = {}
        for spec in TASKS.values():
            values = spec.presets.get(preset, spec.presets[PRESETS[0]])
            tasks.setdefault(values.get(method_name, {}).get(setting, field.default), []).append(spec.name)
        plain = tasks.pop(field.default, [])
        parts = [f"{value} ({', '.join(names)})" for value, names in tasks.items()]
        parts += [f"{'elsewhere ' * bool(parts)}{field.default}"] if plain else []
        presets.setdefault("; ".join(parts), []).append(preset)
    if len(presets) == 1:
        return [f"    every preset: {text}" for text in presets]
    return [f"    --preset={'|'.join(names)}: {text}" for text, names in presets.items()]


def _aliases(names: tuple[str, ...]) -> str:
    return f" (or {', '.join(names)})" if names else ""
