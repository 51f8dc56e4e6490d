r"""python -m launch.sweep: many settings, many seeds, worked through by processes that may be killed.

    python -m launch.sweep --grid=tuning.toml --workdir=runs/tuning --workers=2
    python -m launch.sweep --task=slowly_changing_regression --methods=backprop,l2 --sweep=step_size=1e-3:1e-1:log5 \
        --seeds=100:120 --workdir=runs/tuning
    python -m launch.sweep --task=label_permuted_mnist --sweep=task.abruptness=0,0.25,0.5,0.75,1 --seeds=10 \
        --methods=backprop,l2_init,continual_backprop,shrink_and_perturb,fresh_network --workdir=runs/abruptness
    python -m launch.sweep --workdir=runs/tuning --status
    python -m launch.sweep --workdir=runs/tuning --best
    python -m launch.sweep --workdir=runs/tuning --report_seeds=0:30

A setting of the task is swept as `task.NAME`. Where nothing else is, nothing is chosen, and the command ends as a run
does, and with a figure over that setting: differences to the fresh network, if it is among the methods.

The folder is a run folder with `sweep.json` beside the labels: the units of work, named by a hash of their settings.
`--submit=slurm` starts the workers as jobs of a cluster, `--unit=NAME` runs one unit of work here.
"""

import dataclasses
import os
import sys
from pathlib import Path

from absl import flags

from launch import train
from launch.analysis.comparison import FRESH
from launch.analysis.metrics import checked_metrics
from launch.analysis.tuning import Winner, render, report_experiment, winners
from launch.cli import refuse_arguments, run_cli
from launch.config.experiment import Experiment, by_task, resolve
from launch.config.grid import read_grid
from launch.config.syntax import parse_call, parse_seeds, with_settings
from launch.engine import slurm
from launch.engine.dry_run import all_warnings, dry_run
from launch.engine.processes import enable_compilation_cache
from launch.engine.scheduler import Launch, check_unit, labels_of, prepare, run_workers, work_through
from launch.engine.sinks import sending
from launch.engine.stopping import listening
from launch.engine.sweep_folder import check_sweep_file, read_experiments, status, write_sweep_file
from launch.errors import InputError
from launch.figures import figure, parts
from launch.plot import plot
from launch.storage.run_folder import METRICS, Run, read_run
from launch.table import table

