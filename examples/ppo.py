"""PPO in one file, a whole run in one `jit`: a pole on a cart, of which the two pushes are swapped every now and then.

python -m examples.ppo --figure=ppo.png
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import plastic_jax

GAMMA, LAMBDA, CLIP, EPOCHS, MINIBATCHES, ROLLOUT, ENVIRONMENTS = 0.99, 0.95, 0.2, 4, 4, 128, 16
DEFAULTS = {"updates": 600, "chunk": 20, "change_every": 100, "step_size": 1e-3, "replacement_rate": 1e-4, "seed": 0}


class ActorCritic(nn.Module):
    @nn.compact
    def __call__(self, x):
        actor, critic = (nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(x)))) for _ in range(2))
        return nn.Dense(2)(actor), nn.Dense(1)(critic)[..., 0]


def cart_pole(state, time, action, key):
    """The pole of Barto, Sutton and Anderson (1983), at most 500 steps; what has fallen starts afresh."""
    _, speed, angle, spin = state
    force = (20.0 * action - 10.0 + 0.05 * spin**2 * jnp.sin(angle)) / 1.1
    turn = (9.8 * jnp.sin(angle) - jnp.cos(angle) * force) / (0.5 * (4 / 3 - 0.1 * jnp.cos(angle) ** 2 / 1.1))
    state = state + 0.02 * jnp.stack([speed, force - 0.05 * turn * jnp.cos(angle) / 1.1, spin, turn])
    done = (jnp.abs(state[0]) > 2.4) | (jnp.abs(state[2]) > 0.21) | (time >= 499)
    fresh = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
    return jnp.where(done, fresh, state), jnp.where(done, 0, time + 1), done


def log_probability(logits, action):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]


def loss(output, action, before, advantage, target):
    """PPO's clipped objective, the value's squared error, and a bonus for entropy."""
    logits, value = output
    ratio = jnp.exp(log_probability(logits, action) - before)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), -1)
    return jnp.mean(0.5 * (value - target) ** 2 - gain - 0.01 * entropy)


def report(updates, length):
    print(f"update {updates}: mean length of an episode {length:.0f}", flush=True)


def make_train(args, continual):
    """`train(key)`: mean length of the episodes that ended in every update, as one program."""
    network = ActorCritic()
    params = network.init(jax.random.key(args.seed), jnp.zeros(4))
    units = plastic_jax.trace_units(network.apply, params, jnp.zeros((ENVIRONMENTS, 4)))
    tx = optax.with_extra_args_support(optax.chain(optax.clip_by_global_norm(0.5), optax.adam(args.step_size)))
    if continual:
        tx = plastic_jax.continual_backprop(tx, units, replacement_rate=args.replacement_rate, key=jax.random.key(1))

    def act(world, key, params, swapped):
        state, time = world
        logits, value = network.apply(params, state)
        choosing, *keys = jax.random.split(key, 1 + ENVIRONMENTS)
        action = jax.random.categorical(choosing, logits)
        new, later, done = jax.vmap(cart_pole)(state, time, jnp.where(swapped, 1 - action, action), jnp.stack(keys))
        return (new, later), (state, action, log_probability(logits, action), value, done, time + 1)

    def back(carry, step):
        """Generalised advantage estimation, from the last step to the first; the reward is 1."""
        (ahead, following), (value, done) = carry, step
        ahead = 1 + GAMMA * (1 - done) * (following + LAMBDA * ahead) - value
        return (ahead, value), ahead

    def learn(carry, minibatch):
        params, state = carry
        # The forward pass that gives the gradient gives the features of actor and critic.
        grads, features = units.grad(loss)(params, *minibatch)
        updates, state = tx.update(grads, state, params, features=features)
        return (optax.apply_updates(params, updates), state), None

    def update(carry, number):
        params, opt_state, world, key = carry
        key, acting, shuffling = jax.random.split(key, 3)
        swapped = number // args.change_every % 2 == 1
        play = lambda world, key: act(world, key, params, swapped)  # noqa: E731
        world, steps = jax.lax.scan(play, world, jax.random.split(acting, ROLLOUT))
        observation, action, before, value, done, length = steps
        ahead = 0.0 * value[0], network.apply(params, world[0])[1]
        advantage = jax.lax.scan(back, ahead, (value, done), reverse=True)[1]
        data = observation, action, before, advantage, advantage + value
        orders = [jax.random.permutation(k, ROLLOUT * ENVIRONMENTS) for k in jax.random.split(shuffling, EPOCHS)]
        rows = jnp.stack(orders).reshape(EPOCHS * MINIBATCHES, -1)
        minibatches = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[rows], data)
        (params, opt_state), _ = jax.lax.scan(learn, (params, opt_state), minibatches)
        ended = jnp.where(done.any(), done, True)  # all so far where none has ended
        return (params, opt_state, world, key), jnp.average(length, weights=1.0 * ended)

    def chunk(carry, number):
        carry, lengths = jax.lax.scan(update, carry, number * args.chunk + jnp.arange(args.chunk))
        jax.debug.callback(report, (number + 1) * args.chunk, lengths.mean())  # seen while the program runs
        return carry, lengths

    def train(key):
        carry = params, tx.init(params), (jnp.zeros((ENVIRONMENTS, 4)), jnp.zeros(ENVIRONMENTS, jnp.int32)), key
        return jax.lax.scan(chunk, carry, jnp.arange(args.updates // args.chunk))[1].ravel()

    return train


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--figure", default="ppo.png")
    args = parser.parse_args(argv)
    for name, continual in (("Adam", False), ("continual backprop", True)):
        print(name)
        plt.plot(jax.jit(make_train(args, continual))(jax.random.key(args.seed)), label=name)
    plt.gca().set(xlabel="update", ylabel="mean length of an episode")
    plt.legend()
    plt.savefig(args.figure)
    plt.close()


if __name__ == "__main__":
    main()
