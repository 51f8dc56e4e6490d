"""State space models and linear recurrences."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo.zoo import STREAM, Network, architecture, linen, normal


class S4D(nn.Module):
    """Gu et al. 2022: a diagonal state space for every channel, as a convolution of the whole sequence."""

    width: int = 128
    states: int = 64
    layers: int = 4
    outputs: int = 10

    @nn.compact
    def __call__(self, u):
        length = u.shape[1]
        x = nn.Dense(self.width, name="encoder")(u)
        for i in range(self.layers):
            y = nn.LayerNorm(name=f"norm{i}")(x)
            log_dt = self.param(f"log_dt{i}", nn.initializers.uniform(), (self.width, 1))
            log_a = self.param(f"log_a{i}", nn.initializers.zeros_init(), (self.width, self.states))
            c = self.param(f"c{i}", nn.initializers.normal(), (self.width, self.states))
            d = self.param(f"d{i}", nn.initializers.normal(), (self.width,))
            decay = jnp.exp(-jnp.exp(log_a + log_dt)[..., None] * jnp.arange(length))
            kernel = jnp.sum(c[..., None] * decay, axis=1)  # [width, length]
            lag = jnp.arange(length)[:, None] - jnp.arange(length)
            filters = jnp.where(lag >= 0, kernel[:, jnp.abs(lag)], 0)  # [width, length, length]
            y = jnp.einsum("hts,bsh->bth", filters, y) + d * y
            y = nn.glu(nn.Dense(2 * self.width, name=f"mix{i}")(nn.gelu(y)))
            x = x + y
        return nn.Dense(self.outputs, name="head")(jnp.mean(x, axis=1))


class LRU(nn.Module):
    """Orvieto et al. 2023: a complex diagonal linear recurrence between two projections."""

    width: int = 256
    states: int = 192
    layers: int = 6
    outputs: int = 10

    @nn.compact
    def __call__(self, u):
        x = nn.Dense(self.width, name="encoder")(u)
        for i in range(self.layers):
            y = nn.LayerNorm(name=f"norm{i}")(x)
            nu, theta = (self.param(f"{n}{i}", nn.initializers.normal(), (self.states,)) for n in ("nu", "theta"))
            a = jnp.exp(-jnp.exp(nu) + 1j * jnp.exp(theta))
            drive = nn.Dense(self.states, name=f"re{i}")(y) + 1j * nn.Dense(self.states, name=f"im{i}")(y)

            def step(h, z, a=a):
                h = a * h + z
                return h, h

            first = jnp.zeros((x.shape[0], self.states), jnp.complex64)
            h = jnp.moveaxis(jax.lax.scan(step, first, jnp.moveaxis(drive, 1, 0))[1], 0, 1)
            out = functools.partial(nn.Dense, self.width, use_bias=False)
            y = out(name=f"out_re{i}")(h.real) - out(name=f"out_im{i}")(h.imag)
            x = x + nn.glu(nn.Dense(2 * self.width, name=f"mix{i}")(nn.gelu(y)))
        return nn.Dense(self.outputs, name="head")(jnp.mean(x, axis=1))


class Mamba(nn.Module):
    """Gu and Dao 2023: state spaces whose step, input and output depend on the input."""

    width: int = 768
    inner: int = 1536
    states: int = 16
    rank: int = 48
    layers: int = 24
    vocabulary: int = 50280

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.vocabulary, self.width, name="embed")(tokens)
        for i in range(self.layers):
            dense = functools.partial(nn.Dense, use_bias=False)
            u, gate = jnp.split(dense(2 * self.inner, name=f"in{i}")(nn.RMSNorm(name=f"norm{i}")(x)), 2, axis=-1)
            u = nn.Conv(self.inner, (4,), padding="CAUSAL", feature_group_count=self.inner, name=f"conv{i}")(u)
            u = nn.silu(u)
            select = dense(self.rank + 2 * self.states, name=f"x{i}")(u)
            dt, b, c = jnp.split(select, [self.rank, self.rank + self.states], axis=-1)
            dt = nn.softplus(nn.Dense(self.inner, name=f"dt{i}")(dt))
            log_a = self.param(f"log_a{i}", nn.initializers.zeros_init(), (self.inner, self.states))
            d = self.param(f"d{i}", nn.initializers.ones_init(), (self.inner,))
            decay = jnp.exp(-dt[..., None] * jnp.exp(log_a))
            drive = dt[..., None] * b[..., None, :] * u[..., None]

            def step(h, z):
                h = z[0] * h + z[1]
                return h, h

            first = jnp.zeros((x.shape[0], self.inner, self.states))
            h = jax.lax.scan(step, first, jax.tree.map(lambda z: jnp.moveaxis(z, 1, 0), (decay, drive)))[1]
            y = jnp.einsum("blds,bls->bld", jnp.moveaxis(h, 0, 1), c) + d * u
            x = x + dense(self.width, name=f"out{i}")(y * nn.silu(gate))
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(nn.RMSNorm(name="norm")(x))


class RWKV(nn.Module):
    """Peng et al. 2023, version 4: time mixing as a running weighted mean, channel mixing with squared relu."""

    width: int = 768
    layers: int = 12
    vocabulary: int = 50277

    @nn.compact
    def __call__(self, tokens):
        x = nn.LayerNorm(name="norm_in")(nn.Embed(self.vocabulary, self.width, name="embed")(tokens))
        dense = functools.partial(nn.Dense, use_bias=False)

        def mixed(y, name):
            before = jnp.pad(y, ((0, 0), (1, 0), (0, 0)))[:, :-1]
            share = self.param(name, nn.initializers.constant(0.5), (self.width,))
            return y * share + before * (1 - share)

        for i in range(self.layers):
            y = nn.LayerNorm(name=f"norm_a{i}")(x)
            k, v, r = (dense(self.width, name=f"{n}{i}")(mixed(y, f"mix_{n}{i}")) for n in "kvr")
            decay = self.param(f"decay{i}", nn.initializers.zeros_init(), (self.width,))
            bonus = self.param(f"bonus{i}", nn.initializers.zeros_init(), (self.width,))

            def step(state, z, decay=decay, bonus=bonus):
                top, bottom = state
                key, value = z
                out = (top + jnp.exp(bonus + key) * value) / (bottom + jnp.exp(bonus + key))
                fade = jnp.exp(-jnp.exp(decay))
                return (fade * top + jnp.exp(key) * value, fade * bottom + jnp.exp(key)), out

            first = (jnp.zeros((x.shape[0], self.width)),) * 2
            seen = jax.lax.scan(step, first, (jnp.moveaxis(k, 1, 0), jnp.moveaxis(v, 1, 0)))[1]
            x = x + dense(self.width, name=f"out{i}")(nn.sigmoid(r) * jnp.moveaxis(seen, 0, 1))
            y = nn.LayerNorm(name=f"norm_b{i}")(x)
            hidden = jnp.square(nn.relu(dense(4 * self.width, name=f"in{i}")(mixed(y, f"mix_in{i}"))))
            gate = nn.sigmoid(dense(self.width, name=f"gate{i}")(mixed(y, f"mix_gate{i}")))
            x = x + gate * dense(self.width, name=f"down{i}")(hidden)
        return dense(self.vocabulary, name="head")(nn.LayerNorm(name="norm")(x))


# Every channel is one of the stream's, from its state space to the gate that is added to it.
@architecture("S4D", "Gu et al. 2022")
def s4d(full: bool) -> Network:
    net = S4D() if full else S4D(4, 3, 2, 2)
    return linen(net, normal(2, 6, 3), found=(0, 0, 0), left_out=(STREAM,))


# The states are linear in the input; what is read from them and passed through gelu are units.
@architecture("LRU", "Orvieto et al. 2023")
def lru(full: bool) -> Network:
    net = LRU() if full else LRU(4, 3, 2, 2)
    units = net.layers * net.width
    return linen(net, normal(2, 6, 3), found=(net.layers, units, units), left_out=(STREAM,))


# An inner channel is made by its columns of the projections, its filter, its step size and its row of the decays.
@architecture("Mamba-130M", "Gu & Dao 2023")
def mamba(full: bool) -> Network:
    net = Mamba() if full else Mamba(4, 6, 3, 2, 2, 7)
    units = net.layers * net.inner
    return linen(net, np.array([[1, 2, 3], [4, 5, 6]], np.int32), found=(net.layers, units, units), left_out=(STREAM,))


# Per layer the channels of the time mixing and the hidden units of the channel mixing.
@architecture("RWKV-4 169M", "Peng et al. 2023")
def rwkv(full: bool) -> Network:
    net = RWKV() if full else RWKV(4, 2, 7)
    units = net.layers * 5 * net.width
    return linen(
        net, np.array([[1, 2, 3], [4, 5, 6]], np.int32), found=(2 * net.layers, units, units), left_out=(STREAM,)
    )
