r"""python -m launch.train: run methods on a task, many seeds at once, and keep what was measured.

    python -m launch.train --task=slowly_changing_regression --methods=backprop,continual_backprop \
        --seeds=30 --steps=1000000 --workdir=runs/first

Every flag is a field of `launch.Experiment`; `launch.run(experiment)` does the same from Python.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jax
from absl import flags
from tqdm import tqdm

from launch.cli import run_cli
from launch.config import describe, scripts
from launch.config.experiment import Experiment, Plan, branched, resolve, warnings
from launch.config.registry import find_method, find_task
from launch.config.scripts import Machine
from launch.config.syntax import (
    parse_call,
    parse_every,
    parse_keep,
    parse_methods,
    parse_seeds,
    parse_step,
    with_settings,
)
from launch.engine.build import metric_names
from launch.engine.checkpoint_policy import CheckpointPolicy
from launch.engine.devices import Parallel
from launch.engine.hosts import define_process_flags, is_first, join
from launch.engine.processes import enable_compilation_cache
from launch.engine.resume import DETERMINISTIC, Resume
from launch.engine.scheduler import ALL, parse_block, run
from launch.engine.sinks import check_sinks, sending
from launch.engine.stopping import listening
from launch.errors import InputError, unknown
from launch.storage.run_folder import Run


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
        "sound",
        "sound, published (the published code with its quirks), or another of the task",
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
    define_setting_flags(values)
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
        "replacements of hidden units kept a lane, for launch.report; short for --set=history=N",
        lower_bound=0,
        flag_values=values,
    )
    define_run_flags(values)
    flags.DEFINE_list("log", [], "further sinks: tensorboard, wandb", flag_values=values)
    flags.DEFINE_list("metric", [], "metrics in the figure; by default the task's own", flag_values=values)
    flags.DEFINE_bool("list", False, "list tasks, methods and networks, and end", flag_values=values)
    flags.DEFINE_string("explain", None, "explain the settings of a method or task, and end", flag_values=values)
    flags.DEFINE_enum(
        "job_script",
        None,
        get_args(Machine),
        "print a script that runs this command there, and end",
        flag_values=values,
    )
    flags.DEFINE_bool("dry_run", False, "say what would be run, and end", flag_values=values)


TASK_SETTINGS = ("data_dir", "change_every", "change", "change_at", "dataset", "head", "epochs", "train_per_class")
NETWORK_SETTINGS = ("width", "dtype")


def define_setting_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Short forms of settings of --task and of --network, for tasks and networks that have them."""
    flags.DEFINE_integer("change_every", None, "steps per task; by default the task's own", flag_values=values)
    flags.DEFINE_string("change", None, "what changes in an environment; none, friction, ...", flag_values=values)
    flags.DEFINE_string("change_at", None, "episode_end or once: when a change is made", flag_values=values)
    flags.DEFINE_string("dataset", None, "name or folder of the pictures; see --list", flag_values=values)
    flags.DEFINE_string(
        "head", None, "what becomes of the output layer at a task change: reset, keep, multi", flag_values=values
    )
    flags.DEFINE_integer("epochs", None, "passes through a task's pictures", flag_values=values)
    flags.DEFINE_integer("train_per_class", None, "training pictures of a class", flag_values=values)
    flags.DEFINE_integer("width", None, "channels of a convolutional network's first layer", flag_values=values)
    flags.DEFINE_string("dtype", None, "what convolutional networks compute in: float32, bfloat16", flag_values=values)


def define_run_flags(values: flags.FlagValues = flags.FLAGS) -> None:
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
    define_process_flags(values)
    flags.DEFINE_bool("deterministic", False, "on GPUs: only operations that repeat bit for bit", flag_values=values)


def run_settings(values: flags.FlagValues) -> dict[str, Any]:
    """The arguments of `launch.run` that those flags give.

    Raises:
        InputError: a flag is not of its form.
    """
    policy = CheckpointPolicy(
        parse_every("--checkpoint_every", values.checkpoint_every),
        parse_keep("--keep", values.keep),
        tuple(parse_step("--checkpoint_at", text) for text in values.checkpoint_at),
    )
    return {
        "resume": values.resume,
        "policy": policy,
        "devices": values.devices,
        "parallel": values.parallel,
        "block": parse_block(values.block) if values.block else ALL,
    }


