"""Measure how fast training is on one core, beside the published code, the memory's speed and the targets.

python -m launch.benchmark [--out=DIR] [--only=GROUP,...] [--data_dir=D] [--repeats=5] [--quick] [--whole_figure]

What is timed is the compiled chunk that `launch.train` runs: task, learner, bins. Cases of a group take turns
(A B A B ...), so that a machine that drifts does not bend their ratios; a ratio is the median of the ratios of
neighbours. Rates are per CPU-second: other work on the machine costs less there than on the clock.
"""

import dataclasses
import functools
import itertools
import json
import os
import platform
import resource
import sys
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from launch.cli import run_cli
from launch.errors import InputError, unknown
from launch.experiment import Experiment, Plan, lane_keys, resolve
from launch.lanes import hyper_arrays, job_program, load_data
from launch.loop import chunk_length, compiled_chunk, initial
from launch.registry import TASKS
from launch.runner import _machine, _versions, commit, enable_compilation_cache, run
from tasks.permuted_mnist import PermutedMNIST, PermutedMNISTData

SCHEMA = 1
REGRESSION, MNIST = "slowly_changing_regression", "permuted_mnist"
BACKPROP, CBP, CONTRIBUTION = "backprop", "continual_backprop", "continual_backprop(utility=contribution)"
LINEAR, STREAM = "linear", "the stream alone"
PUBLISHED = {
    "regression": {BACKPROP: 3820.0, CBP: 2160.0},
    "mnist_3x100": {BACKPROP: 2360.0, CBP: 1010.0},
    "mnist_3x2000": {BACKPROP: 88.0, CBP: 44.0},
}
"""Steps per CPU-second of the published code on one core of a like machine."""

COST_FLOORS = {CONTRIBUTION: 1.25, CBP: 1.5}
"""CBP's time over backprop's at batch 1: one or two reads of the weights beside backprop's four passes."""

STEP_SIZES = (0.01, 0.003, 0.001)
PIXELS, CLASSES, IMAGES, TEST_IMAGES = 784, 10, 60_000, 10_000
WIDE = (PIXELS, 2000, 2000, 2000, CLASSES)
WIDE_WEIGHTS = sum(a * b for a, b in itertools.pairwise(WIDE))


@dataclasses.dataclass(frozen=True)
class RandomImages(PermutedMNIST):
    """`PermutedMNIST` on random images of MNIST's shape and share of black pixels: as fast, and nothing to download."""

    @property
    def _facts(self) -> Any:
        return types.SimpleNamespace(examples=IMAGES, test_examples=TEST_IMAGES, pixels=PIXELS, classes=CLASSES)

    def load(self) -> PermutedMNISTData:
        train_x, train_y = _random_images(IMAGES)
        test_x, test_y = _random_images(self.evaluation_size)
        return PermutedMNISTData(train_x, train_y, test_x, test_y)


RANDOM_IMAGES = dataclasses.replace(TASKS[MNIST], name="random_images", make=RandomImages, aliases=())


class Spread(NamedTuple):
    """Median and extremes of repeated measurements."""

    median: float
    low: float
    high: float


