"""The text of `--list`, `--explain` and `--dry_run`: what there is, what settings mean, what would be done."""

import jax

from launch.errors import unknown
from launch.experiment import Plan
from launch.job_program import lane_memory, load_data, parameter_count, state_bytes
from launch.lanes import seconds_per_step, units_of
from launch.loop import chunk_lengths
from launch.methods import METHODS, Choice, Number
from launch.registry import NETWORKS, PRESETS, TASKS, find_method
from launch.syntax import Call
from launch.texts import size_text, time_text


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
    if ":" not in name and name not in METHODS:
        raise unknown("--explain", name, METHODS)
    spec = find_method(Call(name, {}))
    lines = [f"{spec.name}: {spec.summary}", f"source: {spec.source}"]
    for setting, number in spec.numbers.items():
        kind = "whole number" if number.integer else "number"
        lines += [f"  {setting} ({kind} from {number.low:g} to {number.high:.10g}, default {number.default:g})"]
        lines += [f"    {number.meaning}", *_presets(name, setting, number)]
    for setting, choice in spec.static.items():
        allowed = ", ".join(map(str, choice.allowed)) if choice.allowed else choice.whole_numbers
        lines += [f"  {setting} ({allowed}; default {choice.default})"]
        lines += [f"    {choice.meaning}", *_presets(name, setting, choice)]
    return "\n".join(lines)


def plan(plan: Plan) -> str:
    """Programs, lanes, memory, compilations and estimated time of an experiment; nothing is compiled."""
    backend = jax.default_backend()
    data = sum(leaf.nbytes for leaf in jax.tree.leaves(load_data(plan)))
    tasks = len(plan.task.schedule.starts_until(plan.steps)) - 1
    lines = [f"{plan.spec.name}: {plan.steps} steps, {tasks:g} tasks, bins of {plan.bin}; data {size_text(data)}"]
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


def _presets(method_name: str, setting: str, field: Number | Choice) -> list[str]:
    """Per preset, the tasks' own values; the sound ones only where they are not the published ones."""
    texts = {}
    for preset in PRESETS:
        values = {t.name: t.presets[preset].get(method_name, {}).get(setting, field.default) for t in TASKS.values()}
        same = len(set(values.values())) == 1
        texts[preset] = str(next(iter(values.values()))) if same else ", ".join(f"{v} ({t})" for t, v in values.items())
    lines = [f"    --preset=published: {texts['published']}"]
    return lines if texts["sound"] == texts["published"] else [*lines, f"    --preset=sound: {texts['sound']}"]


def _aliases(names: tuple[str, ...]) -> str:
    return f" (or {', '.join(names)})" if names else ""
