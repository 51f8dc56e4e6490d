"""A GRU in Equinox; every task asks for another weighted sum of the last inputs of a sequence.

python -m examples.equinox_rnn --figure=equinox_rnn.png
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import plastic_jax
from plastic_jax.integrations.equinox import trace_units

LENGTH, REMEMBERED = 12, 6


class Network(eqx.Module):
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, width, key):
        one, two = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(1, width, key=one)
        self.head = eqx.nn.Linear(width, 1, key=two)

    def __call__(self, sequence):
        start = jnp.zeros(self.cell.hidden_size)
        last, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, sequence)
        return self.head(last)


def call(model, x):
    return jax.vmap(model)(x)


def loss(output, y):
    return jnp.mean((output - y) ** 2)


def batch(key, weights, size):
    x = jax.random.normal(key, (size, LENGTH, 1))
    return x, jnp.sum(x[:, -REMEMBERED:] * weights, axis=1)


def learn(args, continual):
    """Squared error in the second half of every task."""
    model = Network(args.width, jax.random.key(args.seed))
    units = trace_units(call, model, jnp.zeros((args.batch, LENGTH, 1)))
    tx = optax.with_extra_args_support(optax.adam(args.step_size))
    if continual:
        tx = plastic_jax.continual_backprop(tx, units, replacement_rate=args.replacement_rate, key=jax.random.key(1))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def learn_task(model, state, key):
        draw, data = jax.random.split(key)
        weights = jax.random.normal(draw, (REMEMBERED, 1)) / REMEMBERED**0.5
        arrays, static = eqx.partition(model, eqx.is_array)

        def step(carry, key):
            arrays, state = carry
            model = eqx.combine(arrays, static)
            (error, features), grads = units.value_and_grad(loss)(model, *batch(key, weights, args.batch))
            params = eqx.filter(model, eqx.is_inexact_array)
            updates, state = tx.update(grads, state, params, features=features)
            return (eqx.filter(eqx.apply_updates(model, updates), eqx.is_array), state), error

        (arrays, state), errors = jax.lax.scan(step, (arrays, state), jax.random.split(data, args.steps))
        return eqx.combine(arrays, static), state, jnp.mean(errors[args.steps // 2 :])

    found = []
    for task in range(args.tasks):
        model, state, error = learn_task(model, state, jax.random.fold_in(jax.random.key(2), task))
        found.append(float(error))
        print(f"task {task + 1}: squared error {error:.3f}", flush=True)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300, help="batches a task")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--step_size", type=float, default=3e-3)
    parser.add_argument("--replacement_rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="equinox_rnn.png")
    args = parser.parse_args(argv)
    for name, continual in (("Adam", False), ("continual backprop", True)):
        print(name)
        plt.plot(range(1, args.tasks + 1), learn(args, continual), label=name)
    plt.gca().set(xlabel="task", ylabel="squared error, second half")
    plt.legend()
    plt.savefig(args.figure)
    plt.close()


if __name__ == "__main__":
    main()
