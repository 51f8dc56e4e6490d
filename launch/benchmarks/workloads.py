"""What the benchmark times: the compiled chunks that `launch.train` runs, and the streams alone."""

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks.device_rates import CONVNET, PPO, RESNET
from launch.config.experiment import Experiment, Plan, lane_keys, resolve
from launch.config.methods import METHODS
from launch.config.presets import CORRECTED
from launch.config.registry import TASKS, TaskSpec
from launch.engine.build import hyper_arrays, job_program
from launch.engine.lane_program import acting
from launch.engine.loop import chunk_length, compiled_chunk, initial
from launch.errors import InputError
from tasks.base import Environment, Task, gradual
from tasks.classes import ClassFacts
from tasks.continual_imagenet import ContinualImageNet
from tasks.incremental_cifar100 import IncrementalCIFAR100
from tasks.permuted_mnist import PermutedMNIST, PermutedMNISTData
from tasks.pictures import PictureData

REGRESSION, MNIST = "slowly_changing_regression", "permuted_mnist"
BACKPROP, CBP, CONTRIBUTION = "backprop", "continual_backprop", "continual_backprop(utility=contribution)"
LINEAR, STREAM = "linear", "the stream alone"
METHODS_GROUP = "methods"
WIDE = (784, 2000, 2000, 2000, 10)
WIDE_WEIGHTS = sum(a * b for a, b in itertools.pairwise(WIDE))


@dataclasses.dataclass(frozen=True)
class RandomImages(PermutedMNIST):
    """`PermutedMNIST` on random images of MNIST's shape and share of black pixels: as fast, and nothing to download."""

    @property
    def _facts(self) -> Any:
        return types.SimpleNamespace(examples=60_000, test_examples=10_000, pixels=784, classes=10)

    def load(self) -> PermutedMNISTData:
        return PermutedMNISTData(*_random_images(60_000), *_random_images(self.evaluation_size))


@dataclasses.dataclass(frozen=True)
class RandomPairs(ContinualImageNet):
    """`ContinualImageNet` on random pictures, 600 + 100 of each of 40 classes as published."""

    @property
    def _facts(self) -> ClassFacts:
        return _facts(40, 600)

    def load(self) -> PictureData:
        facts = self._facts
        return PictureData(_random(facts.train), _random(facts.test), *np.full((2, 3), 128, np.float32))


@dataclasses.dataclass(frozen=True)
class RandomIncrements(IncrementalCIFAR100):
    """`IncrementalCIFAR100` on random pictures."""

    @property
    def _facts(self) -> ClassFacts:
        return _facts(100, 500)

    def load(self) -> PictureData:
        facts = self._facts
        return PictureData(_random(facts.train), _random(facts.test), *np.full((2, 3), 128, np.float32))


def _random_spec(task: str, name: str, make: type) -> TaskSpec:
    return dataclasses.replace(TASKS[task], name=name, make=make, preset_file=task)


RANDOM_PAIRS = _random_spec("continual_imagenet", "random_pairs", RandomPairs)
RANDOM_INCREMENTS = _random_spec("incremental_cifar100", "random_increments", RandomIncrements)
RANDOM_IMAGES = _random_spec(MNIST, "random_images", RandomImages)

RANDOM_TASKS = {
    MNIST: "launch.benchmarks.workloads:RANDOM_IMAGES",
    "continual_imagenet": "launch.benchmarks.workloads:RANDOM_PAIRS",
    "incremental_cifar100": "launch.benchmarks.workloads:RANDOM_INCREMENTS",
}
"""Tasks by name, as the same streams of random pictures, which need no data."""


