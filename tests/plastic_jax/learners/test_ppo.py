"""PPO: on environments whose answers are known, step by step, and beside the published code's recorded updates."""

import dataclasses
import functools
import json
import pathlib
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.learners import ppo as module
from plastic_jax.learners.policies import gaussian_log_probability
from plastic_jax.learners.ppo import (
    PPO,
    Environments,
    PPOSettings,
    Rollout,
    advantages,
    clipped_surrogate,
    ppo_units,
    standardised,
)
from plastic_jax.methods.continual_backprop import continual_backprop
from plastic_jax.methods.redo import redo, relative_activity, unit_activity
from plastic_jax.methods.weight_decay import weight_decay
from plastic_jax.networks import ActorCritic
from plastic_jax.optimizers.adam import adam
from plastic_jax.optimizers.autostep import autostep
from plastic_jax.optimizers.smd import smd
from plastic_jax.replacement.initializers import Initializer
from tests.marks import slow_unless

COMMITTED = pathlib.Path(__file__).parents[2] / "data" / "ppo_traces.npz"
GOLDEN = pathlib.Path(__file__).parents[3].parent / "shared" / "golden"
NETWORKS = {"policy": "pol", "value": "val"}  # our names, the recording's

KEY = jax.random.key(0)
HYPER = {
    "step_size": 3e-3,
    "discount": 0.9,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "value_coefficient": 1.0,
    "entropy_coefficient": 0.0,
}
SETTINGS = PPOSettings(rollout=64, epochs=4, minibatches=4)
# A policy that grows surer needs smaller steps, and many samples lest it be sure before it is right.
CAREFUL = PPOSettings(rollout=256, epochs=4, minibatches=4, decay_steps=150 * 256)


class World(NamedTuple):
    """Environments of the tests: what is seen, and the steps of the episode so far, `[E, 1]` and `[E]`."""

    x: jax.Array
    time: jax.Array


def environments(reward, steps=1, start=lambda key, shape: jnp.zeros(shape), goes_on=False, number=8):
    """Episodes of `steps` steps; what is seen is how `start` draws it, plus the steps so far."""

    def fresh(clock):
        return start(jax.random.fold_in(jax.random.key(7), clock), (number, 1))

    def step(world, action, clock):
        time = world.time + 1
        over = time >= steps
        led = world.x + 1
        nothing = jnp.zeros(number, bool)
        given = SimpleNamespace(
            reward=reward(world.x, action)[:, 0],
            observation=led,
            terminated=nothing if goes_on else over,
            truncated=over if goes_on else nothing,
            seen={"episode_return": (jnp.sum(reward(world.x, action)), jnp.float32(number))},
        )
        return World(jnp.where(over[:, None], fresh(clock), led), jnp.where(over, 0, time)), given

    world = World(fresh(2**30), jnp.zeros(number, jnp.int32))
    return Environments(number, 1, 1, lambda world: world.x, step), world


def signs(key, shape):
    return jax.random.rademacher(key, shape, jnp.float32)


def learner(there, settings=SETTINGS, **change):
    network = ActorCritic(1, (32,), "tanh")
    arguments = {"transformation": lambda hyper, key: adam(hyper["step_size"]), "settings": settings} | change
    return PPO(network, there, **arguments)


def trained(there, world, iterations=150, hyper=HYPER, **change):
    """The learner and its state after some iterations, and what was measured in the last."""
    agent = learner(there, **change)

    @jax.jit
    def run(world):
        def body(carry, clock):
            state, world, seen = agent.step(*carry, hyper, clock, jnp.zeros([], bool))
            return (state, world), seen

        clocks = agent.settings.rollout * jnp.arange(iterations, dtype=jnp.int32)
        (state, _), seen = jax.lax.scan(body, (agent.init(KEY, KEY, KEY, hyper), world), clocks)
        return state, {name: (total / count)[-1] for name, (total, count) in seen.items()}

    return agent, *run(world)


