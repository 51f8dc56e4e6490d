"""Parameters that are laid out over devices stay so, and so does what a method keeps of them."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from plastic_jax import continual_backprop, redo, trace_units

ROOT = Path(__file__).parents[2]
SPECS = [
    {"w": P(None, "model"), "b": P("model")},
    {"w": P("model", None), "b": P()},
    {"w": P("model", None)},
]
METHODS = {
    "continual_backprop": lambda units, **key: continual_backprop(
        optax.adam(0.01), units, replacement_rate=0.3, maturity_threshold=0, utility="contribution", **key
    ),
    "redo": lambda units, **key: redo(optax.adam(0.01), units, threshold=0.9, period=1, **key),
}


def net(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"]


def learned(tx, units, params, x):
    """Parameters and state after three steps."""

    def step(params, state):
        grads, features = units.grad(lambda output: jnp.mean(output**2))(params, x)
        updates, state = tx.update(grads, state, params, features=features)
        return optax.apply_updates(params, updates), state

    step, state = jax.jit(step), tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    return params, state


def specs(tree):
    return [getattr(leaf.sharding, "spec", None) for leaf in jax.tree.leaves(tree)]


def main():
    """On two devices; prints nothing if all is well."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    shapes = [{"w": (4, 8), "b": (8,)}, {"w": (8, 8), "b": (8,)}, {"w": (8, 2)}]
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda s: draw.normal(size=s).astype("float32"), shapes, is_leaf=lambda s: type(s) is tuple)
    x = draw.normal(size=(6, 4)).astype("float32")
    layout = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS, is_leaf=lambda spec: isinstance(spec, P))
    sharded = jax.device_put(params, layout)
    single = jax.device_put(params, jax.devices()[0])
    for means, make in zip((False, True), METHODS.values(), strict=True):
        units = trace_units(net, sharded, x, check=False, means=means)
        plain, tx = optax.with_extra_args_support(optax.adam(0.01)), make(units, key=jax.random.key(2))
        assert specs(tx.init(sharded).inner) == specs(plain.init(sharded))
        found, state = learned(tx, units, sharded, x)
        expected, plain_state = learned(plain, units, sharded, x)
        assert specs(found) == specs(expected) and P(None, "model") in specs(found)
        assert specs(state.inner) == specs(plain_state)
        alone, alone_state = learned(tx, units, single, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, alone)
        assert sum(int(n) for n in state.replaced.values()) > 0
        jax.tree.map(np.testing.assert_array_equal, state.replaced, alone_state.replaced)


def test_parameters_and_state_keep_the_layout_that_the_inner_optimizer_gives_them():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    given = {**os.environ, "XLA_FLAGS": flags, "NPROC": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], env=given, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main()
