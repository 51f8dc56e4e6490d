"""A lock is held by one process at a time, and is free again however that process ended."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from launch.storage.durable import StorageError
from launch.storage.locks import TakenError, holder, locked

HOLD = """
    import sys, time
    from pathlib import Path
    from launch.storage.locks import locked
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    code = textwrap.dedent(HOLD)
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "unit" / "LOCK"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_that_another_process_holds_is_refused_with_its_name_until_that_process_is_killed(tmp_path, other):
    path = tmp_path / "unit" / "LOCK"
    name = f"process {other.pid} on {socket.gethostname()}"
    with pytest.raises(TakenError, match=f"^{re.escape(f'{path.parent}: being run by {name}')}$"), locked(path):
        pytest.fail("two processes held it")
    assert holder(path) == name
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder(path) == ""
    with locked(path):
        assert holder(path) == f"process {os.getpid()} on {socket.gethostname()}"
    assert holder(path) == ""


def test_a_lock_is_released_by_an_error_and_held_once_in_one_process_too(tmp_path):
    path = tmp_path / "LOCK"
    with pytest.raises(ZeroDivisionError), locked(path):
        with pytest.raises(TakenError, match=f"process {os.getpid()} on "), locked(path):
            pytest.fail("held twice")
        raise ZeroDivisionError
    with locked(path):
        assert path.read_text().count("\n") == 1


def test_who_looks_does_not_take_or_make_anything(tmp_path):
    assert holder(tmp_path / "LOCK") == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=r"file/unit: cannot be written: a file stands"),
        locked(tmp_path / "file" / "unit" / "LOCK"),
    ):
        pytest.fail("held")

    def refused(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(StorageError, match="LOCK: cannot be written: read-only file system"), locked(tmp_path / "LOCK"):
        pytest.fail("held")
