"""Environments that change, in a run: when networks begin anew, what is written down, and what figures mark."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from launch.analysis.curves import curves
from launch.config.experiment import resolve, warnings
from launch.engine.dry_run import dry_run
from launch.engine.lane_program import task_key
from launch.errors import InputError
from launch.figures import figure
from launch.figures.style import lines
from launch.storage.contents import first_good
from launch.storage.run_folder import CHECKPOINTS, read_meta, read_run
from tasks import brax_environment as module
from tests.launch import tiny
from tests.tasks.test_brax_environment import Counting

ROLLOUT, EVERY, STEPS = 16, 50, 176
BEGUN = [0, 64, 112, 160]  # the first iterations after changes at 50, 100 and 150


@pytest.fixture
def counting(monkeypatch):
    """A body that earns its gravity at every step, in two environments whose gravity changes every 50 steps."""
    env = Counting()
    monkeypatch.setattr(module, "brax_environment", lambda name, backend: env)

    def asked(task="change=gravity,change_at=once", **fields):
        settings = f"environment=counting,environments=2,episode_length=8,change_every={EVERY}"
        given = {"methods": "standard,fresh_network", "seeds": (0, 1), "steps": STEPS, "bin": ROLLOUT} | fields
        learner = f"ppo(rollout={ROLLOUT},epochs=1,minibatches=1,probe_every=1)"
        return launch.Experiment(
            f"ant({settings},{task})", network="actor_critic(widths=(4,))", learner=learner, **given
        )

    return asked


def restarts(folder, step):
    (unit,) = (folder / CHECKPOINTS).glob("*/")
    return first_good(unit, [step]).tree["learner/restarts"].tolist()


def test_a_fresh_network_begins_in_the_first_iteration_after_a_change(counting, tmp_path):
    tiny.run(counting(chunk=ROLLOUT), tmp_path, policy=tiny.policy(ROLLOUT, keep=None))
    for step in range(ROLLOUT, STEPS + 1, ROLLOUT):
        begun = sum(start < step for start in BEGUN)
        assert restarts(tmp_path / "fresh_network", step) == [begun, begun]
        assert restarts(tmp_path / "standard", step) == [0, 0]


def test_nothing_begins_anew_where_nothing_changes(counting, tmp_path):
    tiny.run(counting("change=none", methods="fresh_network"), tmp_path, policy=tiny.policy(ROLLOUT, keep=None))
    assert restarts(tmp_path / "fresh_network", STEPS) == [1, 1]


def test_a_run_says_what_changed_when_and_that_is_what_happened(counting, tmp_path):
    asked = counting()
    runs = launch.run(asked, tmp_path, 1)
    made = read_meta(tmp_path / "standard")["changes"]
    assert made == read_meta(tmp_path / "fresh_network")["changes"]
    task = resolve(asked).task
    for seed in (0, 1):
        values = np.asarray(task.condition(task_key(jax.random.key(seed)), jnp.arange(4)))
        assert [step for step, _ in made[str(seed)]] == [0, 50, 100, 150]
        np.testing.assert_allclose([value for _, value in made[str(seed)]], values, rtol=1e-6)
        # Step 2 t is taken by both environments at clock 2 t, on what the last change due until then has brought.
        clocks = np.arange(0, STEPS, 2)
        on = values[clocks // EVERY].reshape(-1, ROLLOUT // 2).mean(1)
        for run in runs.values():
            np.testing.assert_allclose(run.metrics["condition"][seed], on, rtol=1e-5)
    assert made["0"] != made["1"]


@pytest.mark.parametrize(("seeds", "texts"), [((0,), 4), ((0, 1), 0)])
def test_a_figure_marks_every_change_and_tells_the_values_of_a_single_seed(counting, tmp_path, seeds, texts):
    launch.run(counting(methods="standard", seeds=seeds), tmp_path, 1)
    run = read_run(tmp_path / "standard")
    _, (ax,) = figure.new_figure()
    figure.draw_metric(ax, lines(curves([run])), "loss")
    marked = [line.get_xdata()[0] for line in ax.get_lines() if len(set(line.get_xdata())) == 1]
    assert marked == [50, 100, 150]
    shown = [(text.xy[0], text.get_text()) for text in ax.texts]
    assert shown == [(step, f"{value:.2g}") for step, value in run.meta["changes"]["0"]][:texts]


def test_runs_that_end_before_the_first_change_are_told(counting):
    (line,) = warnings(resolve(counting(methods="standard", steps=48)))
    assert line == "ant: nothing changes in 48 steps; the first change is due at step 50"
    for asked in (counting(methods="standard", steps=64), counting("change=none", methods="standard", steps=48)):
        assert not warnings(resolve(asked))


def test_a_dry_run_counts_no_tasks_where_nothing_changes(counting):
    assert "176 steps, 4 tasks, bins" in dry_run(resolve(counting()))
    assert "176 steps, bins" in dry_run(resolve(counting("change=none")))


def test_observations_of_more_than_one_axis_are_refused(counting, monkeypatch):
    class Square(Counting):
        def reset(self, rng):
            state = super().reset(rng)
            return state.replace(obs=jnp.outer(state.obs, state.obs))

    env = Square()
    monkeypatch.setattr(module, "brax_environment", lambda name, backend: env)
    with pytest.raises(InputError, match=r"^--task: ant has observations \(2, 2\); PPO takes those of one axis$"):
        dry_run(resolve(counting()))
