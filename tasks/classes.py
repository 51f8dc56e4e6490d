"""The one door to pictures by class: found on disk, checked, split into training and test pictures, memory-mapped."""

import contextlib
import difflib
import functools
import itertools
import math
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks.data import (
    CLASSES,
    Source,
    cache_folder,
    default_data_dir,
    find_prepared,
    find_source,
    load_images,
    number_of_classes,
    one_line,
    read_prepared,
    write_whole,
)

TRAIN_PER_CLASS, TEST_PER_CLASS = 600, 100
"""The published split of a class of continual ImageNet: the first 600 of its 700 pictures, and the last 100."""

_RESIZED = "imagenet_resized"
_CHUNK = 2000
_SECONDS_BETWEEN_LINES = 20.0


class ClassData(NamedTuple):
    """Pictures uint8 `[classes, pictures, height, width, channels]` and the classes' names; read-only."""

    names: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray


class ClassFacts(NamedTuple):
    """What `load_classes` would give: names, and the shapes of its arrays."""

    names: tuple[str, ...]
    train: tuple[int, int, int, int, int]
    test: tuple[int, int, int, int, int]


def load_classes(
    name: str, data_dir: str | None = None, train_per_class: int | None = None, test_per_class: int | None = None
) -> ClassData:
    """The pictures of data set `name` by class, from the first of these that is there.

    1. A folder with one `<class>.npy` per class: `<data_dir>/<name>`, or `name` itself where it is a path. Each file
       holds `[n, height, width, channels]` or `[n, channels, height, width]` with 1 or 3 channels (the published files
       of continual ImageNet: `[700, 3, 32, 32]`), uint8 or other numbers that are all whole and from 0 to 255. Classes
       are in the order of their numbers if all names are numbers, else of their names. Of the first `n` pictures of
       every class, `n` the size of the smallest, the last `test_per_class` are test pictures (`None`: 100, or up to
       half of them) and the first `train_per_class` training pictures (`None`: 600, or what is left).
    2. `imagenet_resized` (32x32), `imagenet_resized/64x64`, ...: what `tasks.prepare` made of it. The first 700
       training pictures of every class, split as above; *first* by the order of the prepared files, which
       tensorflow-datasets shuffles, so they are other pictures than the published ones. Reading it takes minutes,
       the first time.
    3. A set that `tasks.data.load_images` knows: its training and its test pictures by label, in the set's order, the
       first ones of each up to the number of the smallest class (`None`: all of them).

    All but the first time the arrays are mapped from the user's cache folder (they are made anew when a source has
    changed). Several processes may call it at once: one makes them, the others wait.

    Args:
        name: a name or a path, as above.
        data_dir: where to look; `None` is the default folder of tensorflow-datasets.
        train_per_class: how many training pictures of each class, its first ones.
        test_per_class: how many test pictures of each class; a folder's last ones, another set's first ones.

    Raises:
        FileNotFoundError: nothing there; the one line says what was looked for, where, and how to get it.
        ValueError: a file is damaged or of the wrong shape or type, classes do not fit together, or there are fewer
            pictures than asked; one line that names the file.
    """
    found = _find(name, data_dir)
    train, test = _counts(found, train_per_class, test_per_class)
    pictures = found.pictures()
    first_test = found.held - test if found.held_test is None else found.held
    return ClassData(found.names, pictures[:, :train], pictures[:, first_test : first_test + test])


def class_facts(
    name: str, data_dir: str | None = None, train_per_class: int | None = None, test_per_class: int | None = None
) -> ClassFacts:
    """The names and shapes that `load_classes` would give, and its errors, without reading all pictures.

    Of a folder every file's header and size are checked. A prepared `imagenet_resized`, and an image set, are read
    whole the first time.
    """
    found = _find(name, data_dir)
    train, test = _counts(found, train_per_class, test_per_class)
    classes = len(found.names)
    return ClassFacts(found.names, (classes, train, *found.picture), (classes, test, *found.picture))


def title(dataset: str) -> str:
    """A data set's name; of a folder, its last part."""
    return dataset.rstrip("/").rpartition("/")[2] if dataset.startswith(("/", ".", "~")) else dataset


class _Found(NamedTuple):
    """A set that is there.

    Attributes:
        names: of its classes.
        held: pictures of its smallest class, all or (where the set has test pictures of its own) for training.
        smallest: what to name for it in messages.
        held_test: test pictures of the class with the fewest, where the set has its own, else `None`.
        smallest_test: what to name for it.
        picture: (height, width, channels).
        pictures: gives uint8 `[classes, held + (held_test or 0), height, width, channels]`.
    """

    names: tuple[str, ...]
    held: int
    smallest: str
    held_test: int | None
    smallest_test: str
    picture: tuple[int, int, int]
    pictures: Callable[[], np.ndarray]


