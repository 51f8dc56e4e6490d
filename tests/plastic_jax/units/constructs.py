"""One small model per construct, each with the unit graph that follows from its equations, written down by hand.

A feature is the value that the next contraction reads, after a nonlinearity: its units are numbered along the axis
that the reader contracts. Incoming: the columns that make it since the last contraction, with their biases and the
scales and shifts of normalisations; outgoing: the rows of all its readers.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.axes import with_axis
from tests.plastic_jax.units.notation import Expected, Model

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # flax 0.12.0 imports a name that jax 0.8 deprecates
    from flax import nnx

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


# Dense layers ---------------------------------------------------------------------------------------------------------


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


# Activations ----------------------------------------------------------------------------------------------------------


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


# Gates ----------------------------------------------------------------------------------------------------------------


@construct
def glu() -> Model:
    group = Expected(4, "Dense_0/kernel: i (p u); Dense_0/bias: (p u)", "Dense_1/kernel: u o")

    def body(x):
        x = nn.glu(nn.Dense(8)(x))
        return nn.Dense(2)(x)

    return linen(body, normal(3, 5), groups={"Dense_0": group})


@construct
def swiglu_of_two_kernels() -> Model:
    def body(x):
        gate, up = nn.Dense(4, use_bias=False, name="gate")(x), nn.Dense(4, use_bias=False, name="up")(x)
        return nn.Dense(2, name="down")(nn.silu(gate) * up)

    group = Expected(4, "gate/kernel: i u; up/kernel: i u", "down/kernel: u o")
    feature = lambda p, x: nn.silu(x @ p["gate"]["kernel"]) * (x @ p["up"]["kernel"])  # noqa: E731
    return linen(body, normal(3, 5), groups={"gate": group}, features={"gate": feature})


@construct
def swiglu_of_one_kernel() -> Model:
    def body(x):
        gate, up = jnp.split(nn.Dense(8)(x), 2, axis=-1)
        return nn.Dense(2)(nn.silu(gate) * up)

    group = Expected(4, "Dense_0/kernel: i (p u); Dense_0/bias: (p u)", "Dense_1/kernel: u o")
    return linen(body, normal(3, 5), groups={"Dense_0": group})


@construct
def squeeze_and_excite() -> Model:
    def body(x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        gate = nn.relu(nn.Dense(2)(jnp.mean(x, axis=(1, 2))))
        gate = nn.sigmoid(nn.Dense(4)(gate))
        x = x * gate[:, None, None, :]
        return jnp.mean(nn.Conv(3, (1, 1))(x), axis=(1, 2))

    return linen(
        body,
        normal(2, 4, 4, 3),
        groups={
            "Conv_0": Expected(
                4,
                layer("Conv_0", use="h w i u") + ";" + layer("Dense_1"),
                "Conv_1/kernel: h w u o; Dense_0/kernel: u o",
            ),
            "Dense_0": dense(2, "Dense_0", "Dense_1"),
        },
    )


# Convolutions ---------------------------------------------------------------------------------------------------------


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


@construct
def weight_standardisation() -> Model:
    """Standardising a reader's kernel mixes its rows, so zeros there do not isolate a unit."""

    def standardise(w):
        return (w - jnp.mean(w, axis=(0, 1, 2))) / (jnp.std(w, axis=(0, 1, 2)) + 1e-3)

    params = {
        "a": {"kernel": normal(3, 3, 2, 4, seed=1), "bias": normal(4, seed=2)},
        "b": {"kernel": normal(3, 3, 4, 3, seed=3), "bias": normal(3, seed=4)},
        "c": {"kernel": normal(3, 2, seed=5), "bias": normal(2, seed=6)},
    }

    def apply(p, x):
        for name in ("a", "b"):
            x = jax.nn.relu(convolution({**p[name], "kernel": standardise(p[name]["kernel"])}, x))
        return jnp.mean(x, axis=(1, 2)) @ p["c"]["kernel"] + p["c"]["bias"]

    conv = functools.partial(layer, use="h w i u")
    groups = {
        "a": Expected(4, conv("a"), "b/kernel: h w u o", preserving=False),
        "b": Expected(3, conv("b"), "c/kernel: u o"),
    }
    return Model(apply, params, (normal(2, 4, 4, 2),), groups)


