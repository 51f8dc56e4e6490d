"""Public architectures in their published sizes, with what tracing must find, counted from the papers' tables.

Those from packages are used as they are (`requires` names the package); the others are written as their paper, or the
example named, gives them. `small` has the same structure in a size that can be run in a test.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax import networks
from plastic_jax.networks import MLP, ConvNet
from tests.plastic_jax.units.constructs import normal, random_params

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # flax 0.12.0 imports a name that jax 0.8 deprecates
    from flax import nnx


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network, and what is to be found in it.

    Attributes:
        apply: `apply(params, *inputs)`, or `apply(params, variables, *inputs)` with `variables`.
        params: shapes of its parameters; `concrete` draws them.
        inputs: example inputs.
        found: numbers of groups, of units, and of units whose group is function preserving.
        variables: shapes of running statistics.
        output: picks the network's output from what `apply` returns.
    """

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    found: tuple[int, int, int]
    variables: Any = None
    output: Callable[[Any], Any] = lambda output: output

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params))

    def concrete(self) -> "Network":
        """The network with parameters of random numbers."""
        params = random_params(self.params)
        return dataclasses.replace(self, params=params, variables=self.variables and random_params(self.variables))


@dataclasses.dataclass(frozen=True)
class Architecture:
    """`make(full)` builds the published size, or a small one of the same structure.

    Attributes:
        source: paper, example or package.
        parameters: number of parameters of the published size, where the source names one.
        requires: module without which it cannot be built.
    """

    name: str
    source: str
    make: Callable[[bool], Network]
    parameters: int | None = None
    requires: str | None = None


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(name: str, source: str, parameters: int | None = None, requires: str | None = None) -> Any:
    """Registers a function of `full`."""

    def register(make: Callable[[bool], Network]) -> Callable[[bool], Network]:
        ARCHITECTURES[name] = Architecture(name, source, make, parameters, requires)
        return make

    return register


def linen(net: nn.Module, *inputs: Any, found: tuple[int, int, int], **kwargs: Any) -> Network:
    """A Flax network; one with running statistics as it is used in learning: `apply` returns them renewed."""
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = dict(jax.eval_shape(functools.partial(net.init, **kwargs), rngs, *inputs))
    params = variables["params"]
    if "batch_stats" in variables:

        def apply(p: Any, v: Any, *x: Any) -> Any:
            return net.apply({"params": p, "batch_stats": v}, *x, mutable=["batch_stats"], **kwargs)

        return Network(apply, params, inputs, found, variables["batch_stats"], lambda output: output[0])
    return Network(lambda p, *x: net.apply({"params": p}, *x, **kwargs), params, inputs, found)


# The networks of the published experiments ----------------------------------------------------------------------------


@architecture("MLP of permuted MNIST", "Dohare et al. 2024", 9_594_010)
def published_mlp(full: bool) -> Network:
    if full:
        return linen(MLP((2000, 2000, 2000), 10), normal(1, 784), found=(3, 6000, 6000))
    return linen(MLP((4, 3, 5), 2), normal(3, 6), found=(3, 12, 12))


@architecture("ConvNet of Continual ImageNet", "Dohare et al. 2024", 177_218)
def published_conv_net(full: bool) -> Network:
    if full:
        return linen(ConvNet(), normal(1, 32, 32, 3), found=(5, 480, 480))
    return linen(ConvNet(2, (2, 3, 4), (3, 3, 3), (4, 5)), normal(2, 22, 22, 3), found=(5, 18, 18))


# Not to be silenced: the stem and the first block of each stage, which the next block adds as they are.
@architecture("ResNet-18 of incremental CIFAR-100", "Dohare et al. 2024", 11_224_932)
def published_resnet(full: bool) -> Network:
    if full:
        kept = 3904 - (64 + 64 + 128 + 256 + 512)
        return linen(networks.ResNet(), normal(1, 32, 32, 3), found=(17, 3904, kept), train=True)
    net = networks.ResNet(3, (2, 3), (2, 1))
    return linen(net, normal(2, 8, 8, 3), found=(7, 2 + 4 * 2 + 2 * 3, 4 * 2 + 2 * 3 - 2), train=True)


# Convolutional networks -----------------------------------------------------------------------------------------------


