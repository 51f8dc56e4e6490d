"""PPO with discrete actions, on the environments of `test_ppo.py` whose answers are known, all in one program."""

import dataclasses
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax.learners.policies import CATEGORICAL
from plastic_jax.learners.ppo import PPO, Environments, PPOSettings, ppo_units
from plastic_jax.networks import ActorCritic
from plastic_jax.optimizers.adam import adam

KEY = jax.random.key(0)
HYPER = {
    "step_size": 3e-3,
    "discount": 0.9,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "value_coefficient": 1.0,
    "entropy_coefficient": 0.0,
}
NUMBER, ACTIONS, ITERATIONS = 8, 3, 300
SETTINGS = PPOSettings(rollout=160, epochs=4, minibatches=4)

PROBLEMS = ("constant", "seen", "later", "action", "action by what is seen", "chain")
LENGTHS = jnp.array([1, 1, 2, 1, 1, 10])
SIGNS = jnp.array([False, True, False, False, True, False])


class World(NamedTuple):
    """Number of the problem `[]`, what is seen and the steps of the episode so far, `[E, 1]` and `[E]`."""

    problem: jax.Array
    x: jax.Array
    time: jax.Array


def fresh(problem, clock):
    signs = jax.random.rademacher(jax.random.fold_in(jax.random.key(7), clock), (NUMBER, 1), jnp.float32)
    return jnp.where(SIGNS[problem], signs, 0.0)


def step(world, action, clock):
    x, time = world.x[:, 0], world.time + 1
    one = jnp.ones(NUMBER)
    rewards = [one, x, (x == 1) * 1.0, (action == 2) * 1.0, (action == jnp.where(x > 0, 2, 0)) * 1.0, one]
    over = time >= LENGTHS[world.problem]
    led = world.x + 1
    reward = jnp.stack(rewards)[world.problem]
    given = SimpleNamespace(reward=reward, observation=led, terminated=over, truncated=jnp.zeros(NUMBER, bool), seen={})
    after = jnp.where(over[:, None], fresh(world.problem, clock), led)
    return World(world.problem, after, jnp.where(over, 0, time)), given


def world_of(problem):
    return World(jnp.int32(problem), fresh(problem, 2**30), jnp.zeros(NUMBER, jnp.int32))


NETWORK = ActorCritic(ACTIONS, (32,), "tanh", discrete=True)
ENVIRONMENTS = Environments(NUMBER, 1, ACTIONS, lambda world: world.x, step, discrete=True)
AGENT = PPO(NETWORK, ENVIRONMENTS, lambda hyper, key: adam(hyper["step_size"]), SETTINGS, ppo_units(NETWORK, 1))


@pytest.fixture(scope="module")
def answers():
    """By problem: probabilities `[seen, actions]` and values `[seen]` after training, at -1, 0, 1, ..., 9."""

    @jax.jit
    @jax.vmap
    def run(problem):
        def body(carry, clock):
            state, world, _ = AGENT.step(*carry, HYPER, clock, jnp.zeros([], bool))
            return (state, world), None

        clocks = SETTINGS.rollout * jnp.arange(ITERATIONS, dtype=jnp.int32)
        state = jax.lax.scan(body, (AGENT.init(KEY, KEY, KEY, HYPER), world_of(problem)), clocks)[0][0]
        return NETWORK.apply({"params": state.params}, jnp.arange(-1.0, 10.0)[:, None])

    logits, value = run(jnp.arange(len(PROBLEMS)))
    found = jax.nn.softmax(logits), value
    return {name: tuple(np.asarray(each[i]) for each in found) for i, name in enumerate(PROBLEMS)}


def test_values_are_the_known_ones(answers):
    np.testing.assert_allclose(answers["constant"][1][1], 1, atol=0.02)
    np.testing.assert_allclose(answers["seen"][1][[0, 2]], [-1, 1], atol=0.05)
    np.testing.assert_allclose(answers["later"][1][[1, 2]], [0.9, 1], atol=0.03)
    chain = [(1 - 0.9 ** (10 - k)) / 0.1 for k in range(10)]
    np.testing.assert_allclose(answers["chain"][1][1:], chain, atol=0.08)


def test_policy_finds_the_action_that_is_rewarded(answers):
    assert answers["action"][0][1, 2] > 0.95
    assert answers["action by what is seen"][0][0, 0] > 0.95
    assert answers["action by what is seen"][0][2, 2] > 0.95


def test_a_rollout_holds_the_actions_drawn_and_the_loss_is_theirs():
    @jax.jit
    def iteration(world):
        state = AGENT.init(KEY, KEY, KEY, HYPER)
        _, rollout, _ = AGENT.collect(state, world, HYPER, jnp.int32(0))
        state, samples = AGENT.samples(state, rollout, HYPER)
        logits, value = NETWORK.apply({"params": state.params}, samples.observation)
        return rollout, samples, jax.nn.softmax(logits), AGENT.loss((logits, value), samples, HYPER)[1]

    rollout, samples, probabilities, seen = jax.tree.map(np.asarray, iteration(world_of(3)))
    assert rollout.action.shape == (20, 8) and rollout.action.dtype == np.int32
    assert set(np.unique(rollout.action)) == {0, 1, 2}
    drawn = probabilities[np.arange(160), samples.action]
    np.testing.assert_allclose(np.exp(samples.log_probability), drawn, rtol=1e-5)
    np.testing.assert_allclose(seen["approximate_kl"], 0, atol=1e-6)
    entropy = -np.mean(np.sum(probabilities * np.log(probabilities), axis=1))
    np.testing.assert_allclose(seen["entropy"], entropy, rtol=1e-5)


def test_categories_are_drawn_as_often_as_they_are_probable():
    probabilities = np.array([0.7, 0.25, 0.05, 0.0], np.float32)
    with np.errstate(divide="ignore"):
        logits = jnp.log(probabilities) + 3  # a constant changes nothing
    noise = CATEGORICAL.noise(KEY, (20_000, 4))
    drawn = np.bincount(CATEGORICAL.act(noise, logits), minlength=4) / 20_000
    np.testing.assert_allclose(drawn, probabilities, atol=0.01)  # three deviations
    assert drawn[3] == 0
    kept = probabilities[:3]
    np.testing.assert_allclose(CATEGORICAL.entropy(logits), -np.sum(kept * np.log(kept)), rtol=1e-5)
    slope = jax.grad(lambda logits: CATEGORICAL.entropy(logits))(jnp.array([1.0, 0.0, -200.0]))
    assert np.isfinite(slope).all()


def test_units_are_those_of_the_hidden_layers():
    assert [group.name for group in AGENT.units.groups] == ["policy/Dense_0", "value/Dense_0"]
    assert all(group.function_preserving for group in AGENT.units.groups)
    assert dataclasses.replace(AGENT, units=None).policy is CATEGORICAL
