"""Networks as flags name them: the published ones with their width and number format as settings."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from launch.config.registry import NETWORKS, make
from launch.config.signatures import imported
from launch.config.syntax import Call
from launch.errors import InputError, unknown
from plastic_jax.networks import ACTIVATIONS, GPT, MLP, NORMS, ActorCritic, ConvNet, ResNet
from plastic_jax.networks.actor_critic import MEMORIES
from plastic_jax.networks.layers import TWO_FEATURES

DTYPES = ("float32", "bfloat16")


def convnet(
    outputs: int, width: int = 32, dtype: str = "float32", activation: str = "relu", norm: str = "none"
) -> ConvNet:
    """The network of Continual ImageNet; `width` channels first, then 2 and 4 times as many, as are dense units."""
    _check_width("convnet", width)
    channels, widths = (width, 2 * width, 4 * width), (4 * width, 4 * width)
    return ConvNet(outputs, channels, (5, 3, 3), widths, _dtype(dtype), activation, norm)


def resnet(
    outputs: int, width: int = 64, dtype: str = "float32", activation: str = "relu", norm: str = "batch_norm"
) -> ResNet:
    """ResNet-18 for small pictures; `width` channels in the first stage, twice as many in each that follows."""
    _check_width("resnet", width)
    widths = (width, 2 * width, 4 * width, 8 * width)
    return ResNet(outputs, widths, dtype=_dtype(dtype), activation=activation, norm=norm)


def find_network(
    call: Call, outputs: int, changed: Mapping[str, Mapping[str, Any]] | None = None, discrete: bool = False
) -> nn.Module:
    """The network of that name, or one's own Flax module, with that many outputs.

    Args:
        call: name and settings.
        outputs: number of outputs.
        changed: settings that a method changes, by the method's label.
        discrete: whether the outputs are the actions to choose from; a network that has a field of that name is told.
    """
    if changed and any(changed.values()):
        ((label, options),) = changed.items()
        try:
            return find_network(Call(call.name, {**call.settings, **options}), outputs, discrete=discrete)
        except InputError as error:
            raise InputError(f"--methods: {label}, which changes the network: {error}") from None
    code, fixed = (call.name, {}) if ":" in call.name else NETWORKS.get(call.name, ("", {}))
    if not code:
        raise unknown("--network", call.name, NETWORKS)
    factory = imported("--network", code)
    if not callable(factory):
        raise InputError(f"--network: {call.name} is a {type(factory).__name__}, not a flax.linen.Module")
    if isinstance(factory, nn.Module):
        return make("--network", call.name, factory.clone, call.settings)
    said = {"outputs": outputs, **({"discrete": True} if discrete and hasattr(factory, "discrete") else {})}
    for name in said:
        if name in call.settings:
            raise InputError(f"--network: {name}={call.settings[name]} is for the task to say; leave it out")
    network = make("--network", call.name, factory, {**said, **fixed, **call.settings})
    if not isinstance(network, nn.Module):
        raise InputError(f"--network: {call.name} gives a {type(network).__name__}, not a flax.linen.Module")
    if isinstance(network, MLP | ActorCritic | ConvNet | ResNet | GPT):
        _check_options(network)
    if isinstance(network, MLP | ActorCritic):
        widths = network.widths if isinstance(network.widths, tuple) else (network.widths,)
        if not all(isinstance(w, int) and not isinstance(w, bool) and w > 0 for w in widths):
            raise InputError(
                f"--network: widths={network.widths!r} are not positive integers, as in mlp(widths=(100,100))"
            )
        network = network.clone(widths=widths)
    if isinstance(network, ActorCritic):
        if network.memory not in MEMORIES:
            raise unknown("--network: memory", str(network.memory), MEMORIES)
        if network.memory != "none" and not network.widths:
            raise InputError(f"--network: memory={network.memory} is the last hidden layer, and widths=() has none")
    return network


def _check_options(network: nn.Module) -> None:
    residual = isinstance(network, ResNet)
    activations = [name for name in ACTIVATIONS if not (residual and name in TWO_FEATURES)]
    for name, allowed in (("activation", activations), ("norm", [*["batch_norm"] * residual, *NORMS])):
        if getattr(network, name) not in allowed:
            raise unknown(f"--network: {name}", str(getattr(network, name)), allowed)


def _check_width(name: str, width: int) -> None:
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"{name}: width={width!r} is not a positive integer")


def _dtype(name: str) -> str | None:
    """What a network computes in; `None` stands for that of its parameters, which are float32."""
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r} is not {' or '.join(DTYPES)}")
    return None if name == "float32" else name
