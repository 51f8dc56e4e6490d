"""Actors, critics and world models."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo.zoo import STREAM, Network, architecture, linen, normal

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # flax 0.12.0 imports a name that jax 0.8 deprecates
    from flax import nnx


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


class Ensemble(nn.Module):
    """Several networks of one structure, their parameters stacked."""

    make: Callable[[], nn.Module]
    members: int

    @nn.compact
    def __call__(self, *inputs):
        lift = nn.vmap(
            lambda module, *x: module.make()(*x),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=self.members,
        )
        return lift(self, *inputs)


class Critic(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, observation, action):
        x = jnp.concatenate([observation, action], axis=-1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(1)(x)


class SAC(nn.Module):
    """Haarnoja et al. 2018: a squashed Gaussian actor, two critics that read its action."""

    widths: tuple[int, ...] = (256, 256)
    actions: int = 6

    @nn.compact
    def __call__(self, observation, noise):
        x = observation
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f"actor_{i}")(x))
        mean, log_std = nn.Dense(self.actions, name="mean")(x), nn.Dense(self.actions, name="log_std")(x)
        action = jnp.tanh(mean + jnp.exp(jnp.clip(log_std, -20, 2)) * noise)
        return action, Ensemble(functools.partial(Critic, self.widths), 2, name="critics")(observation, action)


# Each of the two critics has groups of its own. The action is read by the critics: its numbers are units too, whose
# value is also the output.
@architecture("SAC actor and twin critics", "Haarnoja et al. 2018")
def sac(full: bool) -> Network:
    net = SAC() if full else SAC((4, 3), 2)
    hidden = 3 * sum(net.widths)
    inputs = normal(2, 17 if full else 3), normal(2, net.actions)
    return linen(net, *inputs, found=(7, hidden + net.actions, hidden))


class TD3(nn.Module):
    """Fujimoto et al. 2018, as its critics are trained: actions are given."""

    widths: tuple[int, ...] = (256, 256)
    actions: int = 6

    @nn.compact
    def __call__(self, observation, action):
        x = observation
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        critics = [Critic(self.widths, name=f"critic_{i}")(observation, action) for i in range(2)]
        return jnp.tanh(nn.Dense(self.actions)(x)), *critics


@architecture("TD3 actor and critics", "Fujimoto et al. 2018")
def td3(full: bool) -> Network:
    net = TD3() if full else TD3((4, 3), 2)
    units = 3 * sum(net.widths)
    return linen(net, normal(2, 17 if full else 3), normal(2, net.actions), found=(6, units, units))


class Impala(nn.Module):
    """Espeholt et al. 2018, the deep network without its LSTM: stages of two pre-activation blocks."""

    widths: tuple[int, ...] = (16, 32, 32)
    hidden: int = 256
    actions: int = 15

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.max_pool(nn.Conv(width, (3, 3))(x), (3, 3), strides=(2, 2), padding="SAME")
            for _ in range(2):
                y = nn.Conv(width, (3, 3))(nn.relu(x))
                x = x + nn.Conv(width, (3, 3))(nn.relu(y))
        x = nn.relu(nn.Dense(self.hidden)(nn.relu(x).reshape(x.shape[0], -1)))
        return nn.Dense(self.actions, name="policy")(x), nn.Dense(1, name="value")(x)


@architecture("IMPALA network", "Espeholt et al. 2018")
def impala(full: bool) -> Network:
    net = Impala() if full else Impala((2, 3), 5, 2)
    size = 64 if full else 8
    units = 2 * sum(net.widths) + net.hidden
    found = (2 * len(net.widths) + 1, units, units)
    return linen(net, normal(2, size, size, 3), found=found, left_out=(STREAM,))


class Rainbow(nn.Module):
    """Hessel et al. 2018: dueling streams over 51 atoms; noise is drawn from a key that is an input."""

    convolutions: tuple[tuple[int, int, int], ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    hidden: int = 512
    actions: int = 18
    atoms: int = 51

    @nn.compact
    def __call__(self, x, key):
        for width, size, stride in self.convolutions:
            x = nn.relu(nn.Conv(width, (size, size), stride, padding="VALID")(x))
        x = x.reshape(x.shape[0], -1)

        def noisy(x, width, name):
            left, right = (jax.random.normal(jax.random.fold_in(key, n), (n,)) for n in (x.shape[-1], width))
            kernel = self.param(f"{name}_kernel", nn.initializers.lecun_normal(), (x.shape[-1], width))
            spread = self.param(f"{name}_spread", nn.initializers.constant(0.1), (x.shape[-1], width))
            bias = self.param(f"{name}_bias", nn.initializers.zeros_init(), (width,))
            return x @ (kernel + spread * left[:, None] * right) + bias

        value = noisy(nn.relu(noisy(x, self.hidden, "value_0")), self.atoms, "value_1")[:, None]
        advantage = noisy(nn.relu(noisy(x, self.hidden, "advantage_0")), self.actions * self.atoms, "advantage_1")
        advantage = advantage.reshape(-1, self.actions, self.atoms)
        return nn.softmax(value + advantage - jnp.mean(advantage, axis=1, keepdims=True))


@architecture("Rainbow", "Hessel et al. 2018")
def rainbow(full: bool) -> Network:
    net = Rainbow() if full else Rainbow(((2, 2, 2), (3, 2, 1)), 4, 2, 3)
    size, units = (84 if full else 8), sum(w for w, _, _ in net.convolutions) + 2 * net.hidden
    found = (len(net.convolutions) + 2, units, units)
    return linen(net, normal(1, size, size, 4), jax.random.key(0), found=found)


class RSSM(nn.Module):
    """Hafner et al. 2023 (DreamerV3), dense: a GRU with layer norm, categorical states drawn straight through."""

    deter: int = 512
    hidden: int = 512
    classes: int = 32
    features: int = 64

    @nn.compact
    def __call__(self, observations, actions, noise):
        n = self.classes
        layer = lambda x, width, name: nn.silu(nn.RMSNorm(name=f"{name}_norm")(nn.Dense(width, name=name)(x)))  # noqa: E731
        embed = layer(observations, self.hidden, "encoder")

        def drawn(logits, noise):
            probs = nn.softmax(logits.reshape(*logits.shape[:-1], n, n))
            one = nn.one_hot(jnp.argmax(jnp.log(probs) + noise, axis=-1), n)
            return (one + probs - jax.lax.stop_gradient(probs)).reshape(logits.shape)

        deter, stoch = jnp.zeros((observations.shape[0], self.deter)), jnp.zeros((observations.shape[0], n * n))
        gates, post = nn.Dense(3 * self.deter, name="gates"), nn.Dense(n * n, name="posterior")
        mix, norm = nn.Dense(self.hidden, name="mix"), nn.RMSNorm(name="gates_norm")
        for t in range(observations.shape[1]):
            x = nn.silu(mix(jnp.concatenate([stoch, actions[:, t]], axis=-1)))
            reset, new, update = jnp.split(norm(gates(jnp.concatenate([deter, x], axis=-1))), 3, axis=-1)
            update = nn.sigmoid(update - 1)
            deter = update * nn.tanh(nn.sigmoid(reset) * new) + (1 - update) * deter
            stoch = drawn(post(jnp.concatenate([deter, embed[:, t]], axis=-1)), noise[:, t])
        x = layer(jnp.concatenate([deter, stoch], axis=-1), self.hidden, "decoder")
        return nn.Dense(self.features, name="reconstruction")(x)


# Isolated: the units that mix state and action; all others are mixed by a norm or drawn from together.
@architecture("DreamerV3 world model", "Hafner et al. 2023")
def rssm(full: bool) -> Network:
    net = RSSM() if full else RSSM(4, 3, 2, 3)
    inputs = normal(2, 2, net.features), normal(2, 2, 2), normal(2, 2, net.classes, net.classes)
    units = 3 * net.hidden + net.deter + net.classes
    return linen(net, *inputs, found=(5, units, net.hidden))


class TDMPC2(nn.Module):
    """Hansen et al. 2024: layers with layer norm and mish, a latent state that is softmaxed in groups of eight."""

    hidden: int = 512
    latent: int = 512
    group: int = 8

    @nn.compact
    def __call__(self, observation, action):
        def layer(x, width, name, f=jax.nn.mish):
            return f(nn.LayerNorm(name=f"{name}_norm")(nn.Dense(width, name=name)(x)))

        def simplex(x):
            return nn.softmax(x.reshape(*x.shape[:-1], -1, self.group)).reshape(x.shape)

        z = layer(layer(observation, self.hidden, "encoder_0"), self.latent, "encoder_1", simplex)
        x = layer(jnp.concatenate([z, action], axis=-1), self.hidden, "dynamics_0")
        z = layer(x, self.latent, "dynamics_1", simplex)
        return nn.Dense(1, name="reward")(layer(z, self.hidden, "reward_0"))


# The numbers of a simplex compete, as those of a maxout unit do: the simplex is the unit. A norm mixes all of them.
@architecture("TD-MPC2", "Hansen et al. 2024")
def td_mpc2(full: bool) -> Network:
    net = TDMPC2() if full else TDMPC2(4, 4, 2)
    units = 3 * net.hidden + 2 * net.latent // net.group
    return linen(net, normal(2, 5), normal(2, 2), found=(5, units, 0))


class SimBa(nn.Module):
    """Lee et al. 2025: a residual network of norms and wide relu layers."""

    width: int = 512
    blocks: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="embed")(x)
        for i in range(self.blocks):
            y = nn.relu(nn.Dense(4 * self.width, name=f"in_{i}")(nn.LayerNorm(name=f"norm_{i}")(x)))
            x = x + nn.Dense(self.width, name=f"out_{i}")(y)
        return nn.Dense(1, name="value")(nn.LayerNorm(name="norm")(x))


@architecture("SimBa critic", "Lee et al. 2025")
def simba(full: bool) -> Network:
    net = SimBa() if full else SimBa(3)
    units = net.blocks * 4 * net.width
    return linen(net, normal(2, 5), found=(net.blocks, units, units), left_out=(STREAM,))
