"""Public architectures by family, with what tracing must find in them, counted from the papers' tables.

Those from packages are used as they are (`requires` names the package); the others are written as their paper, or the
example named, gives them. `full=False` builds the same structure in a size that can be run in a test.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

FAMILIES = (
    "vision",
    "text",
    "recurrent",
    "state_space",
    "reinforcement_learning",
    "graphs",
    "experts",
    "generative",
)
STREAM, TIED = "residual stream", "tied weights"


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network, and what is to be found in it.

    Attributes:
        apply: `apply(params, *inputs)`, or `apply(params, variables, *inputs)` with `variables`.
        params: shapes of its parameters; `concrete` draws them.
        inputs: example inputs.
        found: numbers of groups, of units, and of units whose group is function preserving.
        left_out: how the notes of what is left out begin.
        variables: shapes of running statistics.
        output: picks the network's output from what `apply` returns.
    """

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    found: tuple[int, int, int]
    left_out: tuple[str, ...] = ()
    variables: Any = None
    output: Callable[[Any], Any] = lambda output: output

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params))

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What `apply` gets after the parameters."""
        return self.inputs if self.variables is None else (self.variables, *self.inputs)

    def concrete(self) -> "Network":
        """The network with parameters of random numbers."""
        params = random_params(self.params)
        return dataclasses.replace(self, params=params, variables=self.variables and random_params(self.variables))


@dataclasses.dataclass(frozen=True)
class Architecture:
    """`make(full)` builds the published size, or a small one of the same structure.

    Attributes:
        family: one of `FAMILIES`.
        source: paper, example or package.
        parameters: number of parameters of the published size, where the source names one.
        requires: module without which it cannot be built.
    """

    name: str
    family: str
    source: str
    make: Callable[[bool], Network]
    parameters: int | None = None
    requires: str | None = None


ZOO: dict[str, Architecture] = {}
NOT_YET: dict[str, str] = {}
"""Networks in which tracing does not find what it should, and what it does; delete the line when it does."""


def architecture(name: str, source: str, parameters: int | None = None, requires: str | None = None) -> Any:
    """Registers a function of `full`; the family is its file."""

    def register(make: Callable[[bool], Network]) -> Callable[[bool], Network]:
        assert name not in ZOO, name
        ZOO[name] = Architecture(name, make.__module__.rpartition(".")[2], source, make, parameters, requires)
        return make

    return register


def load() -> dict[str, Architecture]:
    """All architectures, by family."""
    for family in FAMILIES:
        importlib.import_module(f"tests.zoo.{family}")
    return ZOO


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


def linen(net: nn.Module, *inputs: Any, found: tuple[int, int, int], left_out: Any = (), **kwargs: Any) -> Network:
    """A Flax network; one with running statistics as it is used in learning: `apply` returns them renewed."""
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = dict(jax.eval_shape(functools.partial(net.init, **kwargs), rngs, *inputs))
    params = variables["params"]
    if "batch_stats" in variables:

        def apply(p: Any, v: Any, *x: Any) -> Any:
            return net.apply({"params": p, "batch_stats": v}, *x, mutable=["batch_stats"], **kwargs)

        return Network(apply, params, inputs, found, left_out, variables["batch_stats"], lambda output: output[0])
    return Network(lambda p, *x: net.apply({"params": p}, *x, **kwargs), params, inputs, found, left_out)


def haiku(make: Callable[[], Any], *inputs: Any, found: tuple[int, int, int]) -> Network:
    """A Haiku network in training, `apply(params, state, *inputs) -> (output, state)`."""
    import haiku as hk

    net = hk.without_apply_rng(hk.transform_with_state(lambda *x: make()(*x, is_training=True)))
    params, state = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    return Network(net.apply, params, inputs, found, variables=state, output=lambda output: output[0])
