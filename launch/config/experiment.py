"""From what a person asked for to jobs: every name, number and length checked before anything is compiled."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launch.config.branch import Source, check_fits, find_source
from launch.config.identity import ADDED_CHOICES, fields_of, text_of
from launch.config.methods import NETWORK_OPTIONS, NORMALISE_INPUTS, MethodSpec, find_method
from launch.config.optimizers import OPTIMIZERS
from launch.config.presets import ALIASES, CORRECTED
from launch.config.registry import TaskSpec, find_learner, find_task
from launch.config.syntax import (
    Call,
    Entry,
    parse_call,
    parse_methods,
    parse_setting,
    parse_sweep_values,
    parse_value,
    with_endings,
    with_settings,
    without,
)
from launch.errors import InputError, unknown

if TYPE_CHECKING:  # JAX takes seconds to import, and is needed once there is something to run
    import flax.linen as nn
    import jax

    from plastic_jax.learners.ppo import PPOSettings
    from tasks.base import Environment, Task

MOST_LANES = 1_000_000
TASK = "task"  # owner of settings in --sweep that are the task's
OLD_NAMES = {"history": "log_size"}  # of settings, as commands and run folders from before have them
SHORT_GRID = 5  # steps between evaluations, below which a run is told to be slow


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is run: a task, methods, seeds, numbers. Equal experiments give equal results.

    Attributes:
        task: `name(setting=value,...)`, or `package.module:name`.
        methods: comma-separated `[label=]name(setting=value,...)`.
        seeds: the lanes' seeds.
        steps: length in updates; or give `tasks`; the task's own default where both are `None`.
        tasks: length in tasks.
        preset: `"corrected"` (also called `"sound"`), `"published"` or another that the task has.
        set: `[METHOD.]NAME=VALUE` settings.
        sweep: `[METHOD.]NAME=v1,v2` numbers of which every value is tried; `task.NAME`, of the task, is for `by_task`.
        network: `name(setting=value,...)`; the task's own where empty.
        learner: `name(setting=value,...)`, for tasks that are acted on; the task's own where empty.
        bin: steps per bin of the metrics; the task's own where `None`.
        lanes_per_batch: lanes in one compiled program; a function of program and backend where `None`.
        chunk: most steps in one compiled call; a function of program and backend where `None`.
        branch_from: `DIR/LABEL@STEP`, a checkpoint with whose networks and streams the runs go on; or empty.
        tuned_on: where the numbers come from, in words; kept with the results, and decides nothing.
        tuning: whether numbers are to be chosen by these runs, which then are not to be reported; decides nothing.
    """

    task: str
    methods: str
    seeds: tuple[int, ...] = tuple(range(30))
    steps: int | None = None
    tasks: int | None = None
    preset: str = CORRECTED
    set: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()
    network: str = ""
    learner: str = ""
    bin: int | None = None
    lanes_per_batch: int | None = None
    chunk: int | None = None
    branch_from: str = ""
    tuned_on: str = ""
    tuning: bool = False