def answers(agent, state, *seen):
    """Mean action and value at each of the observations."""
    mean, _, value = agent.network.apply({"params": state.params}, jnp.array(seen)[:, None])
    return np.asarray(mean[:, 0]), np.asarray(value)


# -- five environments with known answers, of one step or two


def test_value_of_a_constant_reward():
    agent, state, _ = trained(*environments(lambda x, a: jnp.ones_like(x)))
    np.testing.assert_allclose(answers(agent, state, 0.0)[1], 1, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tx", "needs"), [(autostep(0.01), "curvature"), (smd(0.01, shorten=True), "hvp")], ids=["autostep", "smd"]
)
def test_optimizers_that_look_at_the_curvature_learn_values_too(tx, needs):
    agent, state, _ = trained(
        *environments(lambda x, a: jnp.ones_like(x)), transformation=lambda hyper, key: tx, **{needs: True}
    )
    np.testing.assert_allclose(answers(agent, state, 0.0)[1], 1, atol=0.1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.optimizer))


def test_value_depends_on_what_is_seen():
    agent, state, _ = trained(*environments(lambda x, a: x, start=signs))
    np.testing.assert_allclose(answers(agent, state, -1.0, 1.0)[1], [-1, 1], atol=0.05)


def test_reward_a_step_later_is_discounted():
    agent, state, _ = trained(*environments(lambda x, a: (x == 1) * 1.0, steps=2))
    np.testing.assert_allclose(answers(agent, state, 0.0, 1.0)[1], [0.9, 1], atol=0.03)


def test_policy_finds_the_action_that_is_rewarded():
    agent, state, seen = trained(*environments(lambda x, a: -jnp.square(a - 0.5)), settings=CAREFUL)
    np.testing.assert_allclose(answers(agent, state, 0.0)[0], 0.5, atol=0.1)
    assert seen["entropy"] < 0.5 * np.log(2 * np.pi * np.e)  # it has become surer than it was


def test_policy_depends_on_what_is_seen():
    there = environments(lambda x, a: -jnp.square(a - 0.5 * x), start=signs)
    agent, state, _ = trained(*there, settings=CAREFUL)
    np.testing.assert_allclose(answers(agent, state, -1.0, 1.0)[0], [-0.5, 0.5], atol=0.15)


# -- a chain of ten states


@pytest.mark.parametrize("gae_lambda", slow_unless(lambda value: value == 0.95, [0.0, 0.95, 1.0]))
@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
@pytest.mark.parametrize("goes_on", [False, True], ids=["terminated", "truncated"])
def test_values_of_a_chain(gae_lambda, time_limit, goes_on):
    """Ten states in a row, a reward of 1 for every step; after the tenth, the end, or only the end of the time.

    With the end the value of state `k` is `sum_{i < 10 - k} discount^i`. Where what the tenth leads to counts,
    its value is a network's guess, never learned from; so all values are those sums plus its discounted value.
    """
    there, world = environments(lambda x, a: jnp.ones_like(x), steps=10, goes_on=goes_on)
    settings = dataclasses.replace(SETTINGS, rollout=160, time_limit=time_limit)
    agent, state, _ = trained(there, world, hyper=HYPER | {"gae_lambda": gae_lambda}, settings=settings, iterations=400)
    _, value = answers(agent, state, *map(float, range(11)))
    beyond = value[10] if goes_on and time_limit == "bootstrap" else 0.0
    known = [(1 - 0.9 ** (10 - k)) / 0.1 + 0.9 ** (10 - k) * beyond for k in range(10)]
    np.testing.assert_allclose(value[:10], known, atol=0.08)  # 0.15 with the other kind of end


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_advantages_are_the_sums_that_define_them(gae_lambda):
    rng = np.random.default_rng(0)
    steps, discount = 12, 0.9
    reward, value, following = rng.normal(size=(3, steps, 2))
    terminated, truncated = rng.random((2, steps, 2)) < 0.2
    ended = terminated | truncated
    found = advantages(*map(jnp.asarray, (reward, value, following, terminated, ended)), discount, gae_lambda)
    for t in range(steps):
        for e in range(2):
            total, weight = 0.0, 1.0
            for k in range(t, steps):
                total += weight * (reward[k, e] + discount * (not terminated[k, e]) * following[k, e] - value[k, e])
                weight *= discount * gae_lambda
                if ended[k, e]:
                    break
            np.testing.assert_allclose(found[t, e], total, rtol=1e-5, atol=1e-6)