class MnistCNN(nn.Module):
    """Flax's `examples/mnist`."""

    widths: tuple[int, int, int] = (32, 64, 256)

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:2]:
            x = nn.relu(nn.Conv(features=width, kernel_size=(3, 3))(x))
            x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(features=self.widths[2])(x))
        return nn.Dense(features=10)(x)


@architecture("MNIST CNN", "Flax `examples/mnist`", 824_458)
def mnist_cnn(full: bool) -> Network:
    if full:
        return linen(MnistCNN(), normal(1, 28, 28, 1), found=(3, 352, 352))
    return linen(MnistCNN((3, 4, 5)), normal(2, 8, 8, 1), found=(3, 12, 12))


class ResNet(nn.Module):
    """Flax's `examples/imagenet` (He et al. 2016, with batch norm and post-activation blocks)."""

    stages: tuple[int, ...]
    bottleneck: bool
    filters: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x, train=True):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        x = conv(self.filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                block = BottleneckBlock if self.bottleneck else BasicBlock
                x = block(self.filters * 2**i, conv, norm, strides)(x)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


class BasicBlock(nn.Module):
    filters: int
    conv: Any
    norm: Any
    strides: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(x)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(self.filters, (3, 3))(y))
        if x.shape != y.shape:
            x = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class BottleneckBlock(BasicBlock):
    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(y)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(self.filters * 4, (1, 1))(y))
        if x.shape != y.shape:
            x = self.conv(self.filters * 4, (1, 1), self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


# A block's output that the next block adds as it is cannot be silenced: the stem (its block keeps 64 channels) and the
# first of the two blocks of each stage in ResNet-18, all but the last block of each stage in ResNet-50.
@architecture("ResNet-18", "Flax `examples/imagenet`", 11_689_512)
def resnet_18(full: bool) -> Network:
    if full:
        kept = 3904 - (64 + 64 + 128 + 256 + 512)
        return linen(ResNet((2, 2, 2, 2), False), normal(1, 224, 224, 3), found=(17, 3904, kept))
    net = ResNet((2, 1), False, filters=4, classes=3)
    return linen(net, normal(2, 16, 16, 3), found=(7, 4 * 5 + 8 * 2, 4 * 3 + 8 * 2))


@architecture("ResNet-50", "Flax `examples/imagenet`", 25_557_032)
def resnet_50(full: bool) -> Network:
    if full:
        units = 64 + 6 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)
        kept = units - 4 * (2 * 64 + 3 * 128 + 5 * 256 + 2 * 512)
        return linen(ResNet((3, 4, 6, 3), True), normal(1, 224, 224, 3), found=(49, units, kept))
    net = ResNet((2,), True, filters=2, classes=3)
    return linen(net, normal(2, 16, 16, 3), found=(7, 2 + 2 * 12, 2 + 2 * 12 - 8))