@dataclasses.dataclass(frozen=True)
class Lane:
    """One run: a seed and the numbers of its method. Identified by its contents."""

    method: str
    seed: int
    hyper: Mapping[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """All lanes that share one compiled program: one label. Equal to itself only, as `Plan` is.

    Attributes:
        label: name of its folder.
        method: the method.
        static: the method's choices.
        lanes: the runs.
        network: the Flax module.
        called: the method as flags name it.
    """

    label: str
    method: MethodSpec
    static: Mapping[str, Any]
    lanes: tuple[Lane, ...]
    network: "nn.Module"
    called: str


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A checked experiment.

    Attributes:
        experiment: what was asked for.
        spec: the task's entry in the registry.
        task: the task.
        steps: length in updates, or in environment steps.
        bin: steps per bin.
        jobs: one per label.
        source: the checkpoint that the runs go on from, or `None`.
        learner: how the task is learned; `None` for a stream.
        chosen: sizes that nobody asked for, as they fit the data or each other.
    """

    experiment: Experiment
    spec: TaskSpec
    task: "Task | Environment"
    steps: int
    bin: int
    jobs: tuple[Job, ...]
    source: Source | None = None
    learner: "PPOSettings | None" = None
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def stride(self) -> int:
        """Steps that are taken at once, of which steps and bin are multiples."""
        return _stride(self.learner)

    @property
    def periods(self) -> tuple[int | None, ...]:
        """Steps between all that does not happen at every step; `None` is never."""
        schedule = self.task.schedule
        looks = None if self.learner is None else self.learner.probe_every * self.stride
        return (self.bin, schedule.probe_every, schedule.evaluate_every or looks)

    @property
    def updates(self) -> int:
        """Updates from the start of the run to its end."""
        steps = self.steps - self.start
        return steps if self.learner is None else steps // self.stride * self.learner.updates

    @property
    def start(self) -> int:
        """The step at which the runs begin."""
        return self.source.step if self.source else 0

    def job(self, label: str) -> Job:
        """The job of that label."""
        return next(job for job in self.jobs if job.label == label)

    def settings(self, job: Job) -> dict[str, Any]:
        """What decides the numbers of a job beside its lanes, flat, as `run.json` keeps it."""
        fields = [name for name in fields_of(self.task) if name != "data_dir"]
        asked = {"task": self.experiment.task, "network": self.experiment.network, "method": job.called}
        calls = {name: parse_call("", text).name for name, text in asked.items()}
        return {
            "task": self.spec.name,
            **{f"task.{name}": _plain(getattr(self.task, name)) for name in fields},
            "network": text_of(job.network),
            **({} if self.learner is None else {f"learner.{n}": v for n, v in vars(self.learner).items()}),
            "preset": ALIASES.get(self.experiment.preset, self.experiment.preset),
            "steps": self.steps,
            "bin": self.bin,
            "method": job.method.name,
            **{name: value for name, value in job.static.items() if (name, value) not in ADDED_CHOICES.items()},
            **({"normalise_inputs": True} if job.method.normalise_inputs else {}),
            **{f"{name}_from": call for name, call in calls.items() if ":" in call},  # two may share a name
            **(self.source.settings if self.source else {}),
        }


def resolve(experiment: Experiment) -> Plan:
    """Check everything and lay out the jobs.

    Raises:
        InputError: one line naming the flag, the value, what is allowed and the nearest match.
    """
    spec, asked = find_task(parse_call("--task", experiment.task), experiment.preset)
    if not experiment.seeds:
        raise InputError("--seeds: there must be at least one seed")
    if len(set(experiment.seeds)) < len(experiment.seeds) or min(experiment.seeds) < 0:
        raise InputError(f"--seeds: {experiment.seeds} are not different numbers from 0 on")
    try:
        task = asked.fitted
        task.spec, task.schedule  # noqa: B018 -- shapes and lengths may come from the data
    except (OSError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from None
    call = parse_call("--learner", experiment.learner) if experiment.learner else None
    learner = find_learner(spec, task, call, experiment.preset)
    stride = _stride(learner)
    steps = _length(experiment, spec, task, stride)
    bin_size = (spec.bin or _finest_period(task)) if experiment.bin is None else experiment.bin
    if bin_size < 1:
        raise InputError(f"--bin: {bin_size} is not a positive number of steps")
    bin_size = _whole(bin_size, stride)
    for flag, number in (("--lanes_per_batch", experiment.lanes_per_batch), ("--chunk", experiment.chunk)):
        if number is not None and number < 1:
            raise InputError(f"{flag}: {number} is not positive")
    entries = parse_methods(experiment.methods)
    _check_owners(experiment, spec, entries)
    jobs = tuple(_job(experiment, spec, task, entry) for entry in entries)
    source = find_source(experiment.branch_from) if experiment.branch_from else None
    plan = Plan(experiment, spec, task, steps, bin_size, jobs, source, learner, _chosen(asked, task, learner, call))
    for job in jobs if source else ():
        check_fits(source, plan.settings(job), experiment.seeds, steps)
    return plan


def by_task(experiment: Experiment) -> list[Experiment]:
    """One experiment for every value that `task.NAME=v1,v2` in `sweep` gives a setting of the task; else it alone.

    Their labels say which: `backprop_abruptness_0.5`.

    Raises:
        InputError: values that are no numbers.
    """
    found = [dataclasses.replace(experiment, sweep=())]
    for text in experiment.sweep:
        owner, name, values = parse_setting("--sweep", text)
        if owner != TASK:
            found = [dataclasses.replace(one, sweep=(*one.sweep, text)) for one in found]
            continue
        found = [
            dataclasses.replace(
                one,
                task=with_settings(without(one.task, name), **{name: int(value) if value.is_integer() else value}),
                methods=with_endings(one.methods, task_ending(name, value)),
            )
            for one in found
            for value in parse_sweep_values("--sweep", values)
        ]
    return found


def task_ending(name: str, value: float) -> str:
    """What `by_task` makes labels longer by."""
    return f"_{name}_{value:g}"


def experiment_of(meta: Mapping[str, Any]) -> Experiment:
    """The experiment that a run's `run.json` was made by.

    Raises:
        InputError: the run is of a version of this program that did not keep it.
    """
    kept = dict(meta.get("experiment") or {})
    if not kept:
        raise InputError(f"{meta['label']}: its run.json does not say by which experiment it was made")
    known = {field.name for field in dataclasses.fields(Experiment)}
    lists = {name: tuple(value) for name, value in kept.items() if isinstance(value, list)}
    return Experiment(**{name: value for name, value in (kept | lists).items() if name in known})


def branched(source: str, **changes: Any) -> Experiment:
    """The experiment that made the run at `DIR/LABEL@STEP`, with other methods or numbers from that step on.

    `set` and `sweep` are those of the changes alone, since they belong to the methods.

    Raises:
        InputError: there is no such run or checkpoint.
    """
    found = find_source(source)
    made = dataclasses.replace(experiment_of(found.meta), seeds=found.seeds, set=(), sweep=(), tuned_on="")
    length = {} if {"steps", "tasks"} & changes.keys() else {"steps": found.meta["settings"]["steps"], "tasks": None}
    return dataclasses.replace(made, branch_from=source, **(length | changes))


def warnings(plan: Plan) -> list[str]:
    """What is allowed but surely not meant, a line each."""
    lines = []
    updates, word = plan.updates, "steps" if plan.learner is None else "updates"
    for job in plan.jobs:
        numbers = [lane.hyper.get("maturity_threshold", -1) for lane in job.lanes]
        never = sum(threshold >= updates for threshold in numbers)
        batch = getattr(plan.task.spec, "batch", None)
        if batch == 1 and "period" in job.method.settings and job.lanes[0].hyper.get("decay_rate") == 0:
            lines.append(
                f"{job.label}: with decay_rate=0 it looks at the one example of a step, on which about half of all "
                "ReLU units are silent; decay_rate=0.99 averages over steps"
            )
        if job.method.needs_units and never:
            lines.append(
                f"{job.label}: in {never} of {len(numbers)} lanes no unit can ever be replaced: maturity_threshold "
                f"{max(numbers):g} is not below the {updates} {word} of the run"
            )
    every = plan.task.schedule.change_every
    if getattr(plan.task, "changes", False) and plan.steps <= every:
        lines.append(
            f"{plan.spec.name}: nothing changes in {plan.steps} steps; the first change is due at step {every}"
        )
    grid, starts = _finest_period(plan.task), plan.task.schedule.starts
    if starts is not None and grid < SHORT_GRID and plan.experiment.bin is None:
        lines.append(
            f"{plan.spec.name}: epochs of its tasks have only {grid} step{'s' * (grid > 1)} as a common divisor, so "
            "bins and compiled chunks are that short and the run slow; change the batch or the pictures per class"
        )
    return lines


def _chosen(asked: Any, task: Any, learner: "PPOSettings | None", call: Call | None) -> dict[str, Any]:
    """What a task has made of its sizes that were left to it, and the rollout if that was."""
    names = [f.name for f in dataclasses.fields(asked) if f.init and getattr(asked, f.name) is None]
    chosen = {name: getattr(task, name) for name in names if getattr(task, name) is not None}
    if learner is not None and (call is None or "rollout" not in call.settings):
        chosen["rollout"] = learner.rollout
    return chosen


def _stride(learner: "PPOSettings | None") -> int:
    return 1 if learner is None else learner.rollout


def _whole(steps: int, stride: int) -> int:
    """The least multiple of the stride that is not below."""
    return -(-steps // stride) * stride


def _finest_period(task: "Task | Environment") -> int:
    return task.schedule.evaluate_every or task.schedule.change_every


def _length(experiment: Experiment, spec: TaskSpec, task: "Task | Environment", stride: int) -> int:
    """Steps of the run, a multiple of the stride."""
    from tasks.base import MOST_STEPS

    if experiment.steps is not None and experiment.tasks is not None:
        raise InputError("--steps and --tasks: give one of them")
    for flag, value in (("--steps", experiment.steps), ("--tasks", experiment.tasks)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{flag}: {value} is not a positive whole number")
    schedule = task.schedule
    tasks = schedule.steps_of(experiment.tasks) if experiment.tasks else None
    most = MOST_STEPS // stride * stride
    steps = experiment.steps or tasks or min(spec.default_steps or most, schedule.length or most)
    if schedule.length is not None and steps > schedule.length:
        flag = f"--tasks: {experiment.tasks}" if experiment.tasks else f"--steps: {steps}"
        number = len(schedule.starts_until(schedule.length)) - 1
        raise InputError(f"{flag} is beyond the {number} tasks, {schedule.length} steps, that {spec.name} has here")
    whole = _whole(steps, stride)
    if whole > MOST_STEPS:
        rounded = f", rounded up to {whole}," if whole > steps else ""
        raise InputError(f"--steps: {steps}{rounded} is beyond {MOST_STEPS}, the largest step number")
    return whole


def _job(experiment: Experiment, spec: TaskSpec, task: "Task | Environment", entry: Entry) -> Job:
    method = _method(experiment, spec, entry)
    hyper, static = _settings(experiment, spec, entry, method)
    swept = _swept(experiment, entry.label, method)
    names, number = list(swept), math.prod(map(len, swept.values())) * len(experiment.seeds)
    if number > MOST_LANES:
        raise InputError(f"--sweep: {entry.label} has {number} lanes; at most {MOST_LANES} are allowed")
    lanes = tuple(
        Lane(method.name, seed, hyper | dict(zip(names, values, strict=True)))
        for values in itertools.product(*swept.values())
        for seed in experiment.seeds
    )
    from launch.config.networks import find_network

    called = parse_call("--network", method.network or experiment.network or spec.network)
    discrete = getattr(task.spec, "discrete", False)
    network = find_network(called, task.spec.outputs, {entry.label: method.network_options}, discrete)
    return Job(entry.label, method, static, lanes, network, entry.call.name)


def _method(experiment: Experiment, spec: TaskSpec, entry: Entry) -> MethodSpec:
    """The method, with what its call says of the network, and the numbers of its optimizer and learner."""
    method = find_method(entry.call)
    method = method.around(_asked(experiment, entry, method, "inner", method.inner))
    method = _with_optimizer(experiment, spec, entry, method)
    beside = {name: value for name, value in entry.call.settings.items() if name not in method.settings}
    options = {**method.network_options, **{name: beside[name] for name in NETWORK_OPTIONS if name in beside}}
    normalise = NORMALISE_INPUTS.checked(
        f"--methods: {entry.label}.normalise_inputs", beside.get("normalise_inputs", method.normalise_inputs)
    )
    method = dataclasses.replace(method, network_options=options, normalise_inputs=normalise)
    if spec.learner and (method.dropout or method.fresh_head or method.network):
        raise InputError(f"--methods: {method.name} is for streams of examples, not for {spec.name}")
    return dataclasses.replace(method, more={**method.more, **spec.hyperparameters}) if spec.learner else method


def _asked(experiment: Experiment, entry: Entry, method: MethodSpec, setting: str, otherwise: Any) -> Any:
    """What the entry or `--set` says of a setting that decides which other settings there are."""
    chosen = entry.call.settings.get(setting, otherwise)
    for text in experiment.set:
        owner, name, value = _assignment("--set", text)
        if name == setting and owner in ("", method.name, entry.label, entry.call.name):
            chosen = parse_value(value)
    return chosen


def _with_optimizer(experiment: Experiment, spec: TaskSpec, entry: Entry, method: MethodSpec) -> MethodSpec:
    """The method with the settings of the optimizer that is asked for; a name that there is not is told elsewhere."""
    chosen = _asked(experiment, entry, method, "optimizer", _usual_optimizer(experiment, spec, method))
    if not isinstance(chosen, str) or chosen not in OPTIMIZERS:
        return method
    if spec.learner and OPTIMIZERS[chosen].streams:
        raise InputError(f"--methods: {entry.label}.optimizer={chosen} is for streams of examples, not for {spec.name}")
    return dataclasses.replace(method, optimizer=chosen)


def _usual_optimizer(experiment: Experiment, spec: TaskSpec, method: MethodSpec) -> Any:
    """The optimizer that the method has here where nothing is asked for."""
    return spec.preset(experiment.preset).of(method).get("optimizer", method.settings["optimizer"].default)


def _plain(value: Any) -> Any:
    """What `run.json` can hold of a setting of a task."""
    return value if isinstance(value, str | int | float | bool | None | tuple | list) else text_of(value)


def _settings(
    experiment: Experiment, spec: TaskSpec, entry: Entry, method: MethodSpec
) -> tuple[dict[str, float], dict[str, Any]]:
    given = {name: ("--preset", value) for name, value in spec.preset(experiment.preset).of(method).items()}
    if method.optimizer != _usual_optimizer(experiment, spec, method):  # for which the preset's numbers are not
        given |= {name: ("--preset", value) for name, value in OPTIMIZERS[method.optimizer].defaults.items()}
    given |= {OLD_NAMES.get(name, name): ("--methods", value) for name, value in entry.call.settings.items()}
    for text in experiment.set:
        owner, name, value = _assignment("--set", text)
        if name in method.settings and owner in ("", method.name, entry.label, entry.call.name):
            given[name] = ("--set", parse_value(value))
    values = {name: setting.default for name, setting in method.settings.items()}
    for name, (flag, value) in given.items():
        if flag == "--methods" and name in {*method.network_options, "normalise_inputs"} - set(method.settings):
            continue  # of the network, and of the learner
        if name not in method.settings:
            raise unknown(f"{flag}: setting of {entry.label}", name, method.settings)
        values[name] = method.settings[name].checked(f"{flag}: {entry.label}.{name}", value)
    hyper = {name: float(values[name]) for name in method.hyperparameters}
    return hyper, {name: values[name] for name in method.options}


def _swept(experiment: Experiment, label: str, method: MethodSpec) -> dict[str, list[float]]:
    swept = {}
    for text in experiment.sweep:
        owner, name, value = _assignment("--sweep", text)
        if owner not in ("", method.name, label):
            continue
        if name in method.options:
            raise InputError(
                f"--sweep: {name} is an option, not a number; give a label to each: a={method.name}({name}=...),b=..."
            )
        if name in method.hyperparameters:
            values = parse_sweep_values("--sweep", value)
            swept[name] = [method.hyperparameters[name].checked(f"--sweep: {label}.{name}", v) for v in values]
    return swept


def _assignment(flag: str, text: str) -> tuple[str, str, str]:
    owner, name, value = parse_setting(flag, text)
    return owner, OLD_NAMES.get(name, name), value


def _check_owners(experiment: Experiment, spec: TaskSpec, entries: list[Entry]) -> None:
    """Every `--set` and `--sweep` reaches a method."""
    owned: dict[str, set[str]] = {}
    for entry in entries:
        method = _method(experiment, spec, entry)
        for owner in ("", entry.label, entry.call.name, method.name):
            owned.setdefault(owner, set()).update(method.settings)
    for flag, texts in (("--set", experiment.set), ("--sweep", experiment.sweep)):
        for text in texts:
            owner, name, _ = _assignment(flag, text)
            if owner == TASK and owner not in owned:
                raise InputError(f"{flag}: {text}: settings of the task are swept by launch.sweep, and set by --task")
            if owner not in owned:
                raise unknown(f"{flag}: method", owner, owned.keys() - {""})
            if name not in owned[owner]:
                raise unknown(f"{flag}: setting{' of ' * bool(owner)}{owner}", name, owned[owner])


def lane_keys(lanes: tuple[Lane, ...]) -> "jax.Array":
    """One typed key per lane, made from its seed alone."""
    import jax

    return jax.vmap(jax.random.key)(jax.numpy.asarray([lane.seed for lane in lanes], jax.numpy.uint32))


__all__ = ["Call", "Experiment", "Job", "Lane", "Plan", "experiment_of", "lane_keys", "resolve", "warnings"]
