"""The registry of tasks, networks and learners, and the way to one's own."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from launch.config.hyperparameters import PPO_NUMBERS, Hyperparameter
from launch.config.presets import ALIASES, Preset, presets_of
from launch.config.signatures import imported, summary_of
from launch.config.syntax import Call
from launch.errors import InputError, unknown

if TYPE_CHECKING:  # JAX takes seconds to import, and lists are printed without it
    from plastic_jax.learners.ppo import PPOSettings
    from tasks.base import Problem

LEARNERS = {"ppo": "plastic_jax.learners.ppo:PPOSettings"}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "actor_critic": ("plastic_jax.networks:ActorCritic", {}),
    "mlp": ("plastic_jax.networks:MLP", {}),
    "linear": ("plastic_jax.networks:MLP", {"widths": ()}),
    "convnet": ("launch.config.networks:convnet", {}),
    "resnet": ("launch.config.networks:resnet", {}),
    "gpt": ("plastic_jax.networks:GPT", {}),
    "gpt_10m": ("plastic_jax.networks:GPT", {"layers": 6, "width": 384, "heads": 6}),
    "gru": ("plastic_jax.networks:RecurrentLM", {"cell": "gru"}),
    "lstm": ("plastic_jax.networks:RecurrentLM", {"cell": "lstm"}),
}
"""Where each network is made, and the settings that it always has."""


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task: how it is made, the network and settings it is run with, and how long.

    Attributes:
        name: as flags write it.
        make: the `Task` or `Environment`, a frozen dataclass or where it is (`package.module:name`); its fields are the
            task's settings.
        network: the default network, as `--network` writes it.
        default_steps: length of a run; `None` for the whole stream.
        summary: one line; where it is empty, the first of the docstring.
        settings: the task's settings that differ from their defaults.
        bin: steps per bin of the metrics; `None` for one bin per evaluation, or per task where there are none.
        aliases: other names.
        learner: the default learner, as `--learner` writes it; empty for the one that streams have, without settings.
        preset_file: the file in `launch/config/presets`; where it is empty, that of the task's name.
    """

    name: str
    make: "str | Callable[..., Problem]"
    network: str
    default_steps: int | None
    summary: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bin: int | None = None
    aliases: tuple[str, ...] = ()
    learner: str = ""
    preset_file: str = ""

    @property
    def code(self) -> str:
        """Where the task is defined, `package.module:name`."""
        return self.make if isinstance(self.make, str) else f"{self.make.__module__}:{self.make.__qualname__}"

    @property
    def described(self) -> str:
        """The summary."""
        return self.summary or summary_of(self.code)

    @property
    def presets(self) -> Mapping[str, Preset]:
        """By name; `corrected` and `published` are always among them."""
        return presets_of(self.preset_file or self.name)

    @property
    def hyperparameters(self) -> Mapping[str, Hyperparameter]:
        """What every method has beside its own numbers: the learner's."""
        return PPO_NUMBERS if self.learner else {}

    def preset(self, name: str) -> Preset:
        """The preset of that name, or of which that is another name.

        Raises:
            InputError: it has none of that name.
        """
        name = ALIASES.get(name, name)
        if name not in self.presets:
            raise unknown(f"--preset: of {self.name}", name, self.presets)
        return self.presets[name]


_ant = functools.partial(
    TaskSpec,
    make="tasks.brax_environment:BraxEnvironment",
    network="actor_critic",
    bin=102_400,
    learner="ppo",
    preset_file="ant",
)

TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            "slowly_changing_regression",
            "tasks.slowly_changing_regression:SlowlyChangingRegression",
            "mlp(widths=(5,))",
            1_000_000,
            "20 bits in, one number out; 15 bits change every 10,000 steps (batch 1)",
            bin=20_000,
            aliases=("bit_flipping",),
        ),
        TaskSpec(
            "permuted_mnist",
            "tasks.permuted_mnist:PermutedMNIST",
            "mlp(widths=(100,100,100))",
            48_000_000,
            "MNIST digits with their pixels permuted anew for every task (batch 1)",
        ),
        TaskSpec(
            "label_permuted_mnist",
            "tasks.relabelled_mnist:RelabelledMNIST",
            "mlp(widths=(100,100,100))",
            1_000_000,
            "MNIST digits, the classes named anew every 2,500 images (batch 1)",
            {"change_every": 2500},
        ),
        TaskSpec(
            "random_label_mnist",
            "tasks.relabelled_mnist:RelabelledMNIST",
            "mlp(widths=(100,100,100))",
            1_500_000,
            "1,200 MNIST digits under random labels, drawn anew and fitted again every 400 epochs (batch 16)",
            {"labels": "random", "examples": 1200, "batch": 16, "change_every": 30_000},
        ),
        TaskSpec(
            "label_permuted_cifar",
            "tasks.relabelled_mnist:RelabelledMNIST",
            "convnet",
            1_000_000,
            "pictures of CIFAR-100, the classes named anew every 2,500 pictures (batch 1)",
            {"dataset": "cifar100", "pictures": True, "change_every": 2500},
            preset_file="label_permuted_mnist",
        ),
        TaskSpec(
            "random_label_cifar",
            "tasks.relabelled_mnist:RelabelledMNIST",
            "convnet",
            300_000,
            "1,200 pictures of CIFAR-100 under random labels, drawn anew and fitted again every 400 epochs (batch 16)",
            {
                "dataset": "cifar100",
                "pictures": True,
                "labels": "random",
                "examples": 1200,
                "batch": 16,
                "change_every": 30_000,
            },
            preset_file="random_label_mnist",
        ),
        TaskSpec(
            "teacher",
            "tasks.teacher:Teacher",
            "mlp(widths=(100,100))",
            500_000,
            "targets of a random network, another or a moved one every 2,000 steps (batch 16)",
        ),
        TaskSpec(
            "continual_imagenet",
            "tasks.continual_imagenet:ContinualImageNet",
            "convnet",
            15_000_000,
            "two classes of pictures to be told apart, another two in every task",
        ),
        TaskSpec(
            "imagenet_short",
            "tasks.continual_imagenet:ContinualImageNet",
            "convnet",
            None,
            "continual_imagenet in 10 epochs a task",
            {"epochs": 10},
        ),
        TaskSpec(
            "incremental_cifar100",
            "tasks.incremental_cifar100:IncrementalCIFAR100",
            "resnet",
            None,
            "five more classes of CIFAR-100 every 200 epochs, all old ones stay",
        ),
        TaskSpec(
            "cifar_short",
            "tasks.incremental_cifar100:IncrementalCIFAR100",
            "resnet",
            None,
            "incremental_cifar100 in 20 epochs an increment, the schedule of step sizes scaled",
            {"epochs": 20},
        ),
        TaskSpec(
            "warm_start",
            "tasks.warm_start:WarmStart",
            "resnet",
            None,
            "half of the pictures of CIFAR-100, then all of them",
        ),
        TaskSpec(
            "text_stream",
            "tasks.text_stream:TextStream",
            "gpt",
            None,
            "a language model of bytes kept up to date: text in the order of time, period by period",
        ),
        TaskSpec(
            "ant_model",
            "launch.config.saved_policy:AntModelOfRun",
            "mlp(widths=(256,256))",
            200_000,
            "the ant's next observation and reward, on a ground that changes every 10,000 updates (batch 16)",
        ),
        _ant(
            "slippery_ant",
            default_steps=20_000_000,
            summary="Brax's ant learns to walk on a ground whose friction changes every 2,000,000 steps",
            settings={"change": "friction"},
        ),
        _ant(
            "ant",
            default_steps=50_000_000,
            summary="Brax's ant, or another environment of Brax: ant(environment=hopper); nothing changes",
        ),
        TaskSpec(
            "minatar",
            "tasks.minatar:MinAtar",
            "actor_critic(widths=(128,128))",
            15_360_000,
            "a game of MinAtar, minatar(game=breakout); with --change=game another one every 1,024,000 steps",
            bin=204_800,
            learner="ppo",
        ),
    )
}


def find_task(call: Call, preset: str = "corrected") -> tuple[TaskSpec, Any]:
    """The task of that name (or `package.module:name`) with its settings, before them those of the preset.

    Raises:
        InputError: unknown task or setting, or a value the task refuses.
    """
    spec = find_task_spec(call)
    factory = imported("--task", spec.make) if isinstance(spec.make, str) else spec.make
    return spec, make("--task", spec.name, factory, {**spec.settings, **spec.preset(preset).task, **call.settings})


def find_task_spec(call: Call) -> TaskSpec:
    """The task of that name (or `package.module:name`), without its settings.

    Raises:
        InputError: there is none.
    """
    names = {alias: spec for spec in TASKS.values() for alias in (spec.name, *spec.aliases)}
    if ":" in call.name:
        return _own_task(call.name)
    if call.name not in names:
        raise unknown("--task", call.name, names)
    return names[call.name]


def find_learner(spec: TaskSpec, task: "Problem", call: Call | None, preset: str) -> "PPOSettings | None":
    """How the task is learned, by the settings of `--learner`, before them those of the preset; `None` for a stream.

    A `rollout` that nobody asked for is the largest below the preset's that its environments and minibatches divide.

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
    factory, settings = imported("--learner", LEARNERS[call.name]), {**spec.preset(preset).learner, **call.settings}
    if "rollout" not in call.settings:
        minibatches, environments = settings.get("minibatches", factory.minibatches), task.spec.environments
        if isinstance(minibatches, int) and minibatches > 0:
            least, most = math.lcm(minibatches, environments), settings.get("rollout", factory.rollout)
            settings["rollout"] = max(least, most // least * least)
    return make("--learner", call.name, factory, settings)


def make(flag: str, name: str, factory: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """`factory(**settings)`.

    Raises:
        InputError: it has no such setting, or refuses a value.
    """
    known = _settings_of(factory)
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
    from tasks.base import Environment, Task

    found = imported("--task", name)
    if isinstance(found, TaskSpec):
        return found
    if not (isinstance(found, type) and issubclass(found, Task | Environment)):
        raise InputError(
            f"--task: {name} is neither a launch.config.registry.TaskSpec nor a subclass of tasks.base.Task or "
            "Environment"
        )
    if issubclass(found, Environment):
        return TaskSpec(name, found, "actor_critic", 100_000, learner="ppo", preset_file="ant")
    return TaskSpec(name, found, "mlp(widths=(100,))", 100_000)
