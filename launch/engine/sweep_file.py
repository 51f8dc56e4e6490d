"""The list of a sweep's units of work, `DIR/sweep.json`: for people to read, and for the commands that follow."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from launch.config.experiment import Experiment, experiment_of
from launch.config.syntax import parse_methods, without
from launch.engine.job_program import state_bytes
from launch.engine.workers import Sweep, labels_of
from launch.errors import InputError
from launch.storage.durable import replacing
from launch.storage.run_folder import seeds_text

SWEEP = "sweep.json"
SCHEMA = 1


def write_sweep_file(sweep: Sweep) -> None:
    """Write down the experiments of a sweep and its units of work."""
    listed = []
    for label in labels_of(sweep):
        size = state_bytes(label.plan, label.work.job)
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
            for unit in label.work.units
        ]
    kept = [dataclasses.asdict(one) | {"task": without(one.task, "data_dir")} for one in sweep.experiments]
    with replacing(sweep.root / SWEEP) as file:
        file.write((json.dumps({"schema": SCHEMA, "experiments": kept, "units": listed}, indent=1) + "\n").encode())


def check_sweep_file(sweep: Sweep) -> None:
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
