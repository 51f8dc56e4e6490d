"""What a run folder already holds: whether this launch may go on with it, and with which units of work."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from launch.errors import InputError, unknown
from launch.experiment import Job, Lane, Plan, experiment_of
from launch.lanes import Unit, unit_of, units_of
from launch.run_folder import RUN, read_meta

Resume = Literal["auto", "never", "must"]
"""`auto`: go on where there is something; `never`: refuse it; `must`: refuse to begin anew."""


class Block(NamedTuple):
    """Every `of`-th unit of work, from number `index` on."""

    index: int
    of: int


@dataclasses.dataclass(frozen=True)
class Work:
    """A label's units of work.

    Attributes:
        job: the job, its lanes in the units' order.
        units: all units, those of earlier launches first.
        meta: `run.json` of the earlier launches, or `None`.
        parallel: whether devices have lanes of their own or share batches.
        block: which of several blocks of the label's units these are, and the names of all units; `None` for all.
    """

    job: Job
    units: tuple[Unit, ...]
    meta: Mapping[str, Any] | None = None
    block: Mapping[str, Any] | None = None
    parallel: str = "lanes"


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
    plan: Plan, job: Job, folder: Path | None, resume: Resume, backend: str, block: Block | None = None
) -> Work:
    """The units of a job, or a block of them, with what its folder says of earlier launches.

    Raises:
        InputError: the folder holds a run of other settings, or something where nothing may be, or nothing where
            something must be.
    """
    there = folder is not None and (folder / RUN).exists()
    if resume == "never" and there:
        raise InputError(f"--resume=never: {folder} holds a run; choose another folder or label")
    if resume == "must" and not there:
        raise InputError(f"--resume=must: there is no run in {folder}")
    asked = _block_of(plan, job, backend, block) if block else None
    if not there:
        return asked or Work(job, tuple(units_of(plan, job, backend)))
    meta = read_meta(folder)
    differ = differences(plan, asked.job if asked else job, meta) + _other_block(asked, meta)
    if differ:
        raise InputError(f"--workdir: {folder} holds another run ({'; '.join(differ)}); choose another folder or label")
    if asked:
        return dataclasses.replace(asked, units=tuple(recorded(plan, job, meta)), meta=meta)
    units = recorded(plan, job, meta)
    known = {_identity(lane) for unit in units for lane in unit.lanes}
    wanted = {_identity(lane) for lane in job.lanes} - known
    for unit in begun(plan, job, meta):
        lanes = {_identity(lane) for lane in unit.lanes}
        if lanes <= wanted:
            units, wanted, known = [*units, unit], wanted - lanes, known | lanes
    units += units_of(plan, job, backend, [lane for lane in job.lanes if _identity(lane) not in known])
    lanes = tuple(lane for unit in units for lane in unit.lanes)
    return Work(dataclasses.replace(job, lanes=lanes), tuple(units), meta)


def _block_of(plan: Plan, job: Job, backend: str, block: Block) -> Work:
    every = units_of(plan, job, backend)
    units = tuple(every[block.index :: block.of])
    if not units:
        raise InputError(f"--block={block.index}/{block.of}: {job.label} has only {len(every)} units of work")
    lanes = tuple(lane for unit in units for lane in unit.lanes)
    told = {"index": block.index, "of": block.of, "units": [unit.name for unit in every]}
    return Work(dataclasses.replace(job, lanes=lanes), units, block=told)


def recorded(plan: Plan, job: Job, meta: Mapping[str, Any]) -> list[Unit]:
    """The units of earlier launches; one of all lanes where a run of long ago did not say."""
    lanes = [Lane(lane["method"], lane["seed"], lane["hyper"]) for lane in meta["lanes"]]
    units = []
    for entry in meta.get("units", ()):
        part, lanes = tuple(lanes[: entry["lanes"]]), lanes[entry["lanes"] :]
        units.append(dataclasses.replace(unit_of(plan, job, part, entry["size"], entry["chunk"]), name=entry["name"]))
    return units


def begun(plan: Plan, job: Job, meta: Mapping[str, Any]) -> list[Unit]:
    """Units that launches with more lanes have begun, and not joined with the others yet."""
    units = []
    for entry in meta.get("begun", ()):
        lanes = tuple(Lane(lane["method"], lane["seed"], lane["hyper"]) for lane in entry["of"])
        units.append(dataclasses.replace(unit_of(plan, job, lanes, entry["size"], entry["chunk"]), name=entry["name"]))
    return units


def differences(plan: Plan, job: Job, meta: Mapping[str, Any]) -> list[str]:
    """In what the run asked for is another one than that of `meta`: a longer one, or one with more seeds, is not."""
    there, asked = ({k: _text(v) for k, v in s.items()} for s in (meta["settings"], plan.settings(job)))
    longer = "units" in meta and plan.steps >= int(meta["settings"].get("steps", plan.steps + 1))
    differ = [
        f"{name} {there.get(name)} there, {asked.get(name)} asked"
        for name in asked | there
        if there.get(name) != asked.get(name) and not (name == "steps" and longer)
    ]
    return differ + _other_lanes(job, meta) + _other_cut(plan, meta)


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
    there = [_identity(Lane(lane["method"], lane["seed"], lane["hyper"])) for lane in meta["lanes"]]
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


def _text(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)
