"""Checkpoints on disk: what is read is bit for bit what was saved, or it is not read.

`folder/<step>/` is one checkpoint: `state/` (orbax, the leaves of a pytree by name), `arrays.npz` (numpy arrays as they
are), `about.json` (what the caller says, `structure`, `versions`, `written`) and `manifest.json` (SHA-256 of every
file, CRC-32 of every leaf). It is written as `.<step>.<process>.<attempt>.tmp`, the manifest last, and renamed once all
of it is on the disk. orbax keeps no checksums of its own: without the manifest a flipped byte would be restored
unnoticed.
"""

import contextlib
import errno
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.errors import InputError
from launch.storage.durable import StorageError, make_folder, publish, storing, why
from launch.storage.leaves import checksum, is_empty, on_host, rebuilt, structure
from launch.storage.seal import MANIFEST, and_more, facts_of, files_in, seal, verify
from launch.storage.state_files import read_state, write_state

STATE, ARRAYS, ABOUT = "state", "arrays.npz", "about.json"
ADDED = ("structure", "keys", "versions", "written")  # what saving puts into `about`
TEMPORARY = re.compile(r"\.\d+\.(\d+)(\.\d+|\.old)?\.tmp")
SHOWN_DIFFERENCES = 6
_attempts = itertools.count()


class Saved(NamedTuple):
    """A checkpoint that was read: the step, the pytree, the arrays, what the caller said of it, and where it lies.

    The pytree's leaves are in host memory, typed keys as their data: see `launch.storage.leaves.with_keys`.
    """

    step: int
    tree: Any
    arrays: dict[str, np.ndarray]
    about: dict[str, Any]
    path: Path

    @property
    def keys(self) -> dict[str, str]:
        """Name -> implementation of the leaves that are typed keys."""
        return self.about["keys"]