def _find(name: str, data_dir: str | None) -> _Found:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"data set: got {name!r}, allowed are names and folders; for example {', '.join(_known())}")
    root = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    is_path = re.match(r"[/~.]", name) is not None or Path(name).is_absolute()
    folder = Path(name).expanduser() if is_path else root / name
    if _class_files(folder):
        return _in_folder(folder)
    if not is_path:
        if name.split("/")[0] == _RESIZED:
            prepared = name if "/" in name else f"{name}/32x32"
            where = find_prepared(prepared, root)
            if where is not None:
                return _in_prepared(prepared, where, root)
        else:
            source = find_source(name, root)
            if source is not None:
                return _in_images(name, data_dir, source)
        if "/" in name and _class_files(Path(name)):
            return _in_folder(Path(name))
    raise FileNotFoundError(_not_found(name, root, folder, is_path))


def _known() -> list[str]:
    return [_RESIZED, *CLASSES]


def _not_found(name: str, root: Path, folder: Path, is_path: bool) -> str:
    what = f"data set '{name}' not found"
    layout = "one <class>.npy per class, uint8 (pictures, height, width, 3)"
    state = "holds no .npy file" if folder.is_dir() else "is not a folder"
    if is_path:
        return f"{what}: {folder} {state}; it has to hold {layout}"
    there = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    base = name.split("/")[0]
    match = difflib.get_close_matches(base, [*there, *_known()], n=1, cutoff=0.5)
    meant = f" (did you mean '{match[0]}'?)" if match and match[0] != base else ""
    known = match[0] if match else base
    remedy = f"fill {folder} with {layout}"
    if known in _known():
        known = f"{_RESIZED}/32x32" if known == _RESIZED else known
        remedy = f"python -m tasks.prepare {known} --data_dir={root}, or {remedy}"
    where = f"in {root}" if root.is_dir() else f"in {root}, which is not a folder"
    where += f" ({folder} {state})" if folder.is_dir() else ""
    looked = f"{name}/<class>.npy, {name}/<version>/dataset_info.json, idx files and {name}.npz"
    return f"{what}{meant}: looked for {looked} {where}; to get it: {remedy}"


# How many pictures of a class


def _counts(found: _Found, train: int | None, test: int | None) -> tuple[int, int]:
    """How many training and test pictures of each class, as asked or by default."""
    for name, value in (("train_per_class", train), ("test_per_class", test)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: got {value!r}, allowed are integers from 1 up")
    if found.held_test is not None:
        held = (("train", train, found.held, found.smallest), ("test", test, found.held_test, found.smallest_test))
        for split, asked, most, smallest in held:
            if asked is not None and asked > most:
                raise ValueError(f"{split}_per_class: got {asked}, but {smallest} holds {most} {split} pictures")
        return train or found.held, test or found.held_test
    # Nobody has to know how many there are: what is not asked for is the published number, or what is left.
    test_number = test or min(TEST_PER_CLASS, found.held // 2 if train is None else max(1, found.held - train))
    wanted = train or min(TRAIN_PER_CLASS, max(1, found.held - test_number))
    if wanted + test_number > found.held:
        asked = " and ".join(
            f"{'at least ' * (value is None)}{number} {what}"
            for number, value, what in ((wanted, train, "training"), (test_number, test, "test"))
        )
        raise ValueError(
            f"train_per_class, test_per_class: asked are {asked} pictures, but {found.smallest} holds {found.held}"
        )
    return wanted, test_number


# A folder with one file per class


class _Header(NamedTuple):
    path: Path
    number: int
    picture: tuple[int, int, int]
    channel_first: bool
    dtype: np.dtype


def _class_files(folder: Path) -> list[Path]:
    """The `.npy` files of a folder, hidden ones left out, in the order of their classes."""
    try:
        files = [path for path in folder.iterdir() if path.suffix == ".npy" and not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({one_line(error)})") from None
    if all(_is_number(path.stem) for path in files):
        return sorted(files, key=lambda path: (int(path.stem), path.stem))
    return sorted(files, key=lambda path: path.stem)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]+", text) is not None


def _in_folder(folder: Path) -> _Found:
    files = _class_files(folder)
    headers = _headers(tuple((path, *_stat(path)) for path in files))
    smallest = min(headers, key=lambda header: header.number)
    names = tuple(path.stem for path in files)

    def pictures() -> np.ndarray:
        # The folder's whole path is in the fingerprint.
        return _cached(f"{folder.name}-classes", files, folder, lambda: _stacked(headers, smallest.number))

    return _Found(names, smallest.number, str(smallest.path), None, "", smallest.picture, pictures)


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)})") from None
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=32)
def _headers(files: tuple[tuple[Path, int, int], ...]) -> tuple[_Header, ...]:
    """The checked headers of the files of one folder, given with their sizes and times."""
    headers = tuple(_checked_header(path, size) for path, size, _ in files)
    folder = headers[0].path.parent
    if len(headers) < 2:
        raise ValueError(f"{folder}: holds 1 class ({headers[0].path.name}), at least 2 are needed")
    for one, two in itertools.pairwise(headers):
        if _is_number(one.path.stem) and _is_number(two.path.stem) and int(one.path.stem) == int(two.path.stem):
            raise ValueError(f"{folder}: {one.path.name} and {two.path.name} are both class {int(one.path.stem)}")
    for header in headers:
        if header.picture != headers[0].picture:
            raise ValueError(
                f"{folder}: pictures of {headers[0].path.name} are {headers[0].picture} (height, width, channels), "
                f"those of {header.path.name} {header.picture}"
            )
    return headers


