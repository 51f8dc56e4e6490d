"""How far a sweep is: per label the units of work that are over, being run, and left."""

from collections.abc import Sequence

from launch.engine.lanes import Unit
from launch.engine.workers import LOCK, Label, Sweep, labels_of
from launch.storage.checkpoint import Checkpoints
from launch.storage.locks import holder
from launch.texts import aligned

HEADINGS = ("label", "lanes", "units", "over", "running", "left", "steps")


def status(sweep: Sweep) -> str:
    """A table with a row a label, then a line for every unit that is not over."""
    rows, lines = [HEADINGS], []
    for label in labels_of(sweep):
        every, left = label.work.units, label.left
        holders = {unit.name: holder(label.place / unit.name / LOCK) for unit in left}
        running = sum(map(bool, holders.values()))
        done = sum(len(unit.lanes) * _share(label, unit, left) for unit in every) / len(label.work.job.lanes)
        counts = (len(label.work.job.lanes), len(every), len(every) - len(left), running, len(left) - running)
        rows.append((label.name, *map(str, counts), f"{int(100 * done)}%"))
        for unit in left:
            who = f", {holders[unit.name]}" if holders[unit.name] else ""
            at = f"step {_step(label, unit)} of {label.plan.steps}"
            lines.append(f"{unit.name} {label.name}: {len(unit.lanes)} lane{'s' * (len(unit.lanes) != 1)}, {at}{who}")
        if not left and not label.over:
            lines.append(f"{label.name}: to be joined; the same command does")
    return "\n".join([*aligned(rows), "", *(lines or ["all units are over"])])


def _share(label: Label, unit: Unit, left: Sequence[Unit]) -> float:
    """The share of a unit's steps for which there are checkpoints."""
    start = label.plan.start
    return (_step(label, unit) - start) / (label.plan.steps - start) if unit in left else 1.0


def _step(label: Label, unit: Unit) -> int:
    """The step of a unit's newest checkpoint."""
    steps = Checkpoints(label.place / unit.name).steps()
    return max((step for step in steps if step <= label.plan.steps), default=label.plan.start)
