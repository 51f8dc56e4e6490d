"""Signals become a flag, at once and whatever the main thread does; a second one, or patience, ends the process."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from launch.engine.stopping import Stop, Stopped, blocked_for_children, listening
from tests.launch import tiny
from tests.launch.tiny import HANG, wait_until

ROOT = Path(__file__).parents[3]
ENDED = "ended at once ({}); the last checkpoints stand, and the same command goes on\n"
TOLD = "{}: writing checkpoints; once more to end at once\n"


def started(code, *arguments, **options):
    """A process that runs `code`, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def ended(process):
    try:
        out, said = process.communicate(timeout=HANG)
    finally:
        process.kill()
    return process.returncode, out, said


def test_the_first_signal_counts():
    stop = Stop()
    assert stop.signal == 0
    stop.request(signal.SIGINT)
    stop.request(signal.SIGTERM)
    assert stop.signal == signal.SIGINT
    assert Stopped(signal.SIGTERM).status == 143 and Stopped(signal.SIGINT).status == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_nothing_else_changes_for_good(number, capsys):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    threads = threading.active_count()
    with listening() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        wait_until(lambda: stop.signal)
        assert stop.signal == number
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads
    assert capsys.readouterr().err == TOLD.format(signal.Signals(number).name)


def test_after_the_block_an_error_passes_and_signals_do_as_before():
    with pytest.raises(ZeroDivisionError), listening():
        raise ZeroDivisionError
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without it
    try:
        with listening():
            pass
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda: False)
    finally:
        signal.signal(signal.SIGINT, before)


BUSY = """
    import ctypes, sys, time
    from launch.engine.stopping import listening
    with listening(grace=float(sys.argv[1])) as stop:
        print("ready", flush=True)
        if sys.argv[2] == "compiling":
            library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            for _ in range(2):
                library.pthread_mutex_lock(mutex)  # the second call never returns to Python, as a compiler does late
        while not stop.signal:
            time.sleep(0.01)
        if sys.argv[2] == "slow": time.sleep(600)
        print("came to an end", stop.signal, flush=True)
"""


def test_a_second_signal_ends_at_once_with_its_own_status():
    process = started(BUSY, "60", "slow")
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == TOLD.format("SIGTERM")
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", ENDED.format("a second signal"))


def test_patience_ends_too():
    process = started(BUSY, "1", "slow")
    process.send_signal(signal.SIGTERM)
    said = TOLD.format("SIGTERM") + ENDED.format("no end of a chunk within 1 seconds")
    assert ended(process) == (143, "", said)


def test_a_main_thread_that_is_busy_outside_python_does_not_delay_the_flag():
    """The process leaves by its patience, long before the calls outside Python are over."""
    process = started(BUSY, "1", "compiling")
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == TOLD.format("SIGTERM")
    assert ended(process)[0] == 143


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc says which signals are blocked")
def test_processes_started_in_the_block_begin_with_signals_blocked_and_others_do_not():
    with blocked_for_children():
        assert blocked_in_a_child() >= {signal.SIGTERM, signal.SIGINT}
    assert not blocked_in_a_child() & {signal.SIGTERM, signal.SIGINT}


def blocked_in_a_child():
    """The signals that a process started now has blocked."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        text = Path(f"/proc/{child.pid}/status").read_text()
    finally:
        child.kill()
        child.wait()
    (mask,) = (int(line.split()[1], 16) for line in text.splitlines() if line.startswith("SigBlk:"))
    return {number for number in signal.Signals if mask >> (number - 1) & 1}


WORKERS = """
    import concurrent.futures, multiprocessing, os, time
    from launch.engine.stopping import blocked_for_children, in_worker, listening

    def enter(shared):
        global stop
        stop = shared
        in_worker(shared)

    def work():
        os.write(1, f"ready {os.getpid()}\\n".encode())  # at once: two processes share the pipe
        while not stop.signal:
            time.sleep(0.01)

    if __name__ == "__main__":
        with listening(grace=600) as stop:
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(2, context, enter, (stop,)) as pool:
                with blocked_for_children():
                    futures = [pool.submit(work) for _ in range(2)]
                [future.result() for future in futures]
            print("came to an end", stop.signal, flush=True)
"""


def with_workers(tmp_path):
    """A process with two workers that work until they are told to stop, in a group of their own, and their ids."""
    (tmp_path / "script.py").write_text(textwrap.dedent(WORKERS))
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, [int(process.stdout.readline().removeprefix("ready")) for _ in range(2)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_is_one_signal(tmp_path, number):
    """As schedulers and terminals send it: the workers come to their end, and nobody takes it for a second one."""
    process, _ = with_workers(tmp_path)
    os.killpg(process.pid, number)
    assert ended(process) == (0, f"came to an end {int(number)}\n", TOLD.format(number.name))


def test_a_signal_to_a_worker_alone_stops_all(tmp_path):
    process, workers = with_workers(tmp_path)
    os.kill(workers[0], signal.SIGTERM)
    assert ended(process)[:2] == (0, f"came to an end {int(signal.SIGTERM)}\n")


def test_workers_end_when_their_parent_is_killed(tmp_path):
    process, workers = with_workers(tmp_path)
    process.kill()
    process.wait()
    wait_until(lambda: not any(tiny.alive(worker) for worker in workers))
    process.communicate()


STARTING = """
    import sys
    from pathlib import Path
    from launch.engine.stopping import Stopped, listening
    from tests.launch import tiny

    if __name__ == "__main__":
        asked = tiny.experiment(seeds=(0, 1, 2, 3), lanes_per_batch=2, steps=2_000_000_000, bin=1_000_000, chunk=500)
        with listening(grace=600) as stop:
            try:
                tiny.run(asked, Path(sys.argv[1]), 2, stop=stop)
            except Stopped as stopped:
                sys.exit(stopped.status)
"""


def test_a_group_that_is_told_while_workers_start_leaves_with_the_signals_status(tmp_path):
    """No worker dies of it before it listens."""
    (tmp_path / "script.py").write_text(textwrap.dedent(STARTING))
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path / "runs"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # two workers, and the process that cleans up after them
    wait_until(lambda: process.poll() is not None or len(tiny.children(process.pid)) == 3)
    os.killpg(process.pid, signal.SIGTERM)
    assert ended(process) == (143, "", TOLD.format("SIGTERM"))