@jax.custom_vjp
def rounded(w):
    """A multiple of 1/8, with the gradient of what was rounded."""
    return jnp.round(8 * w) / 8


rounded.defvjp(lambda w: (rounded(w), None), lambda _, g: (g,))


@construct
def quantised_weights() -> Model:
    """Zeros stay zeros, so a unit that is read by none is silent."""
    params = {"a": {"kernel": normal(5, 4, seed=1)}, "b": {"kernel": normal(4, 2, seed=2)}}

    def apply(p, x):
        return jax.nn.relu(x @ rounded(p["a"]["kernel"])) @ rounded(p["b"]["kernel"])

    group = Expected(4, "a/kernel: i u", "b/kernel: u o")
    return Model(apply, params, (normal(3, 5),), {"a": group})


@construct
def complex_weights() -> Model:
    kernel = normal(5, 4, seed=1) + 1j * normal(5, 4, seed=2)
    params = {"a": {"kernel": kernel.astype(np.complex64)}, "b": {"kernel": normal(4, 2, seed=3)}}
    group = Expected(4, "a/kernel: i u", "b/kernel: u o")
    return Model(
        lambda p, x: jax.nn.relu((x @ p["a"]["kernel"]).real) @ p["b"]["kernel"], params, (normal(3, 5),), {"a": group}
    )


def two_layers(weights: Callable[[Any], Any], preserving: bool = True, **more: np.ndarray) -> Model:
    """Units of `a`, read by weights that are made of `b` and `more`, through which units differ."""
    params = {"a": {"kernel": normal(5, 4, seed=1)}, "b": {"kernel": normal(4, 2, seed=2)}, **more}
    group = Expected(4, "a/kernel: i u", "b/kernel: u o", preserving=preserving, blocks=4)
    apply = lambda p, x: jnp.tanh(x @ p["a"]["kernel"]) @ weights(p)  # noqa: E731
    return Model(apply, params, (normal(3, 5),), {"a": group})


@construct
def masked_weights() -> Model:
    mask = normal(4, 2, seed=3) > 0
    return two_layers(lambda p: jnp.where(mask, p["b"]["kernel"], 0.0))


@construct
def weights_masked_by_ones() -> Model:
    mask = normal(4, 2, seed=3) > 0
    return two_layers(lambda p: jnp.where(mask, p["b"]["kernel"], 1.0), preserving=False)


@construct
def clipped_weights() -> Model:
    return two_layers(lambda p: jnp.clip(jnp.round(p["b"]["kernel"] * 8), -127, 127) / 8)


@construct
def weights_of_two_functions() -> Model:
    """Half of the readers are not 0 where the parameter is."""
    both = lambda w: jnp.concatenate([w, jnp.exp(w)], axis=1)  # noqa: E731
    return two_layers(lambda p: both(p["b"]["kernel"]), preserving=False)


@construct
def scores_times_weights() -> Model:
    """One of two factors is 0: with two zeros neither would ever learn again."""
    return two_layers(lambda p: p["b"]["kernel"] * p["score"], score=normal(4, 2, seed=3))


@construct
def divided_weights() -> Model:
    """A divisor is not set to 0."""
    return two_layers(lambda p: p["b"]["kernel"] / p["divisor"][:, None], divisor=np.abs(normal(4, seed=3)) + 0.5)


@construct
def weights_of_a_task() -> Model:
    """Which of the heads reads is an input; all of them are rows of the unit."""
    params = {"a": {"kernel": normal(5, 4, seed=1)}, "b": {"kernel": normal(3, 4, 2, seed=2)}}
    apply = lambda p, x, task: jax.nn.relu(x @ p["a"]["kernel"]) @ p["b"]["kernel"][task]  # noqa: E731
    group = Expected(4, "a/kernel: i u", "b/kernel: t u o")
    return Model(apply, params, (normal(3, 5), jnp.int32(1)), {"a": group})


@construct
def permuted_weights() -> Model:
    """Columns in another order are units of their own, which no view of the parameter numbers."""
    params = {"a": {"kernel": normal(5, 4, seed=1)}, "b": {"kernel": normal(4, 2, seed=2)}}
    order = np.array([2, 0, 1, 3])
    apply = lambda p, x: jax.nn.relu(x @ p["a"]["kernel"][:, order]) @ p["b"]["kernel"]  # noqa: E731
    return Model(apply, params, (normal(3, 5),), {}, left_out="a")


