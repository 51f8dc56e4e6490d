"""python -m launch.demo: loss of plasticity, its cures and a rescue, in one figure, one table and two sentences.

Slowly-changing regression, 30 seeds x 1,000,000 steps. At half time the damaged backprop networks go on twice: with
backprop, and with continual backprop. Settings of all methods were tuned on other seeds, nine settings each
(results/slowly_changing_regression/tuning).
"""

import dataclasses
import math
import os
import textwrap
from pathlib import Path

import numpy as np
from absl import flags

from launch.analysis.curves import Curve, caption, curves
from launch.analysis.long_table import late_mean
from launch.analysis.statistics import interval, paired_difference
from launch.analysis.text import Table, printed
from launch.cli import run_cli
from launch.config.experiment import Experiment, branched
from launch.config.syntax import parse_seeds
from launch.engine.checkpoint_policy import CheckpointPolicy
from launch.engine.loop import LONGEST_CHUNK
from launch.engine.processes import Report, enable_compilation_cache
from launch.engine.scheduler import run
from launch.engine.stopping import Stop, listening
from launch.figures import figure
from launch.figures.style import GREY, INK, lines
from launch.storage.run_folder import Run
from launch.train import progress_bar

TASK = "slowly_changing_regression"
METHODS = (
    "shrink_and_perturb=published_shrink_and_perturb,continual_backprop,backprop,"
    "best_step_size=backprop(step_size={best}),l2,fresh_network,linear"
)
BEST_STEP_SIZE = 0.000316228
COMPARED = ("backprop", "best_step_size", "l2", "shrink_and_perturb", "continual_backprop")
BASELINES = ("fresh_network", "linear")
HEADINGS = (
    "method", "squared error, first tenth", "last tenth", "minus backprop, paired", "dormant units at the end",
    "mean weight magnitude",
)  # fmt: skip


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing this module brings none."""
    flags.DEFINE_string("workdir", "runs/demo", "folder for the results", flag_values=values)
    flags.DEFINE_string("seeds", "30", "N for seeds 0 to N-1, A:B for seeds A to B-1", flag_values=values)
    flags.DEFINE_integer("steps", 1_000_000, "length in updates, at least 2", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("workers", None, "processes that share the work", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Run, draw, tabulate, and say in words what came out."""
    half, seeds, workdir = values.steps // 2, parse_seeds(values.seeds), Path(values.workdir)
    with progress_bar(values.steps * len(seeds) * 15 // 2) as report, listening() as stop:
        runs = run_all(seeds, values.steps, workdir, values.workers, report, stop)
    path = draw(runs, half, workdir / "figure.png")
    text = f"{table(runs)}\n\n{words(runs)}\n"
    (workdir / "summary.md").write_text(text)
    print(f"{text}\nfigure: {path}\ntable:  {workdir / 'summary.md'}")


def run_all(
    seeds: tuple[int, ...], steps: int, workdir: Path, workers: int | None, report: Report, stop: Stop | None = None
) -> dict[str, Run]:
    """The methods, and the rescue: continual backprop with the networks that backprop has damaged by half time."""
    half = steps // 2
    experiment = Experiment(
        TASK, METHODS.format(best=BEST_STEP_SIZE), seeds, steps, chunk=math.gcd(half, LONGEST_CHUNK) or None
    )
    runs = run(experiment, workdir, workers, report, policy=CheckpointPolicy(at=(half,)), stop=stop)
    rescue = branched(f"{workdir / 'backprop'}@{half}", methods="rescue=continual_backprop")
    return runs | run(rescue, workdir, workers, report, stop=stop)


def draw(runs: dict[str, Run], half: int, path: Path) -> Path:
    """The figure: errors beside the two baselines; dormant units and weights; the rescue."""
    drawing, (whole,) = figure.new_figure(1, width=11.5, height=4.2)
    whole.remove()
    grid = drawing.add_gridspec(2, 3, width_ratios=(1.25, 1, 1.05))
    axes = [drawing.add_subplot(where) for where in (grid[:, 0], grid[0, 1], grid[1, 1], grid[:, 2])]
    for ax in axes:
        figure.bare(ax)
    step_size = runs["backprop"].lanes[0]["hyper"]["step_size"]
    told = {"backprop": f"step size {step_size:g}", "best_step_size": f"step size {BEST_STEP_SIZE:g}"}
    shown = {**runs, "rescue": _after(runs["rescue"], half)}
    drawn = lines([dataclasses.replace(c, own=told.get(c.run.label, "")) for c in curves(shown)])
    compared = [line for line in drawn if line.curve.run.label != "rescue"]
    inside = [line for line in compared if line.curve.run.label != "linear"]
    together = ("backprop", "rescue", "continual_backprop", *BASELINES)
    figure.draw_metric(axes[0], compared, "squared_error")
    figure.draw_metric(axes[1], inside, "dormant_units")
    figure.draw_metric(axes[2], inside, "mean_weight_magnitude")
    figure.draw_metric(axes[3], [line for line in drawn if line.curve.run.label in together], "squared_error")
    axes[3].axvline(half, color=GREY, linewidth=0.8, linestyle=":")
    axes[1].set_xlabel("")
    axes[1].set_ylabel("dormant units (%)", fontsize=9)
    axes[2].set_ylabel("mean |weight|", fontsize=9)
    titles = ("Error on the stream", "Inside the networks", "", "Rescue at half time")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10, loc="left", color=INK)
    figure.legend_below(drawing, axes)
    told_of = [runs[name] for name in (*COMPARED, *BASELINES)]
    drawn_of = [dataclasses.replace(curve, setting="") for curve in curves(told_of)]  # the legend names step sizes
    figure.add_caption(drawing, caption(told_of, drawn_of))
    return figure.save(drawing, path)


