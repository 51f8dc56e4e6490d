"""The registry of tasks and networks, and the way to one's own."""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from launch.config.methods import METHODS, PPO_NUMBERS, MethodSpec, Number
from launch.config.syntax import Call
from launch.errors import InputError, unknown
from plastic_jax.learners.ppo import PPOSettings
from plastic_jax.networks import ACTIVATIONS, MLP, ActorCritic, ConvNet, ResNet
from tasks.base import Environment, Problem, Task
from tasks.brax_environment import BraxEnvironment
from tasks.continual_imagenet import ContinualImageNet
from tasks.incremental_cifar100 import IncrementalCIFAR100
from tasks.permuted_mnist import PermutedMNIST
from tasks.slowly_changing_regression import SlowlyChangingRegression
from tasks.warm_start import WarmStart


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task: how it is made, the network and settings it is run with, and how long.

    Attributes:
        name: as flags write it.
        summary: one line.
        make: a frozen dataclass, the `Task` or `Environment`; its fields are the task's settings.
        network: the default network, as `--network` writes it.
        presets: per preset and method, the settings that differ from the method's defaults; a preset that is not in it
            is `sound`.
        default_steps: length of a run; `None` for the whole stream.
        bin: steps per bin of the metrics; `None` for one bin per evaluation, or per task where there are none.
        aliases: other names.
        task_presets: per preset, the task's settings that differ from its defaults.
        learner: the default learner, as `--learner` writes it; empty for the one that streams have, without settings.
        learner_presets: per preset, the learner's settings that differ from its defaults.
    """

    name: str
    summary: str
    make: Callable[..., Problem]
    network: str
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    default_steps: int | None
    bin: int | None = None
    aliases: tuple[str, ...] = ()
    task_presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    learner: str = ""
    learner_presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def numbers(self) -> Mapping[str, Number]:
        """What every method has beside its own numbers: the learner's."""
        return PPO_NUMBERS if self.learner else {}


PRESETS = ("sound", "published")
DTYPES = ("float32", "bfloat16")

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

_MOMENTUM = {"optimizer": "momentum", "momentum": 0.9}
# Dohare et al. 2024: step sizes and strengths chosen there.
_WITH_MOMENTUM = [name for name in METHODS if name != "tuned_adam"]
_IMAGENET = dict.fromkeys(_WITH_MOMENTUM, _MOMENTUM) | {
    "l2": {**_MOMENTUM, "step_size": 0.03, "weight_decay": 3e-6},
    "published_shrink_and_perturb": {**_MOMENTUM, "weight_decay": 1e-5, "noise_std": 1e-5},
    "continual_backprop": {
        **_MOMENTUM,
        "replacement_rate": 3e-4,
        "maturity_threshold": 100,
        "initializer": "torch_default",
    },
    "redo": {**_MOMENTUM, "initializer": "torch_default"},
}
_IMAGENET_AS_PUBLISHED = {"continual_backprop": {"count_units": "all", **_AS_PUBLISHED}, "redo": _REDO_AS_PUBLISHED}
_CIFAR_STEP = {**_MOMENTUM, "step_size": 0.1}
_CIFAR_DECAY = {**_CIFAR_STEP, "weight_decay": 5e-4}
_CIFAR_CBP = {"utility": "contribution", "initializer": "kaiming_normal", **_CIFAR_DECAY}
_CIFAR = (
    dict.fromkeys(_WITH_MOMENTUM, _CIFAR_STEP)
    | dict.fromkeys(("l2", "head_reset", "fresh_network", "redo"), _CIFAR_DECAY)
    | {
        "published_shrink_and_perturb": {**_CIFAR_DECAY, "noise_std": 1e-5},
        "continual_backprop": {**_CIFAR_CBP, "replacement_rate": 1e-5, "maturity_threshold": 1000},
    }
)
_CIFAR_AS_PUBLISHED = {
    "continual_backprop": {
        "utility": "lifetime_contribution",
        "count_units": "all",
        "leave_out": "*shortcut*",
        **_AS_PUBLISHED,
    },
    "fresh_network": {"restart_all": False},
    "redo": _REDO_AS_PUBLISHED,
}
_CIFAR_TASK_AS_PUBLISHED = {"augment_test": True, "accuracy": "best_epoch", "probe_in_training": True}
# A tenth of the epochs: ten times the rate, and a tenth of the age, for as many replacements of each unit.
_CIFAR_SHORT = _CIFAR | {
    "continual_backprop": {**_CIFAR_CBP, "replacement_rate": 1e-4, "maturity_threshold": 100},
}


