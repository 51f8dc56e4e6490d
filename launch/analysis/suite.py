"""What a suite of methods and tasks shows: each method beside a fresh network and backprop, ranks, what tuning cost.

Performance is the mean of a task's headline over the last quarter of the run, on seeds that no setting was chosen by.
"Shown" means that the whole 95% Student interval of the difference, paired by seed, lies on one side of 0.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from launch.analysis.comparison import FRESH, LATE
from launch.analysis.curves import Curve
from launch.analysis.long_table import late_mean
from launch.analysis.metrics import checked_metrics, metric_style
from launch.analysis.statistics import LEVEL, Difference, Estimate, interval, paired_difference
from launch.analysis.text import NOT_WIDENED, Table, estimate_text, percent
from launch.analysis.tuning import Winner, ranked, settings, value_text, winners
from launch.storage.run_folder import Run

BACKPROP = "backprop"
NEAR = 0.05
"""Share of the best score within which a setting counts as good as the best."""


HEADINGS = (
    "method", "run", "best setting", "tried", "within 5%", "performance", "- fresh network", "- backprop", "rank",
    "time / backprop's", "diverged",
)  # fmt: skip


class Part(NamedTuple):
    """A task of the suite: runs to report and runs for tuning by label, and methods that it is not for, with why."""

    name: str
    reported: Mapping[str, Run]
    tuned: Mapping[str, Run]
    refused: Mapping[str, str] = {}


class Standing(NamedTuple):
    """How a method stands on a task.

    Attributes:
        label: the method.
        metric: what is compared.
        value: mean over seeds, in the unit of the metric's axis.
        fresh: difference to the fresh network, turned so that more is better.
        backprop: difference to backprop, likewise.
        relative: the difference to the fresh network in percent of the fresh network's mean.
        ranks: the best and the worst rank that the intervals allow.
        winner: what tuning chose.
        near: share of the settings tried whose score is within `NEAR` of the best.
        cost: seconds a lane on the clock, over backprop's.
        folder: where its run lies.
        tuning_folder: where the runs lie that chose its setting.
    """

    label: str
    metric: str
    value: Estimate
    fresh: Difference
    backprop: Difference
    relative: Estimate
    ranks: tuple[int, int]
    winner: Winner
    near: float
    cost: float
    folder: str
    tuning_folder: str


def standings(part: Part) -> list[Standing]:
    """Every method reported on a task, in the order given; none where the fresh network or backprop is missing."""
    runs = {label: run for label, run in part.reported.items() if label in part.tuned}
    if not {FRESH, BACKPROP} <= runs.keys():
        return []
    (metric,) = checked_metrics(list(runs.values()), None)
    sign = 1.0 if metric_style(metric).better == "higher" else -1.0
    late = {label: late_mean(Curve(run, np.arange(len(run.lanes))), metric, LATE) for label, run in runs.items()}
    won = {each.label: each for each in winners([part.tuned[label] for label in runs], metric, LATE)}
    seconds = {label: run.meta.get("wall_seconds", np.nan) / len(run.lanes) for label, run in runs.items()}
    ranks = rank_ranges({label: sign * values for label, values in late.items()})
    scale = 100.0 / abs(float(late[FRESH].mean()))
    found = []
    for label, run in runs.items():
        fresh, backprop = (_difference(late[label], late[other], sign) for other in (FRESH, BACKPROP))
        found.append(
            Standing(
                label,
                metric,
                Estimate(*map(float, interval(late[label].to_numpy()))),
                fresh,
                backprop,
                Estimate(scale * fresh.mean, scale * fresh.low, scale * fresh.high),
                ranks[label],
                won[label],
                near_share(part.tuned[label], metric),
                seconds[label] / seconds[BACKPROP],
                run.meta["folder"],
                part.tuned[label].meta["folder"],
            )
        )
    return found


def _difference(one: pd.Series, other: pd.Series, sign: float, level: float = LEVEL) -> Difference:
    """One - other by seed, turned so that more is better."""
    a, b = one.align(other, join="inner")
    return paired_difference(sign * a.to_numpy(), sign * b.to_numpy(), "higher", level)


def rank_ranges(values: Mapping[str, pd.Series]) -> dict[str, tuple[int, int]]:
    """The best and the worst rank of each method that its comparisons with all others allow; more is better.

    A method is behind those that are shown to be better, and before those that are shown to be worse. The level of
    its comparisons is widened for their number (Bonferroni), so that the range holds the rank with 95%.
    """
    number = len(values)
    level = 1 - (1 - LEVEL) / max(number - 1, 1)
    found = {}
    for label, own in values.items():
        gaps = [_difference(own, other, 1.0, level) for name, other in values.items() if name != label]
        behind, before = sum(gap.high < 0 for gap in gaps), sum(gap.low > 0 for gap in gaps)
        found[label] = (1 + behind, number - before)
    return found


def near_share(run: Run, metric: str) -> float:
    """Share of the settings tried whose score is within `NEAR` of the best; settings without a score are not
    near, nor those of which more lanes diverged than of the best."""
    tried = settings(run, metric, LATE)
    order = ranked(tried, metric)
    scores = [each.score for each in order if each.diverged == order[0].diverged]
    return sum(abs(score - scores[0]) <= NEAR * abs(scores[0]) for score in scores) / len(tried)


def shown(difference: Difference) -> int:
    """1 where a method is shown to be better, -1 where worse, 0 where neither."""
    return int(difference.low > 0) - int(difference.high < 0)


# Text ---------------------------------------------------------------------------------------------------------------


def verdicts(found: Mapping[str, Sequence[Standing]]) -> list[str]:
    """Which methods beat a fresh network on every task, on none, and which do worse, a sentence each."""
    by_label: dict[str, list[int]] = {}
    for each in (each for standing in found.values() for each in standing if each.label != FRESH):
        by_label.setdefault(each.label, []).append(shown(each.fresh))
    tasks, methods = sum(bool(each) for each in found.values()), len(by_label)
    if not tasks:
        return ["Nothing can be said yet: no task has runs of backprop and of a fresh network that are over."]
    whole = {label: marks for label, marks in by_label.items() if len(marks) == tasks}
    lines = [
        (f"Shown to be better than a fresh network on {_every(tasks)}", lambda m: all(x == 1 for x in m)),
        ("Shown to be better on none", lambda m: all(x < 1 for x in m)),
        (f"Shown to be worse than a fresh network on {_every(tasks)}", lambda m: all(x == -1 for x in m)),
    ]
    told = [f"{text}: {_names([n for n, marks in whole.items() if test(marks)])}." for text, test in lines]
    partly = [f"{label} ({len(marks)})" for label, marks in by_label.items() if len(marks) < tasks]
    return [
        *told,
        *[f"Not on all {tasks} tasks, and so in none of these lists: {', '.join(partly)}."] * bool(partly),
        f"{methods} methods on {tasks} task{'s' * (tasks > 1)}; each interval is at 95%, {NOT_WIDENED}.",
    ]


def _every(tasks: int) -> str:
    return "the one task" if tasks == 1 else f"every one of {tasks} tasks"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "no method"


def overview(found: Mapping[str, Sequence[Standing]]) -> Table:
    """Methods by tasks: performance relative to a fresh network's, and the ranks that the intervals allow."""
    tasks = [name for name, each in found.items() if each]
    labels = list(dict.fromkeys(each.label for standing in found.values() for each in standing))
    rows = [("method", *(f"{name}, %" for name in tasks), "better", "worse")]
    for label in labels:
        own = {name: each for name in tasks for each in found[name] if each.label == label}
        marks = [shown(each.fresh) for each in own.values()]
        counts = ("", "") if label == FRESH else (f"{marks.count(1)}/{len(marks)}", f"{marks.count(-1)}/{len(marks)}")
        rows.append((label, *(_cell(own.get(name)) for name in tasks), *counts))
    remarks = [
        "Difference to the fresh network in percent of its mean, more is better, with the 95% interval paired by seed; "
        "in brackets the ranks that the intervals allow, widened for the number of methods.",
        "Better, worse: tasks on which a method is shown to be so. Methods stand in the order asked for.",
    ]
    return Table(rows, remarks)


