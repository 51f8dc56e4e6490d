"""The one door to image classification data: found on disk, checked, decoded once, kept memory-mapped."""

import contextlib
import difflib
import gzip
import hashlib
import json
import logging
import math
import os
import re
import shutil
import struct
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CLASSES = {"mnist": 10, "fashion_mnist": 10, "kmnist": 10, "cifar10": 10, "cifar100": 100}
"""How many labels the sets that we know by name have; the others have as many as their training labels show."""

_PARTS = ("train_x", "train_y", "test_x", "test_y")
_NPZ_KEYS = (("train_images", "train_labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test"))
_FORMAT = 1
_LEFTOVER_AGE = 3600.0


class ImageData(NamedTuple):
    """Images uint8 `[n, height, width]` or `[n, height, width, channels]` and labels int32 `[n]`; read-only."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


class Source(NamedTuple):
    """Files that hold a data set, the folder or file to name in messages, and what decodes them."""

    where: Path
    files: tuple[Path, ...]
    read: Callable[[], ImageData]


def load_images(name: str, data_dir: str | None = None) -> ImageData:
    """The images and labels of `name`, from the first of these that is there.

    1. a prepared tensorflow-datasets set, `<data_dir>/<name>/<version>` (array_record; TensorFlow is not needed);
    2. idx files (`train-images-idx3-ubyte`, `.gz` or not, ...) in `<data_dir>/<name>` or `<data_dir>`;
    3. `<data_dir>/<name>.npz` with `train_images, train_labels, test_images, test_labels` or `x_train, y_train, ...`.

    Decoded once into the user's cache folder; a later call maps those arrays into memory, and decodes again when a
    file of the source has changed. Several processes may call it at once.

    Args:
        name: `mnist`, `fashion_mnist`, `kmnist`, `emnist/balanced`, or the name of files of your own.
        data_dir: where to look; `None` is the default folder of tensorflow-datasets.

    Raises:
        FileNotFoundError: nothing there; the one line says what was looked for, where, and how to get it.
        ValueError: the data is damaged, or its shapes or labels do not fit together.
    """
    if not re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)*", name):
        raise ValueError(f"data set: '{name}' is not a name; for example {', '.join(CLASSES)}")
    root = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    source = find_source(name, root)
    if source is None:
        raise FileNotFoundError(_not_found(name, root))
    folder = cache_folder(name, source.files)
    cached = _open_cache(folder)
    if cached is not None:
        return cached
    data = _checked(name, source)
    return _write_cache(folder, data, source)


def find_source(name: str, root: Path) -> Source | None:
    """Where the images of `name` lie under `root`, as `load_images` looks for them; `None` if nowhere."""
    return _find_prepared(name, root) or _find_idx(name, root) or _find_npz(name, root)


def number_of_classes(name: str, data: ImageData) -> int:
    """How many labels data set `name` has."""
    return CLASSES.get(name, int(data.train_y.max()) + 1)


def default_data_dir() -> Path:
    """Where tensorflow-datasets keeps its sets: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _not_found(name: str, root: Path) -> str:
    match = difflib.get_close_matches(name, CLASSES, n=1, cutoff=0.5)
    known = match[0] if match else name
    meant = f" (did you mean '{known}'?)" if known != name else ""
    looked = f"{name}/<version>/dataset_info.json, train-images-idx3-ubyte[.gz] (also in {name}/) and {name}.npz"
    there = f"in {root}" if root.is_dir() else f"in {root}, which is not a folder"
    return f"data set '{name}' not found{meant}: looked for {looked} {there}; to get it: {_how_to_get(known, root)}"


def _how_to_get(name: str, root: Path) -> str:
    return f"python -m tasks.prepare {name} --data_dir={root}"


# A prepared tensorflow-datasets set


def find_prepared(name: str, root: Path) -> Path | None:
    """The folder of the newest prepared version of `name` under `root`; `None` if there is none."""
    infos = [info for info in (root / name).glob("*/dataset_info.json") if re.fullmatch(r"[\d.]+", info.parent.name)]
    newest = max(infos, key=lambda info: [int(n) for n in info.parent.name.split(".") if n], default=None)
    return newest.parent if newest else None


