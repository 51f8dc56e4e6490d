"""Convolutions, pooling and flattening."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.plastic_jax.units.constructs.models import construct, layer, linen, normal
from tests.plastic_jax.units.notation import Expected, Model


@construct
def convolutions() -> Model:
    """Strided, padded and dilated."""

    def body(x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(3, (3, 3), kernel_dilation=2, padding=((2, 2), (2, 1)))(x))
        x = nn.relu(nn.Conv(2, (2, 3), padding="VALID")(x))
        return nn.Dense(2)(jnp.mean(x, axis=(1, 2)))

    conv = functools.partial(layer, use="h w i u")
    return linen(
        body,
        normal(2, 8, 8, 2),
        groups={
            "Conv_0": Expected(4, conv("Conv_0"), "Conv_1/kernel: h w u o", copies=1),
            "Conv_1": Expected(3, conv("Conv_1"), "Conv_2/kernel: h w u o", copies=1),
            "Conv_2": Expected(2, conv("Conv_2"), "Dense_0/kernel: u o", copies=1),
        },
    )


@construct
def one_dimensional_convolution() -> Model:
    def body(x):
        x = nn.relu(nn.Conv(4, (3,))(x))
        return jnp.mean(nn.Conv(2, (3,), padding="CAUSAL")(x), axis=1)

    return linen(
        body,
        normal(2, 6, 3),
        groups={"Conv_0": Expected(4, "Conv_0/kernel: h i u; Conv_0/bias: u", "Conv_1/kernel: h u o")},
    )


@construct
def grouped_convolution() -> Model:
    def body(x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=2)(x))
        return nn.Conv(2, (1, 1))(x)

    conv = functools.partial(layer, use="h w i u")
    return linen(
        body,
        normal(2, 4, 4, 2),
        groups={
            "Conv_0": Expected(4, conv("Conv_0"), "Conv_1/kernel: h w v (u2 o)", blocks=2),
            "Conv_1": Expected(6, conv("Conv_1"), "Conv_2/kernel: h w u o", blocks=2),
        },
    )


@construct
def depthwise_convolution() -> Model:
    def body(x):
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=3)(x))
        return nn.Conv(2, (1, 1))(x)

    conv = functools.partial(layer, use="h w i u")
    return linen(
        body,
        normal(2, 4, 4, 2),
        groups={
            "Conv_0": Expected(3, conv("Conv_0"), "Conv_1/kernel: h w i (u o)", blocks=3),
            "Conv_1": Expected(6, conv("Conv_1"), "Conv_2/kernel: h w u o", blocks=3),
        },
    )


@construct
def channels_first() -> Model:
    """A convolution in PyTorch's layout, by `lax`."""
    params = {
        "a": {"w": normal(4, 2, 3, 3, seed=1), "b": normal(4, 1, 1, seed=2)},
        "b": {"w": normal(3, 4, 3, 3, seed=3), "b": normal(3, 1, 1, seed=4)},
    }

    def conv(p, x):
        return jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME") + p["b"]

    group = Expected(4, "a/w: u i h w; a/b: u h w", "b/w: o u h w")
    return Model(lambda p, x: conv(p["b"], jax.nn.relu(conv(p["a"], x))), params, (normal(2, 2, 4, 4),), {"a": group})


@construct
def transposed_convolution_decoder() -> Model:
    """All positions of a channel are read with the same weights: together they are one unit."""

    def body(x):
        x = nn.relu(nn.Dense(12)(x)).reshape(-1, 2, 2, 3)
        x = nn.relu(nn.ConvTranspose(4, (3, 3), strides=(2, 2))(x))
        return nn.ConvTranspose(2, (3, 3), strides=(2, 2))(x)

    return linen(
        body,
        normal(2, 5),
        groups={
            "Dense_0": Expected(3, layer("Dense_0", use="i (p u)"), "ConvTranspose_0/kernel: h w u o"),
            "ConvTranspose_0": Expected(4, layer("ConvTranspose_0", use="h w i u"), "ConvTranspose_1/kernel: h w u o"),
        },
    )


@construct
def convolution_as_matrix_product() -> Model:
    """Slices side by side and a matrix product (im2col)."""

    def conv(width, x):
        n = x.shape[1] - 2
        patches = [x[:, i : i + n, j : j + n] for i in range(3) for j in range(3)]
        return nn.Dense(width)(jnp.concatenate(patches, axis=-1))

    def body(x):
        return conv(2, nn.relu(conv(4, x)))

    group = Expected(4, layer("Dense_0"), "Dense_1/kernel: (p u) o")
    return linen(body, normal(2, 6, 6, 2), groups={"Dense_0": group})


@construct
def pooling() -> Model:
    def body(x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(3, (3, 3))(x)), (3, 3), strides=(2, 2), padding="SAME")
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        x = jnp.mean(x.reshape(-1, 1, 2, 1, 2, 3), axis=(2, 4))
        x = nn.relu(nn.Conv(2, (1, 1))(x))
        return nn.Dense(2)(jnp.max(x, axis=(1, 2)))

    conv = functools.partial(layer, use="h w i u")
    read = ["Conv_1/kernel: h w u o", "Conv_2/kernel: h w u o", "Conv_3/kernel: h w u o", "Dense_0/kernel: u o"]
    return linen(
        body,
        normal(2, 8, 8, 2),
        groups={f"Conv_{i}": Expected(n, conv(f"Conv_{i}"), read[i], copies=1) for i, n in enumerate((4, 3, 3, 2))},
    )


def convolution(p, x):
    return (
        jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        + p["bias"]
    )


@construct
def flatten() -> Model:
    def body(x):
        x = nn.avg_pool(nn.relu(nn.Conv(3, (3, 3))(x)), (2, 2), strides=(2, 2))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))

    group = Expected(3, layer("Conv_0", use="h w i u"), "Dense_0/kernel: (p u) o", copies=4)

    def feature(p, x):
        x = nn.avg_pool(nn.relu(convolution(p["Conv_0"], x)), (2, 2), strides=(2, 2))
        return x.reshape(-1, 4, 3)

    return linen(body, normal(2, 4, 4, 2), groups={"Conv_0": group}, features={"Conv_0": feature})


@construct
def flatten_channel_major() -> Model:
    def body(x):
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        return nn.Dense(2)(jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1))

    group = Expected(3, layer("Conv_0", use="h w i u"), "Dense_0/kernel: (u p) o", copies=8)
    feature = lambda p, x: nn.relu(convolution(p["Conv_0"], x)).reshape(-1, 8, 3)  # noqa: E731
    return linen(body, normal(2, 2, 4, 2), groups={"Conv_0": group}, features={"Conv_0": feature})


@construct
def flatten_between() -> Model:
    """The channel lies between the two positions: height, channel, width."""

    def body(x):
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        return nn.Dense(2)(jnp.swapaxes(x, 2, 3).reshape(x.shape[0], -1))

    group = Expected(3, layer("Conv_0", use="h w i u"), "Dense_0/kernel: (p2 u q) o", copies=8)
    return linen(body, normal(2, 2, 4, 2), groups={"Conv_0": group})
