"""A stream played for some steps."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames=("task", "steps"))
def run(task, state, clock, data, steps):
    """The state after some steps from `clock` on, and their batches."""
    return jax.lax.scan(lambda s, c: task.next(s, c, data), state, clock + jnp.arange(steps))


def stream(task, key, steps, clock=0):
    """The data, the state after some steps, and their batches."""
    data = task.load()
    return data, *run(task, task.init(key, data), jnp.int32(clock), data, steps)
