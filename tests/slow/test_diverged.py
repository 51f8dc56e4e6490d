"""A lane that turns to no number at all: it counts as a failure from then on, and disturbs no other lane."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import launch
from launch.config.experiment import Experiment
from launch.config.methods import METHODS
from plastic_jax.signature import Range
from tests.launch import tiny

WHEN = 31


def spoiling(inner, *, when: Annotated[int | jax.Array, Range(0, 1e9)] = 10**9):
    """Gradient descent whose updates are no numbers at step `when`."""

    def update(updates, state, params=None, *, clock, **_):
        factor = jnp.where(clock == when, jnp.nan, -0.01)
        return {n: {m: factor * u for m, u in inner.items()} for n, inner in updates.items()}, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_it_counts_as_the_tasks_failure_from_then_on(record_property, tmp_path):
    """Steps 0 to 31 are as in the healthy run: the weights are lost at the end of step 31."""
    asked = {"methods": "spoiling=tests.slow.test_diverged:spoiling", "steps": 100}
    ill = tiny.run(tiny.experiment(sweep=(f"when=1000,{WHEN}",), **asked), tmp_path / "ill")["spoiling"]
    well = tiny.run(tiny.experiment(sweep=("when=1000,2000",), **asked), tmp_path / "well")["spoiling"]
    assert ill.meta["diverged"] == [3, 4, 5] and well.meta["diverged"] == []
    found, healthy = ill.metrics["squared_error"], well.metrics["squared_error"]
    assert tiny.raw(found[:3]) == tiny.raw(healthy[:3])
    assert tiny.raw(found[:, 0]) == tiny.raw(healthy[:, 0])
    np.testing.assert_array_equal(found[3:, 2:], 3.0)
    fine = tiny.run(tiny.experiment(sweep=("when=1000,2000",), **(asked | {"steps": WHEN + 1})), None)["spoiling"]
    part = fine.metrics["squared_error"][3:, 1]  # of steps 20 to 31
    np.testing.assert_allclose(found[3:, 1], (part * 12 + 3.0 * 8) / 20, rtol=1e-6)
    record_property("count", f"{found[:3].size} bins of healthy lanes equal beside 3 lanes that were lost")


@pytest.mark.parametrize("method", METHODS)
def test_the_lanes_beside_it_are_bit_equal_for_every_method(method, record_property):
    """Step size 90 is lost within a few steps; the run compared with has a healthy one in its place."""
    runs = {}
    settings = {"continual_backprop": "(maturity_threshold=3,replacement_rate=0.1)", "redo": "(period=10,threshold=1)"}
    for name, size in (("ill", 90), ("well", 0.02)):
        asked = Experiment(
            "slowly_changing_regression(change_every=20)",
            method + settings.get(method, ""),
            (0, 1),
            steps=100,
            bin=20,
            chunk=10,
            lanes_per_batch=4,
            network="linear" if method == "linear" else "mlp(widths=(5,))",
            sweep=(f"step_size=0.01,{size}",),
        )
        runs[name] = launch.run(asked, workers=1)[method]
    assert set(runs["ill"].meta["diverged"]) == {2, 3} and runs["well"].meta["diverged"] == []
    for name, values in runs["ill"].metrics.items():
        assert tiny.raw(values[:2]) == tiny.raw(runs["well"].metrics[name][:2]), name
    np.testing.assert_allclose(runs["ill"].metrics["squared_error"][2:, -1], 0.9, rtol=1e-6)  # a mean of equal values
    record_property("count", f"{2 * len(runs['ill'].metrics)} curves equal")
