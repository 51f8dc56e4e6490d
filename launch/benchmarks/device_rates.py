"""Many lanes on one device: rates on the clock, beside what its arithmetic and its memory allow.

On an accelerator the clock counts, not CPU time. A lane-step has the operations of three forward passes and moves the
bytes that XLA counts in the compiled step; the floor is the longer of the times that these take at the speeds measured
in the same run.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from launch.benchmarks.timing import Spread, Table, often, spread, timed
from launch.config.experiment import Plan
from launch.engine.build import abstract_carry, forward_multiplications, job_program
from tasks.base import Task

CONVNET, RESNET, PPO = "convnet_lanes", "resnet_lanes", "ppo_lanes"
PUBLISHED_LANE_STEPS = {CONVNET: 30 * 5_000 * 3_000, RESNET: 30 * 1_050_000, PPO: 30 * 20_000_000}
"""30 runs of 5,000 tasks of Continual ImageNet, of 4,000 epochs of incremental CIFAR-100, of 20 M steps of the ant."""

TITLE = "Many lanes on one device"


class Peaks(NamedTuple):
    """What the device does at best, on the clock: 1e9 operations a second by dtype, 1e9 bytes a second."""

    operations: dict[str, Spread]
    memory: Spread


def device_peaks(repeats: int, quick: bool = False) -> Peaks:
    """Matrix products as programs run them by default, and arrays beyond any cache that are read and written once."""
    side, large, n = (256, 1_000_000, 2) if quick else (8192, 100_000_000, 10)
    product = jax.jit(jnp.dot)
    squares = {dtype: jnp.ones((side, side), dtype) for dtype in ("float32", "bfloat16")}
    values, scaled = jnp.ones(large), jax.jit(lambda values: 0.999 * values)
    calls: dict[str, Any] = {name: often(lambda x=x: product(x, x), n) for name, x in squares.items()}
    times = timed(calls | {"memory": often(lambda: scaled(values), n)}, repeats)
    rates = {name: spread(n * 2e-9 * side**3 / times[name][:, 1]) for name in squares}
    return Peaks(rates, spread(n * 8e-9 * large / times["memory"][:, 1]))


def moved_by_step(plan: Plan, lanes: int) -> float | None:
    """Bytes that a lane-step moves by XLA's count of the compiled step of all lanes; `None` where it has none.

    Loops are counted once, so an agent's iteration, which is made of loops, has none.
    """
    if plan.learner is not None:
        return None
    (job,) = plan.jobs
    carry, hyper, data = abstract_carry(plan, job)
    many = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((lanes, *leaf.shape), leaf.dtype), (carry, hyper))
    step = jax.jit(jax.vmap(job_program(plan, job).step, in_axes=(0, 0, None, None)))
    cost: Any = step.lower(*many, jax.ShapeDtypeStruct((), jnp.int32), data).compile().cost_analysis()
    found = cost.get("bytes accessed") if isinstance(cost, Mapping) else None
    return None if found is None else float(found) / lanes


def beside_peaks(row: Mapping[str, Any], peaks: Peaks, dtype: str, moved: float | None) -> dict[str, Any]:
    """What a measured row comes to beside the peaks: `step_gflop`, where it has one, are 1e9 operations a lane-step."""
    rate = row["lane_steps_per_second"].median
    found: dict[str, Any] = {"dtype": dtype, "published_hours": PUBLISHED_LANE_STEPS[row["group"]] / rate / 3600}
    if "step_gflop" in row:
        found["gflop_per_second"] = rate * row["step_gflop"]
        found["peak_share"] = found["gflop_per_second"] / peaks.operations[dtype].median
    if moved is not None and "step_gflop" in row:
        floors = row["step_gflop"] / peaks.operations[dtype].median, 1e-9 * moved / peaks.memory.median
        found |= {"bytes": moved, "floor_seconds": max(floors), "over_floor": 1 / (rate * max(floors))}
    return {"on_device": found}


def device_table(cases: Sequence[Mapping[str, Any]], peaks: Peaks | None) -> Table:
    """Rates, shares of the peak, floors, and how long the published runs would take."""
    head = ("case", "lanes", "lane-steps a second", "pictures a second", "GFLOP/s", "of the peak, %")
    head += ("MB a lane-step", "floor, us", "over the floor", "published runs, hours")
    rows = [_line(case, case["on_device"]) for case in cases if "on_device" in case]
    if peaks is None:
        return Table(TITLE, head, [])
    best = ", ".join(f"{name} {rate.median:,.0f} GFLOP/s" for name, rate in peaks.operations.items())
    note = f"On the clock. Measured in the same run: matrix product {best}; memory {peaks.memory.median:,.0f} GB/s."
    return Table(TITLE, head, rows, note)


def _line(case: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    rate = case["lane_steps_per_second"].median
    pictures = f"{rate * case['pictures']:,.0f}" if "pictures" in case else ""
    shown = [f"{found[name] * scale:.4g}" if name in found else "" for name, scale in _SHOWN]
    name = f"{case['group']}: {case['method']} ({found['dtype']})"
    return (name, str(case["lanes"]), f"{rate:,.4g}", pictures, *shown)


_SHOWN = (
    ("gflop_per_second", 1.0),
    ("peak_share", 100.0),
    ("bytes", 1e-6),
    ("floor_seconds", 1e6),
    ("over_floor", 1.0),
    ("published_hours", 1.0),
)


def step_gflop(plan: Plan) -> float:
    """Arithmetic of a step, in 1e9: forward, and twice that backward; a multiply-add is two."""
    return 2 * 3 * sum(forward_multiplications(plan, plan.jobs[0]).values()) * batch(plan) / 1e9


def batch(plan: Plan) -> int:
    """Examples in a step of a stream."""
    assert isinstance(plan.task, Task)
    return plan.task.spec.batch


def dtype_of(plan: Plan) -> str:
    """What the network of a plan's only job computes in; without a say of its own, in that of its parameters."""
    (job,) = plan.jobs
    return str(getattr(job.network, "dtype", None) or "float32")
