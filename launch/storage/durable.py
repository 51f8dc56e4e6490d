"""Writing so that a file or a folder is there whole or not at all, also when the machine loses power."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

REASONS = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk quota exceeded",
    errno.EROFS: "read-only file system",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EIO: "input/output error of the disk",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOTEMPTY: "a folder stands there already",
}


class StorageError(OSError):
    """Something could not be written; its text is one line that says what, where and why. `strerror` is the why."""

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.strerror = reason or text


def why(error: BaseException) -> str:
    """The reason for a failed write in a few words: that of the system's error, wherever in the chain it is found."""
    chain, seen = error, set()
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        reason = _reason(chain)
        if reason:
            return reason
        chain = chain.__cause__ or chain.__context__
    return " ".join(str(error).split())[:300] or type(error).__name__


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in REASONS:
        return REASONS[error.errno]
    # Libraries that are not written in Python pass on the system's words, without its number.
    return next((REASONS[number] for number in REASONS if os.strerror(number) in str(error)), "")


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into a StorageError that names `path` and the reason."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {why(error)}", why(error)) from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` in one move when the block ends well, and is removed when it does not.

    Raises:
        StorageError: the disk is full, read-only, ...; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storing(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def publish(temporary: Path, final: Path) -> None:
    """Make all below the folder `temporary` durable, then move it to `final`, where nothing or an empty folder stands.

    Raises:
        StorageError: the disk is full, read-only, ..., or `final` is taken; nothing stands at `final` then that did
            not before.
    """
    with storing(final):
        for folder, _, files in os.walk(temporary, topdown=False):
            for name in files:
                sync(Path(folder, name))
            sync(Path(folder))
        os.rename(temporary, final)
        sync(final.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, and make their names durable.

    Raises:
        StorageError: a file stands in the way, the disk is full, read-only, ...
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no fsync of a folder.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
