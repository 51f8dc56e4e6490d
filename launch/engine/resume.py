"""Whether a launch may go on with the run that its folder holds: what may differ, and what may not."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args

from launch.config.experiment import Job, Lane, Plan, experiment_of
from launch.config.flags import Resume
from launch.config.syntax import value_text
from launch.engine.build import data_digest
from launch.errors import unknown

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
"""What XLA is told for operations that repeat bit for bit; it matters on GPUs alone."""


class Manner(NamedTuple):
    """How the work is done, where the last bits depend on it.

    `parallel`: whether devices have lanes of their own or share batches. `deterministic`: whether operations of a GPU
    repeat bit for bit; `None` on other machines.
    """

    parallel: str = "lanes"
    deterministic: bool | None = None


def manner_here(parallel: str, backend: str) -> Manner:
    """The manner of this process."""
    return Manner(parallel, DETERMINISTIC in os.environ.get("XLA_FLAGS", "").split() if backend == "gpu" else None)


def check_resume(resume: str) -> None:
    """Refuse what is not a way to resume."""
    if resume not in get_args(Resume):
        raise unknown("--resume", resume, get_args(Resume))


def differences(plan: Plan, job: Job, meta: Mapping[str, Any], manner: Manner) -> list[str]:
    """Settings that differ from the stored run `meta`; a longer run, or one with more seeds, does not differ."""
    there, asked = ({k: value_text(v) for k, v in s.items()} for s in (meta["settings"], plan.settings(job)))
    over, begun = int(meta["settings"].get("steps", plan.steps + 1)), int(meta.get("begun_steps", 0))
    longer = "units" in meta and plan.steps >= over
    shorter = over != plan.steps < begun
    differ = [
        f"{name} {there.get(name)} there, {asked.get(name)} asked"
        for name in asked | there
        if there.get(name) != asked.get(name) and not (name == "steps" and longer)
    ]
    differ += [f"steps {begun} begun, {plan.steps} asked"] * shorter
    differ += ["the data are others"] * (meta.get("data", data_digest(plan)) != data_digest(plan))
    return differ + _other_manner(manner, meta) + _other_lanes(job, meta) + _other_cut(plan, meta)


def _other_manner(manner: Manner, meta: Mapping[str, Any]) -> list[str]:
    there = {"parallel": "lanes", "deterministic": None} | dict(meta)
    return [
        f"{name} {there[name]} there, {asked} asked"
        for name, asked in manner._asdict().items()
        if there[name] != asked and None not in (there[name], asked)
    ]


def _other_lanes(job: Job, meta: Mapping[str, Any]) -> list[str]:
    here = {identity(lane) for lane in job.lanes}
    there = [identity(lane) for lane in lanes_of(meta["lanes"])]
    added = here - set(there)
    same_numbers = {hyper for _, hyper in here} == {hyper for _, hyper in there}
    if set(there) <= here and (not added or ("units" in meta and same_numbers)):
        return []
    return [f"{len(there)} lanes there, {len(here)} asked, with other seeds or numbers"]


def _other_cut(plan: Plan, meta: Mapping[str, Any]) -> list[str]:
    """Whether lanes per batch or chunk were asked for and are others: the last bits depend on them."""
    if "units" not in meta:
        return []
    before = experiment_of(meta)
    pairs = {"lanes_per_batch": meta["lanes_per_batch"], "chunk": meta["chunk"]}
    return [
        f"{name} {used} there, {asked} asked"
        for name, used in pairs.items()
        if (asked := getattr(plan.experiment, name)) is not None and asked not in (used, getattr(before, name))
    ]


def identity(lane: Lane) -> tuple[int, tuple[tuple[str, float], ...]]:
    """What tells the lanes of a label apart."""
    return lane.seed, tuple(sorted(lane.hyper.items()))


def lanes_of(entries: Iterable[Mapping[str, Any]]) -> tuple[Lane, ...]:
    """Lanes as `run.json` and checkpoints list them."""
    return tuple(Lane(entry["method"], entry["seed"], entry["hyper"]) for entry in entries)


def entries_of(lanes: Iterable[Lane]) -> list[dict[str, Any]]:
    """Lanes as `run.json` and checkpoints list them; the inverse of `lanes_of`."""
    return [{"method": lane.method, "seed": lane.seed, "hyper": dict(lane.hyper)} for lane in lanes]
