"""Layouts of parameters: modules, tuples, flat dictionaries."""

import dataclasses
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tests.plastic_jax.units.constructs.models import construct, normal, random_params
from tests.plastic_jax.units.notation import Expected, Model

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # flax 0.12.0 imports a name that jax 0.8 deprecates
    from flax import nnx


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    """Equinox's layout: `weight` is [out, in]."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return self.weight @ x + self.bias


@construct
def equinox_style() -> Model:
    """Layers are a list of dataclasses, applied to one example and mapped over the batch."""
    sizes = [(5, 4), (4, 3), (3, 2)]
    params = {"layers": [Linear(normal(n, m, seed=i), normal(n, seed=9 + i)) for i, (m, n) in enumerate(sizes)]}

    def one(params, x):
        *hidden, last = params["layers"]
        for linear in hidden:
            x = jax.nn.relu(linear(x))
        return last(x)

    groups = {
        f"layers/{i}": Expected(4 - i, f"layers/{i}/weight: u i; layers/{i}/bias: u", f"layers/{i + 1}/weight: o u")
        for i in range(2)
    }
    return Model(lambda p, x: jax.vmap(one, (None, 0))(p, x), params, (normal(3, 5),), groups)


class Weights(NamedTuple):
    w: jax.Array
    b: jax.Array


@construct
def list_of_named_tuples() -> Model:
    sizes = [(5, 4), (4, 3), (3, 2)]
    params = [Weights(normal(n, m, seed=i), normal(n, seed=9 + i)) for i, (m, n) in enumerate(sizes)]

    def apply(params, x):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w.T + b)
        return x @ params[-1].w.T + params[-1].b

    groups = {f"{i}": Expected(4 - i, f"{i}/w: u i; {i}/b: u", f"{i + 1}/w: o u") for i in range(2)}
    return Model(apply, params, (normal(3, 5),), groups)


@construct
def flat_dictionary() -> Model:
    """The `w1`, `b1` of a script."""
    params = {"w1": normal(5, 4, seed=1), "b1": normal(4, seed=2), "w2": normal(4, 2, seed=3), "b2": normal(2, seed=4)}

    def apply(p, x):
        return jax.nn.relu(jnp.dot(x, p["w1"]) + p["b1"]) @ p["w2"] + p["b2"]

    group = Expected(4, "w1~kernel: i u; b1~bias: u", "w2~kernel: u o")
    return Model(apply, params, (normal(3, 5),), {"w1": group})


@construct
def nnx_module() -> Model:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(5, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.z = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.z(nnx.relu(self.norm(self.a(x))))

    definition, params, variables = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    params, variables = random_params(params), random_params(variables)
    incoming = "a/kernel: i u; a/bias: u; norm/scale: u; norm/bias~shift: u"
    group = Expected(4, incoming, "z/kernel: u o", "norm/mean: u; norm/var: u")
    return Model(
        lambda p, v, x: nnx.merge(definition, p, v)(x), params, (normal(3, 5),), {"a": group}, variables=variables
    )
