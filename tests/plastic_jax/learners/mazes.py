"""A corridor at whose end only what was seen at its start says where to turn."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastic_jax.learners.ppo import Environments

GOAL, COST = 4.0, -0.1
UP, FORWARD, DOWN = 0, 1, 2


class Maze(NamedTuple):
    """Of every environment `[E]`: the way to turn, 1 or -1; the steps forward and all steps of this episode."""

    way: jax.Array
    place: jax.Array
    time: jax.Array


def t_maze(length, number, time_limit):
    """Bakker, "Reinforcement learning with long short-term memory", NeurIPS 2001, without the way back.

    What is seen: the way to turn at the start and 0 elsewhere, whether this is the junction, and 1. An action is up,
    forward or down. Turning at the junction ends the episode, with 4 the right way; every other step that does not
    lead forward costs 0.1, the wrong way too. Where the way is forgotten, half of all turns are right.
    """

    def ways(clock):
        return jax.random.rademacher(jax.random.fold_in(jax.random.key(5), clock), (number,), jnp.float32)

    def observation(world):
        parts = (jnp.where(world.place == 0, world.way, 0), world.place == length, jnp.ones(number))
        return jnp.stack([part.astype(jnp.float32) for part in parts], axis=-1)

    def step(world, action, clock):
        junction = world.place == length
        turned = junction & (action != FORWARD)
        right = turned & (action == jnp.where(world.way > 0, UP, DOWN))
        forward = ~junction & (action == FORWARD)
        time = world.time + 1
        led = world._replace(place=world.place + forward, time=time)
        truncated = (time >= time_limit) & ~turned
        over = turned | truncated
        given = SimpleNamespace(
            reward=jnp.where(right, GOAL, jnp.where(forward, 0.0, COST)),
            observation=observation(led),
            terminated=turned,
            truncated=truncated,
            seen={"turned_right": (jnp.sum(right, dtype=jnp.float32), jnp.sum(over, dtype=jnp.float32))},
        )
        return Maze(*(jnp.where(over, *pair) for pair in zip(start(clock), led, strict=True))), given

    def start(clock):
        nothing = jnp.zeros(number, jnp.int32)
        return Maze(ways(clock), nothing, nothing)

    return Environments(number, 3, 3, observation, step, discrete=True), start(2**30)
