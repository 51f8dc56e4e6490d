"""A convolutional network with batch normalisation in Flax's TrainState; every task brings new classes of pictures.

python -m examples.train_state_convnet --figure=train_state_convnet.png
"""

import argparse
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import plastic_jax
from plastic_jax.integrations.linen import TrainState

CLASSES, SIZE = 5, 12


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        for channels in (16, 32):
            x = nn.Conv(channels, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES)(x)


class State(TrainState):
    batch_stats: Any


def apply(params, batch_stats, x):
    return ConvNet().apply({"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"])


def loss(output, labels):
    logits, new = output
    value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return value, (new["batch_stats"], jnp.mean(jnp.argmax(logits, -1) == labels))


def batch(key, task, size):
    """Noisy pictures of the task's classes: smooth random patterns."""
    patterns = jax.random.normal(jax.random.fold_in(jax.random.key(3), task), (CLASSES, 5, 5, 1))
    patterns = jax.image.resize(patterns, (CLASSES, SIZE, SIZE, 1), "cubic")
    one, two = jax.random.split(key)
    labels = jax.random.randint(one, (size,), 0, CLASSES)
    return patterns[labels] + 2 * jax.random.normal(two, (size, SIZE, SIZE, 1)), labels


def create(args, continual):
    variables = ConvNet().init(jax.random.key(args.seed), jnp.zeros((1, SIZE, SIZE, 1)))
    params, stats = variables["params"], variables["batch_stats"]
    units = plastic_jax.trace_units(apply, params, jnp.zeros((args.batch, SIZE, SIZE, 1)), variables=stats)
    tx = optax.adam(args.step_size)
    if continual:
        tx = plastic_jax.continual_backprop(tx, units, replacement_rate=args.replacement_rate, key=jax.random.key(1))
    return units, State.create(apply_fn=apply, params=params, batch_stats=stats, tx=tx)


def learn(args, continual):
    """Accuracy of every task while it is learned."""
    units, state = create(args, continual)

    @functools.partial(jax.jit, static_argnames="steps")
    def learn_task(state, task, steps):
        def step(state, i):
            x, y = batch(jax.random.fold_in(jax.random.key(2), task * steps + i), task, args.batch)
            grads, (features, (stats, correct)) = units.grad(loss, has_aux=True)(state.params, state.batch_stats, x, y)
            state = state.apply_gradients(grads=grads, features=features, batch_stats=stats)
            if continual:  # a new unit starts with fresh running statistics too
                gone = {name: age == 0 for name, age in state.opt_state.age.items()}
                state = state.replace(batch_stats=units.reset_variables(gone, state.batch_stats))
            return state, correct

        state, correct = jax.lax.scan(step, state, jnp.arange(steps))
        return state, jnp.mean(correct)

    accuracies = []
    for task in range(args.tasks):
        state, accuracy = learn_task(state, task, args.steps)
        accuracies.append(float(accuracy))
        print(f"task {task + 1}: accuracy {accuracy:.3f}", flush=True)
    return accuracies


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=100, help="batches a task")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--step_size", type=float, default=1e-3)
    parser.add_argument("--replacement_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="train_state_convnet.png")
    args = parser.parse_args(argv)
    for name, continual in (("Adam", False), ("continual backprop", True)):
        print(name)
        plt.plot(range(1, args.tasks + 1), learn(args, continual), label=name)
    plt.gca().set(xlabel="task", ylabel="accuracy while it is learned")
    plt.legend()
    plt.savefig(args.figure)
    plt.close()


if __name__ == "__main__":
    main()
