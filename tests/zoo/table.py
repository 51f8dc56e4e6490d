"""The tables of architectures: what `trace_units` finds in networks of published size, and how long that takes.

    python -m tests.zoo.table            a line for every network, as in docs/architectures.md
    python -m tests.zoo.table --short    a line for every family, as in the README

Seconds are those of one core, from abstract parameters; nothing is compiled for it. What is found is compared with what
is counted in `tests/zoo`, and the command fails where they differ.
"""

import argparse
import importlib.util
import sys
import time

import jax

from plastic_jax.units import UnitGraph, trace_units
from tests.zoo.zoo import FAMILIES, Architecture, Network, load

HEAD = ("network", "source", "parameters", "groups", "units", "of these isolated", "left out", "found in")
SHORT = ("family", "networks", "groups", "units", "of these isolated", "left out", "slowest")


def trace(network: Network) -> tuple[UnitGraph, float]:
    """The graph of a network, and the seconds of one core that it takes to find."""
    start = time.process_time()
    graph = trace_units(network.apply, network.params, *network.inputs, variables=network.variables)
    return graph, time.process_time() - start


def counts(graph: UnitGraph) -> tuple[int, int, int]:
    """Numbers of groups, of units, of units whose group is function preserving."""
    kept = sum(group.width for group in graph.groups if group.function_preserving)
    return len(graph.groups), sum(group.width for group in graph.groups), kept


def reasons(graph: UnitGraph) -> tuple[str, ...]:
    """How the notes of what is left out begin."""
    return tuple(dict.fromkeys(group.note.partition(":")[0] for group in graph.left_out))


def installed(architecture: Architecture) -> bool:
    """Whether the package is there from which the network is taken."""
    return not architecture.requires or importlib.util.find_spec(architecture.requires.partition(".")[0]) is not None


def line(*cells: object) -> str:
    return f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell) for cell in cells)} |"


def main() -> None:
    """Prints a table; fails if anything is not as counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a line for every family")
    short = parser.parse_args().short
    head, wrong = (SHORT if short else HEAD), []
    print(line(*head), line(*["---"] * len(head)), sep="\n", flush=True)
    networks = list(load().values())
    for family in FAMILIES:
        number, total, why, slowest = 0, [0, 0, 0], dict[str, None](), (0.0, "")
        for architecture in (one for one in networks if one.family == family and installed(one)):
            network = architecture.make(True)
            graph, seconds = trace(network)
            found, left = counts(graph), reasons(graph)
            if (found, set(left)) != (network.found, set(network.left_out)):
                wrong.append(f"{architecture.name}: {found} {left}, not {network.found} {network.left_out}")
            number, total = number + 1, [a + b for a, b in zip(total, found, strict=True)]
            why, slowest = why | dict.fromkeys(left), max(slowest, (seconds, architecture.name))
            if not short:
                row = (architecture.name, architecture.source, network.size, *found, ", ".join(left) or "–")
                print(line(*row, f"{seconds:.1f} s"), flush=True)
        if short:
            row = (family.replace("_", " "), number, *total, ", ".join(why) or "–")
            print(line(*row, f"{slowest[0]:.1f} s ({slowest[1]})"), flush=True)
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    main()