class Traffic(NamedTuple):
    """Bytes of weights that a step must move: read only, and read and written in place."""

    read: float
    updated: float


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that is timed: `steps` updates of `lanes` runs in one program, a multiple of the chunk if longer."""

    task: str
    network: str
    method: str
    lanes: int
    steps: int

    @property
    def name(self) -> str:
        """What it is called within its group."""
        return f"{self.method}, {self.lanes} lane{'s' * (self.lanes > 1)}"


Times = dict[str, np.ndarray]
"""By name of the case: seconds per call, `[repeat, (CPU, wall)]`."""


def groups(images: str = MNIST, quick: bool = False) -> dict[str, list[Case]]:
    """All cases by group; `quick` only tries the plumbing."""
    online, batch = images, _with(images, "batch=128")
    small, wide = "mlp(widths=(100,100,100))", f"mlp(widths={WIDE[1:-1]})"
    lanes = {4: 10_000} if quick else {1: 200_000, 30: 40_000, 100: 20_000}
    most, share = max(lanes), 0.02 if quick else 1.0
    regression = [Case(REGRESSION, "", m, n, steps) for n, steps in lanes.items() for m in (BACKPROP, CBP)]
    regression += [Case(REGRESSION, "", m, most, lanes[most]) for m in ((STREAM,) if quick else (LINEAR, STREAM))]

    def mnist(task: str, network: str, steps: int, *methods: str) -> list[Case]:
        return [Case(task, network, method, 1, max(int(steps * share), 1)) for method in methods]

    return {
        "regression": regression,
        "mnist_3x100": mnist(online, small, 10_000, BACKPROP, CBP, CONTRIBUTION, STREAM),
        "mnist_3x2000": mnist(online, wide, 200, BACKPROP, CBP, CONTRIBUTION, STREAM),
        "batch_128_3x100": mnist(batch, small, 250, BACKPROP, CBP, STREAM),
        "batch_128_3x2000": mnist(batch, wide, 5, BACKPROP, CBP, STREAM),
    }


def traffic(sizes: Sequence[int], method: str, itemsize: int = 4) -> Traffic:
    """Bytes that one step at batch 1 must move in an MLP whose layers have `sizes` units, biases left out.

    Backprop reads the weights forward, all but the first layer's backward, and reads and writes them in the update.
    The utilities of CBP read the new weights: those that leave hidden units, and for `adaptable_contribution` (another
    direction of sums, hence another pass) those that enter them.
    """
    kernels = [a * b * itemsize for a, b in itertools.pairwise(sizes)]
    read = sum(kernels) + sum(kernels[1:])
    if method in (CONTRIBUTION, CBP):
        read += sum(kernels[1:])
    if method == CBP:
        read += sum(kernels[:-1])
    return Traffic(read, 2 * sum(kernels))


def timed(calls: Mapping[str, Callable[[], Any]], repeats: int) -> Times:
    """Seconds per call; the calls take turns after one of each to warm up."""
    seconds = {name: np.zeros((repeats, 2)) for name in calls}
    for call in calls.values():
        call()
    for i in range(repeats):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            seconds[name][i] = time.process_time() - cpu, time.perf_counter() - wall
    return seconds


def spread(values: Iterable[float]) -> Spread:
    """Median, smallest and largest."""
    values = np.asarray(list(values), float)
    return Spread(float(np.median(values)), float(values.min()), float(values.max()))


def ratio(times: np.ndarray, base: np.ndarray, scale: float = 1.0) -> Spread:
    """CPU time over that of its neighbour `base` in the same repeat, times `scale`."""
    return spread(scale * times[:, 0] / base[:, 0])


# What is called


def training(case: Case, plan: Plan, data: Any, repeats: int) -> Callable[[], None]:
    """A call runs `case.steps` steps as `launch.train` would, in the longest chunks that fit.

    The first step after the start of the run comes first, so that every stream is under way. The diagnostics and the
    evaluation at the start of a task are in it where a task is not longer than a chunk.
    """
    (job,) = plan.jobs
    program, hyper = job_program(plan, job), hyper_arrays(job, job.lanes)
    length = min(chunk_length(program), case.steps)
    carry = initial(program, lane_keys(job.lanes), hyper, data, case.steps * (repeats + 2))
    started, _ = jax.jit(jax.vmap(plan.task.next, (0, None, None)))(carry.lanes.task, np.int32(0), data)
    carry = carry._replace(lanes=carry.lanes._replace(task=started))
    return _forward(compiled_chunk(program), carry, (hyper,), data, length, case.steps)


def stream(case: Case, plan: Plan, data: Any) -> Callable[[], None]:
    """A call shows `case.steps` batches to nobody."""
    (job,) = plan.jobs
    task, program = plan.task, job_program(plan, job)
    length = min(chunk_length(program), case.steps)
    show = jax.vmap(task.next, (0, None, None))

    def chunk(carry: Any, start: jax.Array, data: Any, length: int) -> Any:
        def body(carry: Any, clock: jax.Array) -> tuple[Any, None]:
            # The batch is carried along, else nobody needs it and XLA leaves it out.
            return show(carry[0], clock, data), None

        return jax.lax.scan(body, carry, start + jnp.arange(length, dtype=jnp.int32))[0]

    state = initial(program, lane_keys(job.lanes), hyper_arrays(job, job.lanes), data, plan.steps).lanes.task
    started = jax.jit(show)(state, np.int32(0), data)
    compiled = jax.jit(chunk, static_argnums=3, donate_argnums=0)
    return _forward(compiled, started, (), data, length, case.steps)


def _forward(
    chunk: Callable[..., Any], carry: Any, extra: tuple[Any, ...], data: Any, length: int, steps: int
) -> Callable[[], None]:
    clock = length

    def call() -> None:
        nonlocal carry, clock
        for _ in range(steps // length):
            carry = chunk(carry, *extra, np.int32(clock), data, length)
            clock += length
        jax.block_until_ready(carry)

    return call


def planned(case: Case) -> Plan:
    """The checked experiment of a case; the stream is that of backprop.

    Raises:
        InputError: the task's data are missing or unreadable.
    """
    method = BACKPROP if case.method == STREAM else case.method
    seeds = tuple(range(case.lanes))
    return resolve(Experiment(case.task, method, seeds, network=case.network, lanes_per_batch=case.lanes))


# The machine


def machine_calls(quick: bool) -> dict[str, tuple[float, Callable[[], Any]]]:
    """By name: units of work (bytes, floating-point operations) in one call, and the call."""
    large, small = (2_000_000, 200_000) if quick else (50_000_000, WIDE_WEIGHTS)
    side = 256 if quick else 1024
    source, target = np.ones(large, np.float32), np.ones(large, np.float32)
    square = jnp.ones((side, side))
    product = jax.jit(jnp.dot)
    megabytes = f"{large * 4 / 1e6:.0f} MB"
    return {
        f"copy of {megabytes}, numpy": (8 * large, lambda: np.copyto(target, source)),
        f"triad on {megabytes}, jax": (12 * large, _in_place(large, jnp.ones(large))),
        **memory_calls(small),
        f"matrix product {side}^3, float32": (2 * side**3, lambda: product(square, square).block_until_ready()),
    }


def memory_calls(size: int) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Reading `size` float32 in two ways, and updating them in place: bytes, and the call."""
    rows = max(size // 2000, 1)
    matrix, vector, flat = jnp.ones((rows, 2000)), jnp.ones(2000), np.ones(size, np.float32)
    multiply = jax.jit(jnp.dot)
    read = f"read of {size * 4 / 1e6:.0f} MB"
    return {
        f"{read}, jax matrix-vector product": (
            4 * rows * 2000,
            lambda: multiply(matrix, vector).block_until_ready(),
        ),
        f"{read}, numpy max": (4 * size, flat.max),
        f"read and write of {size * 4 / 1e6:.0f} MB, jax": (8 * size, _in_place(size)),
    }


def _in_place(size: int, added: jax.Array | float = 1e-3) -> Callable[[], None]:
    update = jax.jit(lambda values, added: 0.999 * values + added, donate_argnums=0)
    values = jnp.ones(size)

    def call() -> None:
        nonlocal values
        values = update(values, added).block_until_ready()

    return call


def often(call: Callable[[], Any], n: int) -> Callable[[], None]:
    """`n` calls as one: what takes a few milliseconds is too short for the clock."""

    def calls() -> None:
        for _ in range(n):
            call()

    return calls


def measure_machine(repeats: int, quick: bool) -> list[dict[str, Any]]:
    """Memory bandwidth and matrix-product peak, in 1e9 per CPU-second and per second."""
    calls, n = machine_calls(quick), 2 if quick else 5
    times = timed({name: often(call, n) for name, (_, call) in calls.items()}, repeats)
    return [
        {
            "what": name,
            "unit": "GFLOP/s" if "product " in name else "GB/s",
            "per_cpu_second": spread(n * work / 1e9 / times[name][:, 0])._asdict(),
            "per_second": spread(n * work / 1e9 / times[name][:, 1])._asdict(),
        }
        for name, (work, _) in calls.items()
    ]


# From times to results


def measure_group(group: str, cases: list[Case], repeats: int) -> dict[str, Any]:
    """Rates of all cases of a group, and what follows from them."""
    plans = {case.name: planned(case) for case in cases}
    data = jax.device_put(load_data(plans[cases[0].name]))
    calls: dict[str, Callable[[], Any]] = {}
    for case in cases:
        plan = plans[case.name]
        call = stream(case, plan, data) if case.method == STREAM else training(case, plan, data, repeats)
        calls[case.name] = call
    memory, n = memory_calls(WIDE_WEIGHTS) if group == "mnist_3x2000" else {}, 20
    times = timed(calls | {name: often(call, n) for name, (_, call) in memory.items()}, repeats)
    return {
        "rates": [_rate(group, case, times[case.name]) for case in cases],
        "costs": [c for case in cases if (c := _cost(group, case, cases, times))],
        "streams": [s for case in cases if case.method != STREAM and (s := _stream_share(group, case, cases, times))],
        "floors": _floors(cases, times, {name: work * n for name, (work, _) in memory.items()}) if memory else [],
    }


def _rate(group: str, case: Case, times: np.ndarray) -> dict[str, Any]:
    published = PUBLISHED.get(group, {}).get(case.method.partition("(")[0])
    per_cpu = spread(case.lanes * case.steps / times[:, 0])
    return {
        "group": group,
        "method": case.method,
        "lanes": case.lanes,
        "steps": case.steps,
        "lane_steps_per_cpu_second": per_cpu._asdict(),
        "lane_steps_per_second": spread(case.lanes * case.steps / times[:, 1])._asdict(),
        "published": published,
        "times_published": per_cpu.median / published if published else None,
    }


def _cost(group: str, case: Case, cases: list[Case], times: Times) -> dict[str, Any] | None:
    """CBP's time over backprop's, beside what the passes over the weights allow."""
    base = next((c for c in cases if c.method == BACKPROP and c.lanes == case.lanes), None)
    if case.method not in (CBP, CONTRIBUTION) or base is None:
        return None
    floor = COST_FLOORS[case.method] if group.startswith("mnist") else None
    target = 1.3 * floor if floor else 1.1 if group.startswith("batch") else None
    found = ratio(times[case.name], times[base.name])
    return {"group": group, "method": case.method, "lanes": case.lanes, "floor": floor, "target": target} | {
        "over_backprop": found._asdict()
    }


def _stream_share(group: str, case: Case, cases: list[Case], times: Times) -> dict[str, Any] | None:
    """Time of the stream alone over that of whole steps."""
    alone = next((c for c in cases if c.method == STREAM and c.lanes == case.lanes), None)
    if alone is None:
        return None
    share = ratio(times[alone.name], times[case.name], case.steps / alone.steps)
    return {"group": group, "method": case.method, "lanes": case.lanes, "share": share._asdict()}


def _floors(cases: list[Case], times: Times, work: Mapping[str, float]) -> list[dict[str, Any]]:
    """Time beside what the passes counted take at the bandwidth of the same repeat, the faster way to read."""
    *reads, update = (times[name][:, 0] / work[name] for name in work)
    read, rows = np.min(reads, axis=0), []
    for case in cases:
        if case.method == STREAM:
            continue
        moved, weights = traffic(WIDE, case.method), traffic(WIDE, BACKPROP).updated / 2
        floor = moved.read * read + moved.updated * update
        found = {
            "milliseconds": spread(1e3 * times[case.name][:, 0] / case.steps),
            "floor_milliseconds": spread(1e3 * floor),
            "over_floor": spread(times[case.name][:, 0] / case.steps / floor),
        }
        counted = {"passes_read": moved.read / weights, "passes_updated": moved.updated / weights}
        rows.append({"method": case.method} | counted | {name: value._asdict() for name, value in found.items()})
    return rows


# The whole published figure


def figure_work(quick: bool = False) -> Experiment:
    """The published figure of slowly-changing regression: backprop at three step sizes, linear, CBP, 100 seeds."""
    seeds, steps = (4, 20_000) if quick else (100, 1_000_000)
    sizes = ",".join(str(size) for size in STEP_SIZES)
    methods = f"{BACKPROP},{LINEAR},{CBP}"
    return Experiment(REGRESSION, methods, tuple(range(seeds)), steps, sweep=(f"{BACKPROP}.step_size={sizes}",))


def extrapolated_figure(rates: Iterable[Mapping[str, Any]], cores: int) -> dict[str, Any] | None:
    """The time of the whole figure from the measured rates; `None` where they are missing."""
    experiment = figure_work()
    steps, lanes = experiment.steps or 0, len(experiment.seeds)
    found = {(rate["method"], rate["lanes"]): rate for rate in rates if rate["group"] == "regression"}
    parts = [BACKPROP] * len(STEP_SIZES) + [LINEAR, CBP]
    if any((method, lanes) not in found for method in parts):
        return None

    def seconds(kind: str) -> list[float]:
        return [lanes * steps / found[method, lanes][kind]["median"] for method in parts]

    published = PUBLISHED["regression"]
    theirs = lanes * steps * (len(STEP_SIZES) / published[BACKPROP] + 1 / published[CBP])
    return {
        "lane_steps": lanes * steps * len(parts),
        "cpu_seconds": sum(seconds("lane_steps_per_cpu_second")),
        "wall_seconds_one_core": sum(seconds("lane_steps_per_second")),
        "wall_seconds_all_cores": shared_time(seconds("lane_steps_per_second"), cores),
        "published_cpu_hours_without_linear": theirs / 3600,
    }


def shared_time(seconds: Sequence[float], workers: int) -> float:
    """When the last of these jobs ends, handed out in this order to workers as they become free."""
    free = [0.0] * max(workers, 1)
    for job in seconds:
        free[free.index(min(free))] += job
    return max(free)


def whole_figure(quick: bool) -> dict[str, float]:
    """Really run it, by `launch.run` with one process a core: seconds on the clock and of CPU."""
    before, wall = _cpu_seconds(), time.perf_counter()
    run(figure_work(quick))
    return {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": _cpu_seconds() - before}


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# Targets


def targets(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was wanted, what was measured, and whether that is enough; only of what was measured."""
    rows = []
    for rate in found["rates"]:
        wanted = {("regression", CBP, 100): 1000, ("mnist_3x100", CBP, 1): 15}
        least = wanted.get((rate["group"], rate["method"], rate["lanes"]))
        if least:
            what = f"{rate['group']}, {rate['method']}, {rate['lanes']} lanes: times the published rate"
            rows.append(_target(what, f"at least {least}", rate["times_published"], rate["times_published"] >= least))
    for row in found["floors"]:
        measured = row["over_floor"]["median"]
        what = f"mnist_3x2000, {row['method']}: time over that of the passes counted"
        rows.append(_target(what, "at most 1.5", measured, measured <= 1.5))
    for cost in found["costs"]:
        if cost["target"]:
            measured, most = cost["over_backprop"]["median"], cost["target"]
            what = f"{cost['group']}, {cost['method']}: time over backprop's"
            rows.append(_target(what, f"at most {most:.4g}", measured, measured <= most))
    return rows


def _target(what: str, target: str, measured: float, met: bool) -> dict[str, Any]:
    return {"what": what, "target": target, "measured": measured, "met": bool(met)}


# Tables


class Table(NamedTuple):
    """A titled table of text; `note` stands below."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def text(self) -> str:
        """Aligned columns, numbers to the right."""
        table = [self.head, *self.rows]
        wide = [max(len(row[i]) for row in table) for i in range(len(self.head))]
        lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, wide, strict=True)))
                 for row in table]  # fmt: skip
        return "\n".join([self.title, *(f"  {line.rstrip()}" for line in lines), *_lines(f"  {self.note}", self.note)])

    def markdown(self) -> str:
        """The same in Markdown."""
        rule = ("---",) + ("---:",) * (len(self.head) - 1)
        lines = [f"| {' | '.join(row)} |" for row in (self.head, rule, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, *_lines(f"\n{self.note}", self.note)])


