"""Generative models."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.zoo.zoo import STREAM, Network, architecture, linen, normal


class VAE(nn.Module):
    """Kingma and Welling 2014, as Flax's `examples/vae`; the code is drawn with noise that is an input."""

    hidden: int = 500
    latents: int = 20

    @nn.compact
    def __call__(self, x, noise):
        h = nn.relu(nn.Dense(self.hidden, name="encoder")(x))
        mean, log_var = nn.Dense(self.latents, name="mean")(h), nn.Dense(self.latents, name="log_var")(h)
        z = mean + noise * jnp.exp(0.5 * log_var)
        return nn.Dense(x.shape[-1], name="pixels")(nn.relu(nn.Dense(self.hidden, name="decoder")(z))), mean, log_var


# The exponential makes the code's numbers units; their means and variances are outputs too.
@architecture("VAE", "Kingma & Welling 2014, Flax `examples/vae`")
def vae(full: bool) -> Network:
    net = VAE() if full else VAE(4, 2)
    inputs = normal(2, 784 if full else 5), normal(2, net.latents)
    return linen(net, *inputs, found=(3, 2 * net.hidden + net.latents, 2 * net.hidden))


class Generator(nn.Module):
    """Radford et al. 2016 (DCGAN)."""

    widths: tuple[int, ...] = (1024, 512, 256, 128)

    @nn.compact
    def __call__(self, z, train=True):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, use_fast_variance=False)
        x = nn.relu(norm()(nn.Dense(16 * self.widths[0])(z).reshape(-1, 4, 4, self.widths[0])))
        for width in self.widths[1:]:
            x = nn.relu(norm()(nn.ConvTranspose(width, (5, 5), (2, 2))(x)))
        return jnp.tanh(nn.ConvTranspose(3, (5, 5), (2, 2))(x))


# Not isolated: the first layer, of which a norm averages the places before anything says that they are one channel.
@architecture("DCGAN generator", "Radford et al. 2016")
def dcgan_generator(full: bool) -> Network:
    net = Generator() if full else Generator((3, 2))
    units = sum(net.widths)
    return linen(net, normal(2, 100 if full else 3), found=(len(net.widths), units, units - net.widths[0]))


class Discriminator(nn.Module):
    """Radford et al. 2016 (DCGAN)."""

    widths: tuple[int, ...] = (128, 256, 512, 1024)

    @nn.compact
    def __call__(self, x, train=True):
        for i, width in enumerate(self.widths):
            x = nn.Conv(width, (5, 5), (2, 2))(x)
            x = nn.leaky_relu(nn.BatchNorm(use_running_average=not train)(x) if i else x, 0.2)
        return nn.Dense(1)(x.reshape(x.shape[0], -1))


@architecture("DCGAN discriminator", "Radford et al. 2016")
def dcgan_discriminator(full: bool) -> Network:
    net = Discriminator() if full else Discriminator((2, 3))
    size = 64 if full else 8
    return linen(net, normal(2, size, size, 3), found=(len(net.widths), sum(net.widths), sum(net.widths)))


def waves(time: jax.Array, width: int) -> jax.Array:
    """Sines and cosines of a time, `[batch, width]`."""
    angle = time[:, None] * jnp.exp(-math.log(1e4) * jnp.arange(width // 2) / (width // 2))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class DDPM(nn.Module):
    """Ho et al. 2020: a U-Net of residual blocks that are told the time, without attention."""

    widths: tuple[int, ...] = (128, 256, 256, 256)
    groups: int = 32

    @nn.compact
    def __call__(self, x, time):
        base = self.widths[0]
        told = nn.silu(nn.Dense(4 * base, name="time_0")(waves(time, base)))
        told = nn.silu(nn.Dense(4 * base, name="time_1")(told))

        def block(x, width, name):
            y = nn.Conv(width, (3, 3), name=f"{name}_0")(nn.silu(nn.GroupNorm(self.groups, name=f"{name}_norm_0")(x)))
            y = y + nn.Dense(width, name=f"{name}_time")(told)[:, None, None]
            y = nn.Conv(width, (3, 3), name=f"{name}_1")(nn.silu(nn.GroupNorm(self.groups, name=f"{name}_norm_1")(y)))
            return y + (x if x.shape[-1] == width else nn.Conv(width, (1, 1), name=f"{name}_skip")(x))

        x = nn.Conv(base, (3, 3), name="stem")(x)
        skips = []
        for i, width in enumerate(self.widths):
            x = block(x, width, f"down{i}")
            skips.append(x)
            x = nn.avg_pool(x, (2, 2), strides=(2, 2)) if i + 1 < len(self.widths) else x
        x = block(x, self.widths[-1], "middle")
        for i, width in reversed(list(enumerate(self.widths))):
            x = block(jnp.concatenate([x, skips[i]], axis=-1), width, f"up{i}")
            x = jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], width), "nearest") if i else x
        return nn.Conv(3, (3, 3), name="out")(nn.silu(nn.GroupNorm(self.groups, name="norm")(x)))