def _checked_header(path: Path, size: int) -> _Header:
    """The header of a class file. Nothing is unpickled, and only where it is not uint8 its first picture is read."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"npy format {version}, not 1.0 or 2.0")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            offset = file.tell()
    except Exception as error:  # noqa: BLE001 -- the reader evaluates text, and damaged text raises many kinds
        raise ValueError(f"{path}: cannot be read, truncated or not an npy file ({one_line(error)})") from None
    if dtype.hasobject:
        raise ValueError(f"{path}: holds Python objects (pickled), not numbers; save an array of uint8")
    last = len(shape) == 4 and shape[3] in (1, 3)
    first = len(shape) == 4 and shape[1] in (1, 3) and not last
    if not (first or last) or min(shape) < 1:
        allowed = "(pictures, height, width, 3) or (pictures, 3, height, width), or with 1 channel"
        raise ValueError(f"{path}: {dtype} {tuple(shape)}, allowed are shapes {allowed}")
    if dtype.kind not in "uif":
        raise ValueError(f"{path}: {dtype} {tuple(shape)}, allowed are uint8, or numbers that are whole, 0 to 255")
    needed = offset + math.prod(shape) * dtype.itemsize
    if size != needed:
        raise ValueError(f"{path}: truncated or damaged: {dtype} {tuple(shape)} needs {needed} bytes, there are {size}")
    picture = (shape[2], shape[3], shape[1]) if first else (shape[1], shape[2], shape[3])
    header = _Header(path, shape[0], picture, first, dtype)
    if dtype != np.uint8:
        _as_pictures(header, 1)
    return header


def _as_pictures(header: _Header, number: int) -> np.ndarray:
    """The first `number` pictures of a class file, `[number, height, width, channels]`, as uint8."""
    try:
        array = np.load(header.path, mmap_mode="r", allow_pickle=False)[:number]
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{header.path}: cannot be read ({one_line(error)})") from None
    if header.dtype != np.uint8:
        whole = (array >= 0) & (array <= 255) & (array == np.rint(array))
        if not whole.all():
            wrong = array[~whole].flat[0]
            raise ValueError(
                f"{header.path}: {header.dtype} with a value {wrong}, allowed are uint8, or numbers that are whole, "
                "0 to 255 (as loaded, not scaled)"
            )
        array = array.astype(np.uint8)
    return np.moveaxis(array, 1, -1) if header.channel_first else array


def _stacked(headers: Sequence[_Header], number: int) -> np.ndarray:
    """All classes' first `number` pictures; raises where those of a class are all the same, or those of two classes."""
    pictures = np.empty((len(headers), number, *headers[0].picture), np.uint8)
    seen: dict[bytes, int] = {}
    for index, header in enumerate(headers):
        pictures[index] = _as_pictures(header, number)
        if number > 1 and np.array_equal(pictures[index, 1:], pictures[index, :-1]):
            raise ValueError(f"{header.path}: damaged or empty: its {number} pictures are all the same")
        other = seen.setdefault(pictures[index, 0].tobytes(), index)
        if other != index and np.array_equal(pictures[other], pictures[index]):
            folder = header.path.parent
            raise ValueError(f"{folder}: {headers[other].path.name} and {header.path.name} hold the same pictures")
    return pictures


# An image set by label


def _in_images(name: str, data_dir: str | None, source: Source) -> _Found:
    images = load_images(name, data_dir)
    classes = number_of_classes(name, images)
    counts = [np.bincount(labels, minlength=classes) for labels in (images.train_y, images.test_y)]
    if classes < 2:
        raise ValueError(f"{source.where}: holds {classes} class, at least 2 are needed")
    for split, count in zip(("training", "test"), counts, strict=True):
        if count.min() == 0:
            raise ValueError(f"{source.where}: label {count.argmin()} has no {split} pictures")
    train, test = (int(count.min()) for count in counts)
    smallest = [f"label {count.argmin()} of {source.where}" for count in counts]
    shape = images.train_x.shape[1:]
    picture = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)

    def by_label() -> np.ndarray:
        pictures = np.empty((classes, train + test, *picture), np.uint8)
        for label in range(classes):
            rows = [np.flatnonzero(labels == label) for labels in (images.train_y, images.test_y)]
            pictures[label, :train] = images.train_x[rows[0][:train]].reshape(train, *picture)
            pictures[label, train:] = images.test_x[rows[1][:test]].reshape(test, *picture)
        return pictures

    def pictures() -> np.ndarray:
        return _cached(f"{name.replace('/', '-')}-classes", source.files, source.where, by_label)

    names = tuple(str(label) for label in range(classes))
    return _Found(names, train, smallest[0], test, smallest[1], picture, pictures)


