"""PPO in one file, a whole run in one `jit`: a pole on a cart, of which the two pushes are swapped every now and then.

python -m examples.ppo --figure=ppo.png
"""

import argparse
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import plastic_jax

GAMMA, LAMBDA, CLIP, ENTROPY, EPOCHS, MINIBATCHES, HORIZON = 0.99, 0.95, 0.2, 0.01, 4, 4, 500


class ActorCritic(nn.Module):
    @nn.compact
    def __call__(self, x):
        actor, critic = (nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(x)))) for _ in range(2))
        return nn.Dense(2)(actor), nn.Dense(1)(critic)[..., 0]


class Step(NamedTuple):
    observation: jax.Array
    action: jax.Array
    log_probability: jax.Array
    value: jax.Array
    done: jax.Array
    length: jax.Array


def cart_pole(state, time, action, key):
    """The pole of Barto, Sutton and Anderson (1983), reward 1 a step; what has fallen starts afresh."""
    position, speed, angle, spin = state
    force = 20.0 * action - 10.0
    pull = (force + 0.05 * spin**2 * jnp.sin(angle)) / 1.1
    turn = (9.8 * jnp.sin(angle) - jnp.cos(angle) * pull) / (0.5 * (4 / 3 - 0.1 * jnp.cos(angle) ** 2 / 1.1))
    push = pull - 0.05 * turn * jnp.cos(angle) / 1.1
    state = state + 0.02 * jnp.stack([speed, push, spin, turn])
    done = (jnp.abs(state[0]) > 2.4) | (jnp.abs(state[2]) > 0.21) | (time + 1 >= HORIZON)
    fresh = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
    return jnp.where(done, fresh, state), jnp.where(done, 0, time + 1), done


def loss(output, step, advantage, target):
    """PPO's clipped objective, with the value's squared error and a bonus for entropy."""
    logits, value = output
    log_probabilities = jax.nn.log_softmax(logits)
    ratio = jnp.exp(jnp.take_along_axis(log_probabilities, step.action[:, None], 1)[:, 0] - step.log_probability)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    entropy = -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, -1)
    return 0.5 * jnp.mean((value - target) ** 2) - jnp.mean(gain) - ENTROPY * jnp.mean(entropy)


def make_train(args, continual):
    """`train(key)`: mean length of the episodes that ended in every update, as one program."""
    network = ActorCritic()
    params = network.init(jax.random.key(args.seed), jnp.zeros(4))
    units = plastic_jax.trace_units(network.apply, params, jnp.zeros((args.environments, 4)))
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(args.step_size, eps=1e-5))
    if continual:
        tx = plastic_jax.continual_backprop(
            tx, units, replacement_rate=args.replacement_rate, maturity_threshold=1000, key=jax.random.key(1)
        )
    tx = optax.with_extra_args_support(tx)

    def act(carry, key, params, swapped):
        state, time = carry
        logits, value = network.apply(params, state)
        action = jax.random.categorical(key, logits)
        keys = jax.random.split(jax.random.fold_in(key, 1), args.environments)
        new, later, done = jax.vmap(cart_pole)(state, time, jnp.where(swapped, 1 - action, action), keys)
        log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
        return (new, later), Step(state, action, log_probability, value, done, time + 1)

    def advantages(steps, last):
        def back(carry, step):
            ahead, following = carry
            alive = 1 - step.done
            error = 1 + GAMMA * following * alive - step.value
            ahead = error + GAMMA * LAMBDA * alive * ahead
            return (ahead, step.value), ahead

        return jax.lax.scan(back, (jnp.zeros_like(last), last), steps, reverse=True)[1]

    def learn(carry, rows, steps, advantage):
        params, state = carry
        step, gain = jax.tree.map(lambda leaf: leaf[rows], (steps, advantage))
        # The forward pass of this minibatch gives the gradient and the features of actor and critic alike.
        grads, features = units.grad(loss)(params, step.observation, step, gain, gain + step.value)
        updates, state = tx.update(grads, state, params, features=features)
        return (optax.apply_updates(params, updates), state), None

    def update(carry, number):
        params, opt_state, world, key = carry
        key, acting, shuffling = jax.random.split(key, 3)
        swapped = number // args.change_every % 2 == 1
        keys = jax.random.split(acting, args.rollout)
        world, steps = jax.lax.scan(lambda c, k: act(c, k, params, swapped), world, keys)
        advantage = advantages(steps, network.apply(params, world[0])[1])
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (steps, advantage))
        keys = jax.random.split(shuffling, EPOCHS)
        rows = jax.vmap(lambda key: jax.random.permutation(key, args.rollout * args.environments))(keys)
        rows = rows.reshape(EPOCHS * MINIBATCHES, -1)
        (params, opt_state), _ = jax.lax.scan(lambda c, r: learn(c, r, *flat), (params, opt_state), rows)
        length = jnp.sum(steps.length * steps.done) / jnp.maximum(jnp.sum(steps.done), 1)
        return (params, opt_state, world, key), length

    def chunk(carry, number):
        carry, lengths = jax.lax.scan(update, carry, number * args.chunk + jnp.arange(args.chunk))
        jax.debug.callback(report, (number + 1) * args.chunk, jnp.mean(lengths))  # seen while the program runs
        return carry, lengths

    def report(updates, length):
        print(f"update {updates}: mean length of an episode {length:.0f}", flush=True)

    def train(key):
        world = jnp.zeros((args.environments, 4)), jnp.zeros(args.environments, jnp.int32)
        carry = params, tx.init(params), world, key
        return jax.lax.scan(chunk, carry, jnp.arange(args.updates // args.chunk))[1].ravel()

    return train


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--chunk", type=int, default=20, help="updates between two lines of progress")
    parser.add_argument("--change_every", type=int, default=100, help="updates between two swaps of the pushes")
    parser.add_argument("--environments", type=int, default=16)
    parser.add_argument("--rollout", type=int, default=128, help="steps of every environment in an update")
    parser.add_argument("--step_size", type=float, default=1e-3)
    parser.add_argument("--replacement_rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="ppo.png")
    args = parser.parse_args(argv)
    for name, continual in (("Adam", False), ("continual backprop", True)):
        print(name)
        lengths = jax.jit(make_train(args, continual))(jax.random.key(args.seed))
        plt.plot(lengths, label=name)
    plt.xlabel("update")
    plt.ylabel("mean length of an episode")
    plt.legend()
    plt.savefig(args.figure)
    plt.close()


if __name__ == "__main__":
    main()
