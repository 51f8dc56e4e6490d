"""Locks between processes: a file held by one at a time, free again when its process ends in whatever way."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from launch.errors import InputError


class TakenError(InputError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    Raises:
        TakenError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise TakenError(f"{path.parent}: being run by {file.read().strip() or 'another process'}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