def _lines(line: str, wanted: str) -> list[str]:
    return [line] if wanted else []


def tables(found: Mapping[str, Any]) -> list[Table]:
    """What was found, as tables; those without a row are left out."""
    every = [
        _targets_table(found),
        _rates_table(found),
        _costs_table(found),
        _floors_table(found),
        _streams_table(found),
        _figure_table(found),
        _machine_table(found),
    ]
    return [table for table in every if table.rows]


def _targets_table(found: Mapping[str, Any]) -> Table:
    rows = [
        (t["what"], t["target"], f"{t['measured']:.4g}", "met" if t["met"] else "not met") for t in found["targets"]
    ]
    note = "The targets are for one CPU core." if found["machine"]["backend"] != "cpu" else ""
    return Table("Targets", ("what", "target", "measured", ""), rows, note)


def _rates_table(found: Mapping[str, Any]) -> Table:
    head = ("case", "lanes", "per CPU-second", "lowest", "highest", "per second", "published", "times published")
    rows = []
    for r in found["rates"]:
        cpu, wall = r["lane_steps_per_cpu_second"], r["lane_steps_per_second"]
        published = (f"{r['published']:,.0f}", f"{r['times_published']:,.1f}") if r["published"] else ("", "")
        cells = [f"{value:,.0f}" for value in (cpu["median"], cpu["low"], cpu["high"], wall["median"])]
        rows.append((f"{r['group']}: {r['method']}", str(r["lanes"]), *cells, *published))
    return Table("Lane-steps", head, rows, f"MNIST cases: {found['images']}." if found["images"] else "")


