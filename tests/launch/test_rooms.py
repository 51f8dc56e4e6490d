"""A room of `launch` imports only from rooms below it."""

import ast
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
BOTTOM = {"errors", "texts"}
BELOW = {
    "config": {"storage"},
    "storage": set(),
    "engine": {"config", "storage"},
    "analysis": {"config", "storage"},
    "figures": {"analysis", "config", "storage"},
    "benchmarks": {"config", "engine", "storage"},
}


def imported(path):
    """The parts of `launch` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "launch":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("launch."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("launch."))


def test_every_room_has_its_place():
    assert {path.parent.name for path in LAUNCH.glob("*/__init__.py")} == set(BELOW)


@pytest.mark.parametrize("room", BELOW)
def test_nothing_is_imported_from_above(room):
    allowed = BELOW[room] | BOTTOM | {room}
    wrong = [f"{path.name}: {name}" for path in sorted((LAUNCH / room).glob("*.py")) for name in imported(path)
             if name not in allowed]  # fmt: skip
    assert not wrong