def _find_prepared(name: str, root: Path) -> Source | None:
    folder = find_prepared(name, root)
    if folder is None:
        return None
    files = tuple(sorted(f for f in folder.iterdir() if f.is_file()))
    return Source(folder, files, lambda: _read_prepared(name, folder, root))


def _read_prepared(name: str, folder: Path, root: Path) -> ImageData:
    def read(builder: Any) -> list[np.ndarray]:
        return [array for split in ("train", "test") for array in _read_split(builder, split)]

    return ImageData(*read_prepared(name, folder, root, read))


def read_prepared(name: str, folder: Path, root: Path, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of the builder of the prepared set in `folder`; ValueError, one line, if it fails."""
    remedy = f"remove {folder} and run: {_how_to_get(name, root)}"
    try:
        import tensorflow_datasets as tfds  # about a second, and needed only the first time
    except ImportError as error:
        raise ValueError(f"{folder}: reading needs tensorflow-datasets ({error}): pip install -e '.[run]'") from None
    try:
        stated = json.loads((folder / "dataset_info.json").read_text()).get("fileFormat")
        if stated != "array_record":
            raise ValueError(f"prepared as {stated}, not as array_record")
        with _quiet_absl():
            return read(tfds.builder_from_directory(folder))
    except Exception as error:  # noqa: BLE001 -- the readers raise many kinds on damaged files
        raise ValueError(f"{folder}: cannot be read ({one_line(error)}); {remedy}") from None


def _read_split(builder: Any, split: str, chunk: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    if split not in builder.info.splits:
        raise ValueError(f"no split '{split}'")
    source = builder.as_data_source(split=split)
    images, labels = [], []
    for start in range(0, len(source), chunk):
        records = source.__getitems__(list(range(start, min(start + chunk, len(source)))))
        images.append(np.stack([record["image"] for record in records]))
        labels.append(np.array([record["label"] for record in records]))
    return np.concatenate(images), np.concatenate(labels)


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Without the advice to install other packages that tensorflow-datasets logs through absl."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


# idx files


def _find_idx(name: str, root: Path) -> Source | None:
    for folder in (root / name, root / name.replace("_", "-"), root):
        found = [_find_idx_file(name, folder, part) for part in _PARTS]
        missing = [part for part, path in zip(_PARTS, found, strict=True) if path is None]
        if len(missing) == len(_PARTS):
            continue
        if missing:
            wanted = ", ".join(_idx_names(name, part)[0] + "[.gz]" for part in missing)
            raise FileNotFoundError(f"data set '{name}': {folder} holds idx files but not {wanted}")
        files = tuple(path for path in found if path is not None)
        return Source(folder, files, lambda files=files: ImageData(*map(_read_idx, files)))
    return None


def _idx_names(name: str, part: str) -> list[str]:
    splits = ("train",) if part.startswith("train") else ("t10k", "test")
    kind = "images-idx3-ubyte" if part.endswith("x") else "labels-idx1-ubyte"
    prefixes = ("", name.replace("/", "-") + "-")
    names = [f"{prefix}{split}-{kind}" for prefix in prefixes for split in splits]
    return names + [n.replace("-idx", ".idx") for n in names]


def _find_idx_file(name: str, folder: Path, part: str) -> Path | None:
    candidates = (folder / (n + suffix) for n in _idx_names(name, part) for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(path: Path) -> np.ndarray:
    """An idx file: two zero bytes, the type (8 is uint8), the rank, each dimension as big-endian int32, the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be unpacked, truncated or damaged ({one_line(error)})") from None
    rank = 1 if "idx1" in path.name else 3
    magic = bytes((0, 0, 8, rank))
    if raw[:4] != magic:
        raise ValueError(
            f"{path}: starts with bytes {raw[:4].hex(' ')}, an idx file of this kind with {magic.hex(' ')}"
        )
    header = 4 + 4 * rank
    if len(raw) < header:
        raise ValueError(f"{path}: truncated: {len(raw)} bytes, the header alone has {header}")
    shape = struct.unpack(f">{rank}I", raw[4:header])
    wanted, size = math.prod(shape), len(raw) - header
    if size != wanted:
        raise ValueError(f"{path}: truncated or damaged: shape {shape} needs {wanted} bytes, there are {size}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


# npz


def _find_npz(name: str, root: Path) -> Source | None:
    path = root / f"{name}.npz"
    return Source(path, (path,), lambda: _read_npz(path)) if path.is_file() else None


def _read_npz(path: Path) -> ImageData:
    try:
        # Opened here, since np.load leaves a file that it cannot read open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            for keys in _NPZ_KEYS:
                if set(keys) <= set(arrays.files):
                    return ImageData(*(arrays[key] for key in keys))
            held = ", ".join(arrays.files)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read, truncated or not an npz file ({one_line(error)})") from None
    raise ValueError(f"{path}: holds {held or 'nothing'}, not {' or '.join(', '.join(keys) for keys in _NPZ_KEYS)}")


# What the data must satisfy


def _checked(name: str, source: Source) -> ImageData:
    """The decoded data with a single channel dropped and labels as int32; one line of error if it does not hold."""
    where = source.where
    raw = ImageData(*(np.asarray(array) for array in source.read()))
    for part, array in zip(_PARTS, raw, strict=True):
        if part.endswith("x") and (array.dtype != np.uint8 or array.ndim not in (3, 4) or array.size == 0):
            raise ValueError(
                f"{where}: {part} is {array.dtype} {array.shape}, not uint8 (n, height, width) or (..., channels)"
            )
        if part.endswith("y") and (array.dtype.kind not in "ui" or array.shape not in ((len(array),), (len(array), 1))):
            raise ValueError(f"{where}: {part} is {array.dtype} {array.shape}, not integers (n,)")
    for split, x, y in (("train", raw.train_x, raw.train_y), ("test", raw.test_x, raw.test_y)):
        if len(x) != len(y):
            raise ValueError(f"{where}: {len(x)} {split} images but {len(y)} {split} labels")
    if raw.train_x.shape[1:] != raw.test_x.shape[1:]:
        raise ValueError(f"{where}: train images are {raw.train_x.shape[1:]}, test images {raw.test_x.shape[1:]}")
    classes = number_of_classes(name, raw)
    for part, y in (("train_y", raw.train_y), ("test_y", raw.test_y)):
        if y.min() < 0 or y.max() >= classes:
            raise ValueError(f"{where}: {part} has labels from {y.min()} to {y.max()}, allowed are 0 to {classes - 1}")
    train_x, test_x = (x[..., 0] if x.ndim == 4 and x.shape[-1] == 1 else x for x in (raw.train_x, raw.test_x))
    train_y, test_y = (y.reshape(-1).astype(np.int32) for y in (raw.train_y, raw.test_y))
    return ImageData(train_x, train_y, test_x, test_y)


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks, at most 200 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


# The cache


def cache_folder(name: str, files: Sequence[Path]) -> Path:
    """`<user's cache>/plastic_jax/data/<name>-<fingerprint>`; it changes when one of the files it was made of does."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    fingerprint = hashlib.sha256(repr((_FORMAT, stats)).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "plastic_jax" / "data" / f"{name.replace('/', '-')}-{fingerprint}"


def _open_cache(folder: Path) -> ImageData | None:
    try:
        return ImageData(*(np.load(folder / f"{part}.npy", mmap_mode="r") for part in _PARTS))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        shutil.rmtree(folder, ignore_errors=True)  # somebody damaged it: decode again
        return None


def _write_cache(folder: Path, data: ImageData, source: Source) -> ImageData:
    try:
        write_whole(folder, dict(zip(_PARTS, data, strict=True)), source.files)
        return _open_cache(folder) or data
    except OSError as error:
        warnings.warn(f"no cache for {source.where} ({one_line(error)}): it is decoded at every start", stacklevel=3)
        return data


def write_whole(folder: Path, arrays: Mapping[str, np.ndarray], files: Sequence[Path]) -> None:
    """Writes beside `folder` and renames, so that `folder` is whole or absent; the first of several writers wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        for part, array in arrays.items():
            np.save(partial / f"{part}.npy", array)
        (partial / "source.json").write_text(json.dumps([str(path) for path in files], indent=1))
        with contextlib.suppress(OSError):
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    """What a process that was killed while writing left behind."""
    for partial in parent.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _LEFTOVER_AGE:
                shutil.rmtree(partial)
