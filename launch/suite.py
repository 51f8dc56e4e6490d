r"""python -m launch.suite: every method tuned alike on a set of tasks, reported on other seeds, and told on one page.

    python -m launch.suite --workdir=runs/suite --data_dir=D --budget=12 --dry_run
    python -m launch.suite --workdir=runs/suite --data_dir=D --budget=12
    python -m launch.suite --workdir=runs/suite --methods=l2,continual_backprop,mine:method --tasks=permuted_mnist

Every method is tried at the same number of settings on tuning seeds (`launch/config/suite.toml` says which), the best
runs on others. `DIR/TASK/tuning` is a sweep and `DIR/TASK/report` a run folder, which all other commands read;
`DIR/suite.md` and `.html` are the page, written anew whenever a task is over. The same command, in any number of
processes, goes on where it was stopped; with further methods or tasks it runs these beside what is there.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from absl import flags

from launch import train
from launch.analysis import suite as numbers
from launch.analysis.comparison import LATE
from launch.analysis.tuning import report_experiment, winners
from launch.benchmarks.workloads import Case, workload
from launch.cli import refuse_arguments, run_cli
from launch.config import suite as asked
from launch.config.experiment import Experiment, resolve
from launch.config.methods import find_method
from launch.config.optimizers import OPTIMIZERS
from launch.config.suite import Rate, Suite, courses
from launch.config.syntax import parse_every, parse_seeds, split
from launch.engine.build import job_program, load_data
from launch.engine.checkpoint_policy import CheckpointPolicy
from launch.engine.label import Label
from launch.engine.processes import enable_compilation_cache
from launch.engine.scheduler import Launch, labels_of, prepare, run_workers
from launch.engine.stopping import Stop, listening
from launch.engine.sweep_folder import write_sweep_file
from launch.engine.unit_of_work import seconds_per_step, units_of
from launch.errors import InputError, unknown
from launch.figures import figure
from launch.figures.page import Section, write_pages
from launch.figures.relative import draw_relative
from launch.storage.durable import replacing
from launch.storage.locks import LOCK, holder
from launch.storage.run_folder import METRICS, RUN, read_run, seeds_text
from launch.texts import aligned, time_text

TUNING, REPORT, REFUSED = "tuning", "report", "not_run.json"
MEASURED_SECONDS = 2.0
"""How long a rate is measured, by the estimate of it."""


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing this module brings none."""
    plain = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "the suite's folder", **plain)
    flags.DEFINE_string("methods", None, "comma-separated, as in launch.train; by default all there are", **plain)
    flags.DEFINE_string("tasks", None, f"comma-separated; by default {', '.join(courses())}", **plain)
    flags.DEFINE_float("budget", None, "hours that all may take; decides how long runs are", lower_bound=0, **plain)
    flags.DEFINE_integer("settings", None, "settings tried of every method: 9, 3 or 1; by default 9", **plain)
    flags.DEFINE_string("tuning_seeds", None, "A:B: seeds by which settings are chosen; by default 1000:1003", **plain)
    flags.DEFINE_string("seeds", None, "other seeds, for the report; by default 5", **plain)
    flags.DEFINE_string("data_dir", None, "where the tasks' data are; as in launch.train", **plain)
    flags.DEFINE_integer("workers", None, "processes that share the work; by default one a core on CPUs", **plain)
    flags.DEFINE_string("checkpoint_every", "10min", "as in launch.train", **plain)
    flags.DEFINE_bool("dry_run", False, "say what would be run and how long it takes, and end", **plain)
    flags.DEFINE_bool("page", False, "write the page of what is there, and end", **plain)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """The command; returns its exit status."""
    refuse_arguments(arguments)
    if not values.workdir:
        raise InputError("--workdir: missing; the suite's folder, as runs/suite")
    if values.workers is not None and values.workers < 1:
        raise InputError(f"--workers: {values.workers} is not a positive number")
    root, workers = Path(values.workdir), values.workers or os.cpu_count() or 1
    there = asked.read_suite(root)
    if values.page:
        if there is None:
            raise InputError(f"--page: {root} holds no suite (no {asked.SUITE})")
        print(*write_page(root, there), sep="\n")
        return 0
    suite = of_flags(values, there)
    # What a folder began with stays; lengths are chosen once.
    measured = values.budget is not None and there is None
    rates = {name: rate_of(suite, name, values.data_dir, measured) for name in suite.tasks}
    if measured:
        suite = asked.fitted(suite, rates, values.budget, workers)
    print(plan_text(suite, rates, workers, measured), flush=True)
    if values.dry_run:
        return 0
    root.mkdir(parents=True, exist_ok=True)
    asked.write_suite(root, suite)
    policy = CheckpointPolicy(parse_every("--checkpoint_every", values.checkpoint_every), keep=0)
    waiting = []
    with listening() as stop:
        for name in suite.tasks:
            waiting += work_on(root, suite, name, values.data_dir, policy, values.workers, stop)
            lines = write_page(root, suite)
    print(*lines, sep="\n")
    if waiting:
        print(f"units of {', '.join(waiting)} are run by other processes; the same command goes on")
    return 0