def _overlaid(
    settings: Mapping[str, Mapping[str, Any]], more: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {name: {**settings.get(name, {}), **more.get(name, {})} for name in {**settings, **more}}


# Dohare et al. 2024, slippery ant. Its continual backprop has a tenth of the weight decay of its L2.
_ADAM = {"optimizer": "adam", "step_size": 1e-4, "b1": 0.99, "b2": 0.99}
_PPO = dict.fromkeys(METHODS, _ADAM) | {
    "backprop": {**_ADAM, "b1": 0.9, "b2": 0.999},
    "l2": {**_ADAM, "weight_decay": 1e-3},
    "decoupled_weight_decay": {**_ADAM, "weight_decay": 1e-3},
    "published_shrink_and_perturb": {**_ADAM, "weight_decay": 1e-3, "noise_std": 1e-5},
    "continual_backprop": {
        **_ADAM,
        "weight_decay": 1e-4,
        "replacement_rate": 1e-4,
        "maturity_threshold": 10_000,
        "utility": "contribution",
        "initializer": "lecun_uniform",
    },
    "redo": {**_ADAM, "weight_decay": 1e-4, "threshold": 0.1, "period": 100, "initializer": "lecun_uniform"},
}
_PPO_AS_PUBLISHED = _overlaid(
    _PPO, {"continual_backprop": {"count": "bernoulli", **_AS_PUBLISHED}, "redo": _REDO_AS_PUBLISHED}
)
_ANT = functools.partial(
    TaskSpec,
    network="actor_critic",
    presets={
        "sound": _PPO,
        "published": _PPO_AS_PUBLISHED,
        "published_wide": _PPO_AS_PUBLISHED,
        "accelerator": _PPO,
    },
    bin=102_400,
    # With 2048 environments an episode of each takes 2,048,000 steps; twice that lies between changes.
    task_presets={"published": {"environments": 1}, "accelerator": {"environments": 2048, "change_every": 4_096_000}},
    learner="ppo",
    learner_presets={
        "published": {"time_limit": "terminal"},
        "published_wide": {"time_limit": "terminal"},
        "accelerator": {"rollout": 65_536, "minibatches": 32, "epochs": 4, "probe_every": 1},
    },
)


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
        TaskSpec(
            "continual_imagenet",
            "two classes of pictures to be told apart, another two in every task",
            ContinualImageNet,
            "convnet",
            {
                "sound": _IMAGENET,
                "published": _overlaid(_IMAGENET, _IMAGENET_AS_PUBLISHED),
            },
            default_steps=15_000_000,
        ),
        TaskSpec(
            "imagenet_short",
            "continual_imagenet in 10 epochs a task",
            functools.partial(ContinualImageNet, epochs=10, evaluations_per_task=10),
            "convnet",
            {"sound": _IMAGENET, "published": _overlaid(_IMAGENET, _IMAGENET_AS_PUBLISHED)},
            default_steps=None,
        ),
        TaskSpec(
            "incremental_cifar100",
            "five more classes of CIFAR-100 every 200 epochs, all old ones stay",
            IncrementalCIFAR100,
            "resnet",
            {"sound": _CIFAR, "published": _overlaid(_CIFAR, _CIFAR_AS_PUBLISHED)},
            default_steps=None,
            task_presets={"published": _CIFAR_TASK_AS_PUBLISHED},
        ),
        TaskSpec(
            "cifar_short",
            "incremental_cifar100 in 20 epochs an increment, the schedule of step sizes scaled",
            functools.partial(IncrementalCIFAR100, epochs=20),
            "resnet",
            {"sound": _CIFAR_SHORT, "published": _overlaid(_CIFAR_SHORT, _CIFAR_AS_PUBLISHED)},
            default_steps=None,
            task_presets={"published": _CIFAR_TASK_AS_PUBLISHED},
        ),
        TaskSpec(
            "warm_start",
            "half of the pictures of CIFAR-100, then all of them",
            WarmStart,
            "resnet",
            {"sound": _CIFAR, "published": _CIFAR},
            default_steps=None,
        ),
        _ANT(
            "slippery_ant",
            "Brax's ant learns to walk on a ground whose friction changes every 2,000,000 steps",
            functools.partial(BraxEnvironment, change="friction"),
            default_steps=20_000_000,
        ),
        _ANT(
            "ant",
            "Brax's ant, or another environment of Brax: ant(environment=hopper); nothing changes",
            BraxEnvironment,
            default_steps=50_000_000,
        ),
    )
}