def _costs_table(found: Mapping[str, Any]) -> Table:
    def optional(value: float | None) -> str:
        return f"{value:.4g}" if value else ""

    rows = [
        (f"{c['group']}: {c['method']}", str(c["lanes"]), *_cells(c["over_backprop"]))
        + (optional(c["floor"]), optional(c["target"]))
        for c in found["costs"]
    ]
    head = ("CPU time over backprop's", "lanes", "median", "lowest", "highest", "floor", "target")
    return Table("Cost of continual backprop", head, rows)


def _floors_table(found: Mapping[str, Any]) -> Table:
    rows = [
        (f["method"], f"{f['passes_read']:.2f}", f"{f['passes_updated']:.2f}")
        + (f"{f['milliseconds']['median']:.2f}", f"{f['floor_milliseconds']['median']:.2f}", *_cells(f["over_floor"]))
        for f in found["floors"]
    ]
    head = ("3x2000, batch 1", "passes read", "passes updated", "ms a step", "floor, ms", "ratio", "lowest", "highest")
    note = "Passes in sizes of the weights; the floor moves them at the bandwidths measured beside, in the same turns."
    return Table("Time beside what the memory allows", head, rows, note)


def _streams_table(found: Mapping[str, Any]) -> Table:
    rows = [
        (f"{s['group']}: {s['method']}", str(s["lanes"]), *(f"{100 * s['share'][k]:.1f}" for k in Spread._fields))
        for s in found["streams"]
    ]
    return Table("The stream's share of a step, %", ("case", "lanes", "median", "lowest", "highest"), rows)


