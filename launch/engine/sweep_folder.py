"""A sweep's folder: `DIR/sweep.json`, the list of its experiments and units of work, and how far these are."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.config.experiment import Experiment, experiment_of
from launch.config.syntax import parse_methods, without
from launch.engine.build import state_bytes
from launch.engine.label import Label
from launch.engine.scheduler import Launch
from launch.engine.unit_of_work import Unit
from launch.errors import InputError
from launch.storage.checkpoint import Checkpoints
from launch.storage.durable import replacing
from launch.storage.locks import LOCK, holder
from launch.storage.run_folder import seeds_text
from launch.texts import aligned

SWEEP = "sweep.json"
SCHEMA = 1
HEADINGS = ("label", "lanes", "units", "over", "running", "left", "steps")


def write_sweep_file(sweep: Launch, labels: Sequence[Label]) -> None:
    """Write down the experiments of a sweep and its units of work."""
    listed = []
    for label in labels:
        size = state_bytes(label.plan, label.job)
        listed += [
            {
                "name": unit.name,
                "label": unit.label,
                "lanes": len(unit.lanes),
                "seeds": seeds_text({lane.seed for lane in unit.lanes}),
                "lanes_per_batch": unit.size,
                "chunk": unit.chunk,
                "steps": label.plan.steps,
                "bytes": unit.size * size,
            }
            for unit in label.units
        ]
    kept = [dataclasses.asdict(one) | {"task": without(one.task, "data_dir")} for one in sweep.experiments]
    with replacing(sweep.root / SWEEP) as file:
        file.write((json.dumps({"schema": SCHEMA, "experiments": kept, "units": listed}, indent=1) + "\n").encode())


def check_sweep_file(sweep: Launch) -> None:
    """Refuse a sweep that leaves out labels of the one in its folder, which would be forgotten.

    Raises:
        InputError: it does, or the list that is there cannot be read.
    """
    if not (sweep.root / SWEEP).exists():
        return
    asked = _labels(sweep.experiments)
    gone = [name for name in _labels(read_experiments(sweep.root)) if name not in asked]
    if gone:
        raise InputError(
            f"--workdir: the sweep in {sweep.root} has labels that are not asked for ({', '.join(gone)}); "
            "keep them, or choose another folder"
        )


def _labels(experiments: tuple[Experiment, ...]) -> list[str]:
    return [entry.label for one in experiments for entry in parse_methods(one.methods)]


def read_experiments(root: Path) -> tuple[Experiment, ...]:
    """The experiments of the sweep in a folder.

    Raises:
        InputError: there is none, or its list cannot be read.
    """
    path = root / SWEEP
    if not path.is_file():
        raise InputError(f"--workdir: {root} holds no sweep (no {SWEEP}); --grid, or --task and --methods, start one")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise InputError(f"{path}: schema {found['schema']!r}, this program reads schema {SCHEMA}")
        return tuple(experiment_of({"label": SWEEP, "experiment": one}) for one in found["experiments"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read, truncated or damaged ({' '.join(str(error).split())})") from None


def status(labels: Sequence[Label]) -> str:
    """How far a sweep is: a table with a row a label, then a line for every unit that is not over."""
    rows, lines = [HEADINGS], []
    for label in labels:
        every, left = label.units, label.left()
        holders = {unit.name: holder(label.checkpoints / unit.name / LOCK) for unit in left}
        running = sum(map(bool, holders.values()))
        done = sum(len(unit.lanes) * _share(label, unit, left) for unit in every) / len(label.job.lanes)
        counts = (len(label.job.lanes), len(every), len(every) - len(left), running, len(left) - running)
        rows.append((label.name, *map(str, counts), f"{int(100 * done)}%"))
        for unit in left:
            who = f", {holders[unit.name]}" if holders[unit.name] else ""
            at = f"step {_step(label, unit)} of {label.plan.steps}"
            lines.append(f"{unit.name} {label.name}: {len(unit.lanes)} lane{'s' * (len(unit.lanes) != 1)}, {at}{who}")
        if not left and not label.is_over():
            lines.append(f"{label.name}: to be joined; the same command does")
    return "\n".join([*aligned(rows), "", *(lines or ["all units are over"])])


def _share(label: Label, unit: Unit, left: Sequence[Unit]) -> float:
    """The share of a unit's steps for which there are checkpoints."""
    start = label.plan.start
    return (_step(label, unit) - start) / (label.plan.steps - start) if unit in left else 1.0


def _step(label: Label, unit: Unit) -> int:
    """The step of a unit's newest checkpoint."""
    steps = Checkpoints(label.checkpoints / unit.name).steps()
    return max((step for step in steps if step <= label.plan.steps), default=label.plan.start)