# -- the parts


def test_a_rollout_holds_what_was_seen_done_and_got():
    there, world = environments(lambda x, a: a, steps=3, start=signs)
    agent = learner(there)
    state = agent.init(KEY, KEY, KEY, HYPER)
    after, rollout, seen = jax.jit(agent.collect)(state, world, HYPER, jnp.int32(0))
    assert rollout.observation.shape == (8, 8, 1)
    np.testing.assert_array_equal(rollout.next_observation, rollout.observation + 1)
    goes_on = ~np.asarray(rollout.terminated[:-1])
    np.testing.assert_array_equal(rollout.observation[1:][goes_on], rollout.next_observation[:-1][goes_on])
    np.testing.assert_array_equal(rollout.reward, rollout.action[..., 0])
    np.testing.assert_allclose(seen["episode_return"][0], rollout.reward.sum(), rtol=1e-5)
    mean, log_std, _ = agent.network.apply({"params": state.params}, rollout.observation.reshape(-1, 1))
    z = (rollout.action.reshape(-1) - mean[:, 0]) / np.exp(log_std[0])
    logp = -0.5 * z**2 - log_std[0] - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(rollout.log_probability.reshape(-1), logp, rtol=1e-4)
    again = jax.jit(agent.collect)(state, world, HYPER, jnp.int32(64))[1]
    assert not np.array_equal(again.action, rollout.action)
    assert int(after.time[0]) == 8 % 3


def test_every_epoch_has_every_sample_once_and_in_its_own_order():
    agent = learner(environments(lambda x, a: x)[0])
    order = np.asarray(agent.order(agent.init(KEY, KEY, KEY, HYPER), jnp.int32(0))).reshape(4, -1)
    assert all(sorted(epoch) == list(range(64)) for epoch in order)
    assert len({tuple(epoch) for epoch in order}) == 4


@pytest.mark.parametrize("rule", ["rollout", "minibatch", "none"])
def test_advantages_are_normalised_over_what_is_said(rule, monkeypatch):
    there, world = environments(lambda x, a: a, steps=3, start=signs)
    agent = learner(there, dataclasses.replace(SETTINGS, normalise_advantages=rule))
    state = agent.init(KEY, KEY, KEY, HYPER)
    _, rollout, _ = agent.collect(state, world, HYPER, jnp.int32(0))
    seen = []
    monkeypatch.setattr(module, "standardised", lambda x: seen.append(x.shape) or standardised(x))
    _, samples = agent.samples(state, rollout, HYPER)
    output = agent.network.apply({"params": state.params}, samples.observation[:16])
    agent.loss(output, jax.tree.map(lambda x: x[:16], samples), HYPER)
    assert seen == {"rollout": [(8, 8)], "minibatch": [(16,)], "none": []}[rule]


def test_derivative_of_the_clipped_loss_is_the_published_one_at_the_limits_too():
    ratio, advantage = np.meshgrid(np.float32([0.5, 0.75, 1, 1.25, 1.5]), np.float32([2, -2, 0]))
    loss, slope = jax.vmap(jax.value_and_grad(clipped_surrogate), (0, 0, None))(ratio.ravel(), advantage.ravel(), 0.25)
    expected = np.maximum(-ratio * advantage, -np.clip(ratio, 0.75, 1.25) * advantage)
    np.testing.assert_array_equal(loss.reshape(3, 5), expected)
    np.testing.assert_array_equal(slope.reshape(3, 5), [[-2, -2, -2, -2, 0], [0, 2, 2, 2, 2], [0] * 5])


