"""A recurrent policy finds the way out of a T-maze of length 10, where only what was seen at its start says the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax.learners.ppo import PPO, PPOSettings, ppo_units
from plastic_jax.methods.continual_backprop import continual_backprop
from plastic_jax.networks import ActorCritic
from plastic_jax.optimizers.adam import adam
from tests.plastic_jax.learners.mazes import t_maze

KEY = jax.random.key(0)
HYPER = {
    "discount": 0.98,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "value_coefficient": 0.5,
    "entropy_coefficient": 0.01,
}
NUMBER, STEPS, ITERATIONS = 32, 64, 250


@pytest.mark.parametrize(
    ("memory", "replaces", "least", "most"),
    [("gru", False, 0.8, 1.0), ("gru", True, 0.8, 1.0), ("none", False, 0.4, 0.6)],
    ids=["recurrent", "recurrent, with continual backprop", "without memory"],
)
def test_only_memory_finds_the_way_out_of_a_maze(memory, replaces, least, most):
    """Guessing turns right half of the time."""
    environments, world = t_maze(10, NUMBER, time_limit=100)
    network = ActorCritic(3, (16, 32), discrete=True, memory=memory)
    units = ppo_units(network, 3)

    def transformation(hyper, key):
        inner = adam(3e-3)
        if not replaces:
            return inner
        return continual_backprop(inner, units, replacement_rate=1e-4, maturity_threshold=100, key=key)

    settings = PPOSettings(rollout=NUMBER * STEPS, epochs=4, minibatches=4, max_gradient_norm=0.5)
    agent = PPO(network, environments, transformation, settings, units)

    @jax.jit
    def run(world):
        def body(carry, clock):
            state, world, seen = agent.step(*carry, HYPER, clock, jnp.zeros([], bool))
            return (state, world), seen

        clocks = settings.rollout * jnp.arange(ITERATIONS, dtype=jnp.int32)
        return jax.lax.scan(body, (agent.init(KEY, KEY, KEY, HYPER), world), clocks)[1]

    seen = jax.tree.map(np.asarray, run(world))
    right, ended = (part[-10:].sum() for part in seen["turned_right"])
    print(f"{right / ended:.3f} of the last {ended:g} turns are right")
    assert least <= right / ended <= most
    assert (seen["units_replaced"][0].sum() > 5) == replaces