def of_flags(values: flags.FlagValues, there: Suite | None) -> Suite:
    """The suite that is asked for: that of the folder with what is added, or a new one.

    Raises:
        InputError: a flag cannot be, or does not fit the suite that is there.
    """
    given = {
        "methods": split(values.methods) if values.methods else None,
        "tasks": asked.parse_tasks(values.tasks) if values.tasks else None,
        "settings": values.settings,
        "tuning_seeds": parse_seeds(values.tuning_seeds) if values.tuning_seeds else None,
        "seeds": parse_seeds(values.seeds) if values.seeds else None,
    }
    if there is not None:
        if values.budget is not None:
            print("the lengths of a suite are chosen once: --budget changes nothing here", file=sys.stderr)
        suite = asked.joined(there, given)
        _check_methods(suite)
        return suite
    methods = asked.with_references(given["methods"]) if given["methods"] else asked.every_method()
    tasks = {name: courses()[name].tasks for name in given["tasks"] or courses()}
    tuning, seeds = given["tuning_seeds"] or parse_seeds("1000:1003"), given["seeds"] or parse_seeds(5)
    if set(tuning) & set(seeds):
        raise InputError(f"--seeds: {seeds_text(seeds)} and --tuning_seeds {seeds_text(tuning)} have seeds in common")
    if (given["settings"] or 9) not in asked.SETTINGS:
        raise InputError(f"--settings: {given['settings']} is none of {', '.join(map(str, asked.SETTINGS))}")
    suite = Suite(methods, tasks, given["settings"] or 9, tuning, seeds)
    _check_methods(suite)
    return suite


def _check_methods(suite: Suite) -> None:
    """Refuse methods and settings that there are not, which would else count as methods that a task is not for."""
    for entry in suite.entries:
        known = dict(find_method(entry.call).settings)
        optimizer = entry.call.settings.get("optimizer", "sgd")
        known |= OPTIMIZERS[optimizer].settings if optimizer in OPTIMIZERS else {}
        for name in entry.call.settings:
            if name not in known:
                raise unknown(f"--methods: setting of {entry.label}", name, known)


# How long -----------------------------------------------------------------------------------------------------------


def rate_of(suite: Suite, name: str, data_dir: str | None, measured: bool) -> Rate:
    """What backprop takes on a course here: measured, or by the committed estimate."""
    plan = resolve(suite.tuning(name, ["backprop"], data_dir))
    (job,) = plan.jobs
    steps, estimate = plan.steps // suite.tasks[name], seconds_per_step(plan, job)
    if not measured:
        return Rate(estimate, steps)
    (unit, *_) = units_of(plan, job, jax.default_backend())
    number = min(steps, max(1, int(MEASURED_SECONDS / estimate / unit.size)) * plan.stride)
    course = plan.experiment
    case = Case(course.task, course.network, "backprop", unit.size, number, course.preset)
    call = workload(case, case.plan(), jax.device_put(load_data(plan)))
    # Other work on the machine costs less in CPU time than on the clock; an accelerator's work is seen there alone.
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    began = clock()
    jax.block_until_ready(call())
    compiled = clock()
    jax.block_until_ready(call())
    ended = clock()
    done = number // min(number, steps) * number
    return Rate((ended - compiled) / done / unit.size, steps, max(0.0, 2 * compiled - began - ended))


def plan_text(suite: Suite, rates: Mapping[str, Rate], workers: int, measured: bool) -> str:
    """What will be run, and how long that is expected to take."""
    expected = asked.hours(suite, rates, workers)
    rows = [("task", "tasks", "steps", "methods", "runs a method", "runs", "backprop, ms a step", "hours")]
    for name, tasks in suite.tasks.items():
        number, rate = len(suite.methods), rates[name]
        rows.append(
            (name, str(tasks), f"{tasks * rate.steps:,}", str(number), str(suite.lanes), f"{number * suite.lanes:,}",
             f"{1e3 * rate.seconds:.3g}", f"{expected[name]:.3g}")
        )  # fmt: skip
    source = "measured here, in CPU time" if measured else "by the committed estimate; --budget measures them"
    seeds = f"seeds {seeds_text(suite.tuning_seeds)} for tuning, {seeds_text(suite.seeds)} for the report"
    total = sum(expected.values())
    return "\n".join(
        [
            *aligned(rows),
            f"{suite.settings} setting{'s' * (suite.settings > 1)} a method, {seeds}",
            f"about {time_text(3600 * total)} with {workers} process{'es' * (workers > 1)}; rates {source}",
        ]
    )


