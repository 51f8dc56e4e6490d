"""The tables of architectures: what `trace_units` finds in networks of published size, and how long that takes.

    python -m tests.zoo.table

prints a line for every network, as in docs/architectures.md, and then a line for every family, as in the README.
Seconds are those of one core, from abstract parameters; nothing is compiled for it. Fails where something else is found
than is counted in `tests/zoo`, but for the networks in `NOT_YET`.
"""

import importlib.util
import sys
import time

import jax

from plastic_jax.units import UnitGraph, trace_units
from tests.zoo.zoo import FAMILIES, NOT_YET, Architecture, Network, load

HEAD = ("network", "source", "parameters", "groups", "units", "of these isolated", "left out", "found in")
SHORT = ("family", "networks", "groups", "units", "of these isolated", "left out", "slowest")


def counts(graph: UnitGraph) -> tuple[int, int, int]:
    """Numbers of groups, of units, of units whose group is function preserving."""
    kept = sum(group.width for group in graph.groups if group.function_preserving)
    return len(graph.groups), sum(group.width for group in graph.groups), kept


def reasons(graph: UnitGraph) -> tuple[str, ...]:
    """How the notes of what is left out begin; without linear layers, queries and the like."""
    kinds = dict.fromkeys(group.note.partition(":")[0] for group in graph.left_out)
    return tuple(kind for kind in kinds if kind not in ("linear", "not read by itself"))


def as_counted(graph: UnitGraph, network: Network) -> bool:
    """Whether what is found and what is left out is what should be."""
    return (counts(graph), set(reasons(graph))) == (network.found, set(network.left_out))


def installed(architecture: Architecture) -> bool:
    """Whether the package is there from which the network is taken."""
    return not architecture.requires or importlib.util.find_spec(architecture.requires.partition(".")[0]) is not None


def line(*cells: object) -> str:
    """A line of a table in markdown."""
    return f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell) for cell in cells)} |"


def main() -> None:
    """Prints the tables; fails if anything is not as counted."""
    networks, short, wrong = load(), [line(*SHORT), line(*["---"] * len(SHORT))], []
    print(line(*HEAD), line(*["---"] * len(HEAD)), sep="\n", flush=True)
    for family in FAMILIES:
        number, total, why, slowest = 0, (0, 0, 0), dict[str, None](), (0.0, "")
        for name, one in networks.items():
            if one.family != family or not installed(one):
                continue
            network, start = one.make(True), time.process_time()
            try:
                graph = trace_units(network.apply, network.params, *network.inputs, variables=network.variables)
            except NotImplementedError:
                graph = None
            seconds = time.process_time() - start
            if graph is None or not as_counted(graph, network):
                wrong += [] if name in NOT_YET else [f"{name}: not as counted\n{graph}"]
                print(line(name, one.source, network.size, f"not yet: {NOT_YET.get(name)}", *["–"] * 4), flush=True)
                continue
            left = reasons(graph)
            row = (network.size, *counts(graph), ", ".join(left) or "–", f"{seconds:.1f} s")
            print(line(name, one.source, *row), flush=True)
            number, total = number + 1, tuple(a + b for a, b in zip(total, counts(graph), strict=True))
            why, slowest = why | dict.fromkeys(left), max(slowest, (seconds, name))
        row = (family.replace("_", " "), number, *total, ", ".join(why) or "–")
        short.append(line(*row, f"{slowest[0]:.1f} s ({slowest[1]})"))
    print("\n" + "\n".join(short))
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    main()
