"""One learner on several devices: 1, 2 and 4 of them learn the same, and replace the same units.

All runs are made by this file as a program of its own, which has four devices; see `main`.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from plastic_jax import MLP, BatchNorm, ConvNet, continual_backprop, redo, regrama, trace_units
from plastic_jax.learners.supervised import SupervisedLearner, network_units
from plastic_jax.optimizers.adam import adam
from plastic_jax.paths import leaf_names

ROOT = Path(__file__).parents[2]
AXIS = "devices"
DEVICES = (1, 2, 4)
STEPS = 200
BATCH = 8
KEY = jax.random.key(0)


class NormedNet(nn.Module):
    """A small convolutional network with batch normalisation after each kind of layer."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(6, (3, 3), strides=2, name="Conv_0")(x)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="BatchNorm_0")(x, train))
        x = nn.Dense(8, name="Dense_0")(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name, name="BatchNorm_1")(x)
        return nn.Dense(3, name="Dense_1")(nn.relu(x))


class Batch(NamedTuple):
    x: Any
    y: Any
    boundary: Any = False
    class_mask: Any = None
    step_scale: Any = None


class Case(NamedTuple):
    """What is learned on each device.

    Attributes:
        init: `() -> state`.
        step: `(state, data, clock) -> (state, numbers)`, `data` that device's part of a step's.
        optimizer: `state -> the method's state`.
        data: arrays `[STEPS, BATCH, ...]`.
    """

    init: Any
    step: Any
    optimizer: Any
    data: Any


def supervised(network, shape, method, axis, **options) -> Case:
    units = network_units(network, shape, axis)
    learner = SupervisedLearner(
        network, shape, "cross_entropy", lambda _, key: method(units, key), units, axis_name=axis, **options
    )

    def step(state, data, clock):
        return learner.step(state, {}, Batch(*data), clock)

    x = jax.random.normal(jax.random.key(1), (STEPS, BATCH, *shape))
    y = jax.random.randint(jax.random.key(2), (STEPS, BATCH), 0, 3)
    return Case(lambda: learner.init(KEY, jax.random.key(3), {}), step, lambda state: state.optimizer, (x, y))


def cbp(axis, inner=None, rate=0.05):
    inner = inner or optax.sgd(0.05, momentum=0.9)
    options = {"replacement_rate": rate, "maturity_threshold": 10, "utility": "adaptable_contribution"}
    return lambda units, key: continual_backprop(inner, units, key=key, axis_name=axis, **options)


def dormant(axis):
    return lambda units, key: redo(adam(0.003), units, threshold=0.4, period=20, key=key, axis_name=axis)


def inactive(axis):
    return lambda units, key: regrama(adam(0.003), units, threshold=0.5, period=20, key=key, axis_name=axis)


def actor_critic(axis) -> Case:
    """PPO's clipped loss and a value loss on recorded steps, in a loop of one's own."""
    actor, critic = MLP((12, 8), 2, "tanh"), MLP((10,), 1)

    def model(params, x):
        return actor.apply({"params": params["actor"]}, x), critic.apply({"params": params["critic"]}, x)[:, 0]

    def fresh():
        blank, keys = jnp.zeros((1, 5)), jax.random.split(KEY)
        nets = {"actor": actor.init(keys[0], blank)["params"], "critic": critic.init(keys[1], blank)["params"]}
        return nets | {"log_std": jnp.zeros(2)}

    x = jax.ShapeDtypeStruct((1, 5), jnp.float32)
    units = trace_units(model, jax.eval_shape(fresh), x)
    inner = optax.chain(optax.clip_by_global_norm(0.5), adam(0.003))
    tx = cbp(axis, inner)(units, jax.random.key(3))

    def loss(params, rows):
        seen, action, before, advantage, returns = rows
        (mean, value), features = units.apply(params, seen)
        density = jnp.sum(-0.5 * ((action - mean) / jnp.exp(params["log_std"])) ** 2 - params["log_std"], 1)
        ratio = jnp.exp(density - before)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        return averaged(jnp.mean((returns - value) ** 2) - jnp.mean(gain), axis), features

    def step(state, rows, clock):
        params, optimizer = state
        (value, features), gradients = jax.value_and_grad(loss, has_aux=True)(params, rows)
        updates, optimizer = tx.update(averaged(gradients, axis), optimizer, params, features=features)
        return (optax.apply_updates(params, updates), optimizer), {"loss": value}

    seen, action, gains = jnp.split(jax.random.normal(KEY, (STEPS, BATCH, 9)), (5, 7), axis=-1)
    data = (seen, action, -0.5 * jnp.sum(action**2, -1), gains[..., 0], gains[..., 1])

    def init():
        params = fresh()
        return params, tx.init(params)

    return Case(init, step, lambda state: state[1], data)