def convnet(outputs: int, width: int = 32, dtype: str = "float32") -> ConvNet:
    """The network of Continual ImageNet; `width` channels first, then 2 and 4 times as many, as are dense units."""
    _check_width("convnet", width)
    return ConvNet(outputs, (width, 2 * width, 4 * width), (5, 3, 3), (4 * width, 4 * width), _dtype(dtype))


def resnet(outputs: int, width: int = 64, dtype: str = "float32") -> ResNet:
    """ResNet-18 for small pictures; `width` channels in the first stage, twice as many in each that follows."""
    _check_width("resnet", width)
    return ResNet(outputs, (width, 2 * width, 4 * width, 8 * width), dtype=_dtype(dtype))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "actor_critic": ActorCritic,
    "mlp": MLP,
    "linear": functools.partial(MLP, widths=()),
    "convnet": convnet,
    "resnet": resnet,
}


LEARNERS: dict[str, type[PPOSettings]] = {"ppo": PPOSettings}


def find_task(call: Call, preset: str = "sound") -> tuple[TaskSpec, Any]:
    """The task of that name (or `package.module:name`) with its settings, before them those of the preset.

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
    if preset not in (*PRESETS, *spec.presets):
        raise unknown(f"--preset: of {spec.name}", preset, list(dict.fromkeys((*PRESETS, *spec.presets))))
    return spec, _make("--task", spec.name, spec.make, {**spec.task_presets.get(preset, {}), **call.settings})


def find_method(call: Call) -> MethodSpec:
    """The method of that name, or the `MethodSpec` at `package.module:name`."""
    if ":" in call.name:
        found = _imported("--methods", call.name)
        if not isinstance(found, MethodSpec):
            raise InputError(
                f"--methods: {call.name} is a {type(found).__name__}, not a launch.config.methods.MethodSpec"
            )
        return found
    names = {alias: spec for spec in METHODS.values() for alias in (spec.name, *spec.aliases)}
    if call.name not in names:
        raise unknown("--methods", call.name, names)
    return names[call.name]


def find_learner(spec: TaskSpec, call: Call | None, preset: str) -> PPOSettings | None:
    """How the task is learned, by the settings of `--learner`, before them those of the preset; `None` for a stream.

    Raises:
        InputError: unknown learner or setting, or a value it refuses.
    """
    if not spec.learner:
        if call is not None:
            raise InputError(f"--learner: {spec.name} is a stream of examples; environments have one, as slippery_ant")
        return None
    call = call or Call(spec.learner, {})
    if call.name not in LEARNERS:
        raise unknown("--learner", call.name, LEARNERS)
    settings = {**spec.learner_presets.get(preset, {}), **call.settings}
    return _make("--learner", call.name, LEARNERS[call.name], settings)


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


def _make(flag: str, name: str, factory: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    target = factory.func if isinstance(factory, functools.partial) else factory
    known = _settings_of(target)
    for setting in settings if known is not None else ():
        if setting not in known:
            raise unknown(f"{flag}: setting of {name}", setting, known)
    try:
        return factory(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{flag}: {error}") from None


def _settings_of(target: Any) -> list[str] | None:
    """The names of the settings of a dataclass or function; `None` where it takes any."""
    if dataclasses.is_dataclass(target):
        return [f.name for f in dataclasses.fields(target) if f.init and f.name not in ("parent", "name")]
    if not inspect.isfunction(target):
        return None
    parameters = inspect.signature(target).parameters
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else list(parameters)


def _own_task(name: str) -> TaskSpec:
    found = _imported("--task", name)
    if isinstance(found, TaskSpec):
        return found
    if not (isinstance(found, type) and issubclass(found, Task | Environment)):
        raise InputError(
            f"--task: {name} is neither a launch.config.registry.TaskSpec nor a subclass of tasks.base.Task or "
            "Environment"
        )
    summary = (found.__doc__ or "").partition("\n")[0]
    if issubclass(found, Environment):
        return TaskSpec(name, summary, found, "actor_critic", {"sound": _PPO}, 100_000, learner="ppo")
    return TaskSpec(name, summary, found, "mlp(widths=(100,))", {}, 100_000)


def _imported(flag: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{flag}: cannot import '{name}' ({error}); write package.module:name") from None
