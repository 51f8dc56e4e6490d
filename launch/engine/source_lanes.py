"""The lanes from which a branch goes on, out of the checkpoints of its source."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.config.branch import FLAG, Source
from launch.config.experiment import experiment_of, resolve
from launch.engine.build import job_program
from launch.engine.checkpoint_policy import abstract_data, abstract_lanes
from launch.engine.resume import lanes_of
from launch.engine.unit_of_work import Unit
from launch.errors import InputError
from launch.storage.bins import Bins, Mean, joined, unpacked
from launch.storage.checkpoint import Checkpoints, verify
from launch.storage.run_folder import lanes_by_unit, unit_folders


class Earlier(NamedTuple):
    """Lanes of a source in the host's memory, and what was measured in them so far.

    Attributes:
        tree: the lanes, typed keys as their data.
        keys: name -> implementation of these keys, see `launch.storage.leaves.with_keys`.
        bins: sums and counts.
    """

    tree: Any
    keys: Mapping[str, str]
    bins: Bins


def source_lanes(source: Source, seeds: Sequence[int], task: str) -> Earlier:
    """The lanes of a source by seed; `task` as flags write it, with its data."""
    plan = resolve(dataclasses.replace(experiment_of(source.meta), branch_from="", task=task))
    job, wanted = plan.job(source.meta["label"]), set(seeds)
    program, data = job_program(plan, job), abstract_data(plan)
    found: dict[int, tuple[Any, Bins]] = {}
    keys: Mapping[str, str] = {}
    folders = unit_folders(source.folder, source.meta)
    for entry, told, folder in zip(source.meta["units"], lanes_by_unit(source.meta), folders, strict=True):
        part = lanes_of(told)
        if wanted.isdisjoint(lane.seed for lane in part):
            continue
        unit = Unit(job.label, part, entry["size"], entry["chunk"], entry["name"])
        saved = Checkpoints(folder).latest_good(abstract_lanes(program, job, unit, data), at=source.step)
        assert saved is not None, "checked when the source was found"
        bins, keys = unpacked(saved.arrays, len(part)), saved.keys
        for i, lane in enumerate(part):
            row = slice(i, i + 1)
            one = {name: Mean(b.sum[row], b.count[row]) for name, b in bins.items()}
            found[lane.seed] = (jax.tree.map(lambda leaf, row=row: leaf[row], saved.tree), one)
    chosen = [found[seed] for seed in seeds]
    tree = jax.tree.map(lambda *parts: np.concatenate(parts), *(lane for lane, _ in chosen))
    return Earlier(tree, keys, joined([bins for _, bins in chosen]))


def check_readable(source: Source) -> None:
    """Refuse a source of which a checkpoint is missing or damaged.

    Raises:
        InputError: there is none of that step, or one is not as it was written.
    """
    folders = list(unit_folders(source.folder, source.meta))
    found = [set(Checkpoints(unit).steps()) for unit in folders]
    common = sorted(set.intersection(*found)) if found else []
    if source.step not in common:
        there = ", ".join(map(str, common)) or "none"
        raise InputError(
            f"{FLAG}: {source.folder} has no checkpoint of step {source.step} (there: {there}); keep one with "
            f"--checkpoint_at={source.step}"
        )
    for unit in folders:
        problem = verify(unit / str(source.step))
        if problem:
            raise InputError(f"{FLAG}: {unit / str(source.step)}: damaged: {problem}")
