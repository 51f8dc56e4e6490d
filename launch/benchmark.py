"""Measure how fast training is on one core, beside the published code, the memory's speed and the targets.

python -m launch.benchmark [--out=DIR] [--only=GROUP,...] [--data_dir=D] [--repeats=3] [--quick] [--peer=PYTHON]
python -m launch.benchmark --accelerator [--out=DIR] [--minutes=8] [--quick]

The second form is `launch.benchmarks.accelerator`, all that a new accelerator has to show.

On a CPU the groups for one core are measured, on an accelerator those of many lanes at once. The group `peers` runs PPO
in turns with rejax's, for which PYTHON is the interpreter of an environment with rejax, for instance of
`pip install jax==0.10.2 flax==0.12.8 optax==0.2.8 brax==0.14.2 rejax==0.1.3 gymnax==0.0.9 mujoco mujoco-mjx`.

What is timed is the compiled chunk that `launch.train` runs: task, learner, bins. Cases of a group take turns
(A B A B ...), so that a machine that drifts does not bend their ratios; a ratio is the median of the ratios of
neighbours. Rates of a core are per CPU-second: other work on the machine costs less there than on the clock.
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from launch.benchmarks import accelerator
from launch.benchmarks.device_rates import (
    CONVNET,
    PUBLISHED_LANE_STEPS,
    RESNET,
    Peaks,
    batch,
    beside_peaks,
    device_peaks,
    device_table,
    dtype_of,
    moved_by_step,
    step_gflop,
)
from launch.benchmarks.peaks import measured_peaks, memory_work
from launch.benchmarks.peers import PEERS, measure_peers, peer_table
from launch.benchmarks.timing import Spread, Table, Times, Traffic, often, ratio, spread, timed, traffic
from launch.benchmarks.workloads import (
    BACKPROP,
    CBP,
    CONTRIBUTION,
    LINEAR,
    METHODS_GROUP,
    MNIST,
    STREAM,
    WIDE,
    WIDE_WEIGHTS,
    Case,
    device_groups,
    groups,
    image_task,
    method_groups,
    workload,
)
from launch.cli import refuse_arguments, run_cli
from launch.engine.build import load_data
from launch.engine.processes import enable_compilation_cache
from launch.errors import InputError, unknown
from launch.storage.machine import commit, machine, versions

SCHEMA = 1
Row = dict[str, Any]

PPO = ("ppo_published", "ppo_published_wide", "ppo_accelerator")
PUBLISHED = {
    "regression": {BACKPROP: 3820.0, CBP: 2160.0},
    "mnist_3x100": {BACKPROP: 2360.0, CBP: 1010.0},
    "mnist_3x2000": {BACKPROP: 88.0, CBP: 44.0},
    "convnet": {BACKPROP: 14.7, CBP: 14.1},
    "resnet": {BACKPROP: 0.24, CBP: 0.24},
    **{group: {BACKPROP: 890.0, CBP: 930.0} for group in PPO},
}
"""Steps per CPU-second of the published code on one core of a like machine."""

COST_FLOORS = {CONTRIBUTION: 1.25, CBP: 1.5}
"""CBP's time over backprop's at batch 1: one or two reads of the weights beside backprop's four passes."""

LEAST_TIMES_PUBLISHED = {
    ("regression", CBP, 100): 1000,
    ("mnist_3x100", CBP, 1): 15,
    ("convnet", CBP, 1): 1,
    ("resnet", CBP, 1): 1,
    **{(group, method, 1): least for group, least in zip(PPO, (4, 6, 8), strict=True) for method in (BACKPROP, CBP)},
}
MOST_STREAM_SHARE = 0.05
CONVOLUTIONAL = ("convnet", "resnet_width_8", "resnet", CONVNET, RESNET)
MOST_OVER_FLOOR, MOST_OVER_COST_FLOOR, MOST_OVER_BACKPROP_IN_BATCHES = 1.5, 1.3, 1.1
FIGURE = (BACKPROP, BACKPROP, BACKPROP, LINEAR, CBP)  # the published regression's curves; backprop at 3 step sizes


