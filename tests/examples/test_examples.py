"""The example programs run, shortened, and draw what they say."""

import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SHORT = {
    "mnist_stream": "--random_digits=320 --tasks=2",
    "train_state_convnet": "--tasks=1 --steps=3 --batch=8",
    "nnx_transformer": "--steps=10 --batch=2 --context=8 --width=8 --blocks=1",
    "ppo": "--updates=2 --chunk=1",
    "equinox_rnn": "--tasks=2 --steps=4 --batch=4 --width=8",
}


@pytest.fixture
def compiled_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("name", SHORT)
def test_example_runs_shortened_and_draws_its_figure(name, tmp_path, capfd, compiled_quickly):
    if name == "equinox_rnn":
        pytest.importorskip("equinox", reason="examples/equinox_rnn.py NOT TESTED: package 'equinox' is not installed")
    importlib.import_module(f"examples.{name}").main([*SHORT[name].split(), f"--figure={tmp_path / 'drawn.png'}"])
    jax.effects_barrier()
    printed = capfd.readouterr().out
    plain, continual = re.split(r"^continual backprop$", printed, flags=re.MULTILINE)
    for part in (plain, continual):
        numbers = [float(n) for n in re.findall(r"(?:accuracy|error|loss|episode) ([\d.]+)", part)]
        assert numbers and np.all(np.isfinite(numbers))
    with Image.open(tmp_path / "drawn.png") as picture:
        assert np.unique(np.asarray(picture.convert("L"))).size > 10


@pytest.mark.parametrize("name", SHORT)
def test_example_is_short_and_names_the_command_that_runs_it(name):
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert f"python -m examples.{name}" in text
    assert 60 <= len([line for line in text.splitlines() if line.strip()]) <= 120
    assert f"({name}.py)" in (ROOT / "examples" / "README.md").read_text()


def test_random_patterns_stand_for_digits_only_if_told(tmp_path, capfd):
    from examples import mnist_stream

    with pytest.raises(Exception, match="mnist"):
        mnist_stream.main([f"--data_dir={tmp_path}", "--tasks=1"])
