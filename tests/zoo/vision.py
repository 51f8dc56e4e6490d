"""Image classifiers and segmentation."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from plastic_jax import networks
from plastic_jax.networks import MLP, ConvNet
from tests.zoo.zoo import STREAM, Network, architecture, haiku, linen, normal


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


@architecture("ConvNet with CReLU", "Abbas et al. 2023, in the sizes of Continual ImageNet")
def crelu_conv_net(full: bool) -> Network:
    """Of every unit relu(z) and relu(-z) are read: two rows of the next kernel, or of a flattened map two of each."""
    if full:
        return linen(ConvNet(activation="crelu"), normal(1, 32, 32, 3), found=(5, 480, 480))
    return linen(ConvNet(2, (2, 3), (3, 3), (4,), activation="crelu"), normal(2, 12, 12, 3), found=(3, 9, 9))


@architecture("MLP with deep Fourier features", "Lewandowski et al. 2025, in the sizes of permuted MNIST")
def deep_fourier_mlp(full: bool) -> Network:
    if full:
        return linen(MLP((2000, 2000, 2000), 10, "deep_fourier"), normal(1, 784), found=(3, 3000, 3000))
    return linen(MLP((8, 6), 2, "deep_fourier"), normal(3, 6), found=(2, 7, 7))


@architecture("MLP with rational activations", "Delfosse et al. 2024, in the sizes of permuted MNIST")
def rational_mlp(full: bool) -> Network:
    if full:
        return linen(MLP((2000, 2000, 2000), 10, "rational"), normal(1, 784), found=(3, 6000, 6000))
    return linen(MLP((4, 3), 2, "rational"), normal(3, 6), found=(2, 7, 7))


@architecture("ConvNet with layer norm", "Lyle et al. 2023, in the sizes of Continual ImageNet")
def layer_norm_conv_net(full: bool) -> Network:
    """None is silent: every unit takes part in the mean and the variance of its layer."""
    if full:
        return linen(ConvNet(norm="layer_norm"), normal(1, 32, 32, 3), found=(5, 480, 0))
    return linen(ConvNet(2, (2, 3), (3, 3), (4,), norm="layer_norm"), normal(2, 12, 12, 3), found=(3, 9, 0))


# Not to be silenced: the stem and the first block of each stage, which the next block adds as they are.
@architecture("ResNet-18 of incremental CIFAR-100", "Dohare et al. 2024", 11_224_932)
def published_resnet(full: bool) -> Network:
    if full:
        kept = 3904 - (64 + 64 + 128 + 256 + 512)
        return linen(networks.ResNet(), normal(1, 32, 32, 3), found=(17, 3904, kept), train=True)
    net = networks.ResNet(3, (2, 3), (2, 1))
    return linen(net, normal(2, 8, 8, 3), found=(7, 2 + 4 * 2 + 2 * 3, 4 * 2 + 2 * 3 - 2), train=True)


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
        return linen(net, normal(1, 32, 32, 3), found=(13, units, units), left_out=(STREAM,))
    return linen(net, normal(2, 8, 8, 3), found=(7, 3 + 2 * (3 + 6 + 12), 3 + 2 * (3 + 6 + 12)), left_out=(STREAM,))


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
        return linen(ConvNeXt(), normal(1, 224, 224, 3), found=(18, units, units), left_out=(STREAM,))
    return linen(ConvNeXt((2, 1), (2, 3), 3), normal(2, 16, 16, 3), found=(3, 28, 28), left_out=(STREAM,))


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
        return linen(
            Mixer(), normal(1, 224, 224, 3), found=(16, 8 * (256 + 2048), 8 * (256 + 2048)), left_out=(STREAM,)
        )
    return linen(Mixer(2, 4, 3, 5, patch=2, classes=3), normal(2, 4, 4, 3), found=(4, 16, 16), left_out=(STREAM,))


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
        return linen(ViT(), normal(1, 224, 224, 3), found=(24, 12 * (192 + 768), 12 * (192 + 768)), left_out=(STREAM,))
    return linen(ViT(2, 4, 2, 6, patch=2, classes=3), normal(2, 4, 4, 3), found=(4, 20, 20), left_out=(STREAM,))


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


class Vgg(nn.Module):
    """Simonyan and Zisserman 2015, configuration D: convolutions, three dense layers, no norm."""

    widths: tuple[tuple[int, ...], ...] = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    hidden: int = 4096
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        for stage in self.widths:
            for width in stage:
                x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.classes)(x)


@architecture("VGG-16", "Simonyan & Zisserman 2015", 138_357_544)
def vgg(full: bool) -> Network:
    net = Vgg() if full else Vgg(((2,), (3, 4)), 5, 3)
    units = sum(map(sum, net.widths)) + 2 * net.hidden
    groups = sum(map(len, net.widths)) + 2
    return linen(net, normal(1, *((224, 224) if full else (4, 4)), 3), found=(groups, units, units))


class EfficientNet(nn.Module):
    """Tan and Le 2019, B0: inverted bottlenecks with squeeze-and-excite; the bottlenecks are linear."""

    stages: tuple[tuple[int, int, int, int, int], ...] = (  # expansion, width, layers, stride, kernel
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    stem: int = 32
    head: int = 1280
    classes: int = 1000

    @nn.compact
    def __call__(self, x, train=True):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.99, epsilon=1e-3)
        x = nn.silu(norm()(conv(self.stem, (3, 3), 2)(x)))
        for expansion, width, layers, stride, size in self.stages:
            for layer in range(layers):
                inputs, y = x.shape[-1], x
                if expansion > 1:
                    y = nn.silu(norm()(conv(expansion * inputs, (1, 1))(y)))
                strides = stride if layer == 0 else 1
                y = conv(y.shape[-1], (size, size), strides, feature_group_count=y.shape[-1])(y)
                y = nn.silu(norm()(y))
                gate = nn.silu(nn.Conv(max(1, inputs // 4), (1, 1))(jnp.mean(y, axis=(1, 2), keepdims=True)))
                y = y * nn.sigmoid(nn.Conv(y.shape[-1], (1, 1))(gate))
                y = norm()(conv(width, (1, 1))(y))
                x = x + y if layer > 0 else y
        x = nn.silu(norm()(conv(self.head, (1, 1))(x)))
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


# Per layer: the expanded channels, the same after the depthwise convolution, the squeeze. The first layer expands
# nothing: its depthwise convolution reads the stem. Linear bottlenecks are no units; with a skip they are streams.
@architecture("EfficientNet-B0", "Tan & Le 2019", 5_288_548)
def efficient_net(full: bool) -> Network:
    net = EfficientNet() if full else EfficientNet(((1, 4, 1, 1, 3), (2, 4, 2, 1, 3)), 4, 5, 3)
    groups, units, inputs = 2, net.stem + net.head, net.stem
    for expansion, width, layers, _, _ in net.stages:
        for _ in range(layers):
            groups += 3 if expansion > 1 else 2
            units += (2 if expansion > 1 else 1) * expansion * inputs + max(1, inputs // 4)
            inputs = width
    size = 224 if full else 4
    return linen(net, normal(1 if full else 2, size, size, 3), found=(groups, units, units), left_out=(STREAM,))