# Work ---------------------------------------------------------------------------------------------------------------


def work_on(
    root: Path,
    suite: Suite,
    name: str,
    data_dir: str | None,
    policy: CheckpointPolicy,
    workers: int | None,
    stop: Stop,
) -> list[str]:
    """Tune all methods on a task, then report them; what is left to other processes."""
    fits, refused = fitting(root, suite, name, data_dir)
    (root / name).mkdir(parents=True, exist_ok=True)
    with replacing(root / name / REFUSED) as file:
        file.write(json.dumps(refused, indent=1).encode())
    tuning = Launch(root / name / TUNING, (suite.tuning(name, fits, data_dir),), policy)
    labels = prepare(tuning)
    write_sweep_file(tuning, labels)
    if not _work_through(tuning, labels, workers, stop):
        return [f"{name}/{TUNING}"]
    report = Launch(root / name / REPORT, (reported(tuning, suite),), policy)
    return [] if _work_through(report, prepare(report), workers, stop) else [f"{name}/{REPORT}"]


def _work_through(launch: Launch, labels: Sequence[Label], workers: int | None, stop: Stop) -> bool:
    """Run what nobody else runs; whether all of it is over."""
    lanes = sum(len(unit.lanes) * (label.plan.steps - label.plan.start) for label in labels for unit in label.left())
    with train.progress_bar(lanes) as report:
        try:
            run_workers(launch, labels, workers, stop, report)
        except InputError:
            left = [(label, unit) for label in labels_of(launch) for unit in label.left()]
            if not left or not all(holder(label.checkpoints / unit.name / LOCK) for label, unit in left):
                raise
    return all(label.is_over() for label in labels_of(launch))


def fitting(root: Path, suite: Suite, name: str, data_dir: str | None) -> tuple[list[str], dict[str, str]]:
    """The methods that a task is for, as they were asked for, and by label why the others are not.

    Raises:
        InputError: not even the references can be run there.
    """
    fits, refused = [], {}
    for entry, text in zip(suite.entries, suite.methods, strict=True):
        try:
            if not (root / name / TUNING / entry.label / RUN).is_file():
                plan = resolve(suite.tuning(name, [text], data_dir))
                job_program(plan, plan.jobs[0])
            fits.append(text)
        except InputError as error:
            if entry.label in asked.REFERENCES:
                raise
            refused[entry.label] = str(error)
    return fits, refused


def reported(tuning: Launch, suite: Suite) -> Experiment:
    """The winners of a task on the seeds of the report."""
    runs = [read_run(label.folder) for label in labels_of(tuning)]
    (experiment,) = tuning.experiments
    return dataclasses.replace(report_experiment(experiment, winners(runs, None, LATE), suite.seeds), tuning=False)


# The page -----------------------------------------------------------------------------------------------------------


def parts(root: Path, suite: Suite) -> list[numbers.Part]:
    """What is over of every task."""
    found = []
    for name in suite.tasks:
        labels = [entry.label for entry in suite.entries]
        tuned, runs = (
            {label: read_run(folder / label) for label in labels if (folder / label / METRICS).is_file()}
            for folder in (root / name / TUNING, root / name / REPORT)
        )
        path = root / name / REFUSED
        found.append(numbers.Part(name, runs, tuned, json.loads(path.read_text()) if path.is_file() else {}))
    return found


def write_page(root: Path, suite: Suite) -> list[str]:
    """Write `suite.md`, `suite.html` and the figure; the verdicts, and where they are."""
    told = parts(root, suite)
    found = {part.name: numbers.standings(part) for part in told}
    verdicts, path, drawn = numbers.verdicts(found), root / "suite.png", any(found.values())
    if drawn:
        figure.save(draw_relative(found), path)
    sections = [Section(verdicts=[*verdicts, state_line(suite, found)])]
    sections += [Section(figure=path), Section("Beside a fresh network", [numbers.overview(found)])] if drawn else []
    sections += [Section(p.name, [numbers.task_table(p, found[p.name], root)]) for p in told if found[p.name]]
    pages = write_pages(root / "suite", "Suite", sections)
    return [*sections[0].verdicts, *map(str, [*pages, *[path] * drawn])]


def state_line(suite: Suite, found: Mapping[str, Sequence[numbers.Standing]]) -> str:
    """How much of what was asked for the page tells of."""
    done = ", ".join(f"{name} {len(found[name])} of {len(suite.methods)}" for name in suite.tasks)
    return (
        f"Over: {done} methods; {suite.settings} settings a method on seeds {seeds_text(suite.tuning_seeds)}, "
        f"reported on seeds {seeds_text(suite.seeds)}."
    )


if __name__ == "__main__":
    os.environ.setdefault("NPROC", "1")
    enable_compilation_cache()
    define_flags()
    run_cli(main)