def test_loss_is_the_clipped_one():
    agent = learner(environments(lambda x, a: x)[0])
    action = jnp.array([[0.0], [0.0], [0.0], [0.0]])
    ratio, advantage = jnp.array([2.0, 0.5, 2.0, 0.5]), jnp.array([1.0, 1.0, -1.0, -1.0])
    logp = float(gaussian_log_probability(action, action, jnp.zeros(1))[0])
    batch = module.Samples(action, action, logp - jnp.log(ratio), advantage, jnp.full(4, 3.0))
    _, seen = agent.loss((action, jnp.zeros(1), jnp.ones(4)), batch, HYPER | {"entropy_coefficient": 0.1})
    # 2 counts as 1.2 where it is good and in full where it is bad; 0.5 in full where good, as 0.8 where bad
    np.testing.assert_allclose(seen["policy_loss"], (-1.2 - 0.5 + 2.0 + 0.8) / 4, rtol=1e-6)
    np.testing.assert_allclose(seen["value_loss"], 4.0)
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    np.testing.assert_allclose(seen["loss"], seen["policy_loss"] + 4 - 0.1 * entropy, rtol=1e-6)
    assert seen["clip_fraction"] == 1
    np.testing.assert_allclose(seen["approximate_kl"], np.mean(ratio - 1 - np.log(ratio)), rtol=1e-5)


def test_observations_and_rewards_are_normalised_by_what_came_so_far():
    there, world = environments(lambda x, a: 100 * x + 7, steps=3, start=signs, goes_on=True)
    settings = dataclasses.replace(SETTINGS, normalise_observations=True, normalise_rewards=True)
    agent = learner(there, settings)
    state = agent.init(KEY, KEY, KEY, HYPER)
    rollouts = []
    for clock in (0, 64):
        world, rollout, _ = agent.collect(state, world, HYPER, jnp.int32(clock))
        ended = rollout.terminated | rollout.truncated
        if clock:  # one of each far beyond ten deviations, the reward at the end of an episode
            end = int(np.argmax(ended[:, 0]))
            far = rollout.next_observation.at[4, 0].set(1e6)
            rollout = rollout._replace(reward=rollout.reward.at[end, 0].set(1e6), next_observation=far)
        rollouts.append(rollout)
        state, samples = agent.samples(state, rollout, HYPER)

    totals, discounted = [], np.zeros(8)
    for reward, over in ((r, o) for each in rollouts for r, o in zip(each.reward, each.truncated, strict=True)):
        discounted = 0.9 * discounted + np.asarray(reward)
        totals += list(discounted)
        discounted = np.where(over, 0, discounted)
    seen = np.concatenate([each.observation.ravel() for each in rollouts])
    np.testing.assert_allclose(state.observations.mean, [np.mean(seen)], rtol=1e-4)
    np.testing.assert_allclose(module.deviation(state.observations), [np.std(seen)], rtol=1e-4)
    np.testing.assert_allclose(module.deviation(state.rewards), np.std(totals), rtol=1e-4)

    earlier = seen[:64]  # what came before the second rollout, as its actions were chosen
    x, led = (
        np.clip((np.asarray(each).reshape(-1, 1) - np.mean(earlier)) / np.std(earlier), -10, 10)
        for each in (rollout.observation, rollout.next_observation)
    )
    assert led.max() == 10
    np.testing.assert_allclose(samples.observation, x, rtol=1e-3, atol=1e-3)
    mean, log_std, value = agent.network.apply({"params": state.params}, x)
    known = gaussian_log_probability(samples.action, mean, log_std)
    np.testing.assert_allclose(samples.log_probability, known, rtol=1e-3, atol=1e-3)
    reward = rollout.reward / np.std(totals)
    assert reward.max() > 10
    following = agent.network.apply({"params": state.params}, led)[2]
    values = value.reshape(8, 8), following.reshape(8, 8)
    found = advantages(jnp.clip(reward, -10, 10), *values, rollout.terminated, ended, 0.9, 0.95)
    np.testing.assert_allclose(samples.target, found.reshape(-1) + value, rtol=1e-3, atol=1e-3)