def prepare_devices(values: flags.FlagValues) -> None:
    """What JAX has to be told before it looks for devices.

    Raises:
        InputError: the other processes cannot be found.
    """
    if values.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    if (
        values.devices
        and values.devices > 1
        and values.num_processes is None
        and "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", "")
    ):
        jax.config.update("jax_num_cpu_devices", values.devices)
    join(values.num_processes, values.process_id, values.coordinator_address)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """The command; returns its exit status."""
    if arguments:
        raise InputError(f"'{arguments[0]}' is not a flag; flags are written --name=value")
    if values.list:
        print(describe.everything())
        return 0
    if values.explain:
        print(describe.explain(values.explain))
        return 0
    settings = run_settings(values)
    if values.job_script:
        experiment = from_flags(values)
        workdir = values.workdir or f"runs/{resolve(experiment).spec.name}"
        batch = values.parallel == "batch"
        print(scripts.script(values.job_script, scripts.given_flags(values), workdir, batch), end="")
        return 0
    prepare_devices(values)
    experiment = from_flags(values)
    plan = resolve(experiment)
    check_metrics(plan, values.metric)
    for line in warnings(plan):
        print("warning:", line, file=sys.stderr)
    if values.dry_run:
        print(describe.plan(plan))
        return 0
    workdir = Path(values.workdir or f"runs/{plan.spec.name}")
    if values.log:
        check_sinks(values.log)
    total = sum(len(job.lanes) for job in plan.jobs) * (plan.steps - plan.start)
    kept = {job.label: plan.settings(job) for job in plan.jobs}
    with (
        sending(values.log if is_first() else [], workdir, kept) as log,
        progress_bar(total) as report,
        listening() as stop,
    ):
        runs = run(experiment, workdir, values.workers, report, stop=stop, log=log, **settings)
    if not is_first():
        return 0
    if len(runs) < len(plan.jobs):
        print(
            f"the units of --block={values.block} are over; copy all blocks' folders into one, and run without --block"
        )
        return 0
    # pandas and figures take a second to import, which lists and refusals do without.
    from launch.plot import plot
    from launch.table import table

    print(table(list(runs.values()), values.metric))
    print(f"figure: {plot([workdir], metrics=values.metric or None)}")
    _tell_lost(runs)
    return 0


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
        experiment = dataclasses.replace(experiment, network=find_task(parse_call("--task", task))[0].network)
    return dataclasses.replace(experiment, task=task, network=with_settings(experiment.network, **network))


def _history(values: flags.FlagValues) -> tuple[str, ...]:
    if not values.history:
        return ()
    methods = [find_method(entry.call) for entry in parse_methods(values.methods)]
    if not any("history" in method.static for method in methods):
        names = ", ".join(method.name for method in methods)
        raise InputError(f"--history={values.history}: none of these methods replaces units: {names}")
    return (f"history={values.history}",)


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator:
    """`report(label, lane_steps)` that moves a bar with lane-steps per second and time left; quiet off a terminal."""
    with tqdm(total=total, unit="step", unit_scale=True, disable=not sys.stderr.isatty(), file=sys.stderr) as bar:

        def report(label: str, lane_steps: int) -> None:
            bar.set_postfix_str(label, refresh=False)
            bar.update(lane_steps)

        yield report


def _tell_lost(runs: dict[str, Run]) -> None:
    """Say where the buffer of unit biographies was too small."""
    for label, one in runs.items():
        lost = 0 if one.lives is None else int(one.lives["lost"].max())
        if lost:
            kept = one.meta["settings"].get("history")
            print(
                f"warning: {label}: history={kept} is {lost} replacements too short; the latest are kept",
                file=sys.stderr,
            )


def check_metrics(plan: Plan, metrics: list[str]) -> None:
    """Refuse, before anything runs, a metric that will not be measured."""
    measured = {name for job in plan.jobs for name in metric_names(plan, job)} if metrics else set()
    for name in metrics:
        if name not in measured:
            raise unknown("--metric", name, measured)


if __name__ == "__main__":
    # Small programs lose more to XLA's thread pool than they gain; cores are used by worker processes.
    os.environ.setdefault("NPROC", "1")
    enable_compilation_cache()
    define_flags()
    flags.adopt_module_key_flags(sys.modules[join.__module__])  # --help shows the key flags of this module alone
    run_cli(main)