def table(runs: dict[str, Run]) -> str:
    """Markdown: per method the first and the last tenth of the run, and the paired difference to backprop at last."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for name in (*COMPARED, "rescue", *BASELINES):
        one = runs[name]
        early = one.metrics["squared_error"][:, : max(1, len(one.step) // 10)].mean(1)
        late = _late(one, "squared_error")
        gap = paired_difference(late, _late(runs["backprop"], "squared_error"))
        paired = "" if name == "backprop" else f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        dormant = f"{_late(one, 'dormant_units').mean():.0f} %" if "dormant_units" in one.metrics else ""
        weights = f"{_late(one, 'mean_weight_magnitude').mean():.2f}"
        told = " (task-aware)" if one.meta["task_aware"] else ""
        rows.append((f"{name.replace('_', ' ')}{told}", _mean(early), _mean(late), paired, dormant, weights))
    return printed(Table(rows, left=len(rows[0])), "markdown")


def words(runs: dict[str, Run]) -> str:
    """Two sentences, computed from the numbers."""
    late = {name: _late(one, "squared_error") for name, one in runs.items()}
    early = runs["backprop"].metrics["squared_error"][:, : max(1, len(runs["backprop"].step) // 10)].mean(1)
    lost = paired_difference(late["backprop"], early)
    n = len(early)
    verb = "rose" if lost.low > 0 else "fell" if lost.high < 0 else "did not clearly change"
    first = (
        f"Over {runs['backprop'].step[-1]:,} steps and {n} seeds the squared error of backprop {verb} from "
        f"{early.mean():.2f} to {late['backprop'].mean():.2f} (difference {lost.mean:+.2f}, 95 % interval "
        f"[{lost.low:+.2f}, {lost.high:+.2f}]), beside {late['fresh_network'].mean():.2f} of a network that starts "
        f"afresh at each change and {late['linear'].mean():.2f} of a linear one; with continual backprop it ended at "
        f"{late['continual_backprop'].mean():.2f}."
    )
    gain = paired_difference(late["rescue"], late["backprop"])
    whether = "recovered" if gain.high < 0 else "did not clearly recover"
    second = (
        f"The same damaged networks, given continual backprop from half time on, {whether}: they ended at "
        f"{late['rescue'].mean():.2f}, {gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] from those left with "
        f"backprop, lower in {gain.wins} of {gain.n} seeds."
    )
    return textwrap.fill(f"{first} {second}", 110)


def _late(one: Run, metric: str) -> np.ndarray:
    """Mean over the last tenth of the run [lane], in the unit of the metric's axis."""
    return late_mean(Curve(one, np.arange(len(one.lanes))), metric).to_numpy()


def _mean(values: np.ndarray) -> str:
    mean, low, high = (float(v) for v in interval(values))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _after(one: Run, step: int) -> Run:
    """The run without what was measured up to `step`."""
    metrics = {name: np.where(one.step > step, values, np.nan) for name, values in one.metrics.items()}
    return dataclasses.replace(one, metrics=metrics)


if __name__ == "__main__":
    os.environ.setdefault("NPROC", "1")
    enable_compilation_cache()
    define_flags()
    run_cli(main)