def test_large_gradients_are_scaled_down_and_step_sizes_fall():
    there, world = environments(lambda x, a: 1e3 * jnp.ones_like(x))
    moved = {}
    for name, more, clock in (
        ("plain", {}, 0),
        ("bound", {"max_gradient_norm": 1.0}, 0),
        ("half", {"max_gradient_norm": 1.0, "decay_steps": 128}, 64),
        ("over", {"max_gradient_norm": 1.0, "decay_steps": 128}, 192),
    ):
        settings = dataclasses.replace(SETTINGS, epochs=1, minibatches=1, **more)
        agent = learner(
            there,
            settings,
            transformation=lambda hyper, key: optax.with_extra_args_support(optax.sgd(hyper["step_size"])),
        )
        hyper = HYPER | {"step_size": 1e-3}
        state = agent.init(KEY, KEY, KEY, hyper)
        after, _, _ = agent.step(state, world, hyper, jnp.int32(clock), jnp.zeros([], bool))
        moved[name] = float(optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params)))
    np.testing.assert_allclose(moved["bound"], 1e-3, rtol=1e-3)
    np.testing.assert_allclose(moved["half"], 0.5e-3, rtol=1e-3)
    assert moved["plain"] > 1 and moved["over"] == 0


def test_a_fresh_network_begins_anew_with_a_task_and_else_goes_on():
    there, world = environments(lambda x, a: x, start=signs)
    agent = learner(there, restart=True)
    step = jax.jit(agent.step)
    state, world, _ = step(agent.init(KEY, KEY, KEY, HYPER), world, HYPER, jnp.int32(0), jnp.ones([], bool))
    goes_on, _, small = step(state, world, HYPER, jnp.int32(64), jnp.zeros([], bool))
    anew, _, large = step(state, world, HYPER, jnp.int32(64), jnp.ones([], bool))
    assert (int(state.restarts), int(goes_on.restarts), int(anew.restarts)) == (1, 1, 2)
    distance = [optax.tree.norm(jax.tree.map(jnp.subtract, one.params, state.params)) for one in (goes_on, anew)]
    assert distance[1] > 5 * distance[0]
    assert np.all(np.asarray(jax.tree.leaves(anew.optimizer.rows)[0]) == 16)  # 4 epochs of 4
    assert small["weight_change"][0] > 0 and large["weight_change"][0] > 0


def test_a_fresh_network_begins_its_optimizer_and_moments_anew_or_keeps_them():
    there, world = environments(lambda x, a: x, start=signs)
    settings = dataclasses.replace(SETTINGS, normalise_observations=True, normalise_rewards=True)
    for everything in (True, False):
        agent = learner(there, settings, restart=True, restart_all=everything)
        step = jax.jit(agent.step)
        state, now, _ = step(agent.init(KEY, KEY, KEY, HYPER), world, HYPER, jnp.int32(0), jnp.ones([], bool))
        anew, _, _ = step(state, now, HYPER, jnp.int32(64), jnp.ones([], bool))
        rollouts = 1 if everything else 2
        assert (float(anew.observations.number), float(anew.rewards.number)) == (64 * rollouts, 64 * rollouts)
        assert np.all(np.asarray(jax.tree.leaves(anew.optimizer.rows)[0]) == 16 * rollouts)
        assert int(anew.restarts) == 2


def test_equal_advantages_are_not_blown_up():
    for value in (0.1, 7.3, 333.3):
        assert np.abs(standardised(jnp.full(2048, value))).max() < 0.05
    one = jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(standardised(one), (np.array(one) - 7 / 3) / np.std(one, ddof=1), rtol=1e-6)
    for wrong in (
        {"rollout": 16, "minibatches": 16, "normalise_advantages": "minibatch"},
        {"rollout": 1, "minibatches": 1},
    ):
        with pytest.raises(ValueError, match="normalise_advantages: over one step"):
            PPOSettings(**wrong)