ASKED = (
    "task", "methods", "seeds", "steps", "tasks", "preset", "set", "sweep", "network", "bin", "lanes_per_batch",
    "chunk", "branch_from", "history", *train.NETWORK_SETTINGS, *(set(train.TASK_SETTINGS) - {"data_dir"}),
)  # fmt: skip
"""Flags that say what is run; a grid file says it in their place."""
NOT_HERE = (
    "resume", "devices", "parallel", "block", "num_processes", "process_id", "coordinator_address", "list", "explain",
    "job_script",
)  # fmt: skip
"""Flags of `launch.train` that a sweep has no use for."""
ENDS = ("status", "best", "dry_run", "unit", "submit")
"""Flags of which each says how the command ends."""
WHERE = ("here", "slurm", "local")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags, those of `launch.train` among them."""
    train.define_flags(values)
    flags.DEFINE_string("grid", None, "TOML or JSON file of the settings to try, in place of flags", flag_values=values)
    flags.DEFINE_string("unit", None, "run this unit of work alone, by its name in sweep.json", flag_values=values)
    flags.DEFINE_bool("status", False, "say how far the sweep is, and end", flag_values=values)
    flags.DEFINE_bool("best", False, "say which settings won, draw their sensitivity, and end", flag_values=values)
    flags.DEFINE_float("window", 1.0, "share of the run, at its end, that settings are judged by", flag_values=values)
    flags.DEFINE_string("report_seeds", None, "A:B: run the winners alone on these seeds", flag_values=values)
    flags.DEFINE_string("report_dir", None, "where; by default the folder report in --workdir", flag_values=values)
    flags.DEFINE_enum(
        "submit", "here", WHERE, "slurm: workers are jobs of a cluster; local: jobs of this machine", flag_values=values
    )
    flags.DEFINE_list(
        "slurm", [], "NAME=VALUE settings of the jobs, as timeout_min=600,slurm_partition=gpu", flag_values=values
    )


def accepted() -> list[str]:
    """The names of the flags that a sweep has a use for."""
    values = flags.FlagValues()
    define_flags(values)
    return [name for name in values if name not in NOT_HERE]


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """The command; returns its exit status."""
    refuse_arguments(arguments)
    _check_flags(values)
    policy = train.run_settings(values)["policy"]
    train.prepare_devices(values)
    sweep = Launch(Path(values.workdir), experiments(values), policy)
    for plan in (resolve(one) for one in sweep.experiments) if values.metric else ():
        train.check_metrics(plan, values.metric)
    if values.report_seeds:
        sweep = report_of(sweep, values)
    if values.dry_run:
        print("".join(f"{dry_run(resolve(one))}\n\n" for one in sweep.experiments), end="")
    if values.status or values.dry_run:
        print(status(labels_of(sweep)))
        return 0
    if not values.best:
        _work(sweep, values)
        if values.unit or values.submit != "here":
            return 0
    if _is_tuning(sweep):
        _show_best(sweep, values)
    else:
        _show_report(sweep, values)
    return 0


def experiments(values: flags.FlagValues) -> tuple[Experiment, ...]:
    """What is swept: a grid file's experiments, those of the flags, or those of the sweep that is in the folder.

    Raises:
        InputError: several of these at once, or none.
    """
    asked = [f"--{name}" for name in ASKED if values[name].present]
    if values.grid and asked:
        raise InputError(f"--grid and {asked[0]}: give one of them; a grid file says what is run, all of it")
    if not values.grid and not asked:
        there = read_experiments(Path(values.workdir))
        return tuple(dataclasses.replace(one, task=with_settings(one.task, data_dir=values.data_dir)) for one in there)
    found = read_grid(values.grid, data_dir=values.data_dir) if values.grid else by_task(train.from_flags(values))
    compares = len({one.task for one in found}) > 1 and not any(one.sweep for one in found)
    return tuple(dataclasses.replace(one, tuning=not compares) for one in found)


def report_of(sweep: Launch, values: flags.FlagValues) -> Launch:
    """The winners of a sweep on other seeds, in a folder of their own.

    Raises:
        InputError: the sweep is not over, or the seeds are some that it was tuned on.
    """
    if not _is_tuning(sweep):
        raise InputError(f"--report_seeds: {sweep.root} was not made for tuning; name the folder of the sweep")
    seeds = parse_seeds(values.report_seeds)
    unfinished = [label.name for label in labels_of(sweep) if not label.is_over()]
    if unfinished:
        raise InputError(f"--report_seeds: {sweep.root} is not over ({', '.join(unfinished)}); --status says how far")
    found = _winners(sweep, values)
    reports = (report_experiment(one, found, seeds) for one in sweep.experiments)
    root = Path(values.report_dir or sweep.root / "report")
    return Launch(root, tuple(dataclasses.replace(one, tuning=False) for one in reports), sweep.policy)


def _is_tuning(sweep: Launch) -> bool:
    return any(one.tuning for one in sweep.experiments)


def _check_flags(values: flags.FlagValues) -> None:
    """What can be said of the flags alone."""
    for name in NOT_HERE:
        if values[name].present:
            raise InputError(f"--{name}: belongs to launch.train; a sweep is without it")
    if not values.workdir:
        raise InputError("--workdir: missing; the sweep's folder, as runs/tuning")
    ends = [f"--{name}" for name in ENDS if values[name].value not in (None, False, "here")]
    ends += ["--report_seeds"] * bool(values.report_seeds and values.best)
    if len(ends) > 1:
        raise InputError(f"{ends[0]} and {ends[1]}: give one of them")
    if values.slurm and values.submit == "here":
        raise InputError("--slurm: settings of jobs, which --submit=slurm sends")
    if values.report_dir and not values.report_seeds:
        raise InputError("--report_dir: needs --report_seeds")
    if values.workers is not None and values.workers < 1:
        raise InputError(f"--workers: {values.workers} is not a positive number")
    if not 0 < values.window <= 1:
        raise InputError(f"--window: {values.window:g} is not in (0, 1]")
    if len(values.metric) > 1:
        raise InputError(f"--metric: {','.join(values.metric)} are {len(values.metric)}; settings are judged by one")


def _work(sweep: Launch, values: flags.FlagValues) -> None:
    """Run what is left of a sweep, or send jobs that do."""
    check_sweep_file(sweep)
    check_unit(sweep, labels_of(sweep), values.unit)
    sender = None if values.submit == "here" else slurm.executor(sweep.root, values.submit, values.slurm)
    for line in (line for one in sweep.experiments for line in all_warnings(resolve(one))):
        print("warning:", line, file=sys.stderr)
    labels = prepare(sweep)
    write_sweep_file(sweep, labels)
    if sender is not None:
        print(slurm.submit(sender, sweep, values.workers or 1))
        return
    total = sum(len(label.job.lanes) * (label.plan.steps - label.plan.start) for label in labels if not label.is_over())
    settings = {label.name: label.plan.settings(label.job) for label in labels}
    with (
        sending(values.log, sweep.root, settings) as log,
        train.progress_bar(total) as report,
        listening() as stop,
    ):
        if values.unit:
            number = work_through(sweep, labels, values.unit, stop, report, log)
            left = sum(len(label.left()) for label in labels)
            print(f"{values.unit}: {'over now' if number else 'was over'}; units left: {left}")
        else:
            run_workers(sweep, labels, values.workers, stop, report, log)


def _runs(sweep: Launch) -> list[Run]:
    """The labels that have results, in the order asked for; the others are told."""
    found = []
    for label in labels_of(sweep):
        if not label.is_over():
            print(f"warning: {label.name}: not over, {len(label.left())} units are left", file=sys.stderr)
        if (label.folder / METRICS).is_file():
            found.append(read_run(label.folder))
    if not found:
        raise InputError(f"--workdir: no method of {sweep.root} is over yet; --status says how far they are")
    return found


def _winners(sweep: Launch, values: flags.FlagValues) -> list[Winner]:
    return winners(_runs(sweep), values.metric[0] if values.metric else None, values.window)


def _show_best(sweep: Launch, values: flags.FlagValues) -> None:
    runs = {run.label: run for run in _runs(sweep)}
    (metric,) = checked_metrics(list(runs.values()), values.metric[:1])
    found = winners(runs, metric, values.window)
    print(render(found))
    if any(len(tried) > 1 for one in found for tried in one.values.values()):
        drawing, _ = parts.draw_sensitivity(runs, metric, values.window)
        print(f"figure: {figure.save(drawing, sweep.root / 'sensitivity.png')}")


def _show_report(sweep: Launch, values: flags.FlagValues) -> None:
    runs = _runs(sweep)
    print(table(runs, values.metric))
    metrics = values.metric or None
    print(f"figure: {plot([sweep.root], metrics=metrics)}")
    calls = [parse_call("", one.task) for one in sweep.experiments]
    for name in calls[0].settings if len({call.name for call in calls}) == 1 else ():
        if len({call.settings.get(name) for call in calls}) > 1:
            reference = FRESH if any(run.meta["method"] == FRESH for run in runs) else None
            out = sweep.root / f"against_{name}.png"
            print(f"figure: {plot([sweep.root], metrics, out, against=name, reference=reference)}")


if __name__ == "__main__":
    os.environ.setdefault("NPROC", "1")
    enable_compilation_cache()
    define_flags()
    for name in accepted():
        flags.declare_key_flag(name)  # --help shows the key flags of this module alone
    run_cli(main)
