"""Say what a run folder holds: settings, progress, lanes, checkpoints; and write one lane's network to a file.

    python -m launch.show DIR [--digest] [--parameters=LANE] [--out=FILE]

DIR is a folder of runs or one of them, finished or on its way. LANE is a seed, or `#I` for lane number I from 0 on in
the order of `run.json`, where several lanes have that seed. The file holds the Flax variables of the lane's newest good
checkpoint: `network.apply(flax.serialization.msgpack_restore(Path(FILE).read_bytes()), x)`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from launch.cli import run_cli
from launch.errors import InputError
from launch.storage.checkpoint import ARRAYS, TEMPORARY, describe, verify
from launch.storage.contents import digests, numbers_text, numbers_that_differ, write_parameters
from launch.storage.locks import LOCK, holder
from launch.storage.run_folder import label_folders, lanes_by_unit, number_texts, read_meta, seeds_text, unit_folders
from launch.texts import size_text, time_text

SHOWN_VALUES = 6


class Found(NamedTuple):
    """A checkpoint: its step, what it says of itself, bytes, age in seconds, and what is wrong with it, if anything."""

    step: int
    path: Path
    about: Mapping[str, Any]
    bytes: int
    age: float
    problem: str


class UnitFound(NamedTuple):
    """A unit of work: its folder, lanes, checkpoints by step, who runs it, and saves that were not completed."""

    folder: Path
    lanes: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[Found]
    holder: str
    unfinished: Sequence[str]

    @property
    def newest(self) -> Found | None:
        """The newest good checkpoint."""
        return next((one for one in reversed(self.checkpoints) if not one.problem), None)


def show(directory: Path | str) -> str:
    """What the runs in `directory` are and how far they have come; every checkpoint is verified.

    Raises:
        InputError: there is no such folder, or no run in it.
    """
    folders = label_folders(Path(directory))
    parts = []
    for folder in folders:
        try:
            parts.append("\n".join(_run_lines(folder)))
        except InputError as error:
            if len(folders) == 1:
                raise
            parts.append(f"{folder.name}: {error}")
    return "\n\n".join(parts)


def _run_lines(folder: Path) -> Iterator[str]:
    meta = read_meta(folder)
    units = list(_units(folder, meta))
    yield f"{meta['label']}: {_state(meta, units)}"
    yield f"  settings: {', '.join(f'{name}={value}' for name, value in meta['settings'].items())}"
    yield f"  lanes: {_lanes(meta, units)}"
    if units:
        yield f"  progress: {_progress(meta, units)}"
    versions = " ".join(f"{name} {version}" for name, version in meta.get("versions", {}).items())
    machine = ", ".join(f"{value}" for value in dict.fromkeys(meta.get("machine", {}).values()))
    yield f"  made by: commit {meta.get('commit') or 'unknown'}; {versions}; {machine}"
    for unit in units:
        yield from _unit_lines(unit, meta)


def _units(folder: Path, meta: Mapping[str, Any]) -> Iterator[UnitFound]:
    for unit, part in zip(unit_folders(folder, meta), lanes_by_unit(meta), strict=True):
        names = sorted(path.name for path in unit.glob(".*.tmp") if TEMPORARY.fullmatch(path.name))
        yield UnitFound(unit, part, list(_checkpoints(unit)), holder(unit / LOCK), names)


def _checkpoints(unit: Path) -> Iterator[Found]:
    """Every folder that is called like a step, complete or not."""
    steps = sorted(int(path.name) for path in unit.glob("*/") if path.name.isdecimal())
    for path in (unit / str(step) for step in steps):
        try:
            found = describe(path)
            yield Found(int(path.name), path, found["about"], found["bytes"], found["age"], verify(path))
        except InputError as error:
            problem = verify(path) or str(error)
            yield Found(int(path.name), path, {}, 0, math.nan, problem)


def _state(meta: Mapping[str, Any], units: Sequence[UnitFound]) -> str:
    running = sum(bool(unit.holder) for unit in units)
    if running:
        return f"running, {running} of {len(units)} units at this moment"
    if meta["finished"]:
        return "finished"
    return "stopped; the same command goes on" if units else "not finished"


def _lanes(meta: Mapping[str, Any], units: Sequence[UnitFound]) -> str:
    lanes = meta["lanes"]
    numbers, differ = lanes[0]["hyper"], numbers_that_differ(lanes)
    same = numbers_text(numbers, [name for name in numbers if name not in differ])
    parts = [f"{len(lanes)}, seeds {seeds_text({lane['seed'] for lane in lanes})}", *([same] if same else [])]
    for name in differ:
        values = sorted({lane["hyper"].get(name) for lane in lanes}, key=lambda v: (v is None, v))
        more = f" and {len(values) - SHOWN_VALUES} more" if len(values) > SHOWN_VALUES else ""
        parts.append(f"{name} {', '.join(number_texts(values)[:SHOWN_VALUES])}{more}")
    diverged = _diverged(meta, units)
    named = ", ".join(f"#{i} (seed {lanes[i]['seed']})" for i in diverged[:SHOWN_VALUES])
    more = f" and {len(diverged) - SHOWN_VALUES} more" if len(diverged) > SHOWN_VALUES else ""
    return "; ".join([*parts, f"{len(diverged)} diverged{': ' * bool(diverged)}{named}{more}"])


def _diverged(meta: Mapping[str, Any], units: Sequence[UnitFound]) -> list[int]:
    """Numbers of the lanes that have diverged: by the newest checkpoints, else by what the end of the run said."""
    if not any(unit.newest for unit in units):
        return list(meta.get("diverged", ()))
    found, first = [], 0
    for unit in units:
        if unit.newest is not None:
            with np.load(unit.newest.path / ARRAYS) as arrays:
                found += [first + int(i) for i in np.flatnonzero(arrays["diverged"])]
        first += len(unit.lanes)
    return found


def _progress(meta: Mapping[str, Any], units: Sequence[UnitFound]) -> str:
    steps, over = _steps(meta, units), [_step(unit, meta) for unit in units]
    done = sum(step * len(unit.lanes) for step, unit in zip(over, units, strict=True))
    whole = steps * sum(len(unit.lanes) for unit in units)
    complete = sum(step >= steps for step in over)
    return f"{100 * done / whole:.3g} % of the lane-steps; {complete} of {len(units)} units have all {steps} steps"


def _steps(meta: Mapping[str, Any], units: Sequence[UnitFound]) -> int:
    """The length of the run, of the longest launch where several made it longer."""
    said = [unit.newest.about["steps"] for unit in units if unit.newest]
    return max([int(meta["settings"]["steps"]), *said])


def _step(unit: UnitFound, meta: Mapping[str, Any]) -> int:
    if unit.newest is not None:
        return unit.newest.step
    return int(meta["settings"]["steps"]) if meta["finished"] else 0


def _unit_lines(unit: UnitFound, meta: Mapping[str, Any]) -> Iterator[str]:
    seeds = seeds_text({lane["seed"] for lane in unit.lanes})
    run_by = f", run by {unit.holder}" if unit.holder else ""
    lanes = f"{len(unit.lanes)} lane{'s' * (len(unit.lanes) > 1)}"
    yield f"  unit {unit.folder.name}: {lanes}, seeds {seeds}; {_step(unit, meta)} steps{run_by}"
    for one in unit.checkpoints:
        verdict = f"DAMAGED: {one.problem}" if one.problem else "verified"
        stays = ", stays for good" if one.about.get("kept") else ""
        size = f"{size_text(one.bytes)}, {time_text(one.age)} old, " if one.about else ""
        yield f"    step {one.step}: {size}{verdict}{stays}{_other_versions(one, meta)}"
    if unit.unfinished:
        yield f"    saves under way, or cut short: {', '.join(unit.unfinished)}"
    if not unit.checkpoints:
        yield "    no checkpoints"


def _other_versions(one: Found, meta: Mapping[str, Any]) -> str:
    """In what a checkpoint was written by another version than the one that made `run.json`."""
    there = one.about.get("versions", {}) | {"commit": one.about.get("commit")}
    before = meta.get("versions", {}) | {"commit": meta.get("commit")}
    differ = [f"{name} {there[name]}" for name in there if name in before and there[name] != before[name]]
    return f", written by {', '.join(differ)}" if differ else ""


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing this module brings none."""
    flags.DEFINE_bool("digest", False, "print SHA-256 of the newest states, to compare runs by", flag_values=values)
    flags.DEFINE_string(
        "parameters", None, "write the network of this lane, a seed or #I, to a file", flag_values=values
    )
    flags.DEFINE_string(
        "out", None, "that file; by default LABEL-seedS-stepN.msgpack in the current folder", flag_values=values
    )


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: prints what there is, or writes one lane's network and prints where."""
    if len(arguments) != 1:
        raise InputError(f"launch.show: {len(arguments)} folders given, one is needed: python -m launch.show DIR")
    if values.parameters is not None:
        print(write_parameters(arguments[0], values.parameters, values.out))
        return
    if values.out is not None:
        raise InputError("--out: needs --parameters=LANE")
    print("\n".join(digests(arguments[0])) if values.digest else show(arguments[0]))


if __name__ == "__main__":
    define_flags()
    run_cli(main)
