"""Tabulate run folders: per label and setting the mean with its 95 percent interval, early, late and over all.

python -m launch.table DIR... [--metric=squared_error,dormant_units] [--window=0.1] [--interval=bootstrap|se]
    [--every=50tasks|STEPS]
"""

from collections.abc import Sequence

import numpy as np
from absl import flags

from launch.analysis.by_task import coarser, edges_every, every_text
from launch.analysis.selection import warn_of_tuning
from launch.analysis.statistics import INTERVALS, interval, late_bins
from launch.cli import run_cli
from launch.errors import InputError
from launch.figures.curves import Curve, checked_metrics, curves, metric_style
from launch.storage.run_folder import Run, read_runs


def table(
    runs: Sequence[Run], metrics: Sequence[str] | None = None, window: float = 0.1, kind: str = "bootstrap"
) -> str:
    """Markdown: a row per curve and metric; means over the first and the last `window` of the bins, and over all.

    Means are over the bins that hold a measurement, each with the same weight. The first window goes at least to the
    first measurement: what is measured once per task is NaN in the bins before. A cell stays empty where a lane has
    no measurement.

    Raises:
        InputError: a metric that no run holds, a window outside (0, 1].
    """
    chosen = checked_metrics(runs, metrics)
    found = curves(runs)
    share = f"{100 * window:g} %"
    lines = [f"| method | metric | first {share} | last {share} | whole run | seeds |", "|---|---|---|---|---|---|"]
    for metric in chosen:
        for curve in found:
            if metric in curve.run.metrics:
                lines.append(_row(curve, metric, window, kind))
    return "\n".join(lines)


def _row(curve: Curve, metric: str, window: float, kind: str) -> str:
    style = metric_style(metric)
    values = curve.run.metrics[metric][curve.lanes] * style.scale
    late = late_bins(values.shape[1], window)
    held = np.isfinite(values).any(axis=0)
    first = slice(0, max(late.stop - late.start, int(held.argmax()) + 1 if held.any() else 0))
    cells = [_cell(values[:, bins], kind) for bins in (first, late, slice(None))]
    notes = curve.note.replace(" seeds", "").replace(" seed", "")
    return f"| {curve.name} | {style.label} | {' | '.join(cells)} | {notes} |"


def _cell(values: np.ndarray, kind: str) -> str:
    present = np.isfinite(values)
    if not present.any(axis=1).all():
        return ""
    means = np.where(present, values, 0.0).sum(1) / present.sum(1)
    mean, low, high = (float(v) for v in interval(means, kind))
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]" if np.isfinite(low) else f"{mean:.4g}"


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `table` brings none."""
    flags.DEFINE_list("metric", [], "Metrics to tabulate; default: the runs' headline.", flag_values=values)
    flags.DEFINE_float("window", 0.1, "Share of the run that counts as early and late.", flag_values=values)
    flags.DEFINE_string("every", None, "Joins bins: 50tasks, or a number of steps.", flag_values=values)
    flags.DEFINE_enum("interval", "bootstrap", INTERVALS, "95% interval of the mean.", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: prints the table."""
    if not arguments:
        raise InputError("launch.table: no run folder given; usage: python -m launch.table DIR...")
    runs = [run for directory in arguments for run in read_runs(directory).values()]
    warn_of_tuning(runs)
    if values.every is not None:
        runs = [coarser(run, edges_every(run, values.every)) for run in runs]
    print(table(runs, values.metric, values.window, values.interval))
    if values.every is not None:
        print("", every_text(values.every), sep="\n")


if __name__ == "__main__":
    define_flags()
    run_cli(main)