@functools.cache
def _random_images(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    pixels = rng.integers(0, 256, (n, 784), np.uint8) * (rng.integers(0, 5, (n, 784), np.uint8) == 0)
    return pixels, rng.integers(0, 10, n).astype(np.int32)


def _facts(classes: int, train: int) -> ClassFacts:
    shapes = ((classes, number, 32, 32, 3) for number in (train, 100))
    return ClassFacts(tuple(map(str, range(classes))), *shapes)


@functools.cache
def _random(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that is timed: `steps` updates of `lanes` runs in one program, a multiple of the chunk if longer."""

    task: str
    network: str
    method: str
    lanes: int
    steps: int
    preset: str = CORRECTED

    @property
    def name(self) -> str:
        """What it is called within its group."""
        return f"{self.method}, {self.lanes} lane{'s' * (self.lanes > 1)}"

    def plan(self) -> Plan:
        """The checked experiment; the stream is that of backprop.

        Raises:
            InputError: the task's data are missing or unreadable.
        """
        method = BACKPROP if self.method == STREAM else self.method
        seeds = tuple(range(self.lanes))
        settings = {"network": self.network, "lanes_per_batch": self.lanes, "preset": self.preset}
        return resolve(Experiment(self.task, method, seeds, **settings))


def groups(images: str = MNIST, quick: bool = False) -> dict[str, list[Case]]:
    """All cases by group; `quick` only tries the plumbing."""
    online, batch = images, _with(images, "batch=128")
    small, wide = "mlp(widths=(100,100,100))", f"mlp(widths={WIDE[1:-1]})"
    lanes = {4: 10_000} if quick else {1: 100_000, 30: 30_000, 100: 10_000}
    most, share = max(lanes), 0.02 if quick else 1.0
    regression = [Case(REGRESSION, "", m, n, steps) for n, steps in lanes.items() for m in (BACKPROP, CBP)]
    regression += [Case(REGRESSION, "", m, most, lanes[most]) for m in ((STREAM,) if quick else (LINEAR, STREAM))]

    def mnist(task: str, network: str, steps: int, *methods: str) -> list[Case]:
        return [Case(task, network, method, 1, max(int(steps * share), 1)) for method in methods]

    def pictures(task: str, network: str, steps: int) -> list[Case]:
        return [Case(RANDOM_TASKS[task], network, m, 1, 1 if quick else steps) for m in (BACKPROP, CBP, STREAM)]

    def ant(preset: str, rollout: int, iterations: int) -> list[Case]:
        steps = rollout * (1 if quick else iterations)
        return [Case("ant", "", method, 1, steps, preset) for method in (BACKPROP, CBP, STREAM)]

    return {
        "regression": regression,
        "mnist_3x100": mnist(online, small, 10_000, BACKPROP, CBP, CONTRIBUTION, STREAM),
        "mnist_3x2000": mnist(online, wide, 60, BACKPROP, CBP, CONTRIBUTION, STREAM),
        "batch_128_3x100": mnist(batch, small, 250, BACKPROP, CBP, STREAM),
        "batch_128_3x2000": mnist(batch, wide, 4, BACKPROP, CBP, STREAM),
        "convnet": pictures("continual_imagenet", "convnet", 30),
        "resnet_width_8": pictures("incremental_cifar100", "resnet(width=8)", 5),
        "resnet": pictures("incremental_cifar100", "resnet", 1),
        "ppo_published": ant("published", 2048, 10),
        "ppo_published_wide": ant("published_wide", 2048, 10),
        "ppo_accelerator": ant("accelerator", 65_536, 1),
    }


def method_groups(images: str = MNIST, quick: bool = False) -> dict[str, list[Case]]:
    """Every method of the registry at three sizes of a step, those left out that a task or its network is not for."""
    small, share = "mlp(widths=(100,100,100))", 0.02 if quick else 1.0
    sizes = {
        "3x100, batch 1": (images, small, 5_000),
        "3x100, batch 128": (_with(images, "batch=128"), small, 100),
        "ConvNet, batch 100": ("launch.benchmarks.workloads:RANDOM_PAIRS", "convnet", 10),
    }
    return {
        f"{METHODS_GROUP}: {name}": [
            case
            for method in (BACKPROP, *(each for each in METHODS if each != BACKPROP))
            if _fits(case := Case(task, network, method, 1, max(int(steps * share), 1)))
        ]
        for name, (task, network, steps) in sizes.items()
    }


def _fits(case: Case) -> bool:
    try:
        plan = case.plan()
        job_program(plan, plan.jobs[0])
    except InputError:
        return False
    return True


def device_groups(quick: bool = False) -> dict[str, list[Case]]:
    """Cases for an accelerator, by group: as many lanes at once as the published figures have runs, or as fit."""
    methods = (BACKPROP, CBP, STREAM)

    def pictures(task: str, network: str, lanes: int, steps: int) -> list[Case]:
        n, steps = (2, 1) if quick else (lanes, steps)
        return [Case(RANDOM_TASKS[task], network, method, n, steps) for method in methods]

    resnet = "resnet(width=2,dtype=bfloat16)" if quick else "resnet(dtype=bfloat16)"
    ant = [Case("ant", "", m, 2 if quick else 30, 2048 * (1 if quick else 10), "published_wide") for m in methods]
    return {
        CONVNET: pictures("continual_imagenet", "convnet(width=2)" if quick else "convnet", 30, 300),
        RESNET: pictures("incremental_cifar100", resnet, 4, 25),
        PPO: ant,
    }


def image_task(data_dir: str | None) -> tuple[str, str]:
    """The task of the MNIST cases and what it shows: MNIST where it is found, else random images.

    Raises:
        InputError: `data_dir` was given and holds no MNIST.
    """
    task = MNIST if data_dir is None else _with(MNIST, f"data_dir={data_dir!r}")
    try:
        resolve(Experiment(task, BACKPROP))
    except InputError:
        if data_dir is not None:
            raise
        return RANDOM_TASKS[MNIST], "random images of MNIST's shape, as no --data_dir was given"
    return task, "MNIST"


def workload(case: Case, plan: Plan, data: Any) -> Callable[[], Any]:
    """A call runs the next `case.steps` steps in the longest chunks that fit.

    The first step after the start of the run comes first, so that every stream is under way. The diagnostics and the
    evaluation at the start of a task are in it where a task is not longer than a chunk.
    """
    (job,) = plan.jobs
    program, hyper = job_program(plan, job), hyper_arrays(job, job.lanes)
    length = min(chunk_length(program), case.steps)
    lanes = initial(program, lane_keys(job.lanes), hyper, data)
    show, at_once = _shown(plan.task)
    show = jax.vmap(show, (0, None, None))
    started = jax.jit(show)(lanes.task, np.int32(0), data)
    if case.method == STREAM:
        return _forward(_stream_chunk(show, at_once), started, data, length, case.steps)
    train = compiled_chunk(program)
    lanes = lanes._replace(task=started[0])
    return _forward(lambda lanes, *others: train(lanes, hyper, *others)[0], lanes, data, length, case.steps)


def _shown(task: Task | Environment) -> tuple[Callable[..., Any], int]:
    """What a task does without a learner, and the steps that this is; in environments whoever acts acts at random."""
    if isinstance(task, Task):
        return gradual(task).next, 1
    spec, worlds = task.spec, acting(task)

    def show(state: Any, clock: jax.Array, data: Any) -> tuple[Any, Any]:
        action = jax.random.normal(jax.random.fold_in(jax.random.key(0), clock), (spec.environments, spec.outputs))
        return worlds.step(state, action, clock)

    return show, spec.environments


def _stream_chunk(show: Callable[..., Any], at_once: int) -> Callable[..., Any]:
    """Shows batches to nobody, but carries each along: XLA leaves out what nobody needs."""

    def chunk(shown: Any, start: jax.Array, data: Any, length: int) -> Any:
        clocks = start + jnp.arange(0, length, at_once, dtype=jnp.int32)
        return jax.lax.scan(lambda shown, clock: (show(shown[0], clock, data), None), shown, clocks)[0]

    return jax.jit(chunk, static_argnums=3, donate_argnums=0)


def _forward(chunk: Callable[..., Any], carry: Any, data: Any, length: int, steps: int) -> Callable[[], Any]:
    clock = length

    def call() -> Any:
        nonlocal carry, clock
        for _ in range(steps // length):
            carry = chunk(carry, np.int32(clock), data, length)
            clock += length
        return carry

    return call


def _with(task: str, setting: str) -> str:
    return f"{task[:-1]},{setting})" if task.endswith(")") else f"{task}({setting})"
