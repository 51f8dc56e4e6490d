"""The same work by other software, in turns with ours: rejax's PPO on Brax's ant.

A peer lives in an environment of its own and is a process that answers a line with the CPU seconds of a run, so both
are compiled once, and neither runs while the other is timed.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.benchmarks import rejax_ppo
from launch.benchmarks.timing import Table, spread, timed
from launch.benchmarks.workloads import BACKPROP, CBP, Case, workload
from launch.engine.build import load_data
from launch.errors import InputError

PEERS = "peers"
"""The group's name."""

LEAST_OVER_PEER = {BACKPROP: 1.2, CBP: 1.1}
SEEDS = (1, 4)
_ONE_THREAD = {
    "NPROC": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def measure_peers(python: str, repeats: int, quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row per method and number of seeds: environment steps per CPU-second of both, and their ratio.

    The peer maps over its seeds in one program; we run them as `launch.train` does on CPUs, one program a seed.

    Raises:
        InputError: `python` does not run the peer.
    """
    iterations = 1 if quick else 10
    steps = rejax_ppo.ROLLOUT * iterations
    cases = {method: Case("ant", "", method, 1, steps, "published_wide") for method in LEAST_OVER_PEER}
    data = load_data(cases[BACKPROP].plan())
    ours = {method: workload(case, case.plan(), data) for method, case in cases.items()}
    rows = []
    for seeds in SEEDS:
        say(f"{PEERS}, {seeds} seed{'s' * (seeds > 1)}")
        with peer(python, str(Path(rejax_ppo.__file__)), str(seeds), str(iterations)) as theirs:
            spent = timed_beside(ours, theirs, repeats)
        rate = {name: steps / seconds for name, seconds in spent.items()}
        rate["rejax"] = rate["rejax"] * seeds
        for method in ours:
            row = {"method": method, "seeds": seeds, "steps_per_cpu_second": spread(rate[method])}
            row |= {"peer": spread(rate["rejax"]), "over_peer": spread(rate[method] / rate["rejax"])}
            rows.append(row)
    return rows


def timed_beside(ours: dict[str, Callable[[], Any]], theirs: Callable[[], float], repeats: int) -> dict[str, Any]:
    """CPU seconds by name, `[repeats]`, of our calls and of rejax, in turns."""
    for call in ours.values():
        jax.block_until_ready(call())
    turns: dict[str, list[float]] = {name: [] for name in (*ours, "rejax")}
    for _ in range(repeats):
        for name, call in ours.items():
            turns[name].append(timed({name: call}, 1, warm=False)[name][0, 0])
        turns["rejax"].append(theirs())
    return {name: np.asarray(seconds) for name, seconds in turns.items()}


@contextmanager
def peer(python: str, *arguments: str) -> Iterator[Callable[[], float]]:
    """A peer's program, compiled and waiting: a call runs it once and returns its CPU seconds.

    Raises:
        InputError: `python` cannot be started, or ends without an answer.
    """
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        try:
            process = subprocess.Popen([python, *arguments], text=True, env=os.environ | _ONE_THREAD, **pipes)
        except OSError as error:
            raise InputError(f"--peer: {python} cannot be run ({error.strerror})") from None
        assert process.stdin is not None and process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def answer() -> str:
            line = answers.readline()
            if not line:
                errors.seek(0)
                reason = errors.read().strip().splitlines() or ["it says nothing"]
                raise InputError(f"--peer: {python} does not run rejax: {reason[-1]}")
            return line.strip()

        def run() -> float:
            print(file=asked, flush=True)
            return float(answer())

        try:
            while answer() != "ready":  # packages may print while they are imported
                pass
            yield run
        finally:
            process.kill()
            process.communicate()


def peer_table(rows: list[dict[str, Any]]) -> Table:
    """Ours beside the peer's."""
    numbers = ("steps_per_cpu_second", "peer", "over_peer")
    return Table(
        "Beside rejax",
        ("PPO on Brax's ant", "seeds", "steps per CPU-second", "rejax", "ratio", "wanted"),
        [
            (row["method"], str(row["seeds"]), *(str(row[name]) for name in numbers))
            + (f"at least {LEAST_OVER_PEER[row['method']]:g}",)
            for row in rows
        ],
        "16 ants, 128 steps, 10 x 16 minibatches, two networks of 2 x 256, spring physics; one thread each, in turns.",
    )
