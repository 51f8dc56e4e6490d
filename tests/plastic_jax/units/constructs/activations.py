"""Nonlinearities, by hand and by name."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.plastic_jax.units.constructs.models import construct, dense, layer, linen, mlp, normal
from tests.plastic_jax.units.notation import Expected, Model


@jax.custom_jvp
def clipped_slope(x):
    return jnp.maximum(x, 0.0) + 0.1 * jnp.minimum(x, 0.0)


clipped_slope.defjvps(lambda t, _, x: t * jnp.where(x > 0, 1.0, 0.1))


@jax.custom_vjp
def straight_through(x):
    return jnp.round(jnp.tanh(x) * 4) / 4


straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, g: (g,))


def activation(name: str, f: Callable[[jax.Array], jax.Array]) -> None:
    def build() -> Model:
        return linen(
            lambda x: mlp(x, f),
            normal(3, 5),
            groups={"Dense_0": dense(4, "Dense_0", "Dense_1")},
            features={"Dense_0": lambda p, x: f(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])},
        )

    build.__name__ = name
    construct(build)


activation("gelu", nn.gelu)
activation("elu", nn.elu)
activation("silu", nn.silu)
activation("softplus", nn.softplus)
activation("abs", jnp.abs)
activation("sine", jnp.sin)
activation("square", lambda x: x**2)
activation("maximum", lambda x: jnp.maximum(x, 0.0))
activation("clip", lambda x: jnp.clip(x, -1.0, 1.0))
activation("where", lambda x: jnp.where(x > 0, x, 0.1 * x))
activation("own_custom_jvp", clipped_slope)
activation("own_custom_vjp", straight_through)
activation("inner_jit", jax.jit(lambda x: jnp.tanh(x) * jax.nn.sigmoid(x)))
activation("under_remat", jax.checkpoint(nn.gelu))
activation("bfloat16", lambda x: nn.relu(x.astype(jnp.bfloat16)).astype(jnp.float32))


@construct
def remat() -> Model:
    def body(x):
        return nn.Dense(2)(nn.relu(nn.remat(nn.Dense)(4, name="hidden")(x)))

    group = Expected(4, layer("hidden"), "Dense_0/kernel: u o")
    return linen(body, normal(3, 5), groups={"hidden": group})


@construct
def remat_block() -> Model:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return mlp(x, nn.relu, outputs=3)

    def body(x):
        return nn.Dense(2)(nn.relu(nn.remat(Block)(name="block")(x)))

    return linen(
        body,
        normal(3, 5),
        groups={
            "block/Dense_0": dense(4, "block/Dense_0", "block/Dense_1"),
            "block/Dense_1": dense(3, "block/Dense_1", "Dense_0"),
        },
    )


@construct
def jitted_blocks() -> Model:
    """The weights enter the inner compiled function as arguments."""

    @jax.jit
    def block(w, b, x):
        return jax.nn.relu(x @ w + b)

    params = {
        f"l{i}": {"w": normal(m, n, seed=i), "b": normal(n, seed=9 + i)}
        for i, (m, n) in enumerate([(5, 4), (4, 3), (3, 2)])
    }

    def apply(p, x):
        for i in range(2):
            x = block(p[f"l{i}"]["w"], p[f"l{i}"]["b"], x)
        return x @ p["l2"]["w"] + p["l2"]["b"]

    groups = {f"l{i}": Expected(4 - i, f"l{i}/w: i u; l{i}/b: u", f"l{i + 1}/w: u o") for i in range(2)}
    return Model(apply, params, (normal(3, 5),), groups)


@construct
def crelu() -> Model:
    def body(x):
        x = nn.Dense(4)(x)
        return nn.Dense(2)(jnp.concatenate([nn.relu(x), nn.relu(-x)], axis=-1))

    def feature(p, x):
        x = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
        return jnp.stack([nn.relu(x), nn.relu(-x)], axis=-2)

    group = Expected(4, layer("Dense_0"), "Dense_1/kernel: (p u) o", copies=2)
    return linen(body, normal(3, 5), groups={"Dense_0": group}, features={"Dense_0": feature})


@construct
def stacked_crelu() -> Model:
    def body(x):
        x = nn.Dense(4)(x)
        x = jnp.stack([nn.relu(x), nn.relu(-x)], axis=-1)
        return nn.Dense(2)(x.reshape(*x.shape[:-2], -1))

    group = Expected(4, layer("Dense_0"), "Dense_1/kernel: (u p) o", copies=2)
    return linen(body, normal(3, 5), groups={"Dense_0": group})


@construct
def halves_unstacked() -> Model:
    def body(x):
        x = nn.Dense(8)(x)
        gate, value = jnp.unstack(x.reshape(*x.shape[:-1], 2, 4), axis=-2)
        return nn.Dense(2)(nn.sigmoid(gate) * value)

    group = Expected(4, "Dense_0/kernel: i (p u); Dense_0/bias: (p u)", "Dense_1/kernel: u o")
    return linen(body, normal(3, 5), groups={"Dense_0": group})


@construct
def fourier_features() -> Model:
    def body(x):
        for _ in range(2):
            x = nn.Dense(4)(x)
            x = jnp.concatenate([jnp.sin(x), jnp.cos(x)], axis=-1)
        return nn.Dense(2)(x)

    groups = {f"Dense_{i}": Expected(4, layer(f"Dense_{i}"), f"Dense_{i + 1}/kernel: (p u) o") for i in range(2)}
    return linen(body, normal(3, 5), groups=groups)


@construct
def maxout() -> Model:
    def body(x):
        x = nn.Dense(8)(x)
        return nn.Dense(2)(jnp.max(x.reshape(*x.shape[:-1], 4, 2), axis=-1))

    group = Expected(4, "Dense_0/kernel: i (u p); Dense_0/bias: (u p)", "Dense_1/kernel: u o")
    return linen(body, normal(3, 5), groups={"Dense_0": group})


@construct
def maximum_of_two_layers() -> Model:
    def body(x):
        x = jnp.maximum(nn.Dense(4)(x), nn.Dense(4)(x))
        return nn.Dense(2)(x)

    group = Expected(4, layer("Dense_0", "Dense_1"), "Dense_2/kernel: u o")
    return linen(body, normal(3, 5), groups={"Dense_0": group})