def test_probe_looks_at_the_last_observations(monkeypatch):
    monkeypatch.setattr(module, "RECENT", 24)
    there, world = environments(lambda x, a: a, steps=3, start=signs)
    network = ActorCritic(1, (32, 16))
    agent = PPO(network, there, lambda hyper, key: adam(1e-3), SETTINGS, ppo_units(network, 1))
    before = agent.init(KEY, KEY, KEY, HYPER)
    state, _, _ = agent.step(before, world, HYPER, jnp.int32(0), jnp.zeros([], bool))
    _, rollout, _ = agent.collect(before, world, HYPER, jnp.int32(0))
    np.testing.assert_array_equal(state.recent, rollout.observation.reshape(-1, 1)[-24:])
    seen = agent.probe(state)
    _, features = agent.units.apply(state.params, state.recent)
    shares = [np.mean(np.asarray(features[f"policy/Dense_{i}"]) > 0, axis=0) for i in (0, 1)]
    np.testing.assert_allclose(seen["dormant_units"], np.mean(np.concatenate(shares) <= 0.01), rtol=1e-6)
    sigma = np.linalg.svd(np.asarray(features["policy/Dense_1"]), compute_uv=False)
    share = np.cumsum(sigma) / sigma.sum()
    np.testing.assert_allclose(seen["stable_rank"], (np.sum(share < 0.99) + 1) / 16, rtol=1e-6)


def test_probe_waits_for_as_many_observations_as_it_looks_at(monkeypatch):
    monkeypatch.setattr(module, "RECENT", 100)  # more than the 64 steps of an iteration
    there, world = environments(lambda x, a: a, steps=3, start=signs)
    network = ActorCritic(1, (32, 16))
    agent = PPO(network, there, lambda hyper, key: adam(1e-3), SETTINGS, ppo_units(network, 1))
    no = jnp.zeros([], bool)
    one, world, _ = agent.step(agent.init(KEY, KEY, KEY, HYPER), world, HYPER, jnp.int32(0), no)
    two, _, _ = agent.step(one, world, HYPER, jnp.int32(64), no)
    np.testing.assert_array_equal(two.recent[:36], one.recent[-36:])
    early, late = agent.probe(one), agent.probe(two)
    for name in ("dormant_units", "effective_rank", "stable_rank"):
        assert np.isnan(early[name]) and np.isfinite(late[name])
    assert np.isfinite(early["mean_weight_magnitude"])


