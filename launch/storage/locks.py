"""Locks between processes: a file held by one at a time, free again when its process ends in whatever way."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from launch.errors import InputError
from launch.storage.durable import make_folder, storing

LOCK = "LOCK"
"""Name of the file, in the folder that it stands for."""


class TakenError(InputError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path, patience: float = 0.1) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    Raises:
        TakenError: another process holds it for `patience` seconds; `holder` takes it for a moment.
    """
    make_folder(path.parent)
    with contextlib.ExitStack() as stack:
        with storing(path):
            file = stack.enter_context(open(path, "a+"))
        deadline = time.monotonic() + patience
        while not _taken(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise TakenError(f"{path.parent}: being run by {_named(file)}")
            time.sleep(0.02)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def holder(path: Path) -> str:
    """Who holds the lock file `path`, such as "process 12 on host"; empty where nobody does."""
    try:
        with open(path) as file:
            return "" if _taken(file, fcntl.LOCK_SH) else _named(file)
    except OSError:
        return ""


def _taken(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _named(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
