"""A run on disk: `DIR/<label>/` holds `run.json`, `metrics.npz` and, once the run is over, an empty `DONE`.

`metrics.npz` holds `step` int64 [bin] (the step at which the bin ends, exclusive), `count` int64 [bin] (steps in the
bin) and one float64 [lane, bin] array per metric, NaN where a bin holds no measurement. A run with a replacement log
has `lives.npz` beside it, see `launch.storage.replacements`. A run under way has no `metrics.npz`; what it has measured
so far lies in its checkpoints, from which `read_run(folder, partial=True)` reads it.
"""

import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch.errors import InputError
from launch.storage.bins import measured
from launch.storage.durable import replacing, storing, sync
from launch.storage.replacements import PREFIX

SCHEMA = 1
RUN, METRICS, LIVES, DONE, CHECKPOINTS = "run.json", "metrics.npz", "lives.npz", "DONE", "checkpoints"
AXES = ("step", "count")
ADDED = ("finished", "folder")  # what reading puts into `meta`
REQUIRED = ("label", "method", "task", "settings", "lanes")
SHOWN_ENTRIES = 6


class Progress(NamedTuple):
    """How far a run under way is: steps done by each lane read, int64 [lane]; steps and lanes of the whole run."""

    done: np.ndarray
    steps: int
    lanes: int

    def __str__(self) -> str:
        low, high = int(self.done.min()), int(self.done.max())
        steps = f"{high}" if low == high else f"{low} to {high}"
        return f"partial: {len(self.done)} of {self.lanes} lanes, {steps} of {self.steps} steps"


@dataclass(frozen=True)
class Run:
    """One label of a run folder: what was run, and what was measured.

    `meta` is `run.json` with `finished` (whether `DONE` stands) and `folder` added; `step` and `count` are int64
    [bin]; `metrics` maps a name to float64 [lane, bin]; `lives` is the replacement log, as in
    `launch.storage.replacements`, if any. `progress` is set where the run is under way: it holds the lanes that have a
    checkpoint, with NaN in bins that a lane has not completed, and no replacement log.
    """

    label: str
    meta: dict[str, Any]
    step: np.ndarray
    count: np.ndarray
    metrics: dict[str, np.ndarray]
    lives: dict[str, np.ndarray] | None = None
    progress: Progress | None = None

    @property
    def lanes(self) -> list[dict[str, Any]]:
        """`{"method", "seed", "hyper"}` of every lane, in the order of the metrics' first axis."""
        return self.meta["lanes"]

    @property
    def seeds(self) -> np.ndarray:
        """The seed of every lane, int64 [lane]."""
        return np.array([lane["seed"] for lane in self.lanes], dtype=np.int64)

    def settings_groups(self) -> list[tuple[str, np.ndarray]]:
        """Lanes with equal hyperparameters: (what sets the group apart, lane indices), by first appearance.

        The name holds only the hyperparameters that differ between groups, and is empty for a single group.
        """
        groups: dict[tuple, list[int]] = {}
        for index, lane in enumerate(self.lanes):
            groups.setdefault(tuple(sorted(lane["hyper"].items())), []).append(index)
        hypers = [dict(key) for key in groups]
        names = [name for name in _ordered_keys(hypers) if len({hyper.get(name) for hyper in hypers}) > 1]
        texts = {name: number_texts([hyper.get(name) for hyper in hypers]) for name in names}
        return [
            (", ".join(f"{name}={texts[name][i]}" for name in names), np.array(lanes))
            for i, lanes in enumerate(groups.values())
        ]


def _ordered_keys(dicts: list[dict]) -> list[str]:
    return list(dict.fromkeys(key for each in dicts for key in each))


def number_texts(values: list) -> list[str]:
    """The values as short text; longer where short text would make two different values look alike."""
    short = [f"{value:g}" if isinstance(value, (int, float)) else str(value) for value in values]
    return short if len(set(short)) == len(set(values)) else [str(value) for value in values]


def _plain(value: Any) -> Any:
    """What JSON can hold for a numpy scalar, an array, a path, or a tuple-like."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def write_meta(folder: Path | str, meta: Mapping[str, Any]) -> None:
    """Write `run.json` of a run that begins."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"schema": SCHEMA, **{key: value for key, value in meta.items() if key not in ADDED}}
    with replacing(folder / RUN) as file:
        file.write((json.dumps(meta, indent=1, default=_plain) + "\n").encode())