def test_replacement_is_counted():
    there, world = environments(lambda x, a: a)
    network = ActorCritic(1, (32, 16))
    units = ppo_units(network, 1)
    assert [group.name for group in units.groups] == [f"{n}/Dense_{i}" for n in NETWORKS for i in (0, 1)]
    agent = PPO(
        network,
        there,
        lambda hyper, key: continual_backprop(
            adam(1e-3), units, replacement_rate=1 / 16, maturity_threshold=4, key=key
        ),
        SETTINGS,
        units,
    )
    state = agent.init(KEY, KEY, KEY, HYPER)
    _, _, seen = agent.step(state, world, HYPER, jnp.int32(0), jnp.zeros([], bool))
    assert 20 < seen["units_replaced"][0] <= 4 * 12  # of 16 updates 11 or 12 have units that are old enough


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollout": 0}, "rollout: got 0, allowed are integers from 1 up"),
        ({"epochs": 1.5}, "epochs: got 1.5"),
        ({"minibatches": True}, "minibatches: got True"),
        ({"minibatches": 3}, "rollout: 64 steps do not divide into 3 minibatches"),
        ({"rollout": 20, "minibatches": 1}, "rollout: 20 steps do not divide into 8 environments"),
        ({"time_limit": "none"}, "time_limit: got 'none', allowed are bootstrap, terminal"),
        ({"normalise_advantages": "batch"}, "allowed are rollout, minibatch, none"),
        ({"normalise_observations": 2}, "normalise_observations: got 2, allowed are True, False"),
        ({"max_gradient_norm": 0}, "max_gradient_norm: got 0, allowed are numbers above 0"),
        ({"decay_steps": -1}, "decay_steps: got -1"),
        ({"decay_steps": 2**31}, "decay_steps: got 2147483648, allowed are at most 2147483647"),
        ({"probe_every": 2**25}, "probe_every: got 33554432, which are 2147483648 steps, allowed are at most"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        learner(environments(lambda x, a: x)[0], dataclasses.replace(SETTINGS, **change))


# -- the published code's PPO updates


class Recording(NamedTuple):
    arrays: dict[str, np.ndarray]
    full: bool

    def __getitem__(self, key):
        return self.arrays[key]

    @property
    def config(self):
        return json.loads(str(self["config"]))

    def params(self, prefix, dtype=np.float64) -> Any:
        """`prefix/pol/W0`, ... as our parameters."""

        def network(name):
            layers = [(self[f"{prefix}/{name}/W{i}"], self[f"{prefix}/{name}/b{i}"]) for i in range(3)]
            return {
                f"Dense_{i}": {"kernel": np.asarray(w.T, dtype), "bias": np.asarray(b, dtype)}
                for i, (w, b) in enumerate(layers)
            }

        log_std = np.asarray(self[f"{prefix}/pol/log_std"], dtype)
        return {ours: network(theirs) for ours, theirs in NETWORKS.items()} | {"log_std": log_std}


def recording(name, full):
    path = GOLDEN / f"{name}.npz" if full else COMMITTED
    if not path.exists():
        pytest.skip(f"THE FULL RECORDING IS NOT TESTED: {path} is not there; only what is committed is replayed")
    with np.load(path) as file:
        prefix = "" if full else f"{name}/"
        return Recording({key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}, full)


def make_tx(config, units, key):
    inner = weight_decay(adam(config["lr"], config["beta1"], config["beta2"]), config["weight_decay"])
    common = {"initializer": Initializer("lecun_uniform", linspace=True), "key": key, "reset_state": False}
    if config.get("redo"):
        return redo(inner, units, threshold=config["threshold"], period=config["reset_period"], **common)
    return continual_backprop(
        inner,
        units,
        replacement_rate=config["rho"],
        maturity_threshold=config["maturity"],
        decay_rate=config["eta"],
        utility=config["util"],
        **common,
    )


def replaying(config):
    """PPO as recorded: one environment, time limits as ends."""
    network = ActorCritic(config["act_dim"], tuple(config["h_dim"]))
    units = ppo_units(network, config["obs_dim"])
    settings = PPOSettings(config["rollout"], config["epochs"], config["minibatches"], time_limit="terminal")
    there = Environments(1, config["obs_dim"], config["act_dim"], lambda state: state, lambda *given: given)
    return PPO(network, there, lambda hyper, key: make_tx(config, units, key), settings, units)


def recorded_rollout(trace):
    obs = trace["rollout/obs"]
    led = np.concatenate([obs[1:], trace["rollout/next_obs_last"][None]])
    done = trace["rollout/done"][:, None]
    parts = (obs, trace["rollout/act"], trace["rollout/logp"], trace["rollout/rew"], led)
    return Rollout(*(jnp.asarray(part, jnp.float64)[:, None] for part in parts), done, np.zeros_like(done))


class Update(NamedTuple):
    losses: np.ndarray
    clip_fraction: np.ndarray
    samples: Any
    weight_change: float
    params: Any
    state: Any
    ages: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]


