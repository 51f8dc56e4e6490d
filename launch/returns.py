"""Returns of agents that go on learning: the best so far, the final ones, the drop from the peak, who collapsed.

python -m launch.returns DIR... [--metric=episode_return] [--window=0.05] [--reference=LABEL] [--interval=se|bootstrap]
                                [--format=text|markdown|latex]

Every lane has a peak of its own: the highest mean over `--window` of the run, wherever that lies; its final return is
the mean over the last `--window`. A window is at least as long as an episode of every environment. A lane has collapsed
where the final return is below half of its peak.

Read the drop with care: a peak is the best of many noisy means, so it lies above what it estimates, the more so the
smaller the window and the longer the run; and where the ground changes, a return falls on ice for a fresh network as
well. Compare drops of methods on the same seeds, and the last returns with those of `fresh_network`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from absl import flags

from launch.analysis.learned import NOT_SHOWN, SHOWN, Shown, range_of, unequal_numbers, verdict_text
from launch.analysis.selection import warn_of_tuning
from launch.analysis.statistics import INTERVALS, late_bins, late_mean, mean_over_bins, paired_difference
from launch.cli import run_cli
from launch.compare import FORMATS, HEADINGS, Row, by_seed, comparable, matched, paired_row, rendered
from launch.errors import InputError, unknown
from launch.figures.curves import Curve, checked_metrics, curves, metric_style
from launch.storage.run_folder import Run, read_runs

METRIC = "episode_return"
PLAIN = ("standard", "backprop")
FRESH, LATE = "fresh_network", 0.25


@dataclass(frozen=True)
class Returns:
    """What a curve's lanes came to, all float64 `[lane]`.

    Attributes:
        curve: the lanes of one setting.
        best: the peak, the highest mean over a window of bins.
        step: the last step of that window.
        final: the mean over the last window.
    """

    curve: Curve
    best: np.ndarray
    step: np.ndarray
    final: np.ndarray

    @property
    def drop(self) -> np.ndarray:
        """From the peak to the end."""
        return self.best - self.final

    @property
    def collapsed(self) -> np.ndarray:
        """bool: the end is below half of a peak above 0."""
        return (self.best > 0) & (self.final < self.best / 2)


def returns(runs: Sequence[Run], metric: str = METRIC, window: float = 0.05) -> list[Returns]:
    """One answer per curve whose run holds the metric.

    Raises:
        InputError: no run holds the metric, or lower values of it are better; a window that cannot be.
    """
    checked_metrics(runs, [metric])
    if metric_style(metric).better != "higher":
        raise InputError(f"--metric: of {metric} lower values are better; a return is needed")
    return [_returns(curve, metric, window) for curve in curves(runs) if metric in curve.run.metrics]


def _returns(curve: Curve, metric: str, window: float) -> Returns:
    values, count = curve.run.metrics[metric][curve.lanes], curve.run.count
    late = late_bins(len(count), window)
    width = min(max(late.stop - late.start, _bins_of_an_episode(curve.run)), len(count))
    parts = [slice(first, first + width) for first in range(len(count) - width + 1)]
    means = np.stack([mean_over_bins(values[:, part], count[part]) for part in parts], axis=1)
    if not np.isfinite(means[:, -1]).all():
        raise InputError(f"{curve.name}: no episode ended in the last {window:g} of the run; widen --window")
    peak = np.nanargmax(means, axis=1)
    best = means[np.arange(len(means)), peak]
    return Returns(curve, best, curve.run.step[peak + width - 1], means[:, -1])


def _bins_of_an_episode(run: Run) -> int:
    """Bins in which every environment ends an episode: those that never fall end all at once, and seldom."""
    settings = run.meta["settings"]
    steps = settings.get("task.environments", 0) * settings.get("task.episode_length", 0)
    return -(-steps // int(run.count[0]))


def differences(runs: Sequence[Run], reference: str, metric: str = METRIC, window: float = 0.05) -> list[Row]:
    """Final returns and drops of every other label minus the reference's, paired by seed."""
    of = {id(run): run for run in runs if metric in run.metrics}
    base = next((run for run in of.values() if run.label == reference), None)
    if base is None:
        raise unknown("--reference", reference, {run.label for run in of.values()})
    rows = []
    for run in of.values():
        if run is base:
            continue
        comparable(run, base)
        for one, other in matched(run, base):
            x, y = (_returns(curve, metric, window) for curve in (one, other))
            rows.append(paired_row("final return", one, other, x.final, y.final, "higher"))
            rows.append(paired_row("drop from the peak", one, other, x.drop, y.drop, "lower"))
    return rows