# imagenet_resized, as tensorflow-datasets prepares it


def _in_prepared(name: str, folder: Path, root: Path) -> _Found:
    files = sorted(path for path in folder.iterdir() if path.is_file())

    def read() -> np.ndarray:
        return read_prepared(name, folder, root, functools.partial(_first_of_each_class, name))

    pictures = _cached(f"{name.replace('/', '-')}-classes", files, folder, read)
    classes, held, *picture = pictures.shape
    names = _label_names(folder, classes)
    return _Found(names, held, f"a class of {folder}", None, "", tuple(picture), lambda: pictures)


def _label_names(folder: Path, classes: int) -> tuple[str, ...]:
    """The names that tensorflow-datasets writes beside the pictures; where there are none, the labels."""
    try:
        names = (folder / "label.labels.txt").read_text().split()
    except OSError:
        names = []
    return tuple(names) if len(names) == classes else tuple(str(label) for label in range(classes))


def _first_of_each_class(name: str, builder: Any) -> np.ndarray:
    """The first 700 training pictures of every class, in the order of the files; read until every class has them."""
    features, wanted = builder.info.features, TRAIN_PER_CLASS + TEST_PER_CLASS
    classes = features["label"].num_classes
    if classes < 2:
        raise ValueError(f"{classes} class, at least 2 are needed")
    pictures = np.zeros((classes, wanted, *features["image"].shape), np.uint8)
    held = np.zeros(classes, int)
    source = builder.as_data_source(split="train")
    for records in _in_chunks(name, source):
        for record in records:
            label = record["label"]
            if held[label] < wanted:
                pictures[label, held[label]] = record["image"]
                held[label] += 1
        if held.min() == wanted:
            break
    if held.min() == 0:
        raise ValueError(f"label {held.argmin()} has no pictures")
    return pictures[:, : held.min()]


def _in_chunks(name: str, source: Any) -> Iterator[list[Any]]:
    """The records in their order, with a line on stderr about every 20 seconds for those who wait."""
    total, begin = len(source), time.monotonic()
    said = begin
    for start in range(0, total, _CHUNK):
        yield source.__getitems__(list(range(start, min(start + _CHUNK, total))))
        now, done = time.monotonic(), start + _CHUNK
        if now - said > _SECONDS_BETWEEN_LINES and done < total:
            left = (now - begin) / done * (total - done)
            print(f"{name}: read {done} of {total} pictures, about {left:.0f} s left", file=sys.stderr, flush=True)
            said = now


# The cache


def _cached(name: str, files: Iterable[Path], where: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What `make` gives, read-only: mapped from the cache, where one process puts it while the others wait."""
    files = tuple(files)
    folder = cache_folder(name, files)
    there = _open_cache(folder)
    if there is not None:
        return there
    with _alone(folder):
        there = _open_cache(folder)
        if there is not None:
            return there
        pictures = make()
        try:
            write_whole(folder, {"pictures": pictures}, files)
            there = _open_cache(folder)
        except OSError as error:
            warnings.warn(f"no cache for {where} ({one_line(error)}): it is read at every start", stacklevel=2)
    if there is None:
        pictures.flags.writeable = False
        return pictures
    return there


def _open_cache(folder: Path) -> np.ndarray | None:
    try:
        return np.load(folder / "pictures.npy", mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        shutil.rmtree(folder, ignore_errors=True)  # somebody damaged it: make it anew
        return None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a lock that ends with the process; where there are no locks, several processes do the same work."""
    try:
        import fcntl

        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder.parent / f".lock-{folder.name}", os.O_RDWR | os.O_CREAT, 0o600)
    except (ImportError, OSError):
        yield
        return
    try:
        _wait_for(functools.partial(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), folder)
        yield
    finally:
        os.close(descriptor)


def _wait_for(take: Callable[[], None], folder: Path) -> None:
    said, begin = False, time.monotonic()
    while True:
        try:
            return take()
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:
            return None  # a file system without locks
        if not said and time.monotonic() - begin > _SECONDS_BETWEEN_LINES:
            print(f"waiting for another process that makes {folder}", file=sys.stderr, flush=True)
            said = True
