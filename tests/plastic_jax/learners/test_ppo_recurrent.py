"""PPO with a memory, beside a computation written out step by step. Mazes where only memory helps: `tests/slow`."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax.learners import ppo as module
from plastic_jax.learners.ppo import PPO, PPOSettings, ppo_units, steps_of
from plastic_jax.networks import ActorCritic
from plastic_jax.networks.actor_critic import RecurrentMLP
from plastic_jax.optimizers.adam import adam
from tests.plastic_jax.learners.mazes import t_maze

KEY = jax.random.key(0)
HYPER = {
    "step_size": 3e-3,
    "discount": 0.95,
    "gae_lambda": 0.9,
    "clip_range": 0.2,
    "value_coefficient": 0.5,
    "entropy_coefficient": 0.01,
}
NUMBER = 16
SETTINGS = PPOSettings(rollout=NUMBER * 16, epochs=4, minibatches=4, normalise_advantages="none")


def agent_of(environments):
    network = ActorCritic(3, (8, 12), discrete=True, memory="gru")
    return PPO(network, environments, lambda hyper, key: adam(1e-3), SETTINGS, ppo_units(network, 3))


# -- the network beside one written out


def unrolled(params, x, memory, starts):
    """`RecurrentMLP` with two hidden layers, one step after the other, on `[steps, n]`; outputs and memories."""
    sigmoid = lambda v: 1 / (1 + jnp.exp(-v))  # noqa: E731
    outputs, memories = [], []
    gru = params["GRU"]
    for now, start in zip(x, starts, strict=True):
        h = memory * (1 - start)
        u = jnp.maximum(now @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
        read = {gate: u @ gru[f"i{gate}"]["kernel"] + gru[f"i{gate}"]["bias"] for gate in "rzn"}
        r, z = (sigmoid(read[gate] + h @ gru[f"h{gate}"]["kernel"]) for gate in "rz")
        n = jnp.tanh(read["n"] + r * (h @ gru["hn"]["kernel"] + gru["hn"]["bias"]))
        memory = (1 - z) * n + z * h
        memories.append(memory)
        outputs.append(memory @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"])
    return jnp.stack(outputs), jnp.stack(memories)


def test_sequences_and_single_steps_are_the_unrolled_computation():
    network = RecurrentMLP((5, 4), 2)
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    x, memory, starts = normal(3, 3, 7), normal(3, 4), jnp.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], bool)
    params = network.init(KEY, x[:, 0], memory)["params"]
    # Biases are 0 at first and would hide which of them is read.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * normal(*leaf.shape), params)
    weights = normal(3, 3, 2)

    def ours(params, memory):
        output, after = network.apply({"params": params}, x, memory, starts)
        one, _ = network.apply({"params": params}, x[:, 0], memory * (1 - starts[:, :1]))
        return jnp.sum(output * weights), (output, after, one)

    def theirs(params, memory):
        output, memories = jax.vmap(unrolled, (None, 0, 0, 0))(params, x, memory, starts)
        return jnp.sum(output * weights), (output, memories[:, -1], output[:, 0])

    found, expected = (
        jax.jit(jax.value_and_grad(each, argnums=(0, 1), has_aux=True))(params, memory) for each in (ours, theirs)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    assert np.all(found[1][1][1] == 0) and np.all(found[1][1][0] != 0)  # gradients in memories: forgotten, and not


# -- PPO


class Iteration(NamedTuple):
    state: Any
    rollout: Any
    samples: Any
    output: Any
    next_value: Any
    probe: Any
    features: Any
    fresh: Any

    @property
    def ended(self):
        return np.asarray(self.rollout.terminated | self.rollout.truncated)


@pytest.fixture(scope="module")
def iterations():
    """Two iterations, of which the first learns nothing: all that they find on the way, and the state after them."""
    environments, world = t_maze(2, NUMBER, time_limit=7)
    agent = agent_of(environments)

    @jax.jit
    def collect(state, world, clock):
        after, rollout, _ = agent.collect(state, world, HYPER, clock)
        following, samples = agent.samples(state, rollout, HYPER)
        output, _ = agent.units.apply(state.params, *samples.inputs)
        next_value = agent._values(state.params, rollout.next_observation, rollout.next_memory)
        _, features = agent.units.apply(following.params, *steps_of(following.recent, following.recent_memory))
        fresh = dataclasses.replace(agent, restart=True)._begun(state, HYPER, jnp.ones([], bool))
        found = (state, rollout, samples, output, next_value, agent.probe(following), features, fresh)
        return after, following, Iteration(*found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RECENT", 24)
        state, found = agent.init(KEY, KEY, KEY, HYPER), []
        for clock in (0, 256):
            world, state, one = collect(state, world, jnp.int32(clock))
            found.append(one)
    return agent, *found, state


def test_memory_goes_on_over_rollouts_and_begins_at_0_with_an_episode(iterations):
    _, first, second, last = iterations
    assert first.ended.any() and not first.ended[-1].all()  # some episodes go on in the second
    before, after = (
        np.concatenate([getattr(each.rollout, name)["policy"] for each in (first, second)])
        for name in ("memory", "next_memory")
    )
    assert np.all(before[0] == 0) and np.all(np.any(after != 0, axis=-1))
    over = np.concatenate([first.ended, second.ended])[:-1]
    assert np.all(before[1:][over] == 0)
    np.testing.assert_array_equal(before[1:][~over], after[:-1][~over])
    np.testing.assert_array_equal(last.memory["policy"], np.where(second.ended[-1][:, None], 0, after[-1]))


def test_what_is_learned_from_is_what_was_done(iterations):
    """Log-probabilities and values of whole sequences are those of the steps, so the first update has ratios of 1."""
    agent, first, second, _ = iterations
    for each in (first, second):
        samples, (logits, value) = each.samples, each.output
        assert samples.observation.shape == (NUMBER, 16, 3) and samples.action.shape == (NUMBER, 16)
        known = agent.policy.log_probability(samples.action, logits)
        np.testing.assert_allclose(samples.log_probability, known, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(samples.target - samples.advantage, value, rtol=1e-4, atol=1e-5)
        # Where the episode goes on, the value of where a step led is that of the next step.
        goes_on = ~each.ended[:-1]
        expected = np.asarray(value).T[1:][goes_on]
        np.testing.assert_allclose(np.asarray(each.next_value)[:-1][goes_on], expected, rtol=1e-4, atol=1e-5)


def test_every_epoch_has_every_environment_once(iterations):
    agent, first, *_ = iterations
    order = np.asarray(agent.order(first.state, jnp.int32(0)))
    assert order.shape == (16, 4)
    assert all(sorted(epoch) == list(range(NUMBER)) for epoch in order.reshape(4, -1).tolist())


def test_probe_looks_at_the_last_observations_with_their_memories(iterations):
    _, _, second, last = iterations
    for recent, steps in (
        (last.recent, second.rollout.observation),
        (last.recent_memory["policy"], second.rollout.memory["policy"]),
    ):
        np.testing.assert_array_equal(recent, steps.reshape(-1, steps.shape[-1])[-24:])
    matrices = [np.asarray(second.features[f"policy/{name}"]).reshape(24, -1) for name in ("Dense_0", "GRU")]
    assert [m.shape[1] for m in matrices] == [8, 12]
    shares = np.concatenate([np.mean(m > 0, axis=0) for m in matrices])
    np.testing.assert_allclose(second.probe["dormant_units"], np.mean(shares <= 0.01), rtol=1e-6)


def test_a_fresh_network_begins_without_memories(iterations):
    _, _, second, _ = iterations
    assert np.any(second.state.memory["policy"] != 0)
    assert not np.any(second.fresh.memory["policy"]) and second.fresh.restarts == second.state.restarts + 1


def test_units_are_found_and_environments_are_whole(iterations):
    agent, *_ = iterations
    names = [f"{part}/{layer}" for part in ("policy", "value") for layer in ("Dense_0", "GRU")]
    assert sorted(group.name for group in agent.units.groups) == names
    assert all(group.function_preserving for group in agent.units.groups)
    message = "minibatches: 16 environments do not divide into 32 minibatches, which a recurrent network has of whole"
    more = dataclasses.replace(SETTINGS, minibatches=32)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(agent, settings=more)
    dataclasses.replace(agent, network=ActorCritic(3, (8, 12), discrete=True), settings=more)
