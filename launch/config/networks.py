"""Networks as flags name them: the published ones with their width and number format as settings."""

import flax.linen as nn

from launch.config.registry import NETWORKS, make
from launch.config.signatures import imported
from launch.config.syntax import Call
from launch.errors import InputError, unknown
from plastic_jax.networks import ACTIVATIONS, MLP, ActorCritic, ConvNet, ResNet

DTYPES = ("float32", "bfloat16")


def convnet(outputs: int, width: int = 32, dtype: str = "float32") -> ConvNet:
    """The network of Continual ImageNet; `width` channels first, then 2 and 4 times as many, as are dense units."""
    _check_width("convnet", width)
    return ConvNet(outputs, (width, 2 * width, 4 * width), (5, 3, 3), (4 * width, 4 * width), _dtype(dtype))


def resnet(outputs: int, width: int = 64, dtype: str = "float32") -> ResNet:
    """ResNet-18 for small pictures; `width` channels in the first stage, twice as many in each that follows."""
    _check_width("resnet", width)
    return ResNet(outputs, (width, 2 * width, 4 * width, 8 * width), dtype=_dtype(dtype))


def find_network(call: Call, outputs: int) -> nn.Module:
    """The network of that name, or one's own Flax module, with that many outputs."""
    code, fixed = (call.name, {}) if ":" in call.name else NETWORKS.get(call.name, ("", {}))
    if not code:
        raise unknown("--network", call.name, NETWORKS)
    factory = imported("--network", code)
    if not callable(factory):
        raise InputError(f"--network: {call.name} is a {type(factory).__name__}, not a flax.linen.Module")
    if isinstance(factory, nn.Module):
        return factory
    if "outputs" in call.settings:
        raise InputError(f"--network: outputs={call.settings['outputs']} is for the task to say; leave it out")
    network = make("--network", call.name, factory, {"outputs": outputs, **fixed, **call.settings})
    if not isinstance(network, nn.Module):
        raise InputError(f"--network: {call.name} gives a {type(network).__name__}, not a flax.linen.Module")
    if isinstance(network, MLP | ActorCritic):
        if network.activation not in list(ACTIVATIONS):
            raise unknown("--network: activation", str(network.activation), ACTIVATIONS)
        widths = network.widths if isinstance(network.widths, tuple) else (network.widths,)
        if not all(isinstance(w, int) and not isinstance(w, bool) and w > 0 for w in widths):
            raise InputError(
                f"--network: widths={network.widths!r} are not positive integers, as in mlp(widths=(100,100))"
            )
        network = network.clone(widths=widths)
    return network


def _check_width(name: str, width: int) -> None:
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"{name}: width={width!r} is not a positive integer")


def _dtype(name: str) -> str | None:
    """What a network computes in; `None` stands for that of its parameters, which are float32."""
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r} is not {' or '.join(DTYPES)}")
    return None if name == "float32" else name
