"""What a wheel holds, what it asks for, and that each floor imports only from floors below."""

import ast
import email
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"plastic_jax", "tasks", "launch"}
LIBRARY = {"jax", "flax", "optax", "numpy"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that the installed build backend makes of this tree."""
    pytest.importorskip("hatchling", reason="WHEEL NOT TESTED: hatchling is not installed (extra dev)")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_library_and_nothing_else(wheel):
    names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    sources = (path for path in (ROOT / "plastic_jax").rglob("*") if path.suffix == ".py" or path.name == "py.typed")
    assert sorted(names) == sorted(str(path.relative_to(ROOT)) for path in sources)
    assert "plastic_jax/py.typed" in names


def test_wheel_metadata(wheel):
    (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(path))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {re.split(r"[^\w-]", line)[0] for line in required} == LIBRARY
    assert all(">=" in line and "<" in line for line in required)
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())


def test_citation_states_the_version():
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


def imported(path):
    """Top-level names of all packages that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0] if node.module and not node.level else path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize(
    ("floor", "below"),
    [("plastic_jax", set()), ("tasks", set()), ("launch", {"plastic_jax", "tasks"})],
)
def test_floors_import_only_from_below(floor, below):
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    forbidden = OURS - below - {floor}
    wrong = [(str(path.relative_to(ROOT)), name) for path in files for name in imported(path) if name in forbidden]
    assert wrong == []


def test_library_imports_only_what_it_requires():
    allowed = LIBRARY | {"plastic_jax"} | sys.stdlib_module_names
    files = sorted((ROOT / "plastic_jax").rglob("*.py"))
    wrong = [(str(path.relative_to(ROOT)), name) for path in files for name in imported(path) if name not in allowed]
    assert wrong == [("plastic_jax/integrations/equinox.py", "equinox")]  # imported by name, by who has Equinox


def test_importing_the_library_imports_no_other_floor():
    code = "import sys, plastic_jax; print(*{m.partition('.')[0] for m in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "plastic_jax" in out.split()
    assert not {"tasks", "launch", "brax", "tensorflow", "tensorflow_datasets", "matplotlib"} & set(out.split())