@construct
def cumulative_weights() -> Model:
    """A first layer whose weights are made in an unknown way is left out, and named."""
    params = {"a": {"kernel": normal(5, 4, seed=1)}, "b": {"kernel": normal(4, 2, seed=2)}}
    apply = lambda p, x: jax.nn.relu(x @ jnp.cumsum(p["a"]["kernel"], axis=1)) @ p["b"]["kernel"]  # noqa: E731
    return Model(apply, params, (normal(3, 5),), {}, left_out="a")


@construct
def weights_of_two_parts() -> Model:
    params = {"a": {"re": normal(5, 4, seed=1), "im": normal(5, 4, seed=2)}, "b": {"kernel": normal(4, 2, seed=3)}}
    apply = lambda p, x: jnp.abs(x @ jax.lax.complex(p["a"]["re"], p["a"]["im"])) @ p["b"]["kernel"]  # noqa: E731
    group = Expected(4, "a/re~kernel: i u; a/im~kernel: i u", "b/kernel: u o")
    return Model(apply, params, (normal(3, 5),), {"a": group})


@construct
def one_flat_vector() -> Model:
    """What `ravel_pytree` gives: all parameters are windows of one leaf."""
    tree = {"a": normal(5, 4, seed=1), "b": np.abs(normal(4, seed=2)), "c": normal(4, 2, seed=3)}
    flat, unravel = jax.flatten_util.ravel_pytree(tree)

    def apply(p, x):
        p = unravel(p["all"])
        return jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"]

    group = Expected(4, "all~kernel[:20]: (i u); all~bias[20:24]: u", "all~kernel[24:]: (u o)")
    return Model(apply, {"all": np.asarray(flat)}, (normal(3, 5),), {"all": group})


# Normalisation and dropout --------------------------------------------------------------------------------------------


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


# Skips ----------------------------------------------------------------------------------------------------------------


@construct
def residual_identity() -> Model:
    """The first feature is also added to the second one: zero weights in its readers do not silence it."""

    def body(x):
        x = nn.relu(nn.Dense(4)(x))
        y = nn.relu(nn.Dense(3)(x))
        y = nn.Dense(4)(y)
        return nn.Dense(2)(nn.relu(x + y))

    return linen(
        body,
        normal(3, 5),
        groups={
            "Dense_0": dense(4, "Dense_0", "Dense_1", preserving=False, blocks=4),
            "Dense_1": dense(3, "Dense_1", "Dense_2"),
            "Dense_2": dense(4, "Dense_2", "Dense_3", blocks=4),
        },
    )


@construct
def residual_projection() -> Model:
    def body(x):
        x = nn.relu(nn.Dense(3, name="stem")(x))
        y = nn.Dense(4, name="second")(nn.relu(nn.Dense(3, name="first")(x)))
        return nn.Dense(2, name="head")(nn.relu(y + nn.Dense(4, name="skip")(x)))

    return linen(
        body,
        normal(3, 5),
        groups={
            "stem": dense(3, "stem", "first", "skip"),
            "first": dense(3, "first", "second"),
            "second": Expected(4, layer("second", "skip"), "head/kernel: u o"),
        },
    )