def averaged(tree, axis):
    return tree if axis is None else jax.lax.pmean(tree, axis)


PICTURES, CONTROL = (8, 8, 1), "method_without_axis"
CASES = {
    "mlp_cbp": lambda axis: supervised(MLP((16, 12), 3), (6,), cbp(axis), axis),
    "mlp_redo": lambda axis: supervised(MLP((16, 12), 3), (6,), dormant(axis), axis),
    "mlp_regrama": lambda axis: supervised(MLP((16, 12), 3), (6,), inactive(axis), axis, feature_gradients=True),
    "conv_cbp": lambda axis: supervised(ConvNet(3, (6,), (3,), (10,)), PICTURES, cbp(axis), axis),
    "norm_cbp": lambda axis: supervised(NormedNet(axis_name=axis), PICTURES, cbp(axis), axis),
    "ppo_cbp": actor_critic,
    CONTROL: lambda axis: supervised(MLP((16, 12), 3), (6,), cbp(None), axis),
}


def learned(case: Case, devices: int, **options) -> dict[str, np.ndarray]:
    """Everything that is known at the end, and at every step which units went: arrays `[device, ...]` by name."""

    def run(data):
        def step(state, now):
            clock, part = now
            state, numbers = case.step(state, part, clock)
            return state, (numbers, {name: age == 0 for name, age in case.optimizer(state).age.items()})

        state, (numbers, gone) = jax.lax.scan(step, case.init(), (jnp.arange(STEPS), data))
        found = {"state": state, "numbers": numbers, "gone": gone}
        named = dict(zip(leaf_names(found), jax.tree.leaves(found), strict=True))
        is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
        return {name: leaf[None] for name, leaf in named.items() if not is_key(leaf)}

    if devices > 1:
        mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
        run = jax.shard_map(run, mesh=mesh, in_specs=P(None, AXIS), out_specs=P(AXIS), **options)
    return jax.tree.map(np.asarray, jax.jit(run)(case.data))


def main(folder: Path) -> None:
    """Learns every case on every number of devices; a single one learns without a mapped axis.

    On two devices `shard_map` knows what is the same on all of them, on four it does not: gradients differ in kind.
    """
    for name, case in CASES.items():
        for devices in DEVICES[1:2] if name == CONTROL else DEVICES:
            options = {"check_vma": devices == 2 and name != CONTROL} if devices > 1 else {}
            axis = AXIS if devices > 1 else None
            np.savez(folder / f"{name}_{devices}.npz", **learned(case(axis), devices, **options))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs(name, devices)`: arrays `[device, ...]` by name."""
    folder = tmp_path_factory.mktemp("runs")
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    # Collectives of several devices wait for each other: on few cores they need more threads than one.
    given = {"NPROC": "8", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "error", __file__, str(folder)]
    done = subprocess.run(
        command, env={**os.environ, **given, "PYTHONPATH": path}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]

    def load(name, devices):
        with np.load(folder / f"{name}_{devices}.npz") as file:
            return dict(file)

    return load


@pytest.mark.parametrize("devices", DEVICES[1:])
@pytest.mark.parametrize("name", [name for name in CASES if name != CONTROL])
def test_several_devices_learn_what_one_learns_and_replace_the_same_units(name, devices, runs):
    one, several = runs(name, 1), runs(name, devices)
    assert one.keys() == several.keys()
    assert sum(gone.sum() for leaf, gone in one.items() if leaf.startswith("gone/")) >= 40
    for leaf, expected in one.items():
        found = several[leaf]
        assert found.shape == (devices, *expected.shape[1:])
        np.testing.assert_array_equal(found, np.broadcast_to(found[:1], found.shape), err_msg=leaf)
        if name == "mlp_regrama" and "/activity/" in leaf:  # gradients in features are known up to a common factor
            found = found * (expected.sum() / found[0].sum())
        if np.issubdtype(expected.dtype, np.floating):
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-5, err_msg=leaf)
        else:
            np.testing.assert_array_equal(found[0], expected[0], err_msg=leaf)


def test_statistics_of_batch_norm_are_among_what_agrees(runs):
    found = runs("norm_cbp", 2)
    for norm in ("BatchNorm_0", "BatchNorm_1"):
        assert np.any(found[f"state/variables/batch_stats/{norm}/mean"] != 0)


def test_method_that_is_not_told_of_the_axis_replaces_other_units_on_every_device(runs):
    found = runs(CONTROL, 2)
    gone = [leaf for leaf in found if leaf.startswith("gone/")]
    assert any(np.any(found[leaf][0] != found[leaf][1]) for leaf in gone)
    np.testing.assert_array_equal(found["numbers/loss"][0, :5], found["numbers/loss"][1, :5])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
