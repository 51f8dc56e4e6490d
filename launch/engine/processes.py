"""Worker processes: what they are started with, and how they tell how far they are."""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from launch.engine.stopping import Stop, in_worker

Report = Callable[[str, int], None]
"""Called with a label and the lane-steps done since the last call."""

CONTEXT = multiprocessing.get_context("spawn")
QUEUE_SECONDS = 10.0


@contextlib.contextmanager
def reporting(report: Report) -> Iterator[Any]:
    """A queue of `(label, lane-steps)` that processes put in and `report` is called with."""
    queue = CONTEXT.Queue()

    def listen() -> None:
        for item in iter(queue.get, None):
            report(*item)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield queue
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
