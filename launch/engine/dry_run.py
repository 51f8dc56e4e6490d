"""What can be said of a run before anything is compiled: the text of `--dry_run`, and warnings."""

import jax

from launch.config.experiment import Job, Plan, warnings
from launch.engine.build import group_widths, lane_memory, load_data, parameter_count, state_bytes
from launch.engine.loop import chunk_lengths
from launch.engine.unit_of_work import seconds_per_step, units_of
from launch.texts import size_text, time_text
from plastic_jax.replacement.counting import rate_warnings
from tasks.base import Environment


def dry_run(plan: Plan) -> str:
    """Programs, lanes, memory, compilations and estimated time of an experiment; nothing is compiled."""
    backend = jax.default_backend()
    data = sum(leaf.nbytes for leaf in jax.tree.leaves(load_data(plan)))
    tasks = f"{len(plan.task.schedule.starts_until(plan.steps)) - 1} tasks, "
    if isinstance(plan.task, Environment) and not plan.task.changes:
        tasks = ""
    sizes = ", ".join(f"{name}={value}" for name, value in plan.chosen.items())
    lines = [f"sizes not asked for, chosen to fit: {sizes}"] if sizes else []
    lines += [f"{plan.spec.name}: {plan.steps} steps, {tasks}bins of {plan.bin}; data {size_text(data)}"]
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


def all_warnings(plan: Plan) -> list[str]:
    """What is allowed but surely not meant, a line each; for methods that replace units their networks are traced."""
    return [*warnings(plan), *(f"{job.label}: {line}" for job in plan.jobs for line in _of_rates(plan, job))]


def _of_rates(plan: Plan, job: Job) -> list[str]:
    """Rates that replace nothing in the run, and those beyond what a step may replace."""
    if not {"replacement_rate", "maturity_threshold"} <= job.method.settings.keys():
        return []
    # Where no unit ever gets old enough, that is said of all lanes at once.
    settings = {(lane.hyper["replacement_rate"], int(lane.hyper["maturity_threshold"])) for lane in job.lanes}
    return [
        line
        for rate, maturity in sorted(settings)
        if maturity < plan.updates
        for line in rate_warnings(
            group_widths(plan, job),
            plan.updates,
            replacement_rate=rate,
            maturity_threshold=maturity,
            max_replacements=job.static["max_replacements"],
        )
    ]
