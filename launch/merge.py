"""python -m launch.merge OUT DIR1 DIR2 ...: join run folders that hold blocks of lanes of the same settings.

Each of several machines runs `python -m launch.train ... --block=I/N --workdir=DIRI`. OUT must not be there yet; it
gets what a single launch would have written, checkpoints too: the same command without `--block` goes on with it.
"""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.cli import run_cli
from launch.errors import InputError
from launch.storage.durable import make_folder, publish, storing
from launch.storage.run_folder import CHECKPOINTS, Run, read_runs, unit_folders, write_run

PER_EVENT = ("lane", "step", "group", "unit", "age", "utility")
PER_LANE = ("lost", "born", "usefulness")


@dataclasses.dataclass(frozen=True)
class Piece:
    """One unit of work of a run.

    Attributes:
        run: where it was measured.
        rows: its lanes there.
        entry: what `run.json` says of it.
        checkpoints: their folder.
    """

    run: Run
    rows: range
    entry: Mapping[str, Any]
    checkpoints: Path


def merge(out: Path | str, directories: Sequence[Path | str], tell: Callable[[str], None] = print) -> list[Path]:
    """Join the runs of `directories` label by label in the new folder `out`; returns the labels' folders.

    Raises:
        InputError: `out` is there, a run is not over, settings differ, lanes are missing or twice there.
        StorageError: `out` cannot be written; there is nothing of it then.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out}: is there already; give the name of a new folder")
    if len(directories) < 2:
        raise InputError(f"{len(directories)} folders to join; write: python -m launch.merge OUT DIR1 DIR2 ...")
    by_label: dict[str, list[Run]] = {}
    for directory in directories:
        for label, run in read_runs(directory).items():
            by_label.setdefault(label, []).append(run)
    joined = {label: _pieces(label, runs, tell) for label, runs in by_label.items()}
    make_folder(out.absolute().parent)
    temporary = out.absolute().parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        for label, pieces in joined.items():
            _write(temporary / label, pieces)
        publish(temporary, out.absolute())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [out / label for label in joined]


def _pieces(label: str, runs: Sequence[Run], tell: Callable[[str], None]) -> list[Piece]:
    """The label's units of work in the order in which one launch would have them."""
    first = runs[0]
    for run in runs:
        if not run.meta["finished"] or "units" not in run.meta:
            raise InputError(f"{run.meta['folder']}: not over yet; the same command goes on")
        _check_alike(first, run)
        for name in ("commit", "versions"):
            if run.meta.get(name) != first.meta.get(name):
                tell(f"warning: {run.meta['folder']}: {name} {run.meta.get(name)}, first {first.meta.get(name)}")
    found: dict[str, Piece] = {}
    owner: dict[tuple, str] = {}
    for run in runs:
        start = 0
        for entry, folder in zip(run.meta["units"], unit_folders(Path(run.meta["folder"]), run.meta), strict=True):
            piece = Piece(run, range(start, start := start + entry["lanes"]), entry, folder)
            _check_lanes(piece, found.setdefault(entry["name"], piece), owner)
    order = _order(label, runs)
    missing = [name for name in order if name not in found]
    if missing:
        raise InputError(f"{label}: {_what_is_missing(runs, order, missing)}")
    return [found[name] for name in order] if order else list(found.values())


def _check_alike(first: Run, run: Run) -> None:
    there, here = first.meta["settings"], run.meta["settings"]
    differ = [f"{name} {there.get(name)} and {here.get(name)}" for name in there | here
              if there.get(name) != here.get(name)]  # fmt: skip
    for name in ("parallel", "deterministic", "data"):
        if first.meta.get(name) != run.meta.get(name):
            differ.append(name if name == "data" else f"{name} {first.meta.get(name)} and {run.meta.get(name)}")
    if run.metrics.keys() != first.metrics.keys():
        differ.append("metrics")
    if (run.lives is None) != (first.lives is None):
        differ.append("unit biographies")
    if differ:
        where = f"{first.meta['folder']} and {run.meta['folder']}"
        raise InputError(f"{where} are runs of different settings: {'; '.join(differ)}")


