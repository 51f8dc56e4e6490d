"""Normalisation and dropout."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastic_jax.axes import with_axis
from tests.plastic_jax.units.constructs.models import construct, dense, layer, linen, normal, random_params
from tests.plastic_jax.units.notation import Expected, Model


def batch_norm(train: bool, **options: Any) -> Model:
    def body(x):
        norms = [nn.BatchNorm(use_running_average=not train, **options) for _ in range(2)]
        x = nn.relu(norms[0](nn.Conv(4, (3, 3), use_bias=False)(x)))
        x = norms[1](nn.relu(nn.Conv(3, (3, 3))(x)))
        return nn.Dense(2)(jnp.mean(x, axis=(1, 2)))

    statistics = lambda i: f"batch_stats/BatchNorm_{i}/mean: u; batch_stats/BatchNorm_{i}/var: u"  # noqa: E731
    norm = lambda i: f"BatchNorm_{i}/scale: u; BatchNorm_{i}/bias~shift: u"  # noqa: E731
    groups = {
        "Conv_0": Expected(4, f"Conv_0/kernel: h w i u; {norm(0)}", "Conv_1/kernel: h w u o", statistics(0)),
        "Conv_1": Expected(
            3, f"Conv_1/kernel: h w i u; Conv_1/bias: u; {norm(1)}", "Dense_0/kernel: u o", statistics(1)
        ),
    }
    more = {"mutable": ["batch_stats"], "output": lambda y: y[0]} if train else {}
    return linen(body, normal(2, 4, 4, 2), groups=groups, **more)


@construct
def batch_norm_learning() -> Model:
    return batch_norm(train=True)


@construct
def batch_norm_evaluation() -> Model:
    return batch_norm(train=False)


def batch_norm_over_devices(**options: Any) -> Model:
    """The moments of a batch that is split over the devices; Flax stacks the two of them and sends them together."""
    model = batch_norm(train=True, axis_name="devices", **options)
    return dataclasses.replace(model, apply=with_axis(model.apply, "devices"))


@construct
def batch_norm_over_devices_stacked() -> Model:
    return batch_norm_over_devices()


@construct
def batch_norm_over_devices_one_by_one() -> Model:
    return batch_norm_over_devices(use_fast_variance=False)


@construct
def batch_norm_by_hand() -> Model:
    """Variance in two passes, unbiased in the running average, statistics moved towards the batch's (PyTorch's way)."""
    params = {
        "a": {"kernel": normal(5, 4, seed=1)},
        "norm": {"scale": abs(normal(4, seed=2)), "bias": normal(4, seed=3)},
        "b": {"kernel": normal(4, 2, seed=4), "bias": normal(2, seed=5)},
    }

    def apply(p, v, x):
        x = x @ p["a"]["kernel"]
        mean, var = jnp.mean(x, axis=0), jnp.var(x, axis=0)
        x = (x - mean) / jnp.sqrt(var + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
        new = {"mean": v["mean"] + 0.1 * (mean - v["mean"]), "var": 0.9 * v["var"] + 0.1 * var * 6 / 5}
        return jax.nn.relu(x) @ p["b"]["kernel"] + p["b"]["bias"], new

    incoming = "a/kernel: i u; norm/scale: u; norm/bias~shift: u"
    return Model(
        apply,
        params,
        (normal(6, 5),),
        {"a": Expected(4, incoming, "b/kernel: u o", "mean: u; var: u")},
        variables={"mean": normal(4), "var": abs(normal(4))},
        output=lambda y: y[0],
    )


def normalised(make: Callable[[], Any], norm: str, affine: str, after: bool = False, **more: Any) -> Model:
    def body(x):
        x = nn.Conv(4, (3, 3))(x)
        x = make()(nn.relu(x)) if after else nn.relu(make()(x))
        return nn.Conv(2, (1, 1))(x)

    lines = {"scale": f"{norm}/scale: u", "shift": f"{norm}/bias~shift: u"}
    incoming = ";".join([layer("Conv_0", use="h w i u"), *(lines[name] for name in affine.split())])
    group = Expected(4, incoming, "Conv_1/kernel: h w u o", **more)
    return linen(body, normal(2, 4, 4, 2), groups={"Conv_0": group})


@construct
def layer_norm() -> Model:
    return normalised(nn.LayerNorm, "LayerNorm_0", "scale shift", preserving=False)


@construct
def layer_norm_after_activation() -> Model:
    return normalised(nn.LayerNorm, "LayerNorm_0", "scale shift", after=True, preserving=False)


@construct
def group_norm() -> Model:
    return normalised(lambda: nn.GroupNorm(2), "GroupNorm_0", "scale shift", preserving=False, blocks=2)


@construct
def instance_norm() -> Model:
    """Group norm of one channel per group mixes positions only."""
    return normalised(nn.InstanceNorm, "InstanceNorm_0", "scale shift")


@construct
def rms_norm() -> Model:
    return normalised(nn.RMSNorm, "RMSNorm_0", "scale", preserving=False)


@construct
def dropout() -> Model:
    def body(x):
        x = nn.relu(nn.Dense(4)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=False)(x))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return body(x)

    net, x = Net(), normal(3, 5)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = random_params(jax.eval_shape(net.init, keys, x)["params"])
    apply = lambda p, x, key: net.apply({"params": p}, x, rngs={"dropout": key})  # noqa: E731
    return Model(apply, params, (x, jax.random.key(2)), {"Dense_0": dense(4, "Dense_0", "Dense_1", blocks=4)})
