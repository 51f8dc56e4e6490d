"""How fast this machine's memory and its matrix product are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks.timing import often, spread, timed

Work = dict[str, tuple[float, Callable[[], Any]]]
"""By name: bytes or floating-point operations in one call, and the call."""


def memory_work(size: int) -> Work:
    """Reading `size` float32 in two ways, and updating them in place."""
    rows = max(size // 2000, 1)
    matrix, vector, flat = jnp.ones((rows, 2000)), jnp.ones(2000), np.ones(size, np.float32)
    multiply, megabytes = jax.jit(jnp.dot), f"{size * 4 / 1e6:.0f} MB"
    return {
        f"read of {megabytes}, matrix-vector product": (8000 * rows, lambda: multiply(matrix, vector)),
        f"read of {megabytes}, numpy max": (4 * size, flat.max),
        f"read and write of {megabytes}": (8 * size, _in_place(size, 1e-3)),
    }


def measured_peaks(small: int, repeats: int, quick: bool) -> list[dict[str, Any]]:
    """Bandwidth on `small` float32 and beyond the caches, and matrix-product peak, in 1e9 per CPU-second."""
    large, side, n = (2_000_000, 256, 2) if quick else (50_000_000, 1024, 5)
    square, product = jnp.ones((side, side)), jax.jit(jnp.dot)
    work = {
        f"triad on {large * 4 / 1e6:.0f} MB": (12 * large, _in_place(large, jnp.ones(large))),
        **memory_work(small),
        f"matrix product {side}^3, float32": (2 * side**3, lambda: product(square, square)),
    }
    times = timed({name: often(call, n) for name, (_, call) in work.items()}, repeats)
    return [
        {
            "what": name,
            "unit": "GFLOP/s" if name.startswith("matrix product") else "GB/s",
            "per_cpu_second": spread(n * amount / 1e9 / times[name][:, 0]),
        }
        for name, (amount, _) in work.items()
    ]


def _in_place(size: int, added: jax.Array | float) -> Callable[[], Any]:
    update = jax.jit(lambda values, added: 0.999 * values + added, donate_argnums=0)
    values = jnp.ones(size)

    def call() -> Any:
        nonlocal values
        values = update(values, added)
        return values

    return call
