"""A process that dies at any write, rename, sync, creation or removal of a save leaves the old checkpoint or the new.

Run as a program, this file saves again and again, each time in a child that it stops with ptrace at every system call
and kills at the n-th one that changes the checkpoints' folder: every thread counts, those of orbax's storage too.
"""

import collections
import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.storage.checkpoint import TEMPORARY, Checkpoints

OLD, NEW = 10, 20
SECONDS = 120  # for one save, on a busy machine

SEIZE, INTERRUPT, SYSCALL, SYSCALL_INFO = 0x4206, 0x4207, 24, 0x420E
OPTIONS = 0x1 | 0x8 | 0x100000  # mark stops at system calls, follow new threads, kill all when the tracer dies
ANY_THREAD = 0x40000000

# Number of the system call on x86-64 -> name, and where its file is: a descriptor, or (folder's descriptor, path).
DESCRIPTOR = {
    1: "write", 18: "pwrite", 20: "writev", 296: "pwritev", 328: "pwritev2", 40: "sendfile", 74: "fsync",
    75: "fdatasync", 77: "ftruncate", 285: "fallocate",
}  # fmt: skip
PATH = {82: "rename", 83: "mkdir", 84: "rmdir", 85: "open", 87: "unlink", 76: "truncate"}
FOLDER_AND_PATH = {264: "rename", 316: "rename", 258: "mkdir", 263: "unlink"}
TWO_PATHS = {86: (0, 1, "link"), 265: (1, 3, "link"), 326: (2, 2, "copy_file_range")}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
RENAMED_TO = {82: 1, 264: 3, 316: 3}


def tree(step):
    return {"w": jnp.arange(6.0) + step, "deep": [jnp.uint32(step), jax.random.key(step)]}


def arrays(step):
    return {"loss": np.array([[1 / 3, np.nan]]) * step}


def save(folder, step):
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(step, tree(step), arrays(step), {"step": step})
    checkpoints.wait()


# The tracer