def _cell(each: Standing | None) -> str:
    if each is None:
        return ""
    ranks = f"({_range(each.ranks)})"
    return f"0 {ranks}" if each.label == FRESH else f"{_signed(each.relative)} {ranks}"


def _range(ranks: tuple[int, int]) -> str:
    return f"{ranks[0]}" if ranks[0] == ranks[1] else f"{ranks[0]}–{ranks[1]}"


def _signed(found: Estimate | Difference) -> str:
    value, low, high = found[:3]
    if np.isnan(value):
        return ""
    return f"{value:+.3g}" + (f" [{low:+.3g}, {high:+.3g}]" if np.isfinite(low) else "")


def task_table(part: Part, found: Sequence[Standing], root: Path) -> Table:
    """A task: performance, differences to backprop and the fresh network, the setting chosen, and what it took."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for each in found:
        won = each.winner
        setting = ", ".join(f"{name}={value_text(won.setting[name], values)}" for name, values in won.values.items())
        rows.append(
            (
                each.label,
                _relative(each.folder, root),
                setting or "the only one",
                str(won.tried),
                percent(round(each.near, 3)),
                estimate_text(each.value),
                "" if each.label == FRESH else _signed(each.fresh),
                "" if each.label == BACKPROP else _signed(each.backprop),
                _range(each.ranks),
                f"{each.cost:.2f}",
                f"{len(part.reported[each.label].meta.get('diverged', ()))}",
            )
        )
    if not found:
        return Table(rows)
    style = metric_style(found[0].metric)
    tuned = {seed for each in found for seed in each.winner.seeds}
    edges = [f"{each.label} ({', '.join(each.winner.edges)})" for each in found if each.winner.edges]
    remarks = [
        f"Performance: {style.label}, mean over the last {percent(LATE)} of the run, {style.better} is better; "
        "differences are turned so that more is better, paired by seed.",
        f"Settings were chosen on {len(tuned)} other seeds by the same measure, runs in "
        f"{_relative(str(Path(found[0].tuning_folder).parent), root)}; within 5%: share of them whose score is within "
        "5% of the best.",
        "Time: seconds a run on the clock, on a machine that may have had other work; launch.benchmark measures it.",
        *[f"The best value lies on the edge of those tried: {'; '.join(edges)}."] * bool(edges),
        *(f"Not run: {label}: {why}." for label, why in part.refused.items()),
    ]
    return Table(rows, remarks, left=3)


def _relative(folder: str, root: Path) -> str:
    path = Path(folder)
    return str(path.relative_to(root)) if path.is_relative_to(root) else folder
