"""Report on run folders: verdicts, tables and figures of whatever lies in them, as Markdown and as a page.

python -m launch.report DIR... [--only=returns] [flags of the parts] [--format=text|markdown|latex|html] [--out=FIGURE]

Written are `DIR/report.md`, `DIR/report.html` (with the figures in it) and the figures `DIR/report_PART.png`, in the
first folder. A run under way is reported as far as its checkpoints reach, and the report says how far that is. The
parts, each told where there is something to tell:

    curves        the headline by step or task, early and late means, differences by seed
    tasks         streams of tasks: how much is learned in a task, how soon, how far below the peak
    increments    streams to which classes keep coming, beside a network that begins afresh
    returns       agents: best, final and lost returns, who collapsed
    sensitivity   which settings of a sweep won, and how much each number matters
    replacements  the replacement log: how long units stay, when they become useful

With `--only` these parts' tables are printed instead and nothing is written, save the figure with `--out`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import flags

from launch.analysis import increments, replacements, returns, tasks, tuning
from launch.analysis.comparison import PLAIN, compare_pairs, difference_table, late_verdicts, mean_table, verdict_lines
from launch.analysis.curves import curves, read
from launch.analysis.long_table import STARTS, coarser, edges_every, every_text
from launch.analysis.metrics import BESIDE, STEP_SIZE, checked_metrics
from launch.analysis.statistics import late_bins
from launch.analysis.text import FORMATS, Table, joined, percent
from launch.analysis.tuning import warn_of_tuning
from launch.cli import run_cli
from launch.errors import InputError, unknown
from launch.figures import figure, parts
from launch.figures.page import Section, write_pages
from launch.plot import target
from launch.storage.run_folder import Run, run_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure


POINTS = 25
"""Points of a curve that has a value for each of many tasks."""


@dataclass(frozen=True)
class Options:
    """What the parts are asked; `None` takes each part's own default. The fields are the command's flags."""

    metric: str | None = None
    window: float | None = None
    reference: str | None = None
    base: str | None = None
    threshold: str = "first"
    tasks_per_bin: int | None = None
    groups: Sequence[str] = ()
    soon: int | None = None


class Part(NamedTuple):
    """Tables, verdicts, and the figure to draw, if any."""

    tables: Sequence[Table]
    verdicts: Sequence[str]
    draw: Callable[[], "Figure"] | None = None


def _curves(runs: Sequence[Run], options: Options) -> Part:
    window, metrics = options.window or 0.1, checked_metrics(runs, [options.metric] if options.metric else None)
    beside = () if options.metric else BESIDE.get(metrics[0], ())
    if beside:  # measured once a task, and not all at once
        runs = [coarser(run, edges_every(run, "1tasks")) for run in runs]
        metrics += [name for name in beside if all(_measured(run, name, 1.0) for run in runs)]
    told = curves(runs)
    labels = list(dict.fromkeys(run.label for run in runs))
    chosen = options.reference or next((label for label in PLAIN if label in labels), labels[0])
    pairs = [(run, other) for other in runs if other.label == chosen for run in runs if run.label != chosen]
    tables = [mean_table(told, metrics, window)]
    if pairs:
        about = f"Mean over the last {percent(window)} of the run"
        late = [name for name in metrics if not beside or all(_measured(run, name, window) for run in runs)]
        tables.append(difference_table(compare_pairs(pairs, late, window), about))
    # Where a part says more of the stream, the verdict is its own.
    own = not beside and any(PARTS[name][0](runs) for name in ("tasks", "increments", "returns"))
    verdicts = [] if own else verdict_lines(late_verdicts(told, metrics[0]))
    return Part(tables, verdicts, lambda: _draw_curves(runs, metrics))


def _measured(run: Run, metric: str, window: float) -> bool:
    """Whether a metric was measured in the last `window` of the run."""
    held = run.metrics.get(metric)
    return held is not None and bool(np.isfinite(held[:, late_bins(len(run.step), window)]).any())


def _draw_curves(runs: Sequence[Run], metrics: Sequence[str]) -> "Figure":
    """The curves, in wider bins where there is a point a task and so many that no line could be followed."""
    number = min(len(run.meta.get(STARTS) or ()) for run in runs) - 1
    if not all(map(_is_stream, runs)) or number < 2 * POINTS:
        return parts.draw_curves(curves(runs), metrics)[0]
    every = f"{number // POINTS}tasks"
    wider = [coarser(run, edges_every(run, every)) for run in runs]
    return parts.draw_curves(curves(wider), metrics, [every_text(every)])[0]


def _tasks(runs: Sequence[Run], options: Options) -> Part:
    own = {"metric": options.metric or tasks.metric_of(runs), "window": options.window or 0.25}
    question = tasks.Question(**own, threshold=options.threshold, tasks_per_bin=options.tasks_per_bin)
    return Part(
        *tasks.report(runs, question, options.reference),
        lambda: parts.draw_waits(tasks.learned(runs, question), question)[0],
    )


def _increments(runs: Sequence[Run], options: Options) -> Part:
    question = increments.Question(options.metric or increments.METRIC, options.reference, options.base)
    return Part(
        *increments.report(runs, question),
        lambda: parts.draw_increments(increments.increments(runs, question), question)[0],
    )


def _returns(runs: Sequence[Run], options: Options) -> Part:
    asked = options.metric or returns.METRIC, options.window or 0.05, options.reference
    return Part(*returns.report(runs, *asked))


def _sensitivity(runs: Sequence[Run], options: Options) -> Part:
    by_label, window = {run.label: run for run in runs}, options.window or 1.0
    (metric,) = checked_metrics(runs, [options.metric] if options.metric else None)
    won = tuning.winners(by_label, metric, window)
    return Part([tuning.table(won)], (), lambda: parts.draw_sensitivity(by_label, metric, window)[0])


def _replacements(runs: Sequence[Run], options: Options) -> Part:
    told = replacements.logged(curves(runs))
    groups = options.groups or None
    return Part([replacements.report(told, groups, options.soon)], (), lambda: parts.draw_replacements(told, groups)[0])


def _learns_step_sizes(run: Run) -> bool:
    return any(name.startswith(STEP_SIZE) for name in run.metrics)


def _step_sizes(runs: Sequence[Run], options: Options) -> Part:
    """Of runs that learn step sizes: quantiles by layer, share collapsed and correlations late; medians over time."""
    tables, medians, window = [], [], options.window or 0.1
    # Correlations are those of methods that replace units, shortened steps those of one optimizer.
    for beginning in (STEP_SIZE, "collapsed_step_sizes", "shortened_steps", "step_size_"):
        own = [run for run in runs if any(name.startswith(beginning) for name in run.metrics)]
        names = [name for name in (own[0].metrics if own else ()) if name.startswith(beginning)]
        names = [name for name in names if all(_measured(run, name, window) for run in own)]
        tables += [mean_table(curves(own), names, window)] if names else []
        medians += [name for name in names if name.startswith(f"{STEP_SIZE}median")]
    told = curves([run for run in runs if _learns_step_sizes(run)])
    return Part(tables, (), (lambda: parts.draw_curves(told, medians)[0]) if medians else None)


def _is_stream(run: Run) -> bool:
    return tasks.metric_of([run]) in run.metrics and len(run.meta.get(STARTS) or ()) > 2 and not increments.grows(run)


PARTS: dict[str, tuple[Callable[[Sequence[Run]], bool], Callable[[Sequence[Run], Options], Part]]] = {
    "curves": (lambda runs: not any(run.meta.get("tuning") for run in runs), _curves),
    "tasks": (lambda runs: all(_is_stream(run) for run in runs), _tasks),
    "increments": (lambda runs: all(increments.grows(run) for run in runs), _increments),
    "returns": (lambda runs: all(returns.METRIC in run.metrics for run in runs), _returns),
    "sensitivity": (lambda runs: any(len(run.settings_groups()) > 1 for run in runs), _sensitivity),
    "step_sizes": (lambda runs: any(map(_learns_step_sizes, runs)), _step_sizes),
    "replacements": (lambda runs: any(run.lives is not None for run in runs), _replacements),
}


def part(name: str, runs: Sequence[Run], options: Options = Options()) -> Part:
    """One part of the report.

    Raises:
        InputError: there is no such part, or the runs hold nothing that it could tell of.
    """
    if name not in PARTS:
        raise unknown("--only", name, PARTS)
    return PARTS[name][1](runs, options)


def report(
    directories: Sequence[Path | str] | Path | str, options: Options = Options()
) -> tuple[list[str], list[Path]]:
    """Write the report on what lies in some folders; its verdicts, and where it is.

    A part that cannot be told, such as of runs without a seed in common, is named with the reason.
    """
    directories = [directories] if isinstance(directories, (str, Path)) else list(directories)
    runs, folder = read(directories, "report"), Path(directories[0] if directories else "")
    verdicts, sections = [], []
    for name, (is_there, made) in PARTS.items():
        if is_there(runs):
            title = name.replace("_", " ").capitalize()
            try:
                found = made(runs, options)
                path = figure.save(found.draw(), folder / f"report_{name}.png") if found.draw else None
                sections.append(Section(title, found.tables, figure=path))
                verdicts += found.verdicts
            except InputError as error:
                sections.append(Section(title, problem=str(error)))
    sections.insert(0, Section(tables=[_state(runs, directories)], verdicts=verdicts))
    pages = write_pages(folder / "report", f"Report on {', '.join(map(str, directories))}", sections)
    return verdicts, [*(each.figure for each in sections if each.figure), *pages]


def _state(runs: Sequence[Run], directories: Sequence[Path | str]) -> Table:
    """What was run, and how far it is."""
    rows = [("run", "method", "task", "seeds", "settings", "steps", "state")]
    for run in runs:
        state = str(run.progress or ("finished" if run.meta.get("finished", True) else "unfinished"))
        end, seeds = int(run.step[-1]) if len(run.step) else 0, len(set(run.seeds.tolist()))
        settings = len(run.settings_groups())
        row = (run.label, run.meta["method"], run.meta["task"], str(seeds), str(settings), f"{end:,}", state)
        rows.append(row)
    read_from = {Path(run.meta["folder"]).name for run in runs}
    waiting = [name for each in directories for name in run_names(Path(each)) if name not in read_from]
    return Table(rows, [f"Nothing measured yet: {', '.join(waiting)}."] * bool(waiting), left=3)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing this module brings none."""
    plain = {"flag_values": values}
    flags.DEFINE_list("only", [], f"Parts to print: {', '.join(PARTS)}.", **plain)
    flags.DEFINE_enum("format", "text", FORMATS, "How the tables of --only are printed.", **plain)
    flags.DEFINE_string("out", None, "Where the figure of the one part in --only goes.", **plain)
    flags.DEFINE_string("metric", None, "What is reported; default: each part's own.", **plain)
    flags.DEFINE_float("window", None, "Share of the run, or of its tasks, that counts as early and late.", **plain)
    flags.DEFINE_string("reference", None, "The label others are compared with.", **plain)
    flags.DEFINE_string("base", None, "increments: the label that may lose plasticity.", **plain)
    flags.DEFINE_string("threshold", "first", "tasks: first (the lane's first task), a share, or a label.", **plain)
    flags.DEFINE_integer("tasks_per_bin", None, "tasks: bins of the peak; default: 20, of at most 50 tasks.", **plain)
    flags.DEFINE_list("groups", [], "replacements: groups of units; default: all, six of them drawn.", **plain)
    about_soon = "replacements: steps that count as soon; default: twice the maturity threshold (ReDo: the period)."
    flags.DEFINE_integer("soon", None, about_soon, lower_bound=1, **plain)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: writes the report and prints its verdicts; or prints the parts asked for."""
    options = Options(**{name: values[name].value for name in Options.__dataclass_fields__})
    if values.out is not None and len(values.only) != 1:
        raise InputError(f"--out: the figure of one part; --only names {len(values.only)} of {', '.join(PARTS)}")
    if not values.only:
        verdicts, paths = report(arguments, options)
        print(*verdicts, *paths, sep="\n")
        return
    runs = read(arguments, "report")
    path = target(arguments[0], values.out) if values.out is not None else None
    warn_of_tuning(runs)
    found = [part(name, runs, options) for name in values.only]
    tables, verdicts = [t for each in found for t in each.tables], [v for each in found for v in each.verdicts]
    print(joined(tables, verdicts, values.format))
    if path is not None:
        if found[0].draw is None:
            raise InputError(f"--out: {values.only[0]} has no figure")
        print("", figure.save(found[0].draw(), path), sep="\n")


if __name__ == "__main__":
    define_flags()
    run_cli(main)
