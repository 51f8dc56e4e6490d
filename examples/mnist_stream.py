"""Permuted MNIST in plain optax: every task shows the digits with their pixels in another order.

python -m tasks.prepare mnist --data_dir=D
python -m examples.mnist_stream --data_dir=D --figure=mnist_stream.png
"""

import argparse
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import plastic_jax
from tasks.data import load_images

WIDTHS = (784, 200, 200, 10)


def init(key):
    keys = jax.random.split(key, len(WIDTHS) - 1)
    shapes = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    return [{"w": jax.random.normal(k, (n, m)) * (2 / n) ** 0.5, "b": jnp.zeros(m)} for k, n, m in shapes]


def network(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def loss(logits, labels):
    value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return value, jnp.mean(jnp.argmax(logits, -1) == labels)


def learn(args, images, labels, continual):
    """Accuracy while each task is learned, `[tasks]`; every image is shown once a task and predicted before it."""
    params = init(jax.random.key(args.seed))
    units = plastic_jax.trace_units(network, params, jnp.zeros((args.batch, 784)))
    tx = optax.with_extra_args_support(optax.sgd(args.step_size))
    if continual:
        tx = plastic_jax.continual_backprop(tx, units, replacement_rate=args.replacement_rate, key=jax.random.key(1))
    state = tx.init(params)

    def step(carry, batch):
        params, state = carry
        grads, (features, correct) = units.grad(loss, has_aux=True)(params, *batch)
        updates, state = tx.update(grads, state, params, features=features)
        return (optax.apply_updates(params, updates), state), correct

    @jax.jit
    def learn_task(params, state, key):
        order, pixels = (jax.random.permutation(k, n) for k, n in zip(jax.random.split(key), images.shape, strict=True))
        order = order[: len(order) // args.batch * args.batch].reshape(-1, args.batch)
        # One batch at a time, as a stream would come: the pictures are permuted inside the scan.
        carry, correct = jax.lax.scan(
            lambda carry, rows: step(carry, (images[rows][:, pixels], labels[rows])), (params, state), order
        )
        return *carry, jnp.mean(correct)

    accuracies = []
    for task in range(args.tasks):
        start = time.time()
        params, state, accuracy = learn_task(params, state, jax.random.fold_in(jax.random.key(2), task))
        accuracies.append(float(accuracy))
        print(f"task {task + 1}: accuracy {accuracy:.3f} ({time.time() - start:.1f} s)", flush=True)
    return accuracies


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="where `python -m tasks.prepare mnist` has put the digits")
    parser.add_argument("--random_digits", type=int, metavar="N", help="N noisy random patterns in place of MNIST")
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--step_size", type=float, default=0.03)
    parser.add_argument("--replacement_rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="mnist_stream.png")
    args = parser.parse_args(argv)

    if args.random_digits:
        draw = np.random.default_rng(0)
        labels = draw.integers(10, size=args.random_digits)
        images = draw.random((10, 784))[labels] + draw.normal(size=(args.random_digits, 784))
    else:
        data = load_images("mnist", args.data_dir)
        images, labels = data.train_x.reshape(-1, 784) / 255.0, data.train_y
    images, labels = jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)

    for name, continual in (("SGD", False), ("continual backprop", True)):
        print(name)
        plt.plot(range(1, args.tasks + 1), learn(args, images, labels, continual), label=name)
    plt.gca().set(xlabel="task", ylabel="accuracy while it is learned")
    plt.legend()
    plt.savefig(args.figure)
    plt.close()


if __name__ == "__main__":
    main()
