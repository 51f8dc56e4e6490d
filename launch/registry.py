"""The registry of tasks and networks, and the way to one's own."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from launch.errors import InputError, unknown
from launch.methods import METHODS, MethodSpec
from launch.syntax import Call
from plastic_jax.networks import ACTIVATIONS, MLP
from tasks.base import Task
from tasks.permuted_mnist import PermutedMNIST
from tasks.slowly_changing_regression import SlowlyChangingRegression


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task: how it is made, the network and settings it is run with, and how long.

    Attributes:
        name: as flags write it.
        summary: one line.
        make: a frozen dataclass, the `Task`; its fields are the task's settings.
        network: the default network, as `--network` writes it.
        presets: per preset and method, the settings that differ from the method's defaults.
        default_steps: length of a run.
        bin: steps per bin of the metrics; `None` for one bin per task.
        aliases: other names.
    """

    name: str
    summary: str
    make: Callable[..., Task]
    network: str
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    default_steps: int
    bin: int | None = None
    aliases: tuple[str, ...] = ()


PRESETS = ("sound", "published")

# Tuned on seeds 100 to 119, nine settings a method: results/slowly_changing_regression/tuning.
_REGRESSION_TUNED = {
    "l2": {"weight_decay": 1e-2},
    "decoupled_weight_decay": {"weight_decay": 1e-2},
    "published_shrink_and_perturb": {"weight_decay": 1e-2, "noise_std": 1e-3},
    "continual_backprop": {"replacement_rate": 1e-4, "maturity_threshold": 100},
}
_MNIST_TUNED = {
    name: {"step_size": 0.003}
    for name in ("backprop", "fresh_network", "linear", "redo", "shrink_and_perturb_at_boundary")
} | {
    "l2": {"step_size": 0.003, "weight_decay": 1e-4},
    "decoupled_weight_decay": {"step_size": 0.003, "weight_decay": 1e-4},
    "shrink_and_perturb": {"step_size": 0.003, "shrink": 3e-5, "noise": 1e-2, "every": 100},
    "published_shrink_and_perturb": {
        "step_size": 0.003,
        "weight_decay": 1e-4,
        "noise_std": 1e-5,
        "noise_every": 100,
    },
    "continual_backprop": {"step_size": 0.003, "replacement_rate": 1e-6, "maturity_threshold": 100},
}
_AS_PUBLISHED = {"reset_state": False}
_REDO_AS_PUBLISHED = {"decay_rate": 0.0, **_AS_PUBLISHED}

TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            "slowly_changing_regression",
            "20 bits in, one number out; 15 bits change every 10,000 steps (batch 1)",
            SlowlyChangingRegression,
            "mlp(widths=(5,))",
            {
                "sound": _REGRESSION_TUNED,
                "published": _REGRESSION_TUNED
                | {
                    "continual_backprop": {
                        "replacement_rate": 1e-4,
                        "maturity_threshold": 10,
                        "count": "bernoulli",
                        **_AS_PUBLISHED,
                    },
                    "redo": _REDO_AS_PUBLISHED,
                },
            },
            default_steps=1_000_000,
            bin=20_000,
            aliases=("bit_flipping",),
        ),
        TaskSpec(
            "permuted_mnist",
            "MNIST digits with their pixels permuted anew for every task (batch 1)",
            PermutedMNIST,
            "mlp(widths=(100,100,100))",
            {
                "sound": _MNIST_TUNED,
                "published": _MNIST_TUNED
                | {
                    "published_shrink_and_perturb": {
                        "step_size": 0.003,
                        "weight_decay": 1e-4,
                        "noise_std": 1e-5,
                        "noise_every": 1,
                    },
                    "continual_backprop": {**_MNIST_TUNED["continual_backprop"], **_AS_PUBLISHED},
                    "redo": {**_MNIST_TUNED["redo"], **_REDO_AS_PUBLISHED},
                },
            },
            default_steps=48_000_000,
        ),
    )
}

NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP, "linear": functools.partial(MLP, widths=())}


def find_task(call: Call) -> tuple[TaskSpec, Task]:
    """The task of that name (or `package.module:name`) with its settings.

    Raises:
        InputError: unknown task or setting, or a value the task refuses.
    """
    names = {alias: spec for spec in TASKS.values() for alias in (spec.name, *spec.aliases)}
    if ":" in call.name:
        spec = _own_task(call.name)
    elif call.name in names:
        spec = names[call.name]
    else:
        raise unknown("--task", call.name, names)
    return spec, _make("--task", spec.name, spec.make, call.settings)


def find_method(call: Call) -> MethodSpec:
    """The method of that name, or the `MethodSpec` at `package.module:name`."""
    if ":" in call.name:
        found = _imported("--methods", call.name)
        if not isinstance(found, MethodSpec):
            raise InputError(f"--methods: {call.name} is a {type(found).__name__}, not a launch.methods.MethodSpec")
        return found
    if call.name not in METHODS:
        raise unknown("--methods", call.name, METHODS)
    return METHODS[call.name]


def find_network(call: Call, outputs: int) -> nn.Module:
    """The network of that name, or one's own Flax module, with that many outputs."""
    factory = _imported("--network", call.name) if ":" in call.name else NETWORKS.get(call.name)
    if factory is None:
        raise unknown("--network", call.name, NETWORKS)
    if not callable(factory):
        raise InputError(f"--network: {call.name} is a {type(factory).__name__}, not a flax.linen.Module")
    if isinstance(factory, nn.Module):
        return factory
    if "outputs" in call.settings:
        raise InputError(f"--network: outputs={call.settings['outputs']} is for the task to say; leave it out")
    network = _make("--network", call.name, factory, {"outputs": outputs} | call.settings)
    if not isinstance(network, nn.Module):
        raise InputError(f"--network: {call.name} gives a {type(network).__name__}, not a flax.linen.Module")
    if isinstance(network, MLP):
        if network.activation not in list(ACTIVATIONS):
            raise unknown("--network: activation", str(network.activation), ACTIVATIONS)
        widths = network.widths if isinstance(network.widths, tuple) else (network.widths,)
        if not all(isinstance(w, int) and not isinstance(w, bool) and w > 0 for w in widths):
            raise InputError(
                f"--network: widths={network.widths!r} are not positive integers, as in mlp(widths=(100,100))"
            )
        network = network.clone(widths=widths)
    return network


def _make(flag: str, name: str, factory: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    target = factory.func if isinstance(factory, functools.partial) else factory
    if dataclasses.is_dataclass(target):
        known = [f.name for f in dataclasses.fields(target) if f.init and f.name not in ("parent", "name")]
        for setting in settings:
            if setting not in known:
                raise unknown(f"{flag}: setting of {name}", setting, known)
    try:
        return factory(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{flag}: {error}") from None


def _own_task(name: str) -> TaskSpec:
    found = _imported("--task", name)
    if isinstance(found, TaskSpec):
        return found
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise InputError(f"--task: {name} is neither a launch.registry.TaskSpec nor a subclass of tasks.base.Task")
    return TaskSpec(name, (found.__doc__ or "").partition("\n")[0], found, "mlp(widths=(100,))", {}, 100_000)


def _imported(flag: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{flag}: cannot import '{name}' ({error}); write package.module:name") from None
