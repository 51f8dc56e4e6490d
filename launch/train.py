"""python -m launch.train: run methods on a task, many seeds at once, and keep what was measured.

    python -m launch.train --task=slowly_changing_regression --methods=backprop,continual_backprop \
        --seeds=30 --steps=1000000 --workdir=runs/first

Every flag is a field of `launch.Experiment`; `launch.run(experiment)` does the same from Python.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from tqdm import tqdm

from launch import describe
from launch.cli import run_cli
from launch.errors import InputError, unknown
from launch.experiment import Experiment, Plan, resolve, warnings
from launch.lanes import metric_names
from launch.plot import plot
from launch.registry import find_method
from launch.run_folder import Run
from launch.runner import enable_compilation_cache, run
from launch.sinks import check_sinks, open_sinks
from launch.syntax import parse_methods, parse_seeds
from launch.table import table


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing this module brings none."""
    flags.DEFINE_string(
        "task", None, "name, name(setting=value,...) or package.module:name; see --list", flag_values=values
    )
    flags.DEFINE_string(
        "methods",
        None,
        "comma-separated [label=]name(setting=value,...); label=first@step->name switches",
        flag_values=values,
    )
    flags.DEFINE_string("seeds", "30", "N for seeds 0 to N-1, A:B for seeds A to B-1", flag_values=values)
    flags.DEFINE_integer("steps", None, "length in updates; by default the task's own", flag_values=values)
    flags.DEFINE_integer("tasks", None, "length in tasks, instead of --steps", flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "folder for the results, one folder a label in it; by default runs/TASK", flag_values=values
    )
    flags.DEFINE_string("preset", "sound", "sound or published: the published code with its quirks", flag_values=values)
    flags.DEFINE_multi_string("set", [], "[METHOD.]NAME=VALUE; may be repeated", flag_values=values)
    flags.DEFINE_multi_string("sweep", [], "[METHOD.]NAME=v1,v2 or low:high:logN; may be repeated", flag_values=values)
    flags.DEFINE_string(
        "network", "", "name(setting=value,...) or package.module:name; by default the task's own", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", None, "where the task's data are; by default the folder of tensorflow-datasets", flag_values=values
    )
    flags.DEFINE_integer("change_every", None, "steps per task; by default the task's own", flag_values=values)
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
        "history",
        0,
        "replacements of units kept a lane, for launch.units; short for --set=history=N",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_list("log", [], "further sinks: tensorboard, wandb", flag_values=values)
    flags.DEFINE_list("metric", [], "metrics in the figure; by default the task's own", flag_values=values)
    flags.DEFINE_bool("list", False, "list tasks, methods and networks, and end", flag_values=values)
    flags.DEFINE_string("explain", None, "explain a method's settings, and end", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "say what would be run, and end", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """The command; returns its exit status."""
    if arguments:
        raise InputError(f"'{arguments[0]}' is not a flag; flags are written --name=value")
    if values.list:
        print(describe.everything())
        return 0
    if values.explain:
        print(describe.method(values.explain))
        return 0
    experiment = from_flags(values)
    plan = resolve(experiment)
    _check_metrics(plan, values.metric)
    for line in warnings(plan):
        print("warning:", line, file=sys.stderr)
    if values.dry_run:
        print(describe.plan(plan))
        return 0
    workdir = Path(values.workdir or f"runs/{plan.spec.name}")
    if values.log:
        check_sinks(values.log)
    with progress_bar(sum(len(job.lanes) for job in plan.jobs) * plan.steps) as report:
        runs = run(experiment, workdir, values.workers, report)
    log(runs, values.log, workdir)
    print(table(list(runs.values()), values.metric))
    print(f"figure: {plot([workdir], metrics=values.metric or None)}")
    _tell_lost(runs)
    return 0


def from_flags(values: flags.FlagValues) -> Experiment:
    """The experiment that the flags describe.

    Raises:
        InputError: a flag is missing or not of its form.
    """
    for name in ("task", "methods"):
        if not values[name].value:
            raise InputError(f"--{name}: missing; python -m launch.train --list shows what there is")
    return Experiment(
        task=_with_settings(values.task, data_dir=values.data_dir, change_every=values.change_every),
        methods=values.methods,
        seeds=parse_seeds(values.seeds),
        steps=values.steps,
        tasks=values.tasks,
        preset=values.preset,
        set=(*values.set, *_history(values)),
        sweep=tuple(values.sweep),
        network=values.network,
        bin=values.bin,
        lanes_per_batch=values.lanes_per_batch,
    )


def _history(values: flags.FlagValues) -> tuple[str, ...]:
    if not values.history:
        return ()
    methods = [
        find_method(call) for entry in parse_methods(values.methods) for call in (entry.call, entry.first) if call
    ]
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


def log(runs: dict[str, Run], names: list[str], workdir: Path) -> None:
    """Hand every label's mean curve to the sinks."""
    if not names:
        return
    settings = {label: run.meta["settings"] for label, run in runs.items()}
    for sink in open_sinks(names, workdir, settings):
        for label, one in runs.items():
            for i, step in enumerate(one.step):
                sink(label, int(step), {name: float(values[:, i].mean()) for name, values in one.metrics.items()})


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


def _check_metrics(plan: Plan, metrics: list[str]) -> None:
    """Refuse, before anything runs, a metric that will not be measured."""
    measured = {name for job in plan.jobs for name in metric_names(plan, job)} if metrics else set()
    for name in metrics:
        if name not in measured:
            raise unknown("--metric", name, measured)


def _with_settings(text: str, **settings) -> str:
    given = ",".join(f"{name}={value!r}" for name, value in settings.items() if value is not None)
    if not given:
        return text
    text = text.strip()
    if not text.endswith(")"):
        return f"{text}({given})"
    inside = text[:-1].rstrip(", ")
    return f"{inside}{'' if inside.endswith('(') else ','}{given})"


if __name__ == "__main__":
    # Small programs lose more to XLA's thread pool than they gain; cores are used by worker processes.
    os.environ.setdefault("NPROC", "1")
    enable_compilation_cache()
    define_flags()
    run_cli(main)