def _figure_table(found: Mapping[str, Any]) -> Table:
    head = ("published figure of slowly-changing regression", "seconds")
    title, figure, rows = "The whole figure", found["figure_extrapolated"], []
    if figure:
        for key in ("cpu_seconds", "wall_seconds_one_core", "wall_seconds_all_cores"):
            rows.append((f"{key.replace('_', ' ')}, extrapolated from the rates above", f"{figure[key]:,.0f}"))
        hours = figure["published_cpu_hours_without_linear"]
        rows.append(
            ("published code at its rates, without linear, extrapolated", f"{hours * 3600:,.0f} ({hours:.1f} h)")
        )
    for key, value in (found["figure_measured"] or {}).items():
        rows.append((f"{key.replace('_', ' ')}, measured on all cores", f"{value:,.0f}"))
    sizes = ", ".join(str(s) for s in STEP_SIZES)
    note = f"100 seeds x 1,000,000 steps of backprop at step sizes {sizes}, linear and continual backprop."
    return Table(title, head, rows, note)


def _machine_table(found: Mapping[str, Any]) -> Table:
    head = ("one core", "per CPU-second", "lowest", "highest", "unit")
    rows = [(p["what"], *_cells(p["per_cpu_second"]), p["unit"]) for p in found["peaks"]]
    return Table("The machine", head, rows)


