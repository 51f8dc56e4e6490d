"""How the small models are written."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from tests.plastic_jax.units.notation import Expected, Model

CONSTRUCTS: dict[str, Callable[[], Model]] = {}


def construct(build: Callable[[], Model]) -> Callable[[], Model]:
    """Registers a model under the name of its function; built once."""
    cached = functools.cache(build)
    CONSTRUCTS[build.__name__] = cached
    return cached


def normal(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_params(shapes: Any) -> Any:
    """Numbers of these shapes, different in every leaf; vectors are positive, which keeps most units awake."""
    leaves, treedef = jax.tree.flatten(shapes)
    values = []
    for i, leaf in enumerate(leaves):
        value = normal(*leaf.shape, seed=i)
        value = np.abs(value) + 0.1 if leaf.ndim <= 1 else value / np.sqrt(value[..., 0].size)
        values.append(value.astype(leaf.dtype))
    return jax.tree.unflatten(treedef, values)


def linen(body: Callable[..., Any], *inputs: Any, mutable: Any = False, **model: Any) -> Model:
    """A model from the body of a compact module; with running statistics where it has some."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, *inputs: Any) -> Any:
            return body(*inputs)

    net = Net()
    variables = dict(jax.eval_shape(net.init, jax.random.key(0), *inputs))
    params = random_params(variables.pop("params"))
    if not variables:
        return Model(lambda p, *x: net.apply({"params": p}, *x), params, inputs, **model)
    apply = lambda p, v, *x: net.apply({"params": p, **v}, *x, mutable=mutable)  # noqa: E731
    return Model(apply, params, inputs, variables=random_params(variables), **model)


def mlp(x: Any, f: Callable[[jax.Array], jax.Array], outputs: int = 2) -> jax.Array:
    """`Dense_0` of 4 units, a nonlinearity, `Dense_1`."""
    x = f(nn.Dense(4)(x))
    return nn.Dense(outputs)(x)


def layer(*names: str, use: str = "i u") -> str:
    """Kernel columns and biases of layers."""
    bias = {"i u": "u", "h w i u": "u", "i u v": "u v", "i (p u)": "(p u)"}[use]
    return ";".join(f"{name}/kernel: {use}; {name}/bias: {bias}" for name in names)


def dense(width: int, made: str, *read: str, **more: Any) -> Expected:
    """Units of one dense layer, read by dense layers."""
    return Expected(width, layer(made), ";".join(f"{name}/kernel: u o" for name in read), **more)
