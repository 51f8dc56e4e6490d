"""IDBD on the problem it was published with: 20 inputs, 5 of which matter, one of whose weights changes its sign.

The bounds are those of a recording of released code on the same problem (other random numbers): at their best LMS has
3.39 and IDBD 1.57; after 250,000 steps at `meta_step_size=0.001` the step sizes of relevant inputs are 0.123 to 0.136,
those of irrelevant ones 0.0074 to 0.0078. The paper says 3.5, 1.5, 0.13, and less than 0.007.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax.optimizers.idbd import idbd


def run(step_size, meta_step_size, key, steps, counted):
    """The mean squared error of the last `counted` steps, and the last step sizes of the 20 inputs."""
    tx = idbd(step_size, meta_step_size)
    weights = {"kernel": jnp.zeros((20, 1))}

    def step(carry, n):
        weights, state, target, error = carry
        keys = jax.random.split(jax.random.fold_in(key, n), 2)
        x = jax.random.normal(keys[0], (20, 1))
        flipped = (jnp.arange(5) == jax.random.randint(keys[1], (), 0, 5)) & (n % 20 == 0)
        target = jnp.where(flipped, -target, target)
        e = jnp.sum(target * x[:5, 0]) - jnp.sum(weights["kernel"] * x)
        updates, state = tx.update({"kernel": -e * x}, state, weights, curvature={"kernel": x**2})
        weights = jax.tree.map(jnp.add, weights, updates)
        return (weights, state, target, error + jnp.where(n >= steps - counted, e**2, 0)), None

    carry = weights, tx.init(weights), jnp.ones(5), jnp.zeros([])
    (_, state, _, error), _ = jax.lax.scan(step, carry, jnp.arange(steps))
    return error / counted, jnp.exp(state.log_step_size["kernel"][:, 0])


@pytest.mark.slow
def test_experiment_1_idbd_at_its_best_has_less_than_half_of_the_error_of_lms_at_its_best():
    keys = jax.random.split(jax.random.key(0), 3)
    settings = [(a, 0.0) for a in (0.02, 0.03, 0.04, 0.05)] + [(0.05, theta) for theta in (0.003, 0.01, 0.02)]
    lanes = [(*setting, key) for setting in settings for key in keys]
    found = jax.jit(jax.vmap(lambda a, theta, key: run(a, theta, key, 30_000, 10_000)[0]))(
        jnp.array([a for a, *_ in lanes]), jnp.array([t for _, t, _ in lanes]), jnp.stack([k for *_, k in lanes])
    )
    errors = np.asarray(found).reshape(len(settings), 3).mean(1)
    assert 3.2 < errors[:4].min() < 3.6
    assert 1.4 < errors[4:].min() < 1.7


@pytest.mark.slow
def test_experiment_2_step_sizes_of_relevant_inputs_are_many_times_those_of_irrelevant_ones():
    _, sizes = jax.jit(lambda key: run(0.05, 0.001, key, 250_000, 10_000))(jax.random.key(1))
    assert 0.11 < sizes[:5].min() < sizes[:5].max() < 0.15
    assert sizes[5:].max() < 0.0085