def _check_lanes(piece: Piece, known: Piece, owner: dict[tuple, str]) -> None:
    """No lane is in two units of work, and a unit that is there twice has the same numbers."""
    here, there = piece.run.meta["folder"], known.run.meta["folder"]
    for row in piece.rows:
        lane = piece.run.lanes[row]
        identity = (lane["method"], lane["seed"], tuple(sorted(lane["hyper"].items())))
        if owner.setdefault(identity, piece.entry["name"]) != piece.entry["name"]:
            raise InputError(
                f"{here}: seed {lane['seed']} has been run in two units of work; leave one of the runs out"
            )
    for name, values in piece.run.metrics.items():
        pairs = values[piece.rows], known.run.metrics[name][known.rows]
        if not np.array_equal(*pairs, equal_nan=True):
            raise InputError(
                f"{here} and {there} hold the same lanes ({_seeds(piece)}) with different numbers in {name}"
            )


def _order(label: str, runs: Sequence[Run]) -> list[str]:
    """The names of all units, where the runs are blocks of one launch."""
    blocks = [run.meta.get("block") for run in runs]
    if not any(blocks):
        return []
    for run, block in zip(runs, blocks, strict=True):
        if block is None or block["units"] != blocks[0]["units"]:
            raise InputError(f"{run.meta['folder']}: not a block of the launch of {runs[0].meta['folder']}")
    return list(blocks[0]["units"])


def _what_is_missing(runs: Sequence[Run], order: Sequence[str], missing: Sequence[str]) -> str:
    of = runs[0].meta["block"]["of"]
    blocks = sorted({order.index(name) % of for name in missing})
    names = ", ".join(f"{block}/{of}" for block in blocks)
    return f"{len(missing)} of {len(order)} units of work are missing, those of --block={names}"


def _seeds(piece: Piece) -> str:
    return f"seeds {', '.join(str(piece.run.lanes[row]['seed']) for row in piece.rows)}"


def _write(folder: Path, pieces: Sequence[Piece]) -> None:
    first = pieces[0].run
    metrics = {name: np.concatenate([p.run.metrics[name][p.rows] for p in pieces]) for name in first.metrics}
    lives = _lives(pieces) if first.lives is not None else None
    for piece in pieces:
        if piece.checkpoints.is_dir():
            target = folder / CHECKPOINTS / piece.checkpoints.name
            with storing(target):
                shutil.copytree(piece.checkpoints, target, ignore=shutil.ignore_patterns("LOCK", ".*"))
    write_run(folder, _meta(pieces), first.step, first.count, metrics, lives=lives)


def _meta(pieces: Sequence[Piece]) -> dict[str, Any]:
    first = pieces[0].run.meta
    runs = {id(piece.run): piece.run for piece in pieces}.values()
    lanes = [piece.run.lanes[row] for piece in pieces for row in piece.rows]
    bad = [row in piece.run.meta["diverged"] for piece in pieces for row in piece.rows]
    seconds = round(sum(run.meta.get("wall_seconds", 0.0) for run in runs), 3)
    meta = {name: value for name, value in first.items() if name != "block"} | {
        "lanes": lanes,
        "units": [dict(piece.entry) for piece in pieces],
        "diverged": np.flatnonzero(bad).tolist(),
        "wall_seconds": seconds,
    }
    if "block" not in first and first.get("experiment"):
        meta["experiment"] = first["experiment"] | {"seeds": list(dict.fromkeys(lane["seed"] for lane in lanes))}
    return meta


def _lives(pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
    """The unit biographies with the lanes counted anew."""
    sources = [(piece.run.lives or {}, row) for piece in pieces for row in piece.rows]
    events = [np.flatnonzero(lives["lane"] == row) for lives, row in sources]
    joined = dict(pieces[0].run.lives or {})
    for name in PER_EVENT:
        parts = [lives[name][chosen] for (lives, _), chosen in zip(sources, events, strict=True)]
        joined[name] = np.concatenate(parts)
    joined["lane"] = np.repeat(np.arange(len(sources), dtype=np.int32), [len(chosen) for chosen in events])
    return joined | {name: np.stack([lives[name][row] for lives, row in sources]) for name in PER_LANE}


def main(arguments: list[str]) -> int:
    """The command: says what it has joined."""
    if len(arguments) < 3:
        raise InputError("write: python -m launch.merge OUT DIR1 DIR2 ...")
    for folder in merge(arguments[0], arguments[1:], lambda line: print(line, file=sys.stderr)):
        print(folder)
    return 0


if __name__ == "__main__":
    run_cli(main)