def benchmark(
    only: Sequence[str] = (),
    data_dir: str | None = None,
    repeats: int = 3,
    quick: bool = False,
    say: Callable[[str], None] = lambda line: None,
    peer: str | None = None,
) -> dict[str, Any]:
    """Measure the groups `only` (all where empty; the peers where `peer` is given) and return everything found.

    Raises:
        InputError: a group is unknown, `repeats` is not positive, `data_dir` holds no data, or `peer` no rejax.
    """
    names = [*groups(), *device_groups(), PEERS]
    for name in (name for name in only if name != METHODS_GROUP):
        if name not in names:
            raise unknown("--only", name, (*names, METHODS_GROUP))
    if repeats < 1:
        raise InputError(f"--repeats: {repeats} is not a positive number")
    if PEERS in only and peer is None:
        raise InputError(f"--only: {PEERS} needs --peer=PYTHON, the interpreter of an environment with rejax")
    fitting = groups() if jax.default_backend() == "cpu" else device_groups()
    chosen = [name for name in names if name in (only or fitting)]
    shows_mnist = METHODS_GROUP in only or any(MNIST in case.task for name in chosen for case in groups().get(name, []))
    task, images = image_task(data_dir) if shows_mnist else (MNIST, "")
    found = _about(only, data_dir, repeats, quick) | {"images": images}
    say("the machine")
    on_a_core, many = groups(task, quick), device_groups(quick)
    of_core = on_a_core.keys() & chosen
    found["peaks"] = measured_peaks(WIDE_WEIGHTS // (10 if quick else 1), repeats, quick) if of_core else []
    found["device_peaks"] = device_peaks(repeats, quick) if many.keys() & chosen else None
    found["cases"] = []
    of_methods = method_groups(task, quick) if METHODS_GROUP in only else {}
    cases = on_a_core | many | of_methods
    for name in (*(name for name in chosen if name != PEERS), *of_methods):
        say(name)
        found["cases"] += measure_group(name, cases[name], repeats, found["device_peaks"])
    found["peers"] = []
    if peer is not None and (PEERS in only or not only):
        found["peers"] = measure_peers(peer, repeats, quick, say)
    return found | {"figure": whole_figure(found["cases"]), "targets": targets(found["cases"])}


def measure_group(group: str, cases: list[Case], repeats: int, peaks: Peaks | None = None) -> list[Row]:
    """A row per case: rate, and what follows from it; of many lanes also beside the device's `peaks`."""
    plans = {case.name: case.plan() for case in cases}
    data = jax.device_put(load_data(plans[cases[0].name]))
    calls = {case.name: workload(case, plans[case.name], data) for case in cases}
    memory, n = memory_work(WIDE_WEIGHTS) if group == "mnist_3x2000" else {}, 10
    times = timed(calls | {name: often(call, n) for name, (_, call) in memory.items()}, repeats)
    seconds_per_byte = [times[name][:, 0] / (n * work) for name, (work, _) in memory.items()]
    rows = []
    for case in cases:
        row = _case(group, case, cases, times)
        if memory and case.method != STREAM:
            row |= _beside_floor(case, times[case.name][:, 0] / case.steps, seconds_per_byte)
        if group in CONVOLUTIONAL and case.method != STREAM:
            plan = plans[case.name]
            row |= {"step_gflop": step_gflop(plan), "pictures": batch(plan)}
        if peaks is not None and group in PUBLISHED_LANE_STEPS and case.method != STREAM:
            plan = plans[case.name]
            row |= beside_peaks(row, peaks, dtype_of(plan), moved_by_step(plan, case.lanes))
        rows.append(row)
    return rows


def _case(group: str, case: Case, cases: list[Case], times: Times) -> Row:
    clock = group in PUBLISHED_LANE_STEPS  # on a device it is the clock that counts
    spent, beside = times[case.name], {c.method: c for c in cases if c.lanes == case.lanes}
    rate = spread(case.lanes * case.steps / spent[:, 0])
    row: Row = {"group": group, "method": case.method, "lanes": case.lanes, "steps": case.steps}
    row |= {"lane_steps_per_cpu_second": rate, "lane_steps_per_second": spread(case.lanes * case.steps / spent[:, 1])}
    published = PUBLISHED.get(group, {}).get(case.method.partition("(")[0])
    if published:
        row |= {"published": published, "times_published": rate.median / published}
    compared = case.method in (CBP, CONTRIBUTION) or (group.startswith(METHODS_GROUP) and case.method != BACKPROP)
    if BACKPROP in beside and compared:
        row["over_backprop"] = ratio(spent, times[beside[BACKPROP].name], clock=clock)
    if STREAM in beside and case.method != STREAM:
        row["stream_share"] = ratio(times[beside[STREAM].name], spent, clock=clock)
    return row


def passes(method: str) -> Traffic:
    """What a step of the widest network moves; the default utility looks at weights that leave and that enter."""
    return traffic(WIDE, outgoing=method in (CONTRIBUTION, CBP), incoming=method == CBP)


def _beside_floor(case: Case, seconds: np.ndarray, seconds_per_byte: list[np.ndarray]) -> Row:
    """Time beside what the passes counted take at the bandwidth of the same repeat, the faster way to read."""
    *reads, update = seconds_per_byte
    moved, weights = passes(case.method), 4 * WIDE_WEIGHTS
    floor = moved.read * np.min(reads, axis=0) + moved.updated * update
    return {
        "passes_read": moved.read / weights,
        "passes_updated": moved.updated / weights,
        "milliseconds": spread(1e3 * seconds),
        "floor_milliseconds": spread(1e3 * floor),
        "over_floor": spread(seconds / floor),
    }


def whole_figure(cases: Iterable[Row], lanes: int = 100, steps: int = 1_000_000) -> dict[str, float] | None:
    """The time of the whole published figure on one core from the measured rates; `None` where they are missing."""
    found = {case["method"]: case for case in cases if (case["group"], case["lanes"]) == ("regression", lanes)}
    if any(method not in found for method in FIGURE):
        return None
    work, published = lanes * steps, PUBLISHED["regression"]
    rates = [(found[m]["lane_steps_per_cpu_second"].median, found[m]["lane_steps_per_second"].median) for m in FIGURE]
    return {
        "lane_steps": work * len(FIGURE),
        "cpu_seconds": sum(work / cpu for cpu, _ in rates),
        "wall_seconds": sum(work / wall for _, wall in rates),
        "published_cpu_hours_without_linear": sum(work / published[m] for m in FIGURE if m in published) / 3600,
    }


def targets(cases: Iterable[Row]) -> list[Row]:
    """What was wanted, what was measured, and whether that is enough; only of what was measured."""
    rows = []

    def judge(what: str, measured: float, least: float = -np.inf, most: float = np.inf) -> None:
        target = f"at least {least:.4g}" if most == np.inf else f"at most {most:.4g}"
        rows.append({"what": what, "target": target, "measured": measured, "met": bool(least <= measured <= most)})

    for case in cases:
        group, method = case["group"], case["method"]
        least = LEAST_TIMES_PUBLISHED.get((group, method, case["lanes"]))
        if least:
            judge(f"{group}, {method}, {case['lanes']} lanes: times published", case["times_published"], least=least)
        if group in CONVOLUTIONAL and "stream_share" in case:
            judge(f"{group}, {method}: the data's share of a step", case["stream_share"].median, most=MOST_STREAM_SHARE)
        if "over_floor" in case:
            judge(f"{group}, {method}: time over the floor", case["over_floor"].median, most=MOST_OVER_FLOOR)
        if "over_backprop" in case and group != "regression" and not group.startswith(("ppo", METHODS_GROUP)):
            online = group.startswith("mnist")
            most = MOST_OVER_COST_FLOOR * COST_FLOORS[method] if online else MOST_OVER_BACKPROP_IN_BATCHES
            judge(f"{group}, {method}: time over backprop's", case["over_backprop"].median, most=most)
    return rows


def tables(found: Mapping[str, Any]) -> list[Table]:
    """What was found, as tables; those without a row are left out."""
    verdict = {True: "met", False: "missed"}
    judged = [(t["what"], t["target"], f"{t['measured']:.4g}", verdict[t["met"]]) for t in found["targets"]]
    floors = [
        (c["method"], f"{c['passes_read']:.2f}", f"{c['passes_updated']:.2f}")
        + (str(c["milliseconds"]), str(c["floor_milliseconds"]), str(c["over_floor"]))
        for c in found["cases"]
        if "over_floor" in c
    ]
    figure = [(name.replace("_", " "), f"{value:,.1f}") for name, value in (found["figure"] or {}).items()]
    peaks = [(p["what"], str(p["per_cpu_second"]), p["unit"]) for p in found["peaks"]]
    on_one_core = [c for c in found["cases"] if "step_gflop" in c and "on_device" not in c]
    convolutional = [_arithmetic(c, found["peaks"]) for c in on_one_core]
    note = (
        "Over backprop: CPU time over backprop's. Stream: its share of a step's CPU time, of PPO the physics'. Of many "
        "lanes on one device, both are on the clock."
    )
    every = [
        Table("Targets", ("what", "target", "measured", ""), judged),
        Table(
            "Lane-steps",
            ("case", "lanes", "per CPU-second", "per second", "times published", "over backprop", "stream, %"),
            [_line(case) for case in found["cases"] if not case["group"].startswith(METHODS_GROUP)],
            f"{note} MNIST cases: {found['images']}." if found["images"] else note,
        ),
        Table(
            "3x2000 at batch 1 beside what the memory allows",
            ("method", "passes read", "passes updated", "ms a step", "floor, ms", "ratio"),
            floors,
            "Passes in sizes of the weights; the floor moves them at the bandwidths measured in the same turns.",
        ),
        Table(
            "Convolutional networks beside the matrix product",
            ("case", "pictures per CPU-second", "GFLOP a step", "GFLOP/s", "of the peak, %"),
            convolutional,
            "Random pictures of the published numbers and shapes; augmentation is part of the ResNet's steps.",
        ),
        _costs(found["cases"]),
        device_table(found["cases"], found.get("device_peaks")),
        Table(
            "The published figure of slowly-changing regression, extrapolated from the rates",
            ("one core", ""),
            figure,
            "100 seeds x 1,000,000 steps of backprop at three step sizes, linear and continual backprop.",
        ),
        peer_table(found.get("peers", [])),
        Table("The machine", ("one core", "per CPU-second", "unit"), peaks),
    ]
    return [table for table in every if table.rows]


def _costs(cases: Sequence[Row]) -> Table:
    """Every method's time over backprop's."""
    found = {(case["group"], case["method"]): case for case in cases if case["group"].startswith(METHODS_GROUP)}
    sizes = list(dict.fromkeys(group for group, _ in found))
    rows = []
    for method in dict.fromkeys(name for _, name in found):
        own = [found.get((size, method), {}) for size in sizes]
        rows.append((method, *("1" if method == BACKPROP else str(each.get("over_backprop", "")) for each in own)))
    head = ("method", *(size.removeprefix(f"{METHODS_GROUP}: ") for size in sizes))
    note = "CPU time of a step, the stream's included, over backprop's; empty where the task or network is not for it."
    return Table("Time over backprop's", head, rows, note)


def _line(case: Row) -> tuple[str, ...]:
    cpu, wall = case["lane_steps_per_cpu_second"], case["lane_steps_per_second"]
    share: Spread | None = case.get("stream_share")
    return (
        f"{case['group']}: {case['method']}",
        str(case["lanes"]),
        f"{_number(cpu.median)} [{_number(cpu.low)}, {_number(cpu.high)}]",
        _number(wall.median),
        f"{case['times_published']:,.1f} x {case['published']:,g}" if "published" in case else "",
        str(case.get("over_backprop", "")),
        f"{100 * share.median:.1f}" if share else "",
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _arithmetic(case: Row, peaks: Iterable[Row]) -> tuple[str, ...]:
    peak = next(p["per_cpu_second"].median for p in peaks if p["unit"] == "GFLOP/s")
    steps = case["lane_steps_per_cpu_second"].median
    rate = steps * case["step_gflop"]
    pictures = f"{steps * case['pictures']:,.1f}"
    name = f"{case['group']}: {case['method']}"
    return name, pictures, f"{case['step_gflop']:.1f}", f"{rate:.1f}", f"{100 * rate / peak:.0f}"


def heading(found: Mapping[str, Any]) -> list[str]:
    """What, where and with which versions, a line each."""
    m = found["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"{found['command']}; median [lowest, highest] of {found['repeats']} repeats",
        f"commit {found['commit'] or 'unknown'}; {libraries}",
        f"{m['processor']}, {m['cores']} cores, {m['backend']} ({m['device']}), load {m['load']:.1f} at the start",
    ]
    return lines + ["quick: only tries that everything runs; the numbers mean nothing"] * found["quick"]


def _about(only: Sequence[str], data_dir: str | None, repeats: int, quick: bool) -> dict[str, Any]:
    given = ["python -m launch.benchmark"] + [f"--only={','.join(only)}"] * bool(only)
    given += ["--data_dir=D"] * (data_dir is not None) + ["--quick"] * quick + [f"--repeats={repeats}"] * (repeats != 3)
    return {
        "schema": SCHEMA,
        "command": " ".join(given),
        "machine": machine() | {"load": os.getloadavg()[0]},
        "versions": versions(),
        "commit": commit(),
        "repeats": repeats,
        "quick": quick,
    }


def _plain(value: Any) -> Any:
    """`value` with every named tuple as a dictionary."""
    if isinstance(value, (Spread, Peaks)):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def write(found: dict[str, Any], folder: Path) -> None:
    """`benchmark.json` and `table.md` in `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(_plain(found), indent=1) + "\n")
    parts = ["# How fast", "\n".join(f"- {line}" for line in heading(found))]
    (folder / "table.md").write_text("\n\n".join([*parts, *(table.markdown() for table in tables(found))]) + "\n")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing this module brings none."""
    flags.DEFINE_string("out", None, "folder for benchmark.json and table.md; else only printed", flag_values=values)
    flags.DEFINE_list(
        "only",
        [],
        f"groups to measure: {', '.join([*groups(), *device_groups(), PEERS])}; by default all that fit the backend; "
        f"{METHODS_GROUP}: every method beside backprop",
        flag_values=values,
    )
    flags.DEFINE_string("data_dir", None, "where MNIST is; random images where it is not found", flag_values=values)
    flags.DEFINE_integer("repeats", 3, "measurements of every case", flag_values=values)
    flags.DEFINE_string("peer", None, f"Python with rejax, for the group {PEERS}", flag_values=values)
    flags.DEFINE_bool("accelerator", False, "all that a new accelerator has to show instead", flag_values=values)
    flags.DEFINE_float("minutes", 8, "how long --accelerator may take", flag_values=values)
    flags.DEFINE_bool("quick", False, "a moment of each, to see that everything runs", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Measure, print, and keep."""
    refuse_arguments(arguments)
    if values.out is not None and Path(values.out).exists() and not Path(values.out).is_dir():
        raise InputError(f"--out: {values.out} is a file, not a folder")
    say = functools.partial(print, file=sys.stderr, flush=True)
    if values.accelerator:
        shown = accelerator.check(values.minutes, values.out and Path(values.out), values.quick, say)
        print(*(table.text() for table in accelerator.tables(shown)), sep="\n\n")
        return
    found = benchmark(values.only, values.data_dir, values.repeats, values.quick, say, values.peer)
    print("\n".join(heading(found)), *(table.text() for table in tables(found)), sep="\n\n")
    if values.out is not None:
        write(found, Path(values.out))


if __name__ == "__main__":
    if not any(argument.lstrip("-").startswith("accelerator") for argument in sys.argv):
        os.environ["NPROC"] = "1"  # read when the backend starts: one core
    enable_compilation_cache()
    define_flags()
    run_cli(main)