def _cells(values: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(f"{values[k]:.4g}" for k in Spread._fields)


def heading(found: Mapping[str, Any]) -> list[str]:
    """What, where and with which versions, a line each."""
    m = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"{found['command']}; median of {found['repeats']} repeats, lowest and highest",
        f"commit {found['commit'] or 'unknown'}; {versions}",
        f"{m['processor']}, {m['cores']} cores, {m['backend']} ({m['device']}), load {m['load']:.1f} at the start",
    ]
    return lines + ["quick: only tries that everything runs; the numbers mean nothing"] * found["quick"]


# The command


def benchmark(
    only: Sequence[str] = (),
    data_dir: str | None = None,
    repeats: int = 5,
    quick: bool = False,
    whole: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure the groups `only` (all where empty) and return everything found.

    Raises:
        InputError: a group is unknown, `repeats` is not positive, or `data_dir` holds no data.
    """
    names = list(groups())
    for name in only:
        if name not in names:
            raise unknown("--only", name, names)
    if repeats < 1:
        raise InputError(f"--repeats: {repeats} is not a positive number")
    chosen = [name for name in names if not only or name in only]
    needs_images = any(name != "regression" for name in chosen)
    task, images = image_task(data_dir) if needs_images else (MNIST, "")
    found = _about(only, data_dir, repeats, quick, whole) | {"images": images}
    say("the machine")
    found["peaks"] = measure_machine(repeats, quick)
    parts: dict[str, list[Any]] = {"rates": [], "costs": [], "floors": [], "streams": []}
    for name in chosen:
        say(name)
        for key, rows in measure_group(name, groups(task, quick)[name], repeats).items():
            parts[key] += rows
    found |= parts
    found["figure_extrapolated"] = extrapolated_figure(found["rates"], found["machine"]["cores"])
    if whole:
        say("the whole figure")
    found["figure_measured"] = whole_figure(quick) if whole else None
    return found | {"targets": targets(found)}


def image_task(data_dir: str | None) -> tuple[str, str]:
    """The task of the MNIST cases and what it shows: MNIST where it is found, else random images.

    Raises:
        InputError: `data_dir` was given and holds no MNIST.
    """
    task = MNIST if data_dir is None else _with(MNIST, f"data_dir={data_dir!r}")
    try:
        resolve(Experiment(task, BACKPROP))
    except InputError:
        if data_dir is not None:
            raise
        return "launch.benchmark:RANDOM_IMAGES", "random images of MNIST's shape, as no --data_dir was given"
    return task, "MNIST"


def _about(only: Sequence[str], data_dir: str | None, repeats: int, quick: bool, whole: bool) -> dict[str, Any]:
    flags_given = [f"--only={','.join(only)}"] * bool(only) + ["--data_dir=D"] * (data_dir is not None)
    flags_given += ["--quick"] * quick + ["--whole_figure"] * whole + [f"--repeats={repeats}"] * (repeats != 5)
    machine = _machine() | {"processor": _processor(), "load": os.getloadavg()[0]}
    return {
        "schema": SCHEMA,
        "command": " ".join(["python -m launch.benchmark", *flags_given]),
        "machine": machine,
        "versions": _versions(),
        "commit": commit(),
        "repeats": repeats,
        "quick": quick,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def write(found: Mapping[str, Any], folder: Path) -> None:
    """`benchmark.json` and `table.md` in `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(found, indent=1) + "\n")
    parts = ["# How fast", "\n".join(f"- {line}" for line in heading(found))]
    (folder / "table.md").write_text("\n\n".join([*parts, *(table.markdown() for table in tables(found))]) + "\n")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing this module brings none."""
    flags.DEFINE_string(
        "out", None, "folder for benchmark.json and table.md; nothing is kept without", flag_values=values
    )
    flags.DEFINE_list("only", [], f"groups to measure: {', '.join(groups())}; by default all", flag_values=values)
    flags.DEFINE_string("data_dir", None, "where MNIST is; random images where it is not found", flag_values=values)
    flags.DEFINE_integer("repeats", 5, "measurements of every case", flag_values=values)
    flags.DEFINE_bool("quick", False, "a moment of each, to see that everything runs", flag_values=values)
    flags.DEFINE_bool("whole_figure", False, "also run the whole figure of the regression", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Measure, print, and keep."""
    if arguments:
        raise InputError(f"'{arguments[0]}' is not a flag; flags are written --name=value")
    if values.out is not None and Path(values.out).exists() and not Path(values.out).is_dir():
        raise InputError(f"--out: {values.out} is a file, not a folder")
    say = functools.partial(print, file=sys.stderr, flush=True)
    found = benchmark(values.only, values.data_dir, values.repeats, values.quick, values.whole_figure, say)
    print("\n".join(heading(found)), *(table.text() for table in tables(found)), sep="\n\n")
    if values.out is not None:
        write(found, Path(values.out))


def _with(task: str, setting: str) -> str:
    return f"{task[:-1]},{setting})" if task.endswith(")") else f"{task}({setting})"


@functools.cache
def _random_images(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    pixels = rng.integers(0, 256, (n, PIXELS), np.uint8) * (rng.integers(0, 5, (n, PIXELS), np.uint8) == 0)
    return pixels, rng.integers(0, CLASSES, n).astype(np.int32)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # JAX says at INFO which accelerators it did not find
    os.environ["NPROC"] = "1"  # read when the backend starts: one core
    enable_compilation_cache()
    define_flags()
    run_cli(main)