def report(
    runs: Sequence[Run],
    metric: str = METRIC,
    window: float = 0.05,
    reference: str | None = None,
    interval: str = "se",
    format: str = "text",
) -> str:
    """The tables: by curve, differences from the reference, and what is shown beside a fresh network."""
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    found = returns(runs, metric, window)
    labels = list(dict.fromkeys(each.curve.run.label for each in found))
    chosen = reference or next((label for label in PLAIN if label in labels), labels[0])
    parts = [rendered(_table(found, interval), [_about(window, interval)], format)]
    rows = differences(runs, chosen, metric, window)
    if rows:
        remark = f"Differences from {chosen}, paired by seed, with Student's 95% intervals."
        parts.append(rendered([HEADINGS, *(row.cells() for row in rows)], [remark], format, left=3))
    mark = "% " if format == "latex" else ""
    return "\n\n".join([*parts, *(mark + line for line in _verdicts(runs, metric))])


def _table(found: Sequence[Returns], interval: str) -> list[tuple[str, ...]]:
    lines = [("method", "best", "at step", "final", "drop", "collapsed", "seeds")]
    for each in found:
        best, final, drop = (range_of(values, interval) for values in (each.best, each.final, each.drop))
        at = "–".join(f"{step:,}" for step in sorted({int(each.step.min()), int(each.step.max())}))
        number = len(each.best)
        lines.append((each.curve.name, best, at, final, drop, f"{each.collapsed.sum()} of {number}", str(number)))
    return lines


def _about(window: float, interval: str) -> str:
    kind = {"se": "Student's interval", "bootstrap": "bootstrap interval"}[interval]
    return (
        f"Means over seeds, 95% {kind}. Best: each seed's highest mean over {100 * window:g}% of the run; final: that "
        "of the end; collapsed: final below half of the seed's own best."
    )


def _verdicts(runs: Sequence[Run], metric: str) -> list[str]:
    """A line for every method that has a fresh network beside it and is plain, or differs from it in the past alone."""
    fresh = next((run for run in runs if run.label == FRESH and metric in run.metrics), None)
    lines = []
    for run in runs:
        if fresh is not None and run is not fresh and metric in run.metrics:
            for one, other in matched(run, fresh):
                if run.label not in PLAIN and unequal_numbers(one, other):
                    continue
                x, y = (late_mean(curve.run, metric, LATE)[curve.lanes] for curve in (one, other))
                late = paired_difference(*by_seed(one, other, x, y), "higher")
                judged = Shown(late.mean, late.low, late.high, SHOWN if late.high < 0 else NOT_SHOWN)
                label, span = metric_style(metric).label, f"last {100 * LATE:g}% of the run"
                lines.append(verdict_text(judged, one, other, label, span))
    return lines


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `returns` brings none."""
    plain = {"flag_values": values}
    flags.DEFINE_string("metric", METRIC, "A return, of which higher is better.", **plain)
    flags.DEFINE_float("window", 0.05, "Share of the run over which returns are averaged.", **plain)
    flags.DEFINE_string("reference", None, f"Label to compare with; default: first of {', '.join(PLAIN)}.", **plain)
    flags.DEFINE_enum("interval", "se", INTERVALS, "95% interval of means over seeds.", **plain)
    flags.DEFINE_enum("format", "text", FORMATS, "How the tables are written.", **plain)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: prints the tables."""
    if not arguments:
        raise InputError("launch.returns: no run folder given; usage: python -m launch.returns DIR...")
    runs = [run for directory in arguments for run in read_runs(directory).values()]
    warn_of_tuning(runs)
    asked = {name: values[name].value for name in ("metric", "window", "reference", "interval", "format")}
    print(report(runs, **asked))


if __name__ == "__main__":
    define_flags()
    run_cli(main)
