"""What a run folder already holds: whether this launch may go on with it, and with which units of work."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from launch.config.experiment import Job, Lane, Plan, experiment_of
from launch.config.syntax import value_text
from launch.engine.job_program import data_digest
from launch.engine.lanes import Unit, unit_of, units_of
from launch.errors import InputError, unknown
from launch.storage.run_folder import CHECKPOINTS, DONE, LIVES, METRICS, RUN, lanes_by_unit, read_meta
from launch.storage.seal import MANIFEST

Resume = Literal["auto", "never", "must"]
"""`auto`: go on where there is something; `never`: refuse it; `must`: refuse to begin anew."""


class Block(NamedTuple):
    """Every `of`-th unit of work, from number `index` on."""

    index: int
    of: int


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


LANES = Manner()


@dataclasses.dataclass(frozen=True)
class Work:
    """A label's units of work.

    Attributes:
        job: the job, its lanes in the units' order.
        units: all units, those of earlier launches first.
        meta: `run.json` of the earlier launches, or `None`.
        manner: how it is done, where the last bits depend on it.
        block: which of several blocks of the label's units these are, and the names of all units; `None` for all.
    """

    job: Job
    units: tuple[Unit, ...]
    meta: Mapping[str, Any] | None = None
    block: Mapping[str, Any] | None = None
    manner: Manner = LANES


def parse_block(text: str) -> Block:
    """`I/N` as the block `I` of `N`.

    Raises:
        InputError: it is not of that form, or `I` is not from 0 to `N - 1`.
    """
    index, _, of = text.partition("/")
    if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise InputError(f"--block: '{text}' is not I/N with I from 0 to N-1, as 0/4, 1/4, 2/4 and 3/4")
    return Block(int(index), int(of))


def check_resume(resume: str) -> None:
    """Refuse what is not a way to resume."""
    if resume not in get_args(Resume):
        raise unknown("--resume", resume, get_args(Resume))


def work_of(
    plan: Plan,
    job: Job,
    folder: Path | None,
    resume: Resume,
    backend: str,
    block: Block | None = None,
    devices: int = 1,
    parallel: str = "lanes",
) -> Work:
    """The units of a job, or a block of them, with what its folder says of earlier launches.

    Where lanes per batch were not asked for, there are as many units as devices in all blocks, if lanes are enough.

    Raises:
        InputError: the folder holds a run of other settings, or something where nothing may be, or nothing where
            something must be.
    """
    there = folder is not None and (folder / RUN).exists()
    if resume == "never" and there:
        raise InputError(f"--resume=never: {folder} holds a run; choose another folder or label")
    if resume == "must" and not there:
        raise InputError(f"--resume=must: there is no run in {folder}")
    stale = [name for name in (METRICS, LIVES, DONE) if folder is not None and (folder / name).exists()]
    if stale and not there:
        raise InputError(f"--workdir: {folder} holds {stale[0]} without {RUN}; choose another folder or label")
    manner = manner_here(parallel, backend)
    asked = _block_of(plan, job, backend, block, devices) if block else None
    if not there:
        new = asked or Work(job, tuple(units_of(plan, job, backend, parts=devices)))
        return dataclasses.replace(new, manner=manner)
    meta = read_meta(folder)
    if resume == "must" and not meta["finished"] and not any((folder / CHECKPOINTS).glob(f"*/*/{MANIFEST}")):
        raise InputError(f"--resume=must: {folder} holds a run that is not over, and no checkpoint of it")
    if bool(meta.get("tuning")) != plan.experiment.tuning:
        made = "not made for tuning" if plan.experiment.tuning else "made for tuning"
        raise InputError(f"--workdir: {folder} holds a run that was {made}; choose another folder or label")
    differ = differences(plan, asked.job if asked else job, meta, manner) + _other_block(asked, meta)
    if differ:
        raise InputError(f"--workdir: {folder} holds another run ({'; '.join(differ)}); choose another folder or label")
    if asked:
        return dataclasses.replace(asked, units=tuple(recorded(plan, job, meta)), meta=meta, manner=manner)
    units = recorded(plan, job, meta)
    known = {_identity(lane) for unit in units for lane in unit.lanes}
    wanted = {_identity(lane) for lane in job.lanes} - known
    for unit in begun(plan, job, meta):
        lanes = {_identity(lane) for lane in unit.lanes}
        if lanes <= wanted:
            units, wanted, known = [*units, unit], wanted - lanes, known | lanes
    added = [lane for lane in job.lanes if _identity(lane) not in known]
    units += units_of(plan, job, backend, added, devices)
    lanes = tuple(lane for unit in units for lane in unit.lanes)
    return Work(dataclasses.replace(job, lanes=lanes), tuple(units), meta, manner=manner)


def _block_of(plan: Plan, job: Job, backend: str, block: Block, devices: int) -> Work:
    every = units_of(plan, job, backend, parts=block.of * devices)
    units = tuple(every[block.index :: block.of])
    if not units:
        raise InputError(f"--block={block.index}/{block.of}: {job.label} has only {len(every)} units of work")
    lanes = tuple(lane for unit in units for lane in unit.lanes)
    told = {"index": block.index, "of": block.of, "units": [unit.name for unit in every]}
    return Work(dataclasses.replace(job, lanes=lanes), units, block=told)


def recorded(plan: Plan, job: Job, meta: Mapping[str, Any]) -> list[Unit]:
    """The units of earlier launches, none where the run is of a version that had none."""
    pairs = zip(meta.get("units", ()), lanes_by_unit(meta), strict=True)
    return [_known_unit(plan, job, entry, lanes) for entry, lanes in pairs]


def begun(plan: Plan, job: Job, meta: Mapping[str, Any]) -> list[Unit]:
    """Units that launches with more lanes have begun, and not joined with the others yet."""
    return [_known_unit(plan, job, entry, entry["of"]) for entry in meta.get("begun", ())]


def _known_unit(plan: Plan, job: Job, entry: Mapping[str, Any], lanes: Sequence[Mapping[str, Any]]) -> Unit:
    """A unit under the name that it was begun with."""
    unit = unit_of(plan, job, lanes_of(lanes), entry["size"], entry["chunk"])
    return dataclasses.replace(unit, name=entry["name"])


def lanes_of(entries: Iterable[Mapping[str, Any]]) -> tuple[Lane, ...]:
    """Lanes as `run.json` and checkpoints list them."""
    return tuple(Lane(entry["method"], entry["seed"], entry["hyper"]) for entry in entries)


def entries_of(lanes: Iterable[Lane]) -> list[dict[str, Any]]:
    """Lanes as `run.json` and checkpoints list them; the inverse of `lanes_of`."""
    return [{"method": lane.method, "seed": lane.seed, "hyper": dict(lane.hyper)} for lane in lanes]


def differences(plan: Plan, job: Job, meta: Mapping[str, Any], manner: Manner) -> list[str]:
    """In what the run asked for is another one than that of `meta`: a longer one, or one with more seeds, is not."""
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


def _other_block(asked: Work | None, meta: Mapping[str, Any]) -> list[str]:
    there, here = meta.get("block"), asked and asked.block
    if there == here:
        return []
    names = [f"{block['index']}/{block['of']}" if block else "all" for block in (there, here)]
    if names[0] == names[1]:
        return ["other lanes in the blocks"]
    return [f"block {names[0]} there, {names[1]} asked"]


def _other_lanes(job: Job, meta: Mapping[str, Any]) -> list[str]:
    here = {_identity(lane) for lane in job.lanes}
    there = [_identity(lane) for lane in lanes_of(meta["lanes"])]
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


def _identity(lane: Lane) -> tuple[int, tuple[tuple[str, float], ...]]:
    return lane.seed, tuple(sorted(lane.hyper.items()))
