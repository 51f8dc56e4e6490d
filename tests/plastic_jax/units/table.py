"""The table of architectures: what `trace_units` finds in networks of published size, and how long that takes.

    python -m tests.plastic_jax.units.table

prints markdown: seconds to trace (without compiling anything) and, of the small size of the same structure, to verify.
"""

import importlib.util
import time

import jax

from plastic_jax.units import trace_units
from tests.plastic_jax.units.architectures import ARCHITECTURES

HEAD = (
    "network",
    "source",
    "parameters",
    "groups",
    "units",
    "silent when new",
    "trace",
    "check",
)


def row(name: str) -> tuple[str, ...]:
    """One line of the table; dashes where the package is not installed."""
    architecture = ARCHITECTURES[name]
    if architecture.requires and importlib.util.find_spec(architecture.requires.partition(".")[0]) is None:
        return (name, architecture.source, *["not installed"] * (len(HEAD) - 2))
    network = architecture.make(True)
    start = time.perf_counter()
    graph = trace_units(network.apply, network.params, *network.inputs, variables=network.variables)
    traced = time.perf_counter() - start
    kept = sum(group.width for group in graph.groups if group.function_preserving)
    units = sum(group.width for group in graph.groups)
    return (
        name,
        architecture.source,
        f"{network.size:,}",
        str(len(graph.groups)),
        f"{units:,}",
        f"{kept:,}",
        f"{traced:.1f} s",
        check(name),
    )


def check(name: str) -> str:
    """Seconds that the self-check of the small size takes, tracing subtracted."""
    network = ARCHITECTURES[name].make(False)
    if network.size > 100_000:
        return "–"
    network = network.concrete()
    seconds = []
    for checked in (False, True):
        start = time.perf_counter()
        trace_units(network.apply, network.params, *network.inputs, variables=network.variables, check=checked)
        seconds.append(time.perf_counter() - start)
    return f"{seconds[1] - seconds[0]:.1f} s"


def main() -> None:
    """Prints the table."""
    jax.config.update("jax_enable_compilation_cache", False)
    print("| " + " | ".join(HEAD) + " |")
    print("|" + "---|" * len(HEAD))
    for name in ARCHITECTURES:
        print("| " + " | ".join(row(name)) + " |", flush=True)


if __name__ == "__main__":
    main()