# Sums of blocks that keep the width are a stream; on the way up none does, so that their sums are units. All but the
# time's are mixed by the group norm that reads them.
@architecture("DDPM U-Net", "Ho et al. 2020, without attention")
def ddpm(full: bool) -> Network:
    net = DDPM() if full else DDPM((4, 6), 2)
    size = 32 if full else 4
    n, total, time = len(net.widths), sum(net.widths), 8 * net.widths[0]
    found = (3 * n + 3, time + 3 * total + net.widths[-1], time)
    return linen(net, normal(1, size, size, 3), normal(1), found=found, left_out=(STREAM,))


class DiT(nn.Module):
    """Peebles and Xie 2023: a transformer whose norms are scaled and shifted by the time."""

    layers: int = 12
    width: int = 384
    heads: int = 6
    patch: int = 2

    @nn.compact
    def __call__(self, x, time):
        norm = functools.partial(nn.LayerNorm, use_bias=False, use_scale=False)
        x = nn.Conv(self.width, (self.patch,) * 2, (self.patch,) * 2, name="embed")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        told = nn.silu(nn.Dense(self.width, name="time_0")(waves(time, self.width)))
        told = nn.silu(nn.Dense(self.width, name="time_1")(told))
        for i in range(self.layers):
            parts = jnp.split(nn.Dense(6 * self.width, name=f"adapt{i}")(told)[:, None], 6, axis=-1)
            y = norm()(x) * (1 + parts[0]) + parts[1]
            x = x + parts[2] * nn.MultiHeadDotProductAttention(self.heads, name=f"attention{i}")(y)
            y = norm()(x) * (1 + parts[3]) + parts[4]
            y = nn.gelu(nn.Dense(4 * self.width, name=f"in{i}")(y))
            x = x + parts[5] * nn.Dense(self.width, name=f"out{i}")(y)
        scale, shift = jnp.split(nn.Dense(2 * self.width, name="adapt")(told)[:, None], 2, axis=-1)
        return nn.Dense(4 * self.patch**2, name="head")(norm()(x) * (1 + scale) + shift)


@architecture("DiT-S/2", "Peebles & Xie 2023")
def dit(full: bool) -> Network:
    net = DiT() if full else DiT(2, 4, 2)
    size = 32 if full else 4
    units = net.layers * 5 * net.width + 2 * net.width
    found = (2 * net.layers + 2, units, units)
    return linen(net, normal(2, size, size, 4), normal(2), found=found, left_out=(STREAM,))


class RealNVP(nn.Module):
    """Dinh et al. 2017: half of the numbers scale and shift the other half, in turns."""

    hidden: int = 256
    layers: int = 6

    @nn.compact
    def __call__(self, x):
        half, total = x.shape[-1] // 2, 0.0
        for i in range(self.layers):
            a, b = jnp.split(x, 2, axis=-1)
            h = nn.relu(nn.Dense(self.hidden, name=f"{i}_0")(a))
            h = nn.relu(nn.Dense(self.hidden, name=f"{i}_1")(h))
            scale, shift = jnp.split(nn.Dense(2 * half, name=f"{i}_2")(h), 2, axis=-1)
            scale = jnp.tanh(scale)
            x, total = jnp.concatenate([b * jnp.exp(scale) + shift, a], axis=-1), total + jnp.sum(scale, axis=-1)
        return x, total


# What is transformed is a stream, one for each half.
@architecture("RealNVP", "Dinh et al. 2017")
def real_nvp(full: bool) -> Network:
    net = RealNVP() if full else RealNVP(3, 4)
    units = 2 * net.layers * net.hidden
    return linen(net, normal(3, 4), found=(2 * net.layers, units, units), left_out=(STREAM,))


class NeRF(nn.Module):
    """Mildenhall et al. 2020: eight layers that are shown the place again in the middle; density and colour."""

    width: int = 256
    layers: int = 8

    @nn.compact
    def __call__(self, place, direction):
        x = place
        for i in range(self.layers):
            x = nn.relu(nn.Dense(self.width, name=f"layer{i}")(x))
            x = jnp.concatenate([x, place], axis=-1) if i == self.layers // 2 else x
        density = nn.relu(nn.Dense(1, name="density")(x))
        x = nn.Dense(self.width, name="feature")(x)
        x = nn.relu(nn.Dense(self.width // 2, name="view")(jnp.concatenate([x, direction], axis=-1)))
        return nn.sigmoid(nn.Dense(3, name="colour")(x)), density


# The feature before the view direction is linear: no units.
@architecture("NeRF", "Mildenhall et al. 2020")
def nerf(full: bool) -> Network:
    net = NeRF() if full else NeRF(4, 3)
    units = net.layers * net.width + net.width // 2
    return linen(net, normal(2, 60), normal(2, 24), found=(net.layers + 1, units, units))
