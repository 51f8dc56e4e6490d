"""Dense layers, einsums and embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.plastic_jax.units.constructs.models import construct, dense, layer, linen, mlp, normal
from tests.plastic_jax.units.notation import Expected, Model


@construct
def dense_layers() -> Model:
    def body(x):
        x = nn.relu(nn.Dense(4)(x))
        x = jnp.tanh(nn.Dense(3, use_bias=False)(x))
        return nn.Dense(2)(x)

    first = lambda p, x: nn.relu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])  # noqa: E731
    return linen(
        body,
        normal(3, 5),
        groups={
            "Dense_0": Expected(4, layer("Dense_0"), "Dense_1/kernel: u o", copies=1),
            "Dense_1": Expected(3, "Dense_1/kernel: i u", "Dense_2/kernel: u o", copies=1),
        },
        features={"Dense_0": first, "Dense_1": lambda p, x: jnp.tanh(first(p, x) @ p["Dense_1"]["kernel"])},
    )


@construct
def dense_without_batch() -> Model:
    return linen(lambda x: mlp(x, nn.relu), normal(5), groups={"Dense_0": dense(4, "Dense_0", "Dense_1")})


@construct
def dense_of_sequences() -> Model:
    return linen(
        lambda x: mlp(x, nn.relu),
        normal(3, 2, 5),
        groups={"Dense_0": dense(4, "Dense_0", "Dense_1")},
        features={"Dense_0": lambda p, x: nn.relu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])},
    )


@construct
def dense_general() -> Model:
    def body(x):
        x = nn.relu(nn.DenseGeneral((2, 3))(x))
        return nn.DenseGeneral(2, axis=(-2, -1))(x)

    group = Expected(6, layer("DenseGeneral_0", use="i u v"), "DenseGeneral_1/kernel: u v o")
    return linen(body, normal(3, 5), groups={"DenseGeneral_0": group})


@construct
def einsum() -> Model:
    params = {
        "a": {"w": normal(4, 5, seed=1), "b": normal(4, seed=2)},
        "z": {"w": normal(2, 4, seed=3), "b": normal(2, seed=4)},
    }

    def apply(p, x):
        x = jax.nn.relu(jnp.einsum("bi,hi->bh", x, p["a"]["w"]) + p["a"]["b"])
        return jnp.einsum("oh,bh->bo", p["z"]["w"], x) + p["z"]["b"]

    return Model(apply, params, (normal(3, 5),), {"a": Expected(4, "a/w: u i; a/b: u", "z/w: o u")})


@construct
def embedding() -> Model:
    def body(tokens):
        return mlp(nn.Embed(7, 3)(tokens), nn.relu)

    group = dense(4, "Dense_0", "Dense_1")
    return linen(body, jnp.array([[1, 2], [0, 6]]), groups={"Dense_0": group}, left_out="Embed_0")


@construct
def two_networks() -> Model:
    def body(x):
        class Part(nn.Module):
            out: int

            @nn.compact
            def __call__(self, x):
                return mlp(x, nn.tanh, outputs=self.out)

        return Part(3, name="policy")(x), Part(1, name="value")(x)

    return linen(
        body,
        normal(3, 5),
        groups={f"{n}/Dense_0": dense(4, f"{n}/Dense_0", f"{n}/Dense_1") for n in ("policy", "value")},
    )


@construct
def two_heads() -> Model:
    def body(x):
        x = nn.relu(nn.Dense(4)(x))
        return nn.Dense(3)(x), nn.Dense(1)(x)

    return linen(body, normal(3, 5), groups={"Dense_0": dense(4, "Dense_0", "Dense_1", "Dense_2")})


@construct
def siamese() -> Model:
    def body(x, y):
        first, second = nn.Dense(4), nn.Dense(3)
        embed = lambda x: second(nn.relu(first(x)))  # noqa: E731
        return jnp.sum((embed(x) - embed(y)) ** 2, axis=-1)

    return linen(body, normal(3, 5), normal(3, 5, seed=8), groups={"Dense_0": dense(4, "Dense_0", "Dense_1")})
