"""Worker processes: what they are started with, and what they tell their parent."""

import contextlib
import dataclasses
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from launch.engine.stopping import Stop, in_worker

Report = Callable[[str, int], None]
"""Called with a label and the lane-steps done since the last call."""

Log = Callable[[str, int, Mapping[str, float]], None]
"""Called with the name of a curve, a step, and the means of the bin that ends there, by metric."""

CONTEXT = multiprocessing.get_context("spawn")
QUEUE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Messages:
    """What worker processes tell their parent, through a queue."""

    queue: Any
    logs: bool

    def report(self, label: str, lane_steps: int) -> None:
        """Tell of lane-steps that are done, as `Report`."""
        self.queue.put((label, lane_steps))

    @property
    def log(self) -> Log | None:
        """Tell of a bin that is complete; `None` where nobody asked."""
        return (lambda *bin: self.queue.put(bin)) if self.logs else None


@contextlib.contextmanager
def messages_to(report: Report | None, log: Log | None) -> Iterator[Messages]:
    """Messages of worker processes, with which `report` and `log` are called in a thread of this process."""
    queue = CONTEXT.Queue()

    def listen() -> None:
        for message in iter(queue.get, None):
            receiver = report if len(message) == 2 else log
            if receiver is not None:
                receiver(*message)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield Messages(queue, log is not None)
    finally:
        queue.put(None)
        # A process that was killed while it wrote keeps the queue's lock for ever.
        listener.join(QUEUE_SECONDS)
        queue.cancel_join_thread()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that are started meanwhile use one XLA thread: small programs lose more to its pool than they gain."""
    former = os.environ.get("NPROC")
    os.environ["NPROC"] = "1"
    try:
        yield
    finally:
        os.environ.pop("NPROC") if former is None else os.environ.update(NPROC=former)


def enter(path: list[str], stop: Stop | None) -> None:
    """What a worker process does first; `path` is its parent's `sys.path`."""
    in_worker(stop)
    sys.path[:] = path
    enable_compilation_cache()


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX has been told of another."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(base, "plastic_jax", "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
