"""Being asked to stop: SIGTERM and SIGINT become a flag that is looked at between chunks."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

GRACE_SECONDS = 25.0
"""How long a run may take to come to the end of a chunk and write a checkpoint."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The run was asked to stop, and has written its checkpoints; its first argument is the signal's number."""

    @property
    def status(self) -> int:
        """The exit status that a shell expects."""
        return 128 + self.args[0]


class Stop:
    """Whether a run is asked to stop; shared with its worker processes."""

    def __init__(self) -> None:
        self._signal = multiprocessing.get_context("spawn").RawValue("i", 0)

    @property
    def signal(self) -> int:
        """The number of the first signal, 0 while there is none."""
        return self._signal.value

    def request(self, number: int) -> None:
        """Ask to stop."""
        self._signal.value = self._signal.value or number


@contextlib.contextmanager
def listening(grace: float | None = None) -> Iterator[Stop]:
    """A `Stop` that SIGTERM and SIGINT set while the block runs.

    A second signal, or `grace` seconds (by default 25) without an end, end the process at once: the last checkpoint
    stands.
    """
    stop = Stop()
    told, tell = socket.socketpair()
    tell.setblocking(False)
    # A handler in Python runs between byte codes only: not while XLA compiles. The wake-up socket is written at once.
    wakeup = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    former = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    thread = threading.Thread(target=_watch, args=(told, stop, GRACE_SECONDS if grace is None else grace), daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        tell.close()
        thread.join()
        told.close()


@contextlib.contextmanager
def blocked_for_children() -> Iterator[None]:
    """Processes started while the block runs begin with SIGTERM and SIGINT blocked, until `in_worker`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_worker(stop: Stop | None) -> None:
    """What a worker process does with signals: the parent says when to stop, and when it is gone so is the worker."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    if stop is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _: stop.request(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _watch(told: socket.socket, stop: Stop, grace: float) -> None:
    deadline = None
    while True:
        told.settimeout(deadline)
        try:
            received = told.recv(1)
        except TimeoutError:
            _leave(stop.signal, f"no end of a chunk within {grace:g} seconds")
        if not received:
            return
        if received[0] not in _SIGNALS:
            continue
        # `stop` alone does not tell: a worker that got the same signal, sent to all of a group, may have set it first.
        if deadline is not None:
            _leave(received[0], "a second signal")
        stop.request(received[0])
        deadline = grace
        name = signal.Signals(received[0]).name
        print(f"{name}: writing checkpoints; once more to end at once", file=sys.stderr, flush=True)


def _leave(number: int, why: str) -> None:
    print(
        f"ended at once ({why}); the last checkpoints stand, and the same command goes on", file=sys.stderr, flush=True
    )
    os._exit(128 + number)
