"""Random networks put together from the constructs: what is found are units, whatever they were put together from."""

import functools
import random

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax.units import trace_units
from tests.plastic_jax.units.constructs import linen, normal
from tests.plastic_jax.units.notation import asymmetry, found_owners, influence, matters, renumbered

ACTIVATIONS = (nn.gelu, jnp.tanh, nn.softplus, lambda x: jnp.where(x > 0, x, 0.3 * x), lambda x: x * nn.sigmoid(x))
FIXED = "fixed"  # in the names of layers whose units cannot be renumbered freely: heads, groups of channels, skips


class Builder:
    """Random stages; each call of `image`, `sequence` or `vector` adds layers to the module that is being built."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.act = self.random.choice(ACTIVATIONS)
        self.count = 0

    def name(self, fixed=False):
        self.count += 1
        return f"{FIXED if fixed else 'free'}_{self.count}"

    def width(self):
        return self.random.choice((2, 3, 4))

    def conv(self, x, width=None, size=3, fixed=False, **more):
        width = width or self.width()
        return nn.Conv(width, (size, size), use_bias=self.random.random() < 0.7, name=self.name(fixed), **more)(x)

    def norm(self, x):
        kinds = (nn.BatchNorm(use_running_average=True, name=self.name()), nn.InstanceNorm(name=self.name()))
        return self.random.choice(kinds)(x)

    def image(self, x):
        stages = (
            "plain",
            "norm",
            "pool",
            "residual",
            "concat",
            "gate",
            "crelu",
            "groups",
            "depthwise",
            "stream",
            "excite",
        )
        stage = self.random.choice(stages)
        if stage == "plain":
            padding = self.random.choice(("SAME", "VALID"))
            return self.act(
                self.conv(x, padding=padding, kernel_dilation=self.random.choice((1, 1, 2)))
                if x.shape[1] > 5
                else self.conv(x)
            )
        if stage == "norm":
            return self.act(self.norm(self.conv(x)))
        if stage == "pool" and x.shape[1] > 3:
            pool = self.random.choice((nn.max_pool, nn.avg_pool))
            return pool(self.act(self.conv(x)), (2, 2), strides=(2, 2))
        if stage == "residual":
            x = self.act(self.conv(x))
            width = self.random.choice((x.shape[-1], x.shape[-1] + 1))
            y = self.conv(self.act(self.norm(self.conv(x))), width, fixed=width == x.shape[-1])
            return self.act((x if width == x.shape[-1] else self.conv(x, width, size=1)) + y)
        if stage == "concat":
            x = self.act(self.conv(x))
            return jnp.concatenate([x, self.act(self.conv(x))], axis=-1)
        if stage == "gate":
            return nn.glu(self.conv(x, 6))
        if stage == "crelu":
            x = self.conv(x)
            return jnp.concatenate([nn.relu(x), nn.relu(-x)], axis=-1)
        if stage == "groups":
            return self.act(self.conv(self.act(self.conv(x, 4, fixed=True)), 6, fixed=True, feature_group_count=2))
        if stage == "depthwise":
            return self.act(self.conv(self.act(self.conv(x, 3, fixed=True)), 6, fixed=True, feature_group_count=3))
        if stage == "stream":
            x = self.conv(x, 3, fixed=True)
            for _ in range(2):
                x = x + self.conv(self.act(self.conv(self.act(self.norm(x)))), 3, fixed=True)
            return x
        x = self.act(self.conv(x))
        gate = self.dense(self.act(self.dense(jnp.mean(x, axis=(1, 2)))), x.shape[-1])
        return x * nn.sigmoid(gate)[:, None, None, :]

    def dense(self, x, width=None, fixed=False):
        return nn.Dense(width or self.width(), use_bias=self.random.random() < 0.7, name=self.name(fixed))(x)

    def vector(self, x):
        stage = self.random.choice(("plain", "norm", "residual", "gate", "maxout", "concat", "remat", "stream"))
        if stage == "plain":
            return self.act(self.dense(x))
        if stage == "norm":
            norm = self.random.choice((nn.LayerNorm, nn.RMSNorm))(name=self.name())
            return self.act(norm(self.dense(x, 4)))
        if stage == "residual":
            x = self.act(self.dense(x))
            width = self.random.choice((x.shape[-1], 4))
            y = self.dense(self.act(self.dense(x)), width, fixed=width == x.shape[-1])
            return self.act((x if width == x.shape[-1] else self.dense(x, width)) + y)
        if stage == "gate":
            return self.act(self.dense(x, 3)) * self.dense(x, 3)
        if stage == "maxout":
            return jnp.max(self.dense(x, 6).reshape(*x.shape[:-1], 3, 2), axis=-1)
        if stage == "concat":
            return jnp.concatenate([x, self.act(self.dense(x))], axis=-1)
        if stage == "remat":
            return self.act(nn.remat(nn.Dense)(self.width(), name=self.name())(x))
        x = self.dense(x, 3)
        for _ in range(2):
            x = x + self.dense(self.act(self.dense(nn.LayerNorm(name=self.name())(x))), 3)
        return x

    def sequence(self, x):
        stage = self.random.choice(("vector", "attention", "recurrent", "mixing"))
        if stage == "vector":
            return self.vector(x)
        if stage == "attention":
            attention = nn.MultiHeadDotProductAttention(2, qkv_features=4, out_features=3, name=self.name(fixed=True))
            return self.act(attention(x))
        if stage == "mixing":
            return jnp.swapaxes(self.act(self.dense(jnp.swapaxes(x, 1, 2), x.shape[1])), 1, 2)
        cell = self.random.choice((nn.SimpleCell, nn.GRUCell, nn.OptimizedLSTMCell))
        return nn.RNN(cell(self.width(), name=self.name()))(x)


def network(seed):
    """Images or sequences, one to three stages, then vectors."""
    kind = ("image", "sequence", "vector")[seed % 3]

    def body(x):
        build = Builder(seed)
        for _ in range(build.random.choice((1, 2))):
            x = getattr(build, kind)(x)
        if kind == "image":
            channel_major = build.random.random() < 0.3
            x = jnp.transpose(x, (0, 3, 1, 2)) if channel_major else x
            flat = x.shape[1] <= 6 and build.random.random() < 0.6
            x = x.reshape(x.shape[0], -1) if flat or channel_major else jnp.mean(x, axis=(1, 2))
        if kind == "sequence":
            x = x[:, -1] if build.random.random() < 0.5 else jnp.mean(x, axis=1)
        for _ in range(build.random.choice((0, 1))):
            x = build.vector(x)
        return nn.Dense(2, name="head")(x)

    x = {"image": normal(2, 6, 6, 2), "sequence": normal(2, 3, 4), "vector": normal(4, 5)}[kind]
    return linen(body, x, groups={})


@functools.cache
def traced(seed):
    model = network(seed)
    graph = trace_units(model.apply, model.params, *model.inputs, variables=model.variables, check=False)
    return model, graph, {g.name: found_owners(g, model.params, model.variables) for g in graph.groups}


SEEDS = range(18)


@pytest.mark.parametrize("seed", SEEDS)
def test_silent_units_have_no_influence_and_a_forgotten_reader_is_noticed(seed):
    model, graph, owned = traced(seed)
    for group in graph.groups:
        mine = owned[group.name]
        units = range(group.width)[seed % 2 :: 2]  # some go on: if all are silent, it does not matter who reads them
        change = influence(model, mine, units)
        assert change < 1e-6 if group.function_preserving else change > 0, f"{group}: {change}"
        for spare in mine.outgoing if group.function_preserving else ():
            noticed = influence(model, mine, units, spare) > 1e-6
            assert noticed or not matters(model, spare), f"{group} without {spare}"


@pytest.mark.parametrize("seed", SEEDS)
def test_renumbered_units_are_the_same_network_and_a_forgotten_slice_is_noticed(seed):
    model, graph, owned = traced(seed)
    evaluate = jax.jit(graph.apply, compiler_options={"xla_backend_optimization_level": 0})
    _, before = evaluate(model.params, *model.arguments)
    for group in graph.groups:
        mine = owned[group.name]
        if not group.function_preserving or any(FIXED in path for path, _ in (*mine.incoming, *mine.outgoing)):
            continue
        assert asymmetry(model, mine, 1) < 1e-4, group
        order = np.roll(np.arange(group.width), 1)
        params, variables = renumbered(model, mine, order)
        arguments = model.inputs if variables is None else (variables, *model.inputs)
        _, after = evaluate(params, *arguments)
        moved = jnp.take(before[group.name], order, axis=group.feature_axes[0])
        np.testing.assert_allclose(after[group.name], moved, rtol=1e-4, atol=1e-5)
        for spare in (*mine.incoming, *mine.outgoing, *mine.variables):
            assert asymmetry(model, mine, 1, spare) > 1e-6 or not matters(model, spare), f"{group} without {spare}"


@pytest.mark.parametrize("seed", SEEDS)
def test_features_cost_no_accuracy(seed):
    model, graph, _ = traced(seed)
    options = {"xla_backend_optimization_level": 0}
    plain = jax.jit(model.apply, compiler_options=options)(model.params, *model.arguments)
    output, _ = jax.jit(graph.apply, compiler_options=options)(model.params, *model.arguments)
    np.testing.assert_array_equal(output, plain)
