"""What a new accelerator has to show, in some minutes: `python -m launch.benchmark --accelerator --out=DIR`.

| check | what it does |
|---|---|
| resume | two tasks with deterministic operations, run whole and stopped half-way: the same bits, and what that costs |
| parity | the recorded traces of the published code in float32, where tests and recordings lie beside the package |
| steps | every task, and every method on the regression, compiles and takes a step |
| lanes | continual backprop in programs of 1 to 1024 lanes |
| pictures | 30 published ConvNets and 8 ResNet-18 in bfloat16, beside the peak that was measured in the same run |
| agents | PPO for as long as is left, and how long 30 runs of 20 M steps would take |

Every finding is written as soon as it is there. A check ends with its share of the time, and says so
if it was cut short.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.benchmarks.device_rates import PPO as AGENTS
from launch.benchmarks.device_rates import PUBLISHED_LANE_STEPS, beside_peaks, device_peaks, dtype_of, step_gflop
from launch.benchmarks.timing import Table, spread, timed
from launch.benchmarks.workloads import BACKPROP, CBP, RANDOM_TASKS, REGRESSION, Case, device_groups, workload
from launch.config.experiment import Experiment, lane_keys, resolve
from launch.config.methods import METHODS
from launch.config.registry import TASKS
from launch.engine.build import hyper_arrays, job_program, load_data
from launch.engine.loop import compiled_chunk, initial
from launch.engine.processes import enable_compilation_cache
from launch.engine.resume import DETERMINISTIC
from launch.engine.scheduler import run
from launch.engine.stopping import Stop, Stopped
from launch.errors import InputError
from launch.storage.contents import digests

Row = dict[str, Any]
TO_BEAT = 885_000
"""Environment steps a second with learning: the fastest published for one agent with thousands of environments."""
TESTS = Path(__file__).parents[2] / "tests" / "plastic_jax"
_OWN_SHARE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # processes that share a device must not take all its memory


def resume(quick: bool, until: float) -> Iterator[Row]:
    """Each in a process of its own, since XLA reads its flags once."""
    pictures = "convnet(width=2)" if quick else "convnet"
    for task, network, steps in ((REGRESSION, "", 400), (RANDOM_TASKS["continual_imagenet"], pictures, 30)):
        rows = [_in_process(exact_resume, task, network, steps if quick else 100 * steps, d) for d in (True, False)]
        cost = rows[0]["seconds"] / rows[1]["seconds"]
        yield rows[0] | {"of the same bits without": rows[1]["same bits"], "time over without": cost}


def exact_resume(task: str, network: str, steps: int, deterministic: bool) -> Row:
    """A run of two lanes, whole and stopped after its first chunk: whether all checkpoints and curves are equal."""
    if deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    asked = Experiment(task, CBP, (0, 1), network=network, steps=steps, bin=steps // 2, chunk=steps // 4)
    stop = Stop()

    def report(label: str, lane_steps: int) -> None:
        if lane_steps:
            stop.request(signal.SIGTERM)

    with tempfile.TemporaryDirectory() as folder:
        whole, cut = f"{folder}/whole", f"{folder}/cut"
        run(asked, whole, 1)
        start = time.perf_counter()
        try:
            run(asked, cut, 1, report, stop=stop)
        except Stopped:
            run(asked, cut, 1)
        seconds = time.perf_counter() - start
        same = list(digests(whole)) == list(digests(cut))
    if not stop.signal:
        raise InputError(f"{task}: the run of {steps} steps was over before it was stopped")
    return {"task": resolve(asked).spec.name, "steps": steps, "same bits": same, "seconds": seconds}


def _in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _share_the_device) as pool:
        return pool.submit(function, *arguments).result()


def _share_the_device() -> None:
    os.environ.update(_OWN_SHARE)
    enable_compilation_cache()


def parity(quick: bool, until: float) -> Iterator[Row]:
    """By the tests themselves, which are no part of the package."""
    files = sorted(TESTS.glob("test_golden*.py"))
    if not files:
        raise InputError(f"{TESTS} is not there: a clone has it")
    # Without it accelerators multiply float32 with the digits of bfloat16 or TF32.
    environment = os.environ | _OWN_SHARE | {"JAX_PLATFORMS": "", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    for path in files[:1] if quick else files:
        asked = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "float32", str(path)]
        left = max(1.0, until - time.monotonic())
        try:
            done = subprocess.run(
                asked, capture_output=True, text=True, env=environment, cwd=TESTS.parents[1], timeout=left
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"{path.stem} was not over when the share of the minutes was") from None
        lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no answer"]
        yield {"recordings": path.stem, "ok": done.returncode == 0, "pytest": lines[-1].strip("= ")}


def steps(quick: bool, until: float) -> Iterator[Row]:
    """A program that does not compile is a finding, whatever it raises."""
    pairs = [(REGRESSION, method) for method in METHODS]
    pairs += [(task, method) for task in TASKS if task != REGRESSION for method in (BACKPROP, CBP)]
    for task, method in pairs[:3] if quick else pairs:
        row: Row = {"task": task, "method": method}
        try:
            yield row | first_step(RANDOM_TASKS.get(task, task), method)
        except Exception as error:  # noqa: BLE001
            yield row | {"ok": False, "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}


def first_step(task: str, method: str) -> Row:
    """Compile the shortest chunk of one lane, and run it."""
    plan = resolve(Experiment(task, method))
    (job,) = plan.jobs
    program, hyper = job_program(plan, job), hyper_arrays(job, job.lanes)
    data = jax.device_put(load_data(plan))
    lanes = initial(program, lane_keys(job.lanes), hyper, data)
    start = time.perf_counter()
    _, seen = jax.device_get(compiled_chunk(program)(lanes, hyper, np.int32(0), data, program.stride))
    seconds = time.perf_counter() - start
    return {"ok": all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(seen)), "seconds": seconds}


def lanes(quick: bool, until: float) -> Iterator[Row]:
    """On the clock; MNIST is random images, 3 x 100 units, one example a step."""
    mnist, small = RANDOM_TASKS["permuted_mnist"], "mlp(widths=(100,100,100))"
    for number in (1, 2) if quick else (1, 8, 64, 256, 1024):
        for task, network in ((REGRESSION, ""), (mnist, small)):
            case = Case(task, network, CBP, number, 20 if quick else 1000)
            seconds = timed({"": _call(case)}, 3)[""][:, 1]
            yield {
                "task": case.plan().spec.name,
                "lanes": number,
                "lane-steps/s": spread(number * case.steps / seconds),
            }


def pictures(quick: bool, until: float) -> Iterator[Row]:
    """A step has the operations of three forward passes."""
    peaks = device_peaks(3, quick)
    wide = {"convnet_lanes": (30, "convnet(dtype=bfloat16)"), "resnet_lanes": (8, "resnet(dtype=bfloat16)")}
    for group, (number, network) in wide.items():
        for case in (c for c in device_groups(quick)[group] if c.method in (BACKPROP, CBP)):
            if not quick:
                case = Case(case.task, network, case.method, number, case.steps)
            plan = case.plan()
            rate = spread(case.lanes * case.steps / timed({"": _call(case)}, 3)[""][:, 1])
            row = {"group": group, "step_gflop": step_gflop(plan), "lane_steps_per_second": rate}
            found = beside_peaks(row, peaks, dtype_of(plan), None)["on_device"]
            yield {"network": case.network, "method": case.method, "lanes": case.lanes, "lane-steps/s": rate} | {
                "of the peak, %": 100 * found["peak_share"],
                "published runs, hours": found["published_hours"],
            }


def agents(quick: bool, until: float) -> Iterator[Row]:
    """The last check: each of its cases has an equal part of what is left, once it is compiled."""
    cases = [("published_wide", 2 if quick else 30, 2048), ("accelerator", 1, 65_536)][: 1 if quick else 2]
    for i, (preset, number, rollout) in enumerate(cases):
        case = Case("ant", "", CBP, number, rollout, preset)
        call = _call(case)
        jax.block_until_ready(call())
        calls, start = 0, time.monotonic()
        while not calls or (not quick and time.monotonic() < start + (until - start) / (len(cases) - i)):
            jax.block_until_ready(call())
            calls += 1
        rate = calls * number * rollout / (time.monotonic() - start)
        yield {"preset": preset, "lanes": number, "environment steps": calls * number * rollout} | {
            "steps/s with learning": rate,
            f"over {TO_BEAT:,}": rate / TO_BEAT,
            "30 x 20 M, hours": PUBLISHED_LANE_STEPS[AGENTS] / rate / 3600,
        }


def _call(case: Case) -> Callable[[], Any]:
    plan = case.plan()
    return workload(case, plan, jax.device_put(load_data(plan)))


CHECKS: dict[str, tuple[Callable[[bool, float], Iterator[Row]], float]] = {
    "resume": (resume, 0.15),
    "parity": (parity, 0.3),
    "steps": (steps, 0.6),
    "lanes": (lanes, 0.75),
    "pictures": (pictures, 0.85),
    "agents": (agents, 1.0),
}
"""In their order, with the share of the time that is over when they have to be."""


def check(
    minutes: float = 8, out: Path | None = None, quick: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """All checks; by name their rows, and `cut` where time ended one.

    Raises:
        InputError: `minutes` is not positive.
    """
    if not minutes > 0:
        raise InputError(f"--minutes: {minutes:g} is not a positive number")
    begin, found = time.monotonic(), {}
    for name, (rows, share) in CHECKS.items():
        until = begin + 60 * minutes * share
        one = found[name] = {"rows": [], "cut": ""}
        say(f"{name}: until minute {minutes * share:.1f}")
        try:
            for row in rows(quick, until):
                one["rows"].append(row)
                _write(found, out)
                if time.monotonic() > until and rows is not agents:
                    one["cut"] = f"cut short after {len(one['rows'])}: its share of the {minutes:g} minutes was over"
                    break
        except InputError as error:
            one["cut"] = f"not all done: {error}"
        _write(found, out)
    return found


def tables(found: dict[str, Any]) -> list[Table]:
    """A table a check."""
    return [_table(name, one["rows"], one["cut"]) for name, one in found.items()]


def _table(name: str, rows: list[Row], note: str) -> Table:
    head = tuple(dict.fromkeys(key for row in rows for key in row)) or ("nothing",)
    cells = [tuple(_text(row.get(key, "")) for key in head) for row in rows]
    return Table(name.capitalize(), head, cells, note)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _write(found: dict[str, Any], out: Path | None) -> None:
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "accelerator.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
    (out / "accelerator.md").write_text("\n\n".join(table.markdown() for table in tables(found)) + "\n")