@construct
def residual_convolutions() -> Model:
    """Two post-activation blocks with batch norm: one with a projection, one with an identity skip."""

    def block(width, x, name, project):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        y = nn.relu(norm(name=f"{name}_norm1")(nn.Conv(width, (3, 3), use_bias=False, name=f"{name}_conv1")(x)))
        y = norm(name=f"{name}_norm2")(nn.Conv(width, (3, 3), use_bias=False, name=f"{name}_conv2")(y))
        if project:
            x = norm(name=f"{name}_norm3")(nn.Conv(width, (1, 1), use_bias=False, name=f"{name}_proj")(x))
        return nn.relu(x + y)

    def body(x):
        x = nn.relu(nn.Conv(3, (3, 3), name="stem")(x))
        x = block(4, x, "a", project=True)
        x = block(4, x, "b", project=False)
        return nn.Dense(2, name="head")(jnp.mean(x, axis=(1, 2)))

    made = lambda conv, norm: f"{conv}/kernel: h w i u; {norm}/scale: u; {norm}/bias~shift: u"  # noqa: E731
    stats = lambda norm: f"batch_stats/{norm}/mean: u; batch_stats/{norm}/var: u"  # noqa: E731
    return linen(
        body,
        normal(2, 4, 4, 2),
        groups={
            "stem": Expected(3, layer("stem", use="h w i u"), "a_conv1/kernel: h w u o; a_proj/kernel: h w u o"),
            "a_conv1": Expected(4, made("a_conv1", "a_norm1"), "a_conv2/kernel: h w u o", stats("a_norm1")),
            "a_conv2": Expected(
                4,
                made("a_conv2", "a_norm2") + ";" + made("a_proj", "a_norm3"),
                "b_conv1/kernel: h w u o",
                stats("a_norm2") + ";" + stats("a_norm3"),
                preserving=False,
                blocks=4,
            ),
            "b_conv1": Expected(4, made("b_conv1", "b_norm1"), "b_conv2/kernel: h w u o", stats("b_norm1")),
            "b_conv2": Expected(4, made("b_conv2", "b_norm2"), "head/kernel: u o", stats("b_norm2"), blocks=4),
        },
    )


@construct
def residual_stream() -> Model:
    """Pre-norm blocks write into a sum that later blocks read: only the units inside the blocks can be replaced."""

    def body(x):
        x = nn.Dense(3, name="stem")(x)
        for i in range(2):
            y = nn.gelu(nn.Dense(4, name=f"in{i}")(nn.LayerNorm(name=f"norm{i}")(x)))
            x = x + nn.Dense(3, name=f"out{i}")(y)
        return nn.Dense(2, name="head")(nn.LayerNorm(name="norm")(x))

    groups = {f"in{i}": dense(4, f"in{i}", f"out{i}") for i in range(2)}
    return linen(body, normal(3, 5), groups=groups, left_out="stem")


