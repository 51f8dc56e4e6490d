"""Branching: where runs come from that go on with the very networks of another run."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launch.config.syntax import value_text
from launch.errors import InputError
from launch.storage.run_folder import read_meta, run_names, seeds_text

FLAG = "--branch_from"
# Beside the task's own settings: what the streams, the bins and the states that are handed on are shaped by.
_SHAPING = (
    "task",
    "network",
    "bin",
    "learner.rollout",
    "learner.normalise_observations",
    "learner.normalise_rewards",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A run at a step.

    Attributes:
        folder: the run's folder, `DIR/LABEL`.
        step: updates done there.
        meta: its `run.json`.
    """

    folder: Path
    step: int
    meta: Mapping[str, Any]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its lanes, in their order."""
        return tuple(lane["seed"] for lane in self.meta["lanes"])

    @property
    def settings(self) -> dict[str, Any]:
        """What it was until then, for the settings of the runs that go on from it."""
        task_wide = ("steps", "bin", "network", "preset")
        kept = {k: v for k, v in self.meta["settings"].items() if k not in task_wide and not k.startswith("task")}
        first = {"branch": f"{self.meta['label']}@{self.step}"} | {
            f"from.{name}": value for name, value in kept.items()
        }
        return first | {f"from.{name}": value for name, value in self.meta["lanes"][0]["hyper"].items()}


def find_source(text: str, flag: str = FLAG) -> Source:
    """The source that `DIR/LABEL@STEP` names, as the value of `flag`.

    Raises:
        InputError: it is not of that form, or there is no such run.
    """
    place, at, step = text.rpartition("@")
    if not at or not place or not step.isdecimal():
        raise InputError(f"{flag}: '{text}' is not of the form DIR/LABEL@STEP")
    folder = _label_folder(Path(place), flag)
    meta = read_meta(folder)
    hypers = {tuple(sorted(lane["hyper"].items())) for lane in meta["lanes"]}
    if len(hypers) > 1:
        raise InputError(f"{flag}: {folder} holds {len(hypers)} settings a seed; branch from a run with one")
    return Source(folder, int(step), meta)


def _label_folder(place: Path, flag: str) -> Path:
    if not place.is_dir():
        raise InputError(f"{flag}: {place}: no such run folder")
    labels = run_names(place)
    if not labels:
        return place
    if len(labels) > 1:
        raise InputError(
            f"{flag}: {place} holds several runs; write {place}/LABEL@STEP with one of {', '.join(labels)}"
        )
    return place / labels[0]


def check_fits(source: Source, settings: Mapping[str, Any], seeds: Iterable[int], steps: int) -> None:
    """Refuse runs that would not go on with the source's stream and networks.

    Raises:
        InputError: another task, network, bin or shape of what is handed on, seeds that the source lacks, or a length
            that ends before the step.
    """
    there = source.meta["settings"]
    names = [name for name in {**settings, **there} if name in _SHAPING or name.startswith("task.")]
    differ = [
        f"{name} {value_text(there.get(name))} there, {value_text(settings.get(name))} asked"
        for name in names
        if value_text(there.get(name)) != value_text(settings.get(name))
    ]
    if differ:
        raise InputError(f"{FLAG}: {source.folder} is of another kind ({'; '.join(differ)})")
    missing = sorted(set(seeds) - set(source.seeds))
    if missing:
        raise InputError(f"{FLAG}: {source.folder} has no seed {missing[0]}; it has {seeds_text(source.seeds)}")
    if steps <= source.step:
        raise InputError(f"--steps: {steps} is not beyond step {source.step}, from which the runs go on")