def write_run(
    folder: Path | str,
    meta: Mapping[str, Any],
    step: np.ndarray,
    count: np.ndarray,
    metrics: Mapping[str, np.ndarray],
    finished: bool = True,
    lives: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write one label's folder; every file appears whole or not at all, and `DONE` last (only when `finished`).

    Raises ValueError where a shape does not fit: `step` and `count` [bin], every metric [lane, bin].
    """
    folder = Path(folder)
    meta = {"schema": SCHEMA, **{key: value for key, value in meta.items() if key not in ADDED}}
    arrays = {"step": np.asarray(step, np.int64), "count": np.asarray(count, np.int64)}
    arrays |= {name: np.asarray(values, np.float64) for name, values in metrics.items() if name not in AXES}
    problem = _misfit(meta, arrays)
    if problem:
        raise ValueError(f"{folder}: {problem}")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / METRICS) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        (folder / DONE).unlink(missing_ok=True)  # only now: a full disk leaves older results as they are
    if lives is None:
        (folder / LIVES).unlink(missing_ok=True)
    else:
        with replacing(folder / LIVES) as file:
            np.savez_compressed(file, **lives)  # type: ignore[arg-type]
    write_meta(folder, meta)
    if finished:
        with storing(folder / DONE):
            (folder / DONE).touch()
            sync(folder)


def _misfit(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """What does not fit together between a run's description and its arrays, or nothing."""
    missing = [key for key in REQUIRED if key not in meta]
    if missing:
        return f"{RUN} lacks {', '.join(missing)}"
    if not all(name in arrays and arrays[name].ndim == 1 for name in AXES):
        return f"{METRICS} lacks step or count"
    bins, lanes = len(arrays["step"]), len(meta["lanes"])
    wanted = {name: (bins,) if name in AXES else (lanes, bins) for name in arrays}
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            return f"{name} has shape {arrays[name].shape}, {lanes} lanes and {bins} bins need {shape}"
    return ""


def read_meta(folder: Path | str) -> dict[str, Any]:
    """A label's `run.json`, of a run that may still be on its way, with `finished` and `folder` added.

    Raises:
        InputError: it is missing, damaged, or of another schema.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder")
    if not (folder / RUN).is_file():
        raise InputError(f"{folder}: no {RUN} in it; it holds {_contents(folder)}")
    meta = _read(folder / RUN, lambda path: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        version = meta.get("schema") if isinstance(meta, dict) else None
        raise InputError(f"{folder / RUN}: schema {version!r}, this program reads schema {SCHEMA}")
    missing = [key for key in REQUIRED if key not in meta]
    if missing:
        raise InputError(f"{folder / RUN}: lacks {', '.join(missing)}")
    return meta | {"finished": (folder / DONE).exists(), "folder": str(folder)}


def unit_folders(folder: Path, meta: Mapping[str, Any]) -> list[Path]:
    """Where the checkpoints of a run's units of work are, in the order of its lanes."""
    return [folder / CHECKPOINTS / unit["name"] for unit in meta.get("units", ())]


def lanes_by_unit(meta: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The lanes that `run.json` lists, cut as its units of work have them."""
    ends = np.cumsum([0, *(unit["lanes"] for unit in meta.get("units", ()))]).tolist()
    return [meta["lanes"][start:stop] for start, stop in itertools.pairwise(ends)]


def run_names(directory: Path) -> list[str]:
    """The folders in `directory` that hold a run, finished or not; none where it is itself a run."""
    return [] if (directory / RUN).is_file() else sorted(path.parent.name for path in directory.glob(f"*/{RUN}"))


def label_folders(directory: Path) -> list[Path]:
    """The folders of the runs in a folder, finished or not; the folder itself where it is a run.

    Raises:
        InputError: there is no such folder, or no run in it.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such run folder")
    if (directory / RUN).is_file():
        return [directory]
    folders = [directory / name for name in run_names(directory)]
    if not folders:
        raise InputError(f"{directory}: no run in it (no */{RUN}); it holds {_contents(directory)}")
    return folders


def seeds_text(seeds: Iterable[int]) -> str:
    """Seeds as flags write ranges: `0:3,7` for 0, 1, 2 and 7."""
    ordered, parts, first = sorted(set(seeds)), [], 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
            start, stop = ordered[first], ordered[i - 1] + 1
            parts.append(f"{start}:{stop}" if stop - start > 1 else f"{start}")
            first = i
    return ",".join(parts)


def read_run(folder: Path | str, partial: bool = False) -> Run:
    """Read one label's folder; with `partial`, from the checkpoints where the run is under way.

    Raises:
        InputError: it is missing, damaged, of another schema, or not over; with `partial`, no checkpoint of it holds a
            complete bin.
    """
    folder, meta = Path(folder), read_meta(folder)
    if not (folder / METRICS).is_file():
        if partial and "units" in meta:
            return _read_partial(folder, meta)
        if "units" in meta:
            raise InputError(f"{folder}: not over yet; python -m launch.show {folder} says how far it is")
        raise InputError(f"{folder}: no {METRICS} in it; it holds {_contents(folder)}")
    arrays = _read(folder / METRICS, _load)
    problem = _misfit(meta, arrays)
    if problem:
        raise InputError(f"{folder}: {problem}")
    metrics = {name: values for name, values in arrays.items() if name not in AXES}
    lives = _read(folder / LIVES, _load) if (folder / LIVES).is_file() else None
    return Run(str(meta["label"]), meta, arrays["step"], arrays["count"], metrics, lives)


def _read_partial(folder: Path, meta: dict[str, Any]) -> Run:
    """A run under way from the newest good checkpoint of each of its units."""
    size, total = int(meta["settings"]["bin"]), max(meta["settings"]["steps"], meta.get("begun_steps", 0))
    step = np.minimum(np.arange(1, -(-total // size) + 1) * size, total)
    lanes, done, diverged, parts = [], [], [], []
    for unit, here in zip(unit_folders(folder, meta), lanes_by_unit(meta), strict=True):
        found = _newest_measured(unit)
        if found is None:
            continue
        at, arrays = found
        diverged += [len(lanes) + int(i) for i in np.flatnonzero(arrays.pop("diverged"))]
        lanes, done = [*lanes, *here], [*done, *[at] * len(here)]
        parts.append({name: _completed(v, step, at) for name, v in arrays.items() if not name.startswith(PREFIX)})
    bins = int(np.searchsorted(step, max(done, default=0), side="right"))
    if not bins:
        raise InputError(
            f"{folder}: under way, and no checkpoint holds a complete bin of {size} steps; "
            f"python -m launch.show {folder} says how far it is"
        )
    metrics = {name: np.concatenate([part[name] for part in parts])[:, :bins] for name in parts[0]}
    progress = Progress(np.array(done, np.int64), total, len(meta["lanes"]))
    meta = meta | {"lanes": lanes, "diverged": diverged}
    return Run(meta["label"], meta, step[:bins], np.diff(step[:bins], prepend=0), metrics, progress=progress)


def _newest_measured(unit: Path) -> tuple[int, dict[str, np.ndarray]] | None:
    """Step, means and other arrays of a unit's newest good checkpoint; `None` where there is none."""
    from launch.storage.checkpoint import Checkpoints  # imports JAX, which finished runs are read without

    store = Checkpoints(unit)
    for _ in range(3):  # its process may remove a checkpoint while this one reads it, but only after a newer one
        for step in reversed(store.steps()):
            arrays = store.arrays(step)
            if arrays is not None:
                return step, measured(arrays)
    return None


def _completed(values: np.ndarray, step: np.ndarray, done: int) -> np.ndarray:
    """Means [lane, bin] at the bins that end at `step`, NaN in those that end after `done`."""
    found = np.full((len(values), len(step)), np.nan)
    number = min(values.shape[1], int(np.searchsorted(step, done, side="right")))
    found[:, :number] = values[:, :number]
    return found


def _load(path: Path) -> dict[str, np.ndarray]:
    # Opened here, since np.load leaves a file that it cannot read open.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read(path: Path, load: Callable[[Path], Any]) -> Any:
    """`load(path)`, with whatever a damaged file raises turned into one line."""
    try:
        return load(path)
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read, truncated or damaged ({reason})") from error


def read_runs(directory: Path | str, partial: bool = False) -> dict[str, Run]:
    """Every run in `directory` by label, sorted; a folder that is itself one run counts as a single one.

    Runs under way are read from their checkpoints with `partial`, and else left out where others are over.

    Raises:
        InputError: the folder is missing, holds no run that can be read, or one of its runs is damaged.
    """
    folders = label_folders(Path(directory))
    runs: dict[str, Run] = {}
    for folder in [folder for folder in folders if _is_readable(folder, partial)] or folders:
        run = read_run(folder, partial)
        if run.label in runs:
            raise InputError(f"{folder}: second run with the label '{run.label}' in {directory}")
        runs[run.label] = run
    return runs


def _is_readable(folder: Path, partial: bool) -> bool:
    """Whether a run is over, or with `partial` has a checkpoint with a complete bin."""
    if (folder / METRICS).is_file() or "units" not in (meta := read_meta(folder)):
        return True
    if not partial:
        return False
    steps = (int(p.name) for unit in unit_folders(folder, meta) for p in unit.glob("*/") if p.name.isdecimal())
    return max(steps, default=0) >= int(meta["settings"]["bin"])


def _contents(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - SHOWN_ENTRIES} more" if len(names) > SHOWN_ENTRIES else ""
    return (", ".join(names[:SHOWN_ENTRIES]) + more) or "nothing"