@construct
def pre_activation_stream() -> Model:
    def body(x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.Conv(3, (3, 3), name="stem")(x)
        for i in range(2):
            y = nn.relu(norm(name=f"norm{i}")(x))
            y = nn.Conv(4, (3, 3), name=f"in{i}")(y)
            x = x + nn.Conv(3, (3, 3), name=f"out{i}")(nn.relu(y))
        return nn.Dense(2, name="head")(jnp.mean(nn.relu(norm(name="norm")(x)), axis=(1, 2)))

    groups = {f"in{i}": Expected(4, layer(f"in{i}", use="h w i u"), f"out{i}/kernel: h w u o") for i in range(2)}
    return linen(body, normal(2, 4, 4, 2), groups=groups, left_out="stem")


@construct
def concatenated_features() -> Model:
    def body(x):
        a = nn.relu(nn.Dense(4)(x))
        b = nn.relu(nn.Dense(3)(a))
        return nn.Dense(2)(jnp.concatenate([a, b], axis=-1))

    return linen(
        body,
        normal(3, 5),
        groups={
            "Dense_0": Expected(4, layer("Dense_0"), "Dense_1/kernel: u o; Dense_2/kernel[:4]: u o"),
            "Dense_1": Expected(3, layer("Dense_1"), "Dense_2/kernel[4:]: u o"),
        },
    )


@construct
def input_beside_features() -> Model:
    """The input itself is concatenated to the features: its rows belong to no unit."""

    def body(x):
        x = jnp.concatenate([x, nn.relu(nn.Dense(4)(x))], axis=-1)
        return nn.Dense(2)(x)

    group = Expected(4, layer("Dense_0"), "Dense_1/kernel[5:]: u o")
    return linen(body, normal(3, 5), groups={"Dense_0": group})


@construct
def dense_net() -> Model:
    """Every layer norms and reads all that was made before: each unit has a scale and a shift per reader."""

    def body(x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.Conv(3, (3, 3), name="stem")(x)
        for i in range(2):
            y = nn.Conv(2, (3, 3), name=f"conv{i}")(nn.relu(norm(name=f"norm{i}")(x)))
            x = jnp.concatenate([x, y], axis=-1)
        return nn.Dense(2, name="head")(jnp.mean(nn.relu(norm(name="norm")(x)), axis=(1, 2)))

    def affine(norms, window):
        return ";".join(f"{n}/scale[{window}]: u; {n}/bias~shift[{window}]: u" for n in norms)

    def stats(norms, window):
        return ";".join(f"batch_stats/{n}/{s}[{window}]: u" for n in norms for s in ("mean", "var"))

    def group(width, made, window, norms, read):
        outgoing = [f"{r}/kernel[:, :, {window}]: h w u o" for r in read] + [f"head/kernel[{window}]: u o"]
        incoming = layer(made, use="h w i u") + ";" + affine(norms, window)
        return Expected(width, incoming, ";".join(outgoing), stats(norms, window))

    return linen(
        body,
        normal(2, 4, 4, 2),
        groups={
            "stem": group(3, "stem", "0:3", ("norm0", "norm1", "norm"), ("conv0", "conv1")),
            "conv0": group(2, "conv0", "3:5", ("norm1", "norm"), ("conv1",)),
            "conv1": group(2, "conv1", "5:7", ("norm",), ()),
        },
    )


@construct
def u_net() -> Model:
    """The up-convolution is linear: what it makes is no feature, what is beside it is."""

    def body(x):
        down = nn.relu(nn.Conv(3, (3, 3), name="down")(x))
        low = nn.relu(nn.Conv(4, (3, 3), name="low")(nn.max_pool(down, (2, 2), strides=(2, 2))))
        up = nn.ConvTranspose(2, (2, 2), strides=(2, 2), name="up")(low)
        x = nn.relu(nn.Conv(3, (3, 3), name="merge")(jnp.concatenate([down, up], axis=-1)))
        return nn.Conv(2, (1, 1), name="head")(x)

    conv = functools.partial(layer, use="h w i u")
    return linen(
        body,
        normal(2, 4, 4, 2),
        groups={
            "down": Expected(3, conv("down"), "low/kernel: h w u o; merge/kernel[:, :, :3]: h w u o"),
            "low": Expected(4, conv("low"), "up/kernel: h w u o"),
            "merge": Expected(3, conv("merge"), "head/kernel: h w u o"),
        },
        left_out="up",
    )


# Attention ------------------------------------------------------------------------------------------------------------


@construct
def attention() -> Model:
    def body(x):
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, out_features=4, name="attention")(x)

    group = Expected(6, layer("attention/value", use="i u v"), "attention/out/kernel: u v o", blocks=2)
    left_out = "attention/query attention/key"
    return linen(body, normal(2, 3, 5), groups={"attention/value": group}, left_out=left_out)


@construct
def attention_of_one_kernel() -> Model:
    """Query, key and value from one matrix product: the units are in its last third."""

    def body(x):
        batch, length, _ = x.shape
        q, k, v = jnp.split(nn.Dense(12, name="qkv")(x), 3, axis=-1)
        q, k, v = (a.reshape(batch, length, 2, 2).transpose(0, 2, 1, 3) for a in (q, k, v))
        weights = nn.softmax(jnp.where(jnp.tri(length, dtype=bool), q @ k.swapaxes(-1, -2) / jnp.sqrt(2.0), -jnp.inf))
        y = (weights @ v).transpose(0, 2, 1, 3).reshape(batch, length, 4)
        return nn.Dense(3, name="out")(y)

    group = Expected(4, "qkv/kernel[:, 8:12]: i u; qkv/bias[8:12]: u", "out/kernel: u o", blocks=2)
    return linen(body, normal(2, 3, 5), groups={"qkv": group}, left_out="qkv")


@construct
def attention_by_one_score() -> Model:
    """The score's only channel weighs all units, which stay units of their own beside another value."""

    def body(x):
        h = nn.relu(nn.Dense(4, name="h")(x))
        context = jnp.einsum("bt,btd->bd", nn.softmax(nn.Dense(1, name="score")(h)[..., 0]), h)
        return nn.Dense(2, name="out")(jnp.concatenate([context, x[:, 0]], axis=-1))

    group = Expected(4, layer("h"), "score/kernel: u o; out/kernel[:4]: u o")
    return linen(body, normal(2, 3, 5), groups={"h": group}, left_out="score")


@construct
def transformer() -> Model:
    def body(tokens):
        x = nn.Embed(7, 6, name="embed")(tokens) + nn.Embed(3, 6, name="position")(jnp.arange(3))
        for i in range(2):
            y = nn.LayerNorm(name=f"norm{i}a")(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2, name=f"attention{i}")(y)
            y = nn.gelu(nn.Dense(8, name=f"in{i}")(nn.LayerNorm(name=f"norm{i}b")(x)))
            x = x + nn.Dense(6, name=f"out{i}")(y)
        return nn.Dense(7, name="head")(nn.LayerNorm(name="norm")(x))

    groups = {}
    for i in range(2):
        a = f"attention{i}"
        groups[f"{a}/value"] = Expected(6, layer(f"{a}/value", use="i u v"), f"{a}/out/kernel: u v o", blocks=2)
        groups[f"in{i}"] = dense(8, f"in{i}", f"out{i}")
    left_out = "embed attention0/query attention0/key attention1/query attention1/key"
    return linen(body, jnp.array([[1, 2, 0], [0, 6, 5]]), groups=groups, left_out=left_out)


@construct
def learned_queries() -> Model:
    """Scores are channels of the queries, but weigh the values and are no units with them."""
    params = {
        "q": normal(3, 2, 2, seed=1),
        "k": normal(5, 4, seed=2),
        "v": {"kernel": normal(5, 4, seed=3)},
        "o": {"kernel": normal(4, 2, seed=4)},
    }

    def apply(p, x):
        keys, values = ((x @ w).reshape(2, -1, 2, 2) for w in (p["k"], p["v"]["kernel"]))
        scores = jax.nn.softmax(jnp.einsum("thd,bshd->bhts", p["q"], keys))
        return jnp.einsum("bhts,bshd->bthd", scores, values).reshape(2, 3, 4) @ p["o"]["kernel"]

    group = Expected(4, "v/kernel: i u", "o/kernel: u o", blocks=2)
    return Model(apply, params, (normal(2, 3, 5),), {"v": group}, left_out="k[0] k[1] q")


# Recurrence -----------------------------------------------------------------------------------------------------------


def recurrent(make: Callable[[], nn.RNNCellBase], cell: str, incoming: str, recurrent: str) -> Model:
    """`incoming`: the layers that make the unit, "+" where there is a bias; `recurrent`: those that read it."""

    def body(x):
        return nn.Dense(2, name="readout")(nn.RNN(make())(x))

    lines = []
    for name in incoming.split():
        lines.append(f"{cell}/{name.rstrip('+')}/kernel: i u")
        if name.endswith("+"):
            lines.append(f"{cell}/{name.rstrip('+')}/bias: u")
    read = ["readout/kernel: u o", *(f"{cell}/{name}/kernel: u o" for name in recurrent.split())]
    return linen(body, normal(2, 3, 5), groups={cell: Expected(4, ";".join(lines), ";".join(read))})


@construct
def simple_rnn() -> Model:
    return recurrent(lambda: nn.SimpleCell(4), "SimpleCell_0", "i+ h", "h")


@construct
def lstm() -> Model:
    return recurrent(lambda: nn.LSTMCell(4), "LSTMCell_0", "ii if ig io hi+ hf+ hg+ ho+", "hi hf hg ho")


@construct
def optimized_lstm() -> Model:
    return recurrent(
        lambda: nn.OptimizedLSTMCell(4), "OptimizedLSTMCell_0", "ii if ig io hi+ hf+ hg+ ho+", "hi hf hg ho"
    )


@construct
def gru() -> Model:
    return recurrent(lambda: nn.GRUCell(4), "GRUCell_0", "ir+ iz+ in+ hr hz hn+", "hr hz hn")


@construct
def two_recurrent_layers() -> Model:
    def body(x):
        for i in range(2):
            x = nn.RNN(nn.GRUCell(4 - i, name=f"gru{i}"))(x)
        return nn.Dense(2, name="readout")(x[:, -1])

    made = ";".join(f"gru0/{n}/kernel: i u" for n in ("ir", "iz", "in", "hr", "hz", "hn"))
    bias = ";".join(f"gru0/{n}/bias: u" for n in ("ir", "iz", "in", "hn"))
    first = f"{made};{bias}"
    reads = lambda cell, names: ";".join(f"{cell}/{n}/kernel: u o" for n in names.split())  # noqa: E731
    return linen(
        body,
        normal(2, 3, 5),
        groups={
            "gru0": Expected(4, first, reads("gru0", "hr hz hn") + ";" + reads("gru1", "ir iz in")),
            "gru1": Expected(3, first.replace("gru0", "gru1"), reads("gru1", "hr hz hn") + ";readout/kernel: u o"),
        },
    )


@construct
def unrolled_rnn() -> Model:
    """A Python loop that uses the same weights three times."""
    params = {
        "cell": {"wx": normal(5, 4, seed=1), "wh": normal(4, 4, seed=2), "b": normal(4, seed=3)},
        "out": {"w": normal(4, 2, seed=4), "b": normal(2, seed=5)},
    }

    def apply(p, x):
        cell, h = p["cell"], jnp.zeros((x.shape[0], 4))
        for t in range(3):
            h = jnp.tanh(x[:, t] @ cell["wx"] + h @ cell["wh"] + cell["b"])
        return h @ p["out"]["w"] + p["out"]["b"]

    group = Expected(4, "cell/wx~kernel: i u; cell/wh~kernel: i u; cell/b: u", "cell/wh~kernel: u o; out/w: u o")
    return Model(apply, params, (normal(2, 3, 5),), {"cell": group})


@construct
def recurrent_with_a_learned_state() -> Model:
    params = {
        "cell": {"wx": normal(5, 4, seed=1), "wh": normal(4, 4, seed=2), "first": normal(4, seed=3)},
        "out": {"w": normal(4, 2, seed=4)},
    }

    def apply(p, x):
        cell = p["cell"]
        step = lambda h, x: (jnp.tanh(x @ cell["wx"] + h @ cell["wh"]), None)  # noqa: E731
        h, _ = jax.lax.scan(step, jnp.broadcast_to(cell["first"], (2, 4)), x)
        return h @ p["out"]["w"]

    made = "cell/wx~kernel: i u; cell/wh~kernel: i u; cell/first~bias: u"
    group = Expected(4, made, "cell/wh~kernel: u o; out/w: u o")
    return Model(apply, params, (normal(3, 2, 5),), {"cell": group})


@construct
def one_scanned_layer() -> Model:
    """A stack of one layer is no recurrence."""
    params = {"a": {"w": normal(5, 4, seed=1)}, "b": {"w": normal(1, 4, 4, seed=2)}, "c": {"w": normal(4, 2, seed=3)}}

    def apply(p, x):
        x, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), jax.nn.relu(x @ p["a"]["w"]), p["b"]["w"])
        return x @ p["c"]["w"]

    groups = {"a": Expected(4, "a/w: i u", "b/w: l u o"), "b": Expected(4, "b/w: l i u", "c/w: u o")}
    return Model(apply, params, (normal(3, 5),), groups)