@functools.cache
def replayed(name, full):
    trace = recording(name, full)
    config = trace.config
    hyper = HYPER | {"discount": config["gamma"], "gae_lambda": config["lambda"], "clip_range": config["clip"]}
    with jax.enable_x64(True):
        agent = replaying(config)
        state = agent.init(KEY, KEY, KEY, hyper)
        params = jax.tree.map(jnp.asarray, trace.params("init"))
        tx = agent.transformation(hyper, state.method_key)
        state = state._replace(params=params, optimizer=tx.init(params))
        order = trace["minibatch_order"].reshape(agent.settings.updates, -1).astype(np.int32)

        @jax.jit
        def update(state, rollout):
            state, samples = agent.samples(state, rollout, hyper)

            def body(state, rows):
                batch = jax.tree.map(lambda x: x[rows], samples)
                _, features = agent.units.apply(state.params, batch.observation)
                scores = {g.name: relative_activity(unit_activity(g, features[g.name])) for g in agent.units.groups}
                state, seen = agent.minibatch_update(state, tx, batch, hyper, jnp.int32(0), jnp.zeros([], bool))
                return state, (seen, state.optimizer.age, scores)

            return jax.lax.scan(body, state, order), samples

        (after, (seen, ages, scores)), samples = update(state, recorded_rollout(trace))
        change = module.metrics.weight_change(params["policy"], after.params["policy"])
        ages, scores, samples = jax.tree.map(np.asarray, (ages, scores, samples))
        losses, clipped = np.asarray(seen["loss"]), np.asarray(seen["clip_fraction"])
        return trace, Update(losses, clipped, samples, float(change), after.params, after.optimizer, ages, scores)


def check_events(trace, ours):
    for network, theirs in NETWORKS.items():
        found = [np.argwhere(ours.ages[f"{network}/Dense_{i}"] == 0) for i in range(2)]
        rows = np.concatenate([np.insert(pairs, 1, i, axis=1) for i, pairs in enumerate(found)])
        recorded = trace[f"f64/{theirs}_events"]
        assert len(recorded) > 10
        assert sorted(rows.tolist()) == sorted(recorded.tolist())


@pytest.mark.parametrize("full", [False, True], ids=["committed", "full"])
@pytest.mark.parametrize("name", ["redo", "cbp", "std"])
def test_update_is_the_published_one_to_1e9(name, full):
    if name == "std" and not full:
        pytest.skip("recorded in full only")
    trace, ours = replayed(f"ppo_update_{name}", full)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    close(ours.losses, trace["f64/loss_total"])
    if name == "std":
        assert all((a > 0).all() for a in ours.ages.values())
    else:
        check_events(trace, ours)
    if name == "redo":
        for network, theirs in NETWORKS.items():
            found = [ours.scores[f"{network}/Dense_{i}"][[49, 99, 149]] for i in range(2)]
            close(np.stack(found, 1), trace[f"f64/{theirs}_redo_scores"])
    if name == "cbp":
        for network, theirs in NETWORKS.items():
            for i in range(2):
                group = f"{network}/Dense_{i}"
                close(ours.state.utility[group], trace[f"f64/{theirs}_final_util_l{i}"])
                np.testing.assert_array_equal(ours.state.age[group], trace[f"f64/{theirs}_final_age_l{i}"])
                close(ours.state.accumulator[group][0], trace[f"f64/{theirs}_final_accumulator"][i])
    if not full:
        return
    close(ours.samples.advantage, trace["f64/adv_normalised"])
    close(ours.samples.target, trace["f64/returns"])
    close(ours.clip_fraction, trace["f64/clip_fraction"])
    close(ours.weight_change, trace["f64/weight_change"])
    jax.tree.map(close, ours.params, trace.params("f64/final"))
    moments = jax.tree.leaves(ours.state.inner, is_leaf=lambda s: hasattr(s, "mu"))[-1]
    jax.tree.map(close, moments.mu, trace.params("f64/opt/exp_avg"))
    jax.tree.map(close, moments.nu, trace.params("f64/opt/exp_avg_sq"))
