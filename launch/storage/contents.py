"""Contents of checkpoints, read without building a program: one lane's network, and hashes of whole states."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.errors import InputError
from launch.storage.checkpoint import Checkpoints, Saved, describe
from launch.storage.durable import storing
from launch.storage.leaves import digest_of
from launch.storage.run_folder import RUN, label_folders, read_meta, seeds_text, unit_folders

PARAMS, VARIABLES = "learner/params/", "learner/variables/"
SHOWN_VALUES = 6


def write_parameters(directory: Path | str, lane: str, out: Path | str | None = None) -> Path:
    """Write the Flax variables of one lane, from its newest good checkpoint, to a file that is not there yet.

    Args:
        directory: a run's folder, or a folder with a single run.
        lane: a seed, or `#I` for lane number `I`.
        out: the file; by default `LABEL-seedS-stepN.msgpack` in the current folder.

    Raises:
        InputError: no such run or lane, no good checkpoint of it, or the file is there already.
        StorageError: the file cannot be written.
    """
    import flax.serialization

    folder = only_run(directory, "--parameters")
    meta = read_meta(folder)
    number = lane_number(meta, lane)
    unit, within = unit_of_lane(folder, meta, number)
    saved = _newest(unit)
    seed = meta["lanes"][number]["seed"]
    path = Path(out) if out is not None else Path(f"{meta['label']}-seed{seed}-step{saved.step}.msgpack")
    data = flax.serialization.msgpack_serialize(variables_of(saved, within))
    check_new(path)
    with storing(path), open(path, "xb") as file:
        file.write(data)
    return path


def only_run(directory: Path | str, asking: str) -> Path:
    """The folder of the only run in `directory`; `asking` is the flag or the command that needs one.

    Raises:
        InputError: there is none, or several.
    """
    folders = label_folders(Path(directory))
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise InputError(f"{asking}: {directory} holds several runs; give one of them as DIR/LABEL: {names}")
    return folders[0]


def check_new(path: Path) -> None:
    """Refuse a file of `--out` that is there already, or whose folder is not."""
    if path.exists():
        raise InputError(f"--out: {path} is there already; nothing is overwritten")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out: no folder {path.parent}")


def lane_number(meta: Mapping[str, Any], text: str, flag: str = "--parameters") -> int:
    """The number of the lane that `SEED` or `#I` names.

    Raises:
        InputError: it names none, or several.
    """
    lanes, text = meta["lanes"], text.strip()
    if text.startswith("#"):
        if not text[1:].isdecimal() or int(text[1:]) >= len(lanes):
            raise InputError(f"{flag}: '{text}' is not a lane; {meta['label']} has #0 to #{len(lanes) - 1}")
        return int(text[1:])
    if not text.isdecimal():
        raise InputError(f"{flag}: '{text}' is neither a seed nor #I, the number of a lane from 0 on")
    found = [i for i, lane in enumerate(lanes) if lane["seed"] == int(text)]
    if not found:
        seeds = seeds_text(lane["seed"] for lane in lanes)
        raise InputError(f"{flag}: {meta['label']} has no seed {text}; it has {seeds}")
    if len(found) > 1:
        differ = numbers_that_differ(lanes)
        named = [f"#{i} ({numbers_text(lanes[i]['hyper'], differ)})" for i in found[:SHOWN_VALUES]]
        more = f" and {len(found) - SHOWN_VALUES} more" if len(found) > SHOWN_VALUES else ""
        raise InputError(f"{flag}: {len(found)} lanes have seed {text}; write {', '.join(named)}{more}")
    return found[0]


def digests(directory: Path | str) -> Iterator[str]:
    """Of every unit's newest good checkpoint a line: SHA-256 of its state, and of what was measured so far.

    Runs that are equal bit for bit have equal lines, whenever and wherever their checkpoints were written.
    """
    for folder in label_folders(Path(directory)):
        meta = read_meta(folder)
        for unit in unit_folders(folder, meta):
            saved = _newest(unit)
            state, measured = digest_of(saved.tree), digest_of(saved.arrays)
            yield f"{meta['label']} unit {unit.name} step {saved.step}: state {state} measured {measured}"


def unit_of_lane(folder: Path, meta: Mapping[str, Any], number: int) -> tuple[Path, int]:
    """The folder of the unit that a lane is in, and the lane's number there.

    Raises:
        InputError: the run is of a version that wrote no checkpoints, or its units hold fewer lanes than it lists.
    """
    if not meta.get("units"):
        raise InputError(f"{folder} has no checkpoints; it is of a version that wrote none")
    for unit, entry in zip(unit_folders(folder, meta), meta["units"], strict=True):
        if number < entry["lanes"]:
            return unit, number
        number -= entry["lanes"]
    raise InputError(f"{folder / RUN}: its units hold fewer lanes than it lists")


def _newest(unit: Path) -> Saved:
    """The newest good checkpoint of a unit, its leaves by name; no program has to be built for that."""
    saved = first_good(unit, reversed(Checkpoints(unit).steps()))
    if saved is None:
        raise InputError(f"--parameters: {unit} holds no good checkpoint")
    return saved


def first_good(unit: Path, steps: Iterable[int]) -> Saved | None:
    """The first good checkpoint of a unit among those of `steps`, its leaves by name; `None` where none is."""
    store = Checkpoints(unit)
    for step in steps:
        with contextlib.suppress(InputError):
            saved = store.latest_good(_abstract(describe(unit / str(step))["about"]), at=step)
            if saved is not None:
                return saved
    return None


def _abstract(about: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and kinds of the leaves of a checkpoint, by name."""
    found = {}
    for name, kind in about["structure"].items():
        word, _, rest = kind.rpartition("[")
        shape = tuple(int(n) for n in rest.removesuffix("]").split(",") if n)
        key = about["keys"].get(name)
        found[name] = jax.ShapeDtypeStruct(shape, jax.random.key(0, impl=key).dtype if key else jnp.dtype(word))
    return found


def variables_of(saved: Saved, lane: int) -> dict[str, Any]:
    """`{"params": ..., and other collections}` of one lane."""
    variables: dict[str, Any] = {}
    for name, leaf in saved.tree.items():
        for prefix, first in ((PARAMS, ("params",)), (VARIABLES, ())):
            if name.startswith(prefix):
                *path, last = (*first, *name.removeprefix(prefix).split("/"))
                inner = variables
                for key in path:
                    inner = inner.setdefault(key, {})
                inner[last] = np.asarray(leaf[lane])
    if "params" not in variables:
        raise InputError(f"--parameters: {saved.path} holds no parameters of a network")
    return variables


def numbers_that_differ(lanes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The hyperparameters that are not the same in all lanes."""
    names = dict.fromkeys(name for lane in lanes for name in lane["hyper"])
    return [name for name in names if len({lane["hyper"].get(name) for lane in lanes}) > 1]


def numbers_text(hyper: Mapping[str, float], names: Sequence[str]) -> str:
    """`step_size=0.01 momentum=0.9`."""
    return " ".join(f"{name}={hyper[name]:g}" for name in names if name in hyper)