class WideResNet(nn.Module):
    """Zagoruyko and Komodakis 2016: pre-activation blocks, the projection reads the activated input."""

    depth: int = 28
    widen: int = 10
    base: int = 16
    classes: int = 10
    dropout: float = 0.3

    @nn.compact
    def __call__(self, x, train=True):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = conv(self.base, (3, 3))(x)
        for i in range(3):
            width = self.base * 2**i * self.widen
            for j in range((self.depth - 4) // 6):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                y = nn.relu(norm()(x))
                x = conv(width, (1, 1), strides)(y) if j == 0 else x
                y = nn.relu(norm()(conv(width, (3, 3), strides)(y)))
                y = nn.Dropout(self.dropout, deterministic=not train)(y)
                x = x + conv(width, (3, 3))(y)
        x = nn.relu(norm()(x))
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


# Units: the stem's channels (two readers, no identity skip) and the first convolution of every block. The sums between
# the blocks of a stage are streams.
@architecture("WRN-28-10", "Zagoruyko & Komodakis 2016", 36_479_194)
def wide_resnet(full: bool) -> Network:
    net = WideResNet(dropout=0.0) if full else WideResNet(16, 1, base=3, classes=3, dropout=0.0)
    if full:
        units = 16 + 4 * (160 + 320 + 640)
        return linen(net, normal(1, 32, 32, 3), found=(13, units, units))
    return linen(net, normal(2, 8, 8, 3), found=(7, 3 + 2 * (3 + 6 + 12), 3 + 2 * (3 + 6 + 12)))


class DenseNet(nn.Module):
    """Huang et al. 2017, DenseNet-BC for ImageNet."""

    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    classes: int = 1000

    @nn.compact
    def __call__(self, x, train=True):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(conv(2 * self.growth, (7, 7), (2, 2))(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, layers in enumerate(self.blocks):
            for _ in range(layers):
                y = conv(4 * self.growth, (1, 1))(nn.relu(norm()(x)))
                y = conv(self.growth, (3, 3))(nn.relu(norm()(y)))
                x = jnp.concatenate([x, y], axis=-1)
            if i + 1 < len(self.blocks):
                x = conv(x.shape[-1] // 2, (1, 1))(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(norm()(x))
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


# Every convolution makes units: stem, two for each of the 58 layers, three transitions.
@architecture("DenseNet-121", "Huang et al. 2017", 7_978_856)
def densenet_121(full: bool) -> Network:
    if full:
        units = 64 + 58 * (128 + 32) + 128 + 256 + 512
        return linen(DenseNet(), normal(1, 224, 224, 3), found=(120, units, units))
    net = DenseNet((1, 1), growth=2, classes=3)
    return linen(net, normal(2, 16, 16, 3), found=(6, 4 + 2 * (8 + 2) + 3, 4 + 2 * (8 + 2) + 3))


class ConvNeXt(nn.Module):
    """Liu et al. 2022."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6)
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            x = norm()(nn.Conv(width, (4, 4), (4, 4))(x)) if i == 0 else nn.Conv(width, (2, 2), (2, 2))(norm()(x))
            for j in range(depth):
                y = norm()(nn.Conv(width, (7, 7), feature_group_count=width)(x))
                y = nn.gelu(nn.Dense(4 * width)(y), approximate=False)
                y = nn.Dense(width)(y)
                x = x + self.param(f"gamma_{i}_{j}", nn.initializers.constant(1e-6), (width,)) * y
        return nn.Dense(self.classes)(norm()(jnp.mean(x, axis=(1, 2))))


@architecture("ConvNeXt-T", "Liu et al. 2022", 28_589_128)
def convnext(full: bool) -> Network:
    if full:
        units = 4 * (3 * 96 + 3 * 192 + 9 * 384 + 3 * 768)
        return linen(ConvNeXt(), normal(1, 224, 224, 3), found=(18, units, units))
    return linen(ConvNeXt((2, 1), (2, 3), 3), normal(2, 16, 16, 3), found=(3, 28, 28))


class UNet(nn.Module):
    """Ronneberger et al. 2015, with same padding; the up-convolution is linear, as in the paper."""

    base: int = 64
    levels: int = 4
    classes: int = 2

    @nn.compact
    def __call__(self, x):
        def double(x, width):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            return nn.relu(nn.Conv(width, (3, 3))(x))

        skips = []
        for i in range(self.levels):
            x = double(x, self.base * 2**i)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = double(x, self.base * 2**self.levels)
        for i in reversed(range(self.levels)):
            x = nn.ConvTranspose(self.base * 2**i, (2, 2), strides=(2, 2))(x)
            x = double(jnp.concatenate([skips[i], x], axis=-1), self.base * 2**i)
        return nn.Conv(self.classes, (1, 1))(x)


@architecture("U-Net", "Ronneberger et al. 2015", 31_030_658)
def u_net(full: bool) -> Network:
    if full:
        units = 2 * (64 + 128 + 256 + 512 + 1024 + 512 + 256 + 128 + 64)
        return linen(UNet(), normal(1, 128, 128, 1), found=(18, units, units))
    return linen(UNet(base=2, levels=1), normal(2, 8, 8, 1), found=(6, 16, 16))


# Mixers and transformers ----------------------------------------------------------------------------------------------


class MlpBlock(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.Dense(self.width)(x))
        return nn.Dense(x.shape[-1])(y)


class Mixer(nn.Module):
    """Tolstikhin et al. 2021, after the code of its appendix."""

    blocks: int = 8
    width: int = 512
    tokens: int = 256
    channels: int = 2048
    patch: int = 16
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (self.patch, self.patch), strides=(self.patch, self.patch), name="stem")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for i in range(self.blocks):
            y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
            y = MlpBlock(self.tokens, name=f"token_mixing_{i}")(y)
            x = x + jnp.swapaxes(y, 1, 2)
            x = x + MlpBlock(self.channels, name=f"channel_mixing_{i}")(nn.LayerNorm()(x))
        x = jnp.mean(nn.LayerNorm(name="pre_head_layer_norm")(x), axis=1)
        return nn.Dense(self.classes, name="head")(x)


@architecture("MLP-Mixer S/16", "Tolstikhin et al. 2021", 18_528_264)
def mixer(full: bool) -> Network:
    if full:
        return linen(Mixer(), normal(1, 224, 224, 3), found=(16, 8 * (256 + 2048), 8 * (256 + 2048)))
    return linen(Mixer(2, 4, 3, 5, patch=2, classes=3), normal(2, 4, 4, 3), found=(4, 16, 16))


class ViT(nn.Module):
    """Dosovitskiy et al. 2021; the tiny size of Touvron et al. 2021."""

    layers: int = 12
    width: int = 192
    heads: int = 3
    hidden: int = 768
    patch: int = 16
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (self.patch, self.patch), strides=(self.patch, self.patch), name="embedding")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("cls", nn.initializers.zeros_init(), (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for i in range(self.layers):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, name=f"attention_{i}")(y)
            x = x + MlpBlock(self.hidden, name=f"mlp_{i}")(nn.LayerNorm()(x))
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(name="encoder_norm")(x)[:, 0])


# Two groups a layer: value channels and MLP.
@architecture("ViT-Ti/16", "Dosovitskiy et al. 2021, Touvron et al. 2021", 5_717_416)
def vit(full: bool) -> Network:
    if full:
        return linen(ViT(), normal(1, 224, 224, 3), found=(24, 12 * (192 + 768), 12 * (192 + 768)))
    return linen(ViT(2, 4, 2, 6, patch=2, classes=3), normal(2, 4, 4, 3), found=(4, 20, 20))


class GPT(nn.Module):
    """Radford et al. 2019 as nanoGPT writes it: one kernel for query, key and value; the head is the embedding."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    context: int = 1024
    dropout: float = 0.1

    @nn.compact
    def __call__(self, tokens, train=True):
        batch, length = tokens.shape
        drop = functools.partial(nn.Dropout(self.dropout), deterministic=not train)
        wte = nn.Embed(self.vocabulary, self.width, name="wte")
        x = drop(wte(tokens) + nn.Embed(self.context, self.width, name="wpe")(jnp.arange(length)))
        for i in range(self.layers):
            y = nn.Dense(3 * self.width, name=f"h{i}_attn_c_attn")(nn.LayerNorm(name=f"h{i}_ln_1")(x))
            q, k, v = (a.reshape(batch, length, self.heads, -1) for a in jnp.split(y, 3, axis=-1))
            weights = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
            weights = jnp.where(jnp.tri(length, dtype=bool), weights, jnp.finfo(weights.dtype).min)
            y = jnp.einsum("bhqk,bkhd->bqhd", drop(nn.softmax(weights)), v).reshape(batch, length, self.width)
            x = x + drop(nn.Dense(self.width, name=f"h{i}_attn_c_proj")(y))
            y = nn.gelu(nn.Dense(4 * self.width, name=f"h{i}_mlp_c_fc")(nn.LayerNorm(name=f"h{i}_ln_2")(x)))
            x = x + drop(nn.Dense(self.width, name=f"h{i}_mlp_c_proj")(y))
        return wte.attend(nn.LayerNorm(name="ln_f")(x))


@architecture("GPT-2", "Radford et al. 2019, as nanoGPT", 124_439_808)
def gpt(full: bool) -> Network:
    if full:
        tokens = np.zeros((1, 64), np.int32)
        return linen(GPT(dropout=0.0), tokens, found=(24, 12 * (768 + 3072), 12 * (768 + 3072)))
    net = GPT(2, 4, 2, vocabulary=11, context=6, dropout=0.0)
    return linen(net, np.array([[1, 2, 3], [4, 5, 10]], np.int32), found=(4, 2 * (4 + 16), 2 * (4 + 16)))


# Recurrent networks ---------------------------------------------------------------------------------------------------


class RecurrentLM(nn.Module):
    """Embedding, recurrent layers with dropout between them, logits of the next token at every place."""

    cell: Callable[[int], nn.RNNCellBase]
    width: int
    vocabulary: int
    layers: int = 2
    dropout: float = 0.5

    @nn.compact
    def __call__(self, tokens, train=True):
        drop = functools.partial(nn.Dropout(self.dropout), deterministic=not train)
        x = drop(nn.Embed(self.vocabulary, self.width)(tokens))
        for _ in range(self.layers):
            x = drop(nn.RNN(self.cell(self.width))(x))
        return nn.Dense(self.vocabulary)(x)


@architecture("LSTM language model", "Zaremba et al. 2014, medium", 19_775_200)
def lstm_language_model(full: bool) -> Network:
    cell = nn.OptimizedLSTMCell
    if full:
        return linen(RecurrentLM(cell, 650, 10_000, dropout=0.0), np.zeros((1, 35), np.int32), found=(2, 1300, 1300))
    return linen(RecurrentLM(cell, 4, 7, dropout=0.0), np.array([[1, 2, 3]], np.int32), found=(2, 8, 8))


@architecture("GRU language model", "Cho et al. 2014, sizes of Zaremba's small")
def gru_language_model(full: bool) -> Network:
    if full:
        net = RecurrentLM(nn.GRUCell, 200, 10_000, dropout=0.0)
        return linen(net, np.zeros((1, 20), np.int32), found=(2, 400, 400))
    return linen(RecurrentLM(nn.GRUCell, 4, 7, dropout=0.0), np.array([[1, 2, 3]], np.int32), found=(2, 8, 8))


# Reinforcement learning -----------------------------------------------------------------------------------------------


class ActorCritic(nn.Module):
    """CleanRL's PPO for continuous actions: two networks, a free log standard deviation."""

    actions: int
    width: int = 64

    @nn.compact
    def __call__(self, x):
        def mlp(name, outputs, scale):
            y = x
            for i in range(2):
                init = nn.initializers.orthogonal(np.sqrt(2))
                y = nn.tanh(nn.Dense(self.width, kernel_init=init, name=f"{name}_{i}")(y))
            return nn.Dense(outputs, kernel_init=nn.initializers.orthogonal(scale), name=f"{name}_2")(y)

        log_std = self.param("actor_logstd", nn.initializers.zeros_init(), (1, self.actions))
        return mlp("actor_mean", self.actions, 0.01), log_std, mlp("critic", 1, 1.0)


@architecture("PPO actor and critic", "CleanRL `ppo_continuous_action`")
def actor_critic(full: bool) -> Network:
    if full:
        return linen(ActorCritic(8), normal(1, 27), found=(4, 256, 256))
    return linen(ActorCritic(2, 4), normal(3, 5), found=(4, 16, 16))


class NatureDQN(nnx.Module):
    """Mnih et al. 2015, in nnx."""

    def __init__(self, widths: tuple[int, ...], side: int, rngs: nnx.Rngs):
        sizes = ((8, 4), (4, 2), (3, 1)) if side == 84 else ((2, 2), (2, 1), (2, 1))
        channels = (4, *widths[:3])
        self.convolutions = nnx.List(
            nnx.Conv(m, n, (k, k), strides=s, padding="VALID", rngs=rngs)
            for m, n, (k, s) in zip(channels, channels[1:], sizes, strict=False)
        )
        for k, s in sizes:
            side = (side - k) // s + 1
        self.hidden = nnx.Linear(side * side * widths[2], widths[3], rngs=rngs)
        self.values = nnx.Linear(widths[3], 18, rngs=rngs)

    def __call__(self, x):
        for convolution in self.convolutions:
            x = nnx.relu(convolution(x))
        return self.values(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


@architecture("Nature DQN (nnx)", "Mnih et al. 2015", 1_693_362)
def nature_dqn(full: bool) -> Network:
    widths, side = ((32, 64, 64, 512), 84) if full else ((2, 3, 4, 5), 8)
    definition, params = nnx.split(nnx.eval_shape(lambda: NatureDQN(widths, side, nnx.Rngs(0))))
    apply = lambda p, x: nnx.merge(definition, p)(x)  # noqa: E731
    return Network(apply, params, (normal(1, side, side, 4),), (4, sum(widths), sum(widths)))


# From packages, as they are -------------------------------------------------------------------------------------------


@architecture("PPO actor and critic (brax)", "brax `ppo.networks.make_ppo_networks`", requires="brax.training")
def brax_ppo(full: bool) -> Network:
    from brax.training.agents.ppo import networks

    widths = {} if full else {"policy_hidden_layer_sizes": (3, 4), "value_hidden_layer_sizes": (5,)}
    ppo = networks.make_ppo_networks(27, 8, **widths)
    keys = jax.random.split(jax.random.key(0))
    params = jax.eval_shape(
        lambda: {"policy": ppo.policy_network.init(keys[0]), "value": ppo.value_network.init(keys[1])}
    )

    def apply(p: Any, x: Any) -> Any:
        return ppo.policy_network.apply(None, p["policy"], x), ppo.value_network.apply(None, p["value"], x)

    units = 4 * 32 + 5 * 256 if full else 12
    return Network(apply, params, (normal(3, 27),), (9 if full else 3, units, units))


@architecture("PPO actor and critic (rejax)", "rejax `PPO`", requires="rejax")
def rejax_ppo(full: bool) -> Network:
    from rejax import get_algo

    agent = {} if full else {"agent_kwargs": {"hidden_layer_sizes": (3, 4)}}
    ppo = get_algo("ppo").create(env="CartPole-v1", **agent)
    obs, action = normal(3, 4), np.array([0, 1, 1])
    log_prob = functools.partial(ppo.actor.apply, method="log_prob_entropy")

    def init(key: Any) -> Any:
        return {"actor": ppo.actor.init(key, obs, key), "critic": ppo.critic.init(key, obs)}

    def apply(p: Any, x: Any, a: Any) -> Any:
        return log_prob(p["actor"], x, a), ppo.critic.apply(p["critic"], x)

    units = 4 * 64 if full else 2 * (3 + 4)
    return Network(apply, jax.eval_shape(init, jax.random.key(0)), (obs, action), (4, units, units))


@architecture("MLP (Equinox)", "Equinox `eqx.nn.MLP`", requires="equinox")
def equinox_mlp(full: bool) -> Network:
    import equinox as eqx

    width = 128 if full else 4
    model = eqx.filter_eval_shape(eqx.nn.MLP, 10, 3, width, 3, key=jax.random.key(0))
    params, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    apply = lambda p, x: jax.vmap(eqx.combine(p, static))(x)  # noqa: E731
    return Network(apply, params, (normal(3, 10),), (3, 3 * width, 3 * width))


def haiku(make: Callable[[], Any], *inputs: Any, found: tuple[int, int, int]) -> Network:
    """A Haiku network in training, `apply(params, state, *inputs) -> (output, state)`."""
    import haiku as hk

    net = hk.without_apply_rng(hk.transform_with_state(lambda *x: make()(*x, is_training=True)))
    params, state = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    return Network(net.apply, params, inputs, found, state, lambda output: output[0])


@architecture("ResNet-50 (Haiku)", "Haiku `hk.nets.ResNet50`", 25_557_032, requires="haiku")
def haiku_resnet_50(full: bool) -> Network:
    import haiku as hk

    if full:
        units = 64 + 6 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)
        kept = units - 4 * (2 * 64 + 3 * 128 + 5 * 256 + 2 * 512)
        return haiku(lambda: hk.nets.ResNet50(1000), normal(1, 224, 224, 3), found=(49, units, kept))
    net = functools.partial(
        hk.nets.ResNet, (1, 1, 1, 1), 3, bottleneck=False, channels_per_group=(2, 3, 3, 3),
        use_projection=(False, True, True, True), initial_conv_config={"output_channels": 2},
    )  # fmt: skip
    return haiku(net, normal(2, 32, 32, 3), found=(9, 2 + 2 * 2 + 3 * (3 + 3), 2 * 2 + 3 * (3 + 3)))


@architecture("MobileNetV1 (Haiku)", "Haiku `hk.nets.MobileNetV1`", requires="haiku")
def haiku_mobile_net(full: bool) -> Network:
    import haiku as hk

    if full:
        units = 32 + 4960 + 5952  # stem, depthwise, pointwise
        return haiku(lambda: hk.nets.MobileNetV1(num_classes=1000), normal(1, 224, 224, 3), found=(27, units, units))
    net = functools.partial(hk.nets.MobileNetV1, (2, 1), (3, 5), num_classes=3)
    return haiku(net, normal(2, 16, 16, 3), found=(5, 32 + 32 + 3 + 3 + 5, 32 + 32 + 3 + 3 + 5))


@architecture("VGG-16 (flaxmodels)", "flaxmodels `VGG16`", 138_357_544, requires="flaxmodels")
def flaxmodels_vgg(full: bool) -> Network:
    import flaxmodels

    units = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 2 * 4096
    net = flaxmodels.VGG16(output="logits", pretrained=None)
    return linen(net, normal(1, 224, 224, 3), found=(15, units, units), train=False)