@construct
def scanned_blocks() -> Model:
    """Blocks of a residual stream whose weights are stacked: a group for each block."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            y = nn.gelu(nn.Dense(4)(nn.LayerNorm()(x)))
            return x + nn.Dense(3)(y), None

    def body(x):
        x = nn.Dense(3, name="stem")(x)
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(2, name="head")(x)

    def group(i):
        incoming = f"blocks/Dense_0/kernel[{i}:{i + 1}]: l i u; blocks/Dense_0/bias[{i}:{i + 1}]: l u"
        return Expected(4, incoming, f"blocks/Dense_1/kernel[{i}:{i + 1}]: l u o")

    groups = {f"blocks/Dense_0[{i}]": group(i) for i in range(2)}
    return linen(body, normal(3, 5), groups=groups, left_out="stem")


@construct
def scanned_layers() -> Model:
    """Layers without a skip: each layer's units are read by the next, the last one's by the head."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(nn.Dense(4)(x)), None

    def body(x):
        x = nn.tanh(nn.Dense(4, name="stem")(x))
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(2, name="head")(x)

    def made(i):
        return f"layers/Dense_0/kernel[{i}:{i + 1}]: l i u; layers/Dense_0/bias[{i}:{i + 1}]: l u"

    def read(i):
        return f"layers/Dense_0/kernel[{i}:{i + 1}]: l u o"

    groups = {
        "stem": Expected(4, layer("stem"), read(0)),
        "layers/Dense_0[0]": Expected(4, made(0), read(1)),
        "layers/Dense_0[1]": Expected(4, made(1), "head/kernel: u o"),
    }
    return linen(body, normal(3, 5), groups=groups)


# Pytrees --------------------------------------------------------------------------------------------------------------


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
