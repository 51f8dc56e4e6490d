"""What the README shows works as it stands there."""

import importlib
import re
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags

import plastic_jax
from launch import Experiment, run

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(name: str) -> str:
    found = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, f"no block '{name}' in the README"
    return found.group(1)


def test_the_library_block_is_five_lines_that_take_a_step():
    *before, step, update, apply = lines = block("library").strip().splitlines()
    assert len(lines) == 5
    model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10)])
    x, y = jax.random.normal(jax.random.key(2), (4, 3)), jnp.ones((4, 10))
    start = model.init(jax.random.key(0), x)
    names = {"plastic_jax": plastic_jax, "jax": jax, "optax": optax, "model": model, "params": start, "x": x, "y": y}
    names["loss"] = lambda output, y: jnp.mean((output - y) ** 2)
    exec("\n".join(before), names)
    exec(re.search(r"state = tx.init\(params\)", update)[0], names)
    exec("\n".join([step, update, apply]), names)
    leaves = zip(jax.tree.leaves(start), jax.tree.leaves(names["params"]), strict=True)
    assert all(np.any(a != b) for a, b in leaves)
    assert set(names["features"]) == {"params/layers_0", "params/layers_2"}


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(block("method"))
    (tmp_path / "streams.py").write_text(block("task"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("mine", "streams"):
        sys.modules.pop(name, None)


def test_the_worked_method_and_task_run(own_modules):
    experiment = Experiment(
        "streams:DriftingSine",
        "backprop,mine:clipped",
        seeds=(0, 1),
        steps=3000,
        network="mlp(widths=(20,))",
        sweep=("clipped.bound=100,0.1",),
    )
    runs = run(experiment, workers=1)
    assert set(runs) == {"backprop", "clipped"}
    plain, clipped = (runs[name].metrics["squared_error"] for name in ("backprop", "clipped"))
    np.testing.assert_allclose(clipped[:2], plain, rtol=1e-4)  # within so wide a bound it is backprop
    assert np.all(clipped[2:].mean(1) > plain.mean(1))  # within a narrow one it can hardly learn


@pytest.mark.parametrize("name", sorted(set(re.findall(r"python -m (launch\.[a-z_]+)", README))))
def test_every_launch_command_names_flags_that_exist(name):
    module, values = importlib.import_module(name), flags.FlagValues()
    if hasattr(module, "define_flags"):
        module.define_flags(values)
    commands = re.findall(rf"python -m {name}\b((?:[^`\n#\\]|\\\n)*)", README)
    used = set(re.findall(r"--([a-z_]+)", " ".join(commands)))
    assert used <= set(values), used - set(values)


def test_the_block_that_looks_inside_runs():
    x = jax.random.normal(jax.random.key(2), (8, 3))
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    params = model.init(jax.random.key(0), x)
    names = {"plastic_jax": plastic_jax, "jax": jax, "model": model, "params": params, "x": x}
    exec(block("inside"), names)