class _Contents(NamedTuple):
    """What will be written, in host memory."""

    step: int
    leaves: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    about: bytes


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Checkpoints:
    """The checkpoints of one unit of work, `folder/<step>/`; one process at a time may write there.

    The newest `keep` good ones stay (None: all), and those of the steps `milestones`. Older ones go once a newer one is
    in place; those of later steps than the one just saved are left alone.
    """

    def __init__(self, folder: Path, keep: int | None = 2, milestones: Collection[int] = ()) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep is {keep}; at least one checkpoint has to stay (None: all)")
        self.folder = Path(folder)
        self.keep = keep
        self.milestones = frozenset(milestones)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._verdicts: dict[int, str] = {}

    def save(self, step: int, tree: Any, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Copy everything to host memory and write it in the background; afterwards `tree` may be donated.

        A save that is still running is waited for. A step that is there already and verifies is not written again.

        Raises:
            StorageError: the former save failed; nothing of this one is written.
            ValueError: something cannot be saved: two leaves of one name, 64 bits in a leaf that JAX would cut to 32,
                arrays of objects, an entry of `about` that JSON does not hold; or this is not process 0 of several.
        """
        self.wait()
        contents = _contents(step, tree, arrays, about)
        self._thread = threading.Thread(target=self._guarded, args=(contents,), name=f"checkpoint {step}")
        self._thread.start()

    def wait(self) -> None:
        """Until what was saved is on the disk.

        Raises:
            StorageError: it could not be written; the text names the last good checkpoint.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending; what they hold is not verified."""
        return [step for step in self._folders() if (self.folder / str(step) / MANIFEST).is_file()]

    def arrays(self, step: int) -> dict[str, np.ndarray] | None:
        """The arrays of one checkpoint, where there is one and all of it verifies; its pytree is not read."""
        self.wait()
        path = self.folder / str(step)
        with contextlib.suppress(FileNotFoundError):  # removed by the process that runs the unit
            return None if verify(path) else _read_arrays(path)
        return None

    def latest_good(
        self,
        abstract: Any,
        at: int | None = None,
        accept: Callable[[int], bool] = lambda step: True,
        warn: Callable[[str], None] = _print,
    ) -> Saved | None:
        """The newest accepted checkpoint that verifies, or exactly the one of step `at`; None where there is none.

        A damaged one is told to `warn` in one line, and the one before is taken. `abstract` is a pytree of arrays or
        `jax.ShapeDtypeStruct`; the leaves come back in its structure, as `Saved` says.

        Raises:
            InputError: there are checkpoints and none is readable (nothing is deleted), there is none of step `at`, or
                the structure is not that of `abstract`.
        """
        self.wait()
        found = self._folders()
        if at is not None and found and at not in found:
            raise InputError(f"{self.folder}: no checkpoint of step {at}; there are: {', '.join(map(str, found))}")
        wanted = [step for step in reversed(found) if (step == at if at is not None else accept(step))]
        problems = []
        for step in wanted:
            path = self.folder / str(step)
            saved, problem = _try_read(path, abstract)
            self._verdicts[step] = problem
            if saved is not None:
                return saved
            problems.append(f"step {step}: {problem}")
            if step != wanted[-1]:  # of the last one the error tells
                warn(f"{path}: damaged checkpoint, the one before is taken: {problem}")
        if problems:
            raise InputError(f"{self.folder}: no readable checkpoint, nothing was deleted; {'; '.join(problems)}")
        return None

    def _folders(self) -> list[int]:
        """Steps for which a folder stands under its final name, ascending."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def _guarded(self, contents: _Contents) -> None:
        try:
            self._write(contents)
        except Exception as error:  # noqa: BLE001  whatever orbax raises is raised by `wait`, in the caller's thread
            self._failure = self._explained(contents.step, error)
            if not threading.main_thread().is_alive():
                _print(f"error: {self._failure}")  # nobody will wait any more

    def _explained(self, step: int, error: Exception) -> StorageError:
        try:
            good = next((step for step in reversed(self.steps()) if not self._problem(step)), None)
        except OSError:
            good = None
        last = "there is no good one before it" if good is None else f"the last good one is {self.folder / str(good)}"
        text = f"{self.folder / str(step)}: this checkpoint could not be written: {why(error)}; {last}"
        failure = StorageError(text, why(error))
        failure.__cause__ = error
        return failure

    def _write(self, contents: _Contents) -> None:
        final = self.folder / str(contents.step)
        make_folder(self.folder)
        self._remove_left_over()
        if not final.is_dir() or self._problem(contents.step):
            self._write_new(contents, final)
        self._remove_old(contents.step)

    def _write_new(self, contents: _Contents, final: Path) -> None:
        # A name of its own for every attempt: threads of one that failed may still be writing.
        temporary = self.folder / f".{contents.step}.{os.getpid()}.{next(_attempts)}.tmp"
        try:
            _write_files(temporary, contents)
            if final.is_dir():  # damaged
                self._discard(contents.step)
            publish(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # there only after a failure: gives its space back
        self._verdicts[contents.step] = ""

    def _problem(self, step: int) -> str:
        """What is wrong with a checkpoint; remembered, since finding out reads all of it."""
        if step not in self._verdicts:
            self._verdicts[step] = verify(self.folder / str(step))
        return self._verdicts[step]

    def _remove_old(self, newest: int) -> None:
        if self.keep is None:
            return
        good = 0
        for step in reversed([step for step in self.steps() if step <= newest]):
            if good < self.keep:
                good += not self._problem(step)
            elif step not in self.milestones:
                self._discard(step)

    def _discard(self, step: int) -> None:
        """Remove a checkpoint. It loses its name first, so that one half removed never looks like a whole one."""
        path = self.folder / str(step)
        aside = self.folder / f".{step}.{os.getpid()}.old.tmp"
        with storing(path):
            os.rename(path, aside)
        self._verdicts.pop(step, None)
        shutil.rmtree(aside, ignore_errors=True)  # what is left over is removed by the next save

    def _remove_left_over(self) -> None:
        """Remove what saves that were killed left behind."""
        for path in self.folder.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            if match and not _another_alive(int(match[1])):
                shutil.rmtree(path, ignore_errors=True)


def describe(path: Path) -> dict[str, Any]:
    """`step`, `about` (all of `about.json`), `bytes` and `age` in seconds of one checkpoint, which is not verified.

    Raises:
        InputError: the folder or its `about.json` is missing or unreadable.
    """
    path = Path(path)
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        size = sum((path / name).stat().st_size for name in [*files_in(path), MANIFEST])
        age = max(0.0, time.time() - about["written"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({why(error)})") from error
    return {"step": int(path.name) if path.name.isdecimal() else None, "about": about, "bytes": size, "age": age}


def _contents(step: int, tree: Any, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> _Contents:
    taken = [name for name in ADDED if name in about]
    if taken:
        raise ValueError(f"about: {', '.join(taken)} is written by the checkpoint itself")
    if jax.process_index() != 0:
        raise ValueError(
            f"process {jax.process_index()}: only process 0 of a program can save, orbax writes no other's"
        )
    if step != int(step) or step < 0:
        raise ValueError(f"step is {step}; a checkpoint has a step of at least 0")
    leaves, keys = on_host(tree)
    added = {"structure": structure(tree), "keys": keys, "versions": format_versions(), "written": time.time()}
    host = {name: np.array(value) for name, value in arrays.items()}
    objects = [name for name, value in host.items() if value.dtype.hasobject]
    if objects:
        raise ValueError(f"arrays: {', '.join(objects)} holds Python objects, only numbers can be saved")
    text = json.dumps({**about, **added}, indent=1, default=_plain) + "\n"
    return _Contents(int(step), leaves, host, text.encode())


@functools.cache
def format_versions() -> dict[str, str]:
    """The versions of what decides whether a checkpoint can be read."""
    names = ("jax", "jaxlib", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _plain(value: Any) -> Any:
    """What JSON can hold for numpy's scalars and arrays, and for paths."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise ValueError(f"about: {value!r} of type {type(value).__name__} cannot be written as JSON")


def _write_files(folder: Path, contents: _Contents) -> None:
    folder.mkdir()
    _require_space(folder, sum(value.nbytes for value in (*contents.leaves.values(), *contents.arrays.values())))
    leaves = {name: checksum(value) for name, value in contents.leaves.items()}
    write_state(folder / STATE, contents.leaves)
    # Read back at once, since older checkpoints go when this one has its name.
    _restored(folder / STATE, {name: leaves[name] for name, value in contents.leaves.items() if value.size})
    with zipfile.ZipFile(folder / ARRAYS, "w") as archive:
        # np.savez would not take an array called `file`.
        for name, value in contents.arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, value, allow_pickle=False)
    (folder / ABOUT).write_bytes(contents.about)
    seal(folder, contents.step, leaves=leaves)


def _require_space(folder: Path, size: int) -> None:
    """Fail early and quietly: orbax's threads write to stderr about every array for which there was no room."""
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _try_read(path: Path, abstract: Any) -> tuple[Saved | None, str]:
    """The checkpoint, or what is wrong with it. InputError where it is good and of another structure."""
    problem = verify(path)
    if problem:
        return None, problem
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        _require_same(path, about, structure(abstract))
        return _read(path, about, abstract), ""
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  whatever orbax raises for what it cannot read
        return None, f"the files are as they were written, but cannot be read: {why(error)}"


def _read(path: Path, about: dict[str, Any], abstract: Any) -> Saved:
    manifest = facts_of(path)
    stored = {name: manifest["leaves"][name] for name, kind in about["structure"].items() if not is_empty(kind)}
    host = _restored(path / STATE, stored)
    return Saved(manifest["step"], rebuilt(abstract, host), _read_arrays(path), about, path)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with open(path / ARRAYS, "rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _restored(path: Path, checksums: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The leaves of these names; ValueError where one is not what its checksum says."""
    leaves = read_state(path, checksums)
    wrong = [name for name, expected in checksums.items() if checksum(leaves[name]) != expected]
    if wrong:
        raise ValueError(f"orbax gives other numbers for {wrong[0]} than were saved{and_more(wrong)}")
    return leaves


def _require_same(path: Path, about: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """InputError listing in what the saved structure is not the wanted one."""
    saved = about["structure"]
    names = list(dict.fromkeys([*saved, *wanted]))
    differences = [
        f"{name or 'the leaf'}: saved {saved.get(name, 'nothing')}, needed {wanted.get(name, 'nothing')}"
        for name in names
        if saved.get(name) != wanted.get(name)
    ]
    if not differences:
        return
    shown = "; ".join(differences[:SHOWN_DIFFERENCES])
    more = f"; and {len(differences) - SHOWN_DIFFERENCES} more" if len(differences) > SHOWN_DIFFERENCES else ""
    now = format_versions()
    others = [f"{name} {old} (now {now.get(name)})" for name, old in about["versions"].items() if now.get(name) != old]
    written = f"; written with {', '.join(others)}" if others else ""
    raise InputError(f"{path}: holds another structure than this program needs: {shown}{more}{written}")


def _another_alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True