class Info(ctypes.Structure):
    """`struct ptrace_syscall_info`, as far as the entry of a system call goes."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    )


def ptrace(request, thread, address=0, data=0):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, thread, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def text_at(process, address):
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        page = memory.read(4096 - address % 4096)
        return (page if b"\0" in page else page + memory.read(4096)).split(b"\0")[0].decode()


def path_of(process, descriptor):
    try:
        return os.readlink(f"/proc/{process}/fd/{ctypes.c_int(descriptor & 0xFFFFFFFF).value}")
    except OSError:
        return ""


def joined(process, descriptor, address):
    return os.path.join(path_of(process, descriptor), text_at(process, address))


def operation(process, info):
    """The name of a system call that changes files, and its path (for a rename both); None for any other."""
    number, args = info.number, info.args
    if number in DESCRIPTOR:
        return DESCRIPTOR[number], path_of(process, args[0])
    if number in TWO_PATHS:
        raise NotImplementedError(f"{TWO_PATHS[number][2]} is not followed")
    if number in (2, 257):
        flags, address = (args[1], args[0]) if number == 2 else (args[2], args[1])
        if not flags & WRITING:
            return None
        return "open", text_at(process, address) if number == 2 else joined(process, args[0], address)
    if number in PATH:
        name, path = PATH[number], text_at(process, args[0])
    elif number in FOLDER_AND_PATH:
        name, path = FOLDER_AND_PATH[number], joined(process, args[0], args[1])
        name = "rmdir" if name == "unlink" and args[2] & 0x200 else name
    else:
        return None
    return name, path if name != "rename" else f"{path} -> {text_at(process, args[RENAMED_TO[number]])}"


def trace(child, folder, kill_at):
    """Follow `child` to its end, or kill it as it enters the `kill_at`-th operation on `folder`; the operations."""
    done = []
    while True:
        try:
            thread, status = os.waitpid(-1, ANY_THREAD)
        except ChildProcessError:
            return done, False
        if not os.WIFSTOPPED(status):
            if thread == child and os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise RuntimeError(f"the save failed with status {os.WEXITSTATUS(status)}")
            continue
        deliver = 0
        try:
            if os.WSTOPSIG(status) == signal.SIGTRAP | 0x80:
                info = Info()
                ptrace(SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.addressof(info))
                found = operation(child, info) if info.op == 1 else None
                if found and found[1].startswith(str(folder)):
                    done.append(found)
                    if len(done) == kill_at:
                        os.kill(child, signal.SIGKILL)
                        reap()
                        return done, True
            elif status >> 16 == 0:
                deliver = os.WSTOPSIG(status)
            ptrace(SYSCALL, thread, 0, deliver)
        except ProcessLookupError:
            continue


def reap():
    while True:
        try:
            os.waitpid(-1, ANY_THREAD)
        except ChildProcessError:
            return


def traced_save(folder, kill_at):
    """Save `NEW` into `folder` in a child that dies at operation `kill_at`; what it did, and whether it was killed."""
    wait_end, start_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(start_end)
            os.read(wait_end, 1)
            save(folder, NEW)
            status = 0
        finally:
            os._exit(status)
    os.close(wait_end)
    ptrace(SEIZE, child, 0, OPTIONS)
    ptrace(INTERRUPT, child)
    os.waitpid(child, ANY_THREAD)
    ptrace(SYSCALL, child)
    os.write(start_end, b"x")
    os.close(start_end)
    return trace(child, folder, kill_at)


def serve():
    """For every line `[folder, kill_at]` a traced save, answered with its operations."""
    import orbax.checkpoint  # noqa: F401  before any fork, which is safe while there is one thread only

    for line in sys.stdin:
        folder, kill_at = json.loads(line)
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise RuntimeError(f"{threads} threads; a fork would not be safe")
        signal.alarm(SECONDS)
        done, killed = traced_save(Path(folder), kill_at)
        signal.alarm(0)
        print(json.dumps({"done": done, "killed": killed}), flush=True)


# The tests


@pytest.fixture(scope="module")
def saver():
    """`saver(folder, kill_at) -> (operations, killed)`, in a process of its own."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("CRASH POINTS NOT TESTED: the tracer knows the system calls of Linux on x86-64 only")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::RuntimeWarning", __file__],  # JAX warns of any fork
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )

    def ask(folder, kill_at):
        process.stdin.write(json.dumps([str(folder), kill_at]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, "the tracer died; its error is above"
        answer = json.loads(line)
        return [tuple(each) for each in answer["done"]], answer["killed"]

    yield ask
    process.stdin.close()
    process.stdout.close()
    process.wait(SECONDS)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "unit"
    save(folder, OLD)
    return folder


def raw(saved):
    leaves = [jax.random.key_data(x) if "key" in str(x.dtype) else x for x in jax.tree.leaves(saved[0])]
    return [np.asarray(leaf).tobytes() for leaf in leaves], {name: x.tobytes() for name, x in saved[1].items()}


def assert_old_or_new(folder):
    """The step that is read, which is bit for bit as it was saved; nothing is complained of."""
    found = Checkpoints(folder).latest_good(jax.eval_shape(lambda: tree(0)), warn=pytest.fail)
    assert found is not None and found.step in (OLD, NEW)
    assert raw((found.tree, found.arrays)) == raw((tree(found.step), arrays(found.step)))
    return found.step


def test_a_save_killed_at_each_of_its_operations_leaves_the_old_or_the_new(saver, old, tmp_path, record_property):
    points, read = collections.Counter(), collections.Counter()
    kill_at, ended = 1, 0
    while ended < 3:  # the number of operations differs by a few: orbax's threads write together what comes together
        folder = tmp_path / str(kill_at)
        shutil.copytree(old, folder)
        done, killed = saver(folder, kill_at)
        step = assert_old_or_new(folder)
        if not killed:
            assert step == NEW and kill_at > len(done)
        else:
            points[done[-1][0]] += 1
            read[step] += 1
        ended = 0 if killed else ended + 1
        save(folder, NEW)
        assert assert_old_or_new(folder) == NEW
        assert os.listdir(folder) == [str(NEW)], done[-1]
        shutil.rmtree(folder)
        kill_at += 1
    counts = ", ".join(f"{count} {name}" for name, count in sorted(points.items()))
    told = f"{points.total()} crash points of one save ({counts}): {read[OLD]} left the old, {read[NEW]} the new"
    record_property("count", told)
    assert {"open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir"} <= set(points)
    assert read[OLD] > 50 and read[NEW] > 5


def test_all_is_synced_before_it_gets_its_name_and_the_name_before_the_old_one_goes(saver, old, tmp_path):
    """What a loss of power asks for, which no killed process can show."""
    folder = tmp_path / "unit"
    shutil.copytree(old, folder)
    done, _ = saver(folder, 0)
    renames = [i for i, (name, what) in enumerate(done) if name == "rename"]
    named = next(i for i in renames if done[i][1].endswith(f"-> {folder / str(NEW)}"))
    gone = next(i for i in renames if done[i][1].startswith(f"{folder / str(OLD)} ->"))
    temporary, final = done[named][1].split(" -> ")
    assert TEMPORARY.fullmatch(Path(temporary).name)
    written = {str(path.relative_to(final)) for path in Path(final).rglob("*")} | {"."}
    last = {}
    for i, (name, what) in enumerate(done[:named]):
        if name not in ("rename", "rmdir", "unlink") and what.startswith(temporary):
            last[os.path.relpath(what, temporary)] = (i, name)
    assert {name: last[name][1] for name in written} == dict.fromkeys(written, "fsync")
    latest_change = max(i for i, (name, _) in enumerate(done[:named]) if name != "fsync")
    assert all(i > latest_change for name, (i, _) in last.items() if name in written)
    assert ("fsync", str(folder)) in done[named:gone]


if __name__ == "__main__":
    serve()
