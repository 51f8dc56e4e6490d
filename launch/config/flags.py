"""The flags of `launch.train`, and the experiment that they describe."""

import dataclasses
from typing import Literal, get_args

from absl import flags

from launch.config.experiment import Experiment, branched
from launch.config.methods import find_method
from launch.config.presets import CORRECTED
from launch.config.registry import find_task_spec
from launch.config.scripts import Machine
from launch.config.syntax import parse_call, parse_methods, parse_seeds, with_settings
from launch.errors import InputError

Resume = Literal["auto", "never", "must"]
"""`auto`: go on where there is something; `never`: refuse it; `must`: refuse to begin anew."""
Parallel = Literal["lanes", "batch"]
"""`lanes`: every device has lanes of its own; `batch`: all devices share every lane's batch."""


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing this module brings none."""
    flags.DEFINE_string(
        "task", None, "name, name(setting=value,...) or package.module:name; see --list", flag_values=values
    )
    flags.DEFINE_string(
        "methods",
        None,
        "comma-separated [label=]name(setting=value,...)",
        flag_values=values,
    )
    flags.DEFINE_string("seeds", "30", "N for seeds 0 to N-1, A:B for seeds A to B-1", flag_values=values)
    flags.DEFINE_integer(
        "steps", None, "length in updates, or in environment steps; by default the task's own", flag_values=values
    )
    flags.DEFINE_integer("tasks", None, "length in tasks, instead of --steps", flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "folder for the results, one folder a label in it; by default runs/TASK", flag_values=values
    )
    flags.DEFINE_string(
        "preset",
        CORRECTED,
        "corrected, published (the published code with its quirks), or another of the task",
        flag_values=values,
    )
    flags.DEFINE_multi_string("set", [], "[METHOD.]NAME=VALUE; may be repeated", flag_values=values)
    flags.DEFINE_multi_string("sweep", [], "[METHOD.]NAME=v1,v2 or low:high:logN; may be repeated", flag_values=values)
    flags.DEFINE_string(
        "network", "", "name(setting=value,...) or package.module:name; by default the task's own", flag_values=values
    )
    flags.DEFINE_string(
        "learner",
        "",
        "ppo(setting=value,...), for tasks that are acted on; by default the task's own",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir", None, "where the task's data are; by default the folder of tensorflow-datasets", flag_values=values
    )
    _define_setting_flags(values)
    flags.DEFINE_integer("bin", None, "steps per bin of the metrics; by default the task's own", flag_values=values)
    flags.DEFINE_integer(
        "lanes_per_batch",
        None,
        "lanes in one compiled program; by default a function of their size",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "workers", None, "processes that share the work; by default one a core on CPUs", flag_values=values
    )
    flags.DEFINE_integer(
        "chunk", None, "most steps in one compiled call; by default a function of their cost", flag_values=values
    )
    flags.DEFINE_string(
        "branch_from", None, "DIR/LABEL@STEP: go on with that run's networks and streams", flag_values=values
    )
    flags.DEFINE_integer(
        "history",
        0,
        "replacements of hidden units kept a lane, for launch.report; short for --set=log_size=N",
        lower_bound=0,
        flag_values=values,
    )
    _define_run_flags(values)
    flags.DEFINE_list("log", [], "further sinks: tensorboard, wandb", flag_values=values)
    flags.DEFINE_list("metric", [], "metrics in the figure; by default the task's own", flag_values=values)
    flags.DEFINE_bool("list", False, "list tasks, methods and networks, and end", flag_values=values)
    flags.DEFINE_string(
        "explain", None, "explain the settings of a method, task or optimizer, and end", flag_values=values
    )
    flags.DEFINE_enum(
        "job_script",
        None,
        get_args(Machine),
        "print a script that runs this command there, and end",
        flag_values=values,
    )
    flags.DEFINE_bool("dry_run", False, "say what would be run, and end", flag_values=values)


TASK_SETTINGS = (
    "data_dir", "change_every", "change", "change_at", "abruptness", "dataset", "head", "epochs", "train_per_class",
    "policy",
)  # fmt: skip
NETWORK_SETTINGS = ("width", "dtype")


def _define_setting_flags(values: flags.FlagValues) -> None:
    """Short forms of settings of --task and of --network, for tasks and networks that have them."""
    flags.DEFINE_integer("change_every", None, "steps per task; by default the task's own", flag_values=values)
    flags.DEFINE_string("change", None, "what changes in an environment; none, friction, ...", flag_values=values)
    flags.DEFINE_string("change_at", None, "episode_end or once: when a change is made", flag_values=values)
    flags.DEFINE_float(
        "abruptness", None, "1: tasks change at once; less: they are mixed over the rest of a task", flag_values=values
    )
    flags.DEFINE_string("dataset", None, "name or folder of the pictures; see --list", flag_values=values)
    flags.DEFINE_string(
        "head", None, "what becomes of the output layer at a task change: reset, keep, multi", flag_values=values
    )
    flags.DEFINE_integer("epochs", None, "passes through a task's pictures", flag_values=values)
    flags.DEFINE_integer("train_per_class", None, "training pictures of a class", flag_values=values)
    flags.DEFINE_string("policy", None, "DIR/LABEL@STEP: whose actions a model is learned from", flag_values=values)
    flags.DEFINE_integer("width", None, "channels of a convolutional network's first layer", flag_values=values)
    flags.DEFINE_string("dtype", None, "what convolutional networks compute in: float32, bfloat16", flag_values=values)


def _define_run_flags(values: flags.FlagValues) -> None:
    """Flags that say how the work is done; only --parallel and --deterministic can change the last bits."""
    flags.DEFINE_enum(
        "resume", "auto", get_args(Resume), "auto goes on where a run stands; never, must refuse", flag_values=values
    )
    flags.DEFINE_string(
        "checkpoint_every",
        "10min",
        "steps (200000) or time (30s, 10min, 2h) between checkpoints; never",
        flag_values=values,
    )
    flags.DEFINE_list(
        "checkpoint_at", [], "steps whose checkpoints stay for good, for --branch_from", flag_values=values
    )
    flags.DEFINE_string(
        "keep", "2", "newest checkpoints that stay, or all; 0: none once the run is over", flag_values=values
    )
    flags.DEFINE_integer("devices", None, "devices to share the work; by default all, on CPUs one", flag_values=values)
    flags.DEFINE_enum(
        "parallel",
        "lanes",
        get_args(Parallel),
        "lanes: every device has its own; batch: all devices share every batch",
        flag_values=values,
    )
    flags.DEFINE_string(
        "block",
        None,
        "I/N: only every N-th unit of work, from number I on; copy the folders into one and run again without it",
        flag_values=values,
    )
    _define_process_flags(values)
    flags.DEFINE_bool("deterministic", False, "on GPUs: only operations that repeat bit for bit", flag_values=values)


def _define_process_flags(values: flags.FlagValues) -> None:
    """Flags that say which process of several this one is."""
    flags.DEFINE_string(
        "num_processes",
        None,
        "processes in all, or auto: as Slurm or the TPU's environment says",
        flag_values=values,
    )
    flags.DEFINE_integer("process_id", None, "number of this process, from 0 on", flag_values=values)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, the same for all", flag_values=values)


def from_flags(values: flags.FlagValues) -> Experiment:
    """The experiment that the flags describe.

    Raises:
        InputError: a flag is missing or not of its form.
    """
    for name in ("methods",) if values.branch_from else ("task", "methods"):
        if not values[name].value:
            raise InputError(f"--{name}: missing; python -m launch.train --list shows what there is")
    asked = {
        "methods": values.methods,
        "preset": values.preset,
        "set": (*values.set, *_history(values)),
        "sweep": tuple(values.sweep),
        "network": values.network,
        "learner": values.learner,
        "bin": values.bin,
        "lanes_per_batch": values.lanes_per_batch,
        "chunk": values.chunk,
    }
    length = {"steps": values.steps, "tasks": values.tasks}
    if values.branch_from:
        given = {name: value for name, value in asked.items() if values[name].present or name == "set"}
        given |= {"task": values.task} if values.task else {}
        given |= length if values.steps is not None or values.tasks is not None else {}
        given |= {"seeds": parse_seeds(values.seeds)} if values["seeds"].present else {}
        experiment = branched(values.branch_from, **given)
    else:
        experiment = Experiment(task=values.task, seeds=parse_seeds(values.seeds), **length, **asked)
    task = with_settings(experiment.task, **{name: values[name].value for name in TASK_SETTINGS})
    network = {name: values[name].value for name in NETWORK_SETTINGS if values[name].value is not None}
    if network and not experiment.network:
        experiment = dataclasses.replace(experiment, network=find_task_spec(parse_call("--task", task)).network)
    return dataclasses.replace(experiment, task=task, network=with_settings(experiment.network, **network))


def _history(values: flags.FlagValues) -> tuple[str, ...]:
    if not values.history:
        return ()
    methods = [find_method(entry.call) for entry in parse_methods(values.methods)]
    if not any("log_size" in method.settings for method in methods):
        names = ", ".join(method.name for method in methods)
        raise InputError(f"--history={values.history}: none of these methods replaces units: {names}")
    return (f"log_size={values.history}",)
