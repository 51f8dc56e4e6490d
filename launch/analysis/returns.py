"""Returns of agents that go on learning: the best so far, the final ones, the drop from the peak, who collapsed.

Every lane has a peak of its own: the highest mean over `window` of the run, wherever that lies; its final return is
the mean over the last `window`. A window is at least as long as an episode of every environment. A lane has collapsed
where the final return is below half of its peak.

Read the drop with care: a peak is the best of many noisy means, so it lies above what it estimates, the more so the
smaller the window and the longer the run; and where the ground changes, a return falls on ice for a fresh network as
well. Compare drops of methods on the same seeds, and the last returns with those of `fresh_network`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from launch.analysis.comparison import PLAIN, Row, difference_table, differences, late_verdicts, verdict_lines
from launch.analysis.curves import Curve, curves
from launch.analysis.long_table import of_metric
from launch.analysis.metrics import checked_metrics, metric_style
from launch.analysis.statistics import late_bins
from launch.analysis.text import Table, mean_text, percent
from launch.errors import InputError
from launch.storage.run_folder import Run

METRIC = "episode_return"
COMPARED = {"final return": "higher", "drop from the peak": "lower"}


@dataclass(frozen=True)
class Returns:
    """What a curve's lanes came to, a row for each seed.

    `lanes` has the columns `best`, the peak (the highest mean over a window of bins); `step`, the last step of that
    window; `final`, the mean over the last window; `drop` from the peak to the end; `collapsed`, whether the end is
    below half of a peak above 0.
    """

    curve: Curve
    lanes: pd.DataFrame


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
    run, table = curve.run, of_metric(curve, metric)
    late = late_bins(len(run.step), window)
    width = min(max(late.stop - late.start, _bins_of_an_episode(run)), len(run.step))
    measured = np.isfinite(table["value"])
    weighted = table.assign(sum=(table["value"] * table["steps"]).where(measured, 0.0))
    weighted["steps"] = weighted["steps"].where(measured, 0)
    rolling = weighted.pivot(index="step", columns="lane", values=["sum", "steps"]).rolling(width).sum()
    means = (rolling["sum"] / rolling["steps"].where(rolling["steps"] > 0)).iloc[width - 1 :]
    if not np.isfinite(means.iloc[-1]).all():
        raise InputError(f"{curve.name}: no episode ended in the last {window:g} of the run; widen --window")
    found = pd.DataFrame({"best": means.max(), "step": means.idxmax(), "final": means.iloc[-1]})
    found["drop"] = found["best"] - found["final"]
    found["collapsed"] = (found["best"] > 0) & (found["final"] < found["best"] / 2)
    return Returns(curve, found.set_axis(curve.seeds))


def _bins_of_an_episode(run: Run) -> int:
    """Bins in which every environment ends an episode: those that never fall end all at once, and seldom."""
    settings = run.meta["settings"]
    steps = settings.get("task.environments", 0) * settings.get("task.episode_length", 0)
    return -(-steps // int(run.count[0]))


def compared(found: Sequence[Returns], reference: str) -> list[Row]:
    """Final returns and drops of every other label minus the reference's, paired by seed."""
    values = [(e.curve, {"final return": e.lanes["final"], "drop from the peak": e.lanes["drop"]}) for e in found]
    return differences(values, reference, COMPARED)


def report(
    runs: Sequence[Run], metric: str = METRIC, window: float = 0.05, reference: str | None = None
) -> tuple[list[Table], list[str]]:
    """Tables by curve and of differences from the reference; and what is shown beside a fresh network."""
    found = returns(runs, metric, window)
    labels = list(dict.fromkeys(each.curve.run.label for each in found))
    chosen = reference or next((label for label in PLAIN if label in labels), labels[0])
    rows = compared(found, chosen)
    remark = (
        f"Means over seeds and 95% intervals. Best: each seed's highest mean over {percent(window)} of the run; final: "
        "that of the end; collapsed: final below half of the seed's own best."
    )
    tables = [Table(_table(found), [remark])]
    if rows:
        tables.append(difference_table(rows, f"Differences from {chosen.replace('_', ' ')}"))
    return tables, verdict_lines(late_verdicts([each.curve for each in found], metric))


def _table(found: Sequence[Returns]) -> list[tuple[str, ...]]:
    rows = [("method", "best", "at step", "final", "drop", "collapsed", "seeds")]
    for curve, lanes in ((each.curve, each.lanes) for each in found):
        best, final, drop = (mean_text(lanes[name]) for name in ("best", "final", "drop"))
        at = "–".join(f"{step:,}" for step in sorted({int(lanes["step"].min()), int(lanes["step"].max())}))
        rows.append((curve.name, best, at, final, drop, f"{lanes['collapsed'].sum()} of {len(lanes)}", str(len(lanes))))
    return rows
