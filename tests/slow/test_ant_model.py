"""The model task on the ant's changing ground, and with a policy out of a run folder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from launch.config.experiment import resolve
from launch.config.saved_policy import AntModelOfRun
from launch.errors import InputError
from tests.launch import tiny

FAST = "environment=fast,environments=2,episode_length=7"


def test_errors_are_measured_on_both_sides_of_every_change_of_the_ground(tmp_path):
    task = "ant_model(change_every=100,episode_length=50,environments=4,windows=2,evaluations_per_task=2)"
    asked = launch.Experiment(task, "backprop,fresh_network", (0,), tasks=3, network="mlp(widths=(16,))")
    for label, run in tiny.run(asked, tmp_path).items():
        found = {name: values[0] for name, values in run.metrics.items()}
        for name in ("error_one_step", "error_ten_steps"):
            assert np.isfinite(found[name]).all() and (found[name] > 0).all(), label
            assert np.isfinite(found[f"{name}_after_change"]).tolist() == [False, True] * 3
            assert (found[f"{name}_after_change"][1::2] != found[name][1::2]).all()


def test_a_policy_of_a_run_acts_as_its_network_says(tmp_path):
    ant = f"ant({FAST},change_every=7)"
    asked = launch.Experiment(ant, "standard", (3, 4), steps=40, network="actor_critic(widths=(5,4))", learner=tiny.PPO)
    tiny.run(asked, tmp_path / "runs")
    where = tmp_path / "runs" / "standard"
    policy = f"{where}@40"
    task = AntModelOfRun("fast", environments=2, episode_length=7, change="none", change_every=8, policy=policy)
    assert task.spec.input_shape == (3,)
    params, moments = task.load()
    assert moments is None
    network = resolve(asked).jobs[0].network
    x, noise = (jax.random.normal(jax.random.key(i), (4, 2, n)) for i, n in ((0, 2), (1, 1)))
    mean, log_std, _ = network.apply({"params": params}, x.reshape(8, 2))
    expected = mean + jnp.exp(log_std) * noise.reshape(8, 1)
    np.testing.assert_allclose(task.actions(None, x, noise, (params, moments)).reshape(8, 1), expected, rtol=1e-5)
    model = f"ant_model({FAST},change=none,change_every=8,windows=2,policy='{policy}')"
    learned = launch.Experiment(model, "backprop", (0,), tasks=2, network="mlp(widths=(4,))")
    (run,) = tiny.run(learned, tmp_path / "model").values()
    assert np.isfinite(run.metrics["error_ten_steps"]).all() and run.meta["settings"]["task.policy"] == policy
    with pytest.raises(InputError, match=r"no good checkpoint of step 35 \(there: .*40\)"):
        tiny.run(dataclasses.replace(learned, task=model.replace("@40", "@35")), tmp_path / "other")
    with pytest.raises(ValueError, match="acts on another body, with 2 observations and 1 actions; ant has 27"):
        AntModelOfRun(policy=policy).spec  # noqa: B018
    with pytest.raises(ValueError, match="is a run of ant_model, which has no policy"):
        AntModelOfRun("fast", change="none", policy=f"{tmp_path / 'model' / 'backprop'}@16").spec  # noqa: B018
