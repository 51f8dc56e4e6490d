"""A small nnx transformer learns one text, then is fine-tuned on a second one with and without continual backprop.

    python -m examples.nnx_transformer --figure=nnx_transformer.png
    python -m examples.nnx_transformer --first=mine.txt --second=yours.txt

Without files, it reads the English of Python's help pages first and the code of Python's library second.
"""

import argparse
import pydoc_data.topics
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import plastic_jax
from plastic_jax.integrations.nnx import trace_units


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    def __init__(self, width, blocks, context, rngs):
        self.tokens = nnx.Embed(256, width, rngs=rngs)
        self.positions = nnx.Embed(context, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(blocks)])
        self.norm, self.head = nnx.LayerNorm(width, rngs=rngs), nnx.Linear(width, 256, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def loss(logits, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def learn(args, model, units, tx, text, steps):
    """Trains the module on a text in place; the loss of every tenth of the steps."""
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    draw = np.random.default_rng(args.seed)

    @nnx.jit
    def step(model, optimizer, tokens):
        (value, features), grads = units.value_and_grad(loss)(model, tokens[:, :-1], tokens[:, 1:])
        optimizer.update(model, grads, features=features)
        return value

    losses = []
    for _ in range(steps):
        starts = draw.integers(len(text) - args.context - 1, size=(args.batch, 1))
        losses.append(step(model, optimizer, text[starts + np.arange(args.context + 1)]))
    means = [float(np.mean(part)) for part in np.array_split(np.asarray(losses), 10)]
    print("loss " + " ".join(f"{mean:.2f}" for mean in means), flush=True)
    return means


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=Path, help="a text file; Python's help pages without it")
    parser.add_argument("--second", type=Path, help="another one; the code of argparse without it")
    parser.add_argument("--steps", type=int, default=300, help="batches of each text")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--step_size", type=float, default=1e-3)
    parser.add_argument("--replacement_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="nnx_transformer.png")
    args = parser.parse_args(argv)

    first = args.first.read_bytes() if args.first else "\n".join(pydoc_data.topics.topics.values()).encode()
    second = args.second.read_bytes() if args.second else Path(argparse.__file__).read_bytes()
    first, second = (np.frombuffer(text, np.uint8).astype(np.int32) for text in (first, second))

    model = Transformer(args.width, args.blocks, args.context, nnx.Rngs(args.seed))
    units = trace_units(model, jnp.zeros((args.batch, args.context), jnp.int32))
    print(units)
    adam = optax.with_extra_args_support(optax.adam(args.step_size))
    learn(args, model, units, adam, first, args.steps)
    continual = plastic_jax.continual_backprop(
        adam, units, replacement_rate=args.replacement_rate, key=jax.random.key(1)
    )
    for name, tx in (("Adam", adam), ("continual backprop", continual)):
        print(name)
        means = learn(args, nnx.clone(model), units, tx, second, args.steps)
        plt.plot(np.arange(1, 11) * args.steps / 10, means, label=name)
    plt.gca().set(xlabel="step on the second text", ylabel="loss (nats a byte)")
    plt.legend()
    plt.savefig(args.figure)
    plt.close()


if __name__ == "__main__":
    main()
