"""Compare methods by seed: the difference late in the run, paired, with its 95 percent interval.

python -m launch.compare A B [--metric=squared_error] [--window=0.1] [--interval=se|bootstrap]
                             [--format=text|markdown|latex]

A and B are method folders (DIR/label) or run folders (then every label that both hold). A run folder alone compares
all pairs of its labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from launch.analysis.selection import warn_of_tuning
from launch.analysis.statistics import INTERVALS, Difference, late_mean, paired_difference
from launch.cli import run_cli
from launch.errors import InputError, unknown
from launch.figures.curves import HEADLINES, Curve, check_presets, curves, metric_style
from launch.storage.run_folder import RUN, Run, read_runs
from launch.texts import aligned

FORMATS = ("text", "markdown", "latex")
HEADINGS = ("metric", "A", "B", "mean A", "mean B", "A - B", "95% interval", "pairs", "A better")


@dataclass(frozen=True)
class Row:
    """One comparison: names of A and B, their means over the common seeds, and the paired difference A - B.

    Means and difference are in the unit of the metric's axis (accuracies in percent).
    """

    metric: str
    a: str
    b: str
    mean_a: float
    mean_b: float
    difference: Difference

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEADINGS`."""
        d = self.difference
        ends = f"[{d.low:.4g}, {d.high:.4g}]" if d.n > 1 else f"n={d.n}"
        means = (f"{self.mean_a:.4g}", f"{self.mean_b:.4g}", f"{d.mean:.4g}")
        return (metric_style(self.metric).label, self.a, self.b, *means, ends, str(d.n), f"{d.wins}/{d.n}")


def compare(
    a: Path | str,
    b: Path | str | None = None,
    metrics: Sequence[str] | None = None,
    window: float = 0.1,
    interval: str = "se",
) -> list[Row]:
    """Paired differences between the runs of `a` and `b` over the last `window` of the run; InputError if unlike."""
    if interval not in INTERVALS:
        raise unknown("--interval", interval, INTERVALS)
    pairs = _pairs(a, b)
    rows = []
    for one, other in pairs:
        comparable(one, other)
        chosen = list(dict.fromkeys(metrics)) if metrics else [_shared_headline(one, other)]
        named = matched(one, other)
        for metric in chosen:
            rows += [_row(metric, first, second, window, interval) for first, second in named]
    return rows


def _pairs(a: Path | str, b: Path | str | None) -> list[tuple[Run, Run]]:
    first = read_runs(a)
    if b is None:
        if len(first) < 2:
            raise InputError(f"{a}: holds the one label {next(iter(first))}; name a second folder to compare it with")
        return list(combinations(first.values(), 2))
    second = read_runs(b)
    if (Path(a) / RUN).is_file() or (Path(b) / RUN).is_file():
        found = [(x, y) for x in first.values() for y in second.values() if x.meta["folder"] != y.meta["folder"]]
    else:
        found = [(first[label], second[label]) for label in first if label in second]
    if not found:
        raise InputError(f"{a} and {b}: no label in common ({', '.join(first)} and {', '.join(second)})")
    return found


def comparable(one: Run, other: Run) -> None:
    """Refuse with an InputError what would not be the same stream for as long, or shares no axis."""
    check_presets([one, other])
    for what, values in (
        ("tasks", [run.meta["task"] for run in (one, other)]),
        ("numbers of steps", [int(run.step[-1]) if len(run.step) else 0 for run in (one, other)]),
    ):
        if values[0] != values[1]:
            raise InputError(f"{one.label} and {other.label}: different {what}, {values[0]} and {values[1]}")


def _shared_headline(one: Run, other: Run) -> str:
    shared = [name for name in (*HEADLINES, *one.metrics) if name in one.metrics and name in other.metrics]
    if not shared:
        raise InputError(f"{one.label} and {other.label}: no metric in common")
    return shared[0]


def matched(one: Run, other: Run) -> list[tuple[Curve, Curve]]:
    """The groups of settings to compare: those that agree on every hyperparameter which both runs sweep."""
    found = curves([one, other])
    firsts, seconds = ([curve for curve in found if curve.run is run] for run in (one, other))
    both = _swept(firsts) & _swept(seconds)
    matched = [(x, y) for x in firsts for y in seconds if all(_hyper(x).get(k) == _hyper(y).get(k) for k in both)]
    if not matched:
        raise InputError(f"{one.label} and {other.label}: no setting in common of {', '.join(sorted(both))}")
    return matched


def _hyper(curve: Curve) -> dict[str, Any]:
    return curve.run.lanes[curve.lanes[0]]["hyper"]


def _swept(group: list[Curve]) -> set[str]:
    hypers = [_hyper(curve) for curve in group]
    return {name for hyper in hypers for name in hyper if len({each.get(name) for each in hypers}) > 1}


def _row(metric: str, one: Curve, other: Curve, window: float, interval: str) -> Row:
    style = metric_style(metric)
    x, y = (late_mean(curve.run, metric, window)[curve.lanes] * style.scale for curve in (one, other))
    return paired_row(metric, one, other, x, y, style.better, interval)


def paired_row(
    name: str, one: Curve, other: Curve, x: np.ndarray, y: np.ndarray, better: str, interval: str = "se"
) -> Row:
    """The comparison of two curves, given a value for each of their lanes; InputError without a common seed."""
    a, b = by_seed(one, other, x, y)
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        raise InputError(f"{one.name} and {other.name}: {name} was measured on no common seed; widen --window")
    means = (float(values[known].mean()) for values in (a, b))
    return Row(name, with_diverged(one), with_diverged(other), *means, paired_difference(a, b, better, interval))


def by_seed(one: Curve, other: Curve, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of two curves, each in the order of its lanes, for the seeds that both have, rising."""
    a, b = (
        dict(zip(curve.run.seeds[curve.lanes].tolist(), values.tolist(), strict=True))
        for curve, values in ((one, x), (other, y))
    )
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise InputError(f"{one.name} and {other.name}: no seed in common")
    return np.array([a[seed] for seed in seeds]), np.array([b[seed] for seed in seeds])


def with_diverged(curve: Curve) -> str:
    """The curve's name, and how many of its lanes diverged."""
    return curve.name + (f" ({curve.diverged} diverged)" if curve.diverged else "")


# Text -----------------------------------------------------------------------------------------------------------


def notes(rows: Sequence[Row], window: float, interval: str) -> list[str]:
    """What a reader of the table has to know, a sentence each."""
    kind = {"se": "Student's interval", "bootstrap": "bootstrap interval"}[interval]
    ways = {metric_style(row.metric).label: metric_style(row.metric).better for row in rows}
    found = [f"Mean over the last {window * 100:g}% of the run; differences A - B paired by seed, {kind} over seeds."]
    found += [f"{label}: {better} is better." for label, better in ways.items()]
    found += [f"{len(rows)} comparisons; the intervals are not widened for their number."] * (len(rows) > 1)
    return found


def render(rows: Sequence[Row], remarks: Sequence[str], format: str = "text") -> str:
    """The comparisons as a table, see `rendered`."""
    return rendered([HEADINGS, *(row.cells() for row in rows)], remarks, format, left=3)


def rendered(table: Sequence[tuple[str, ...]], remarks: Sequence[str], format: str = "text", left: int = 1) -> str:
    """A table, its headings first, as aligned text, as Markdown, or as LaTeX (booktabs).

    In the latter two the first `left` columns are set to the left, the others to the right.
    """
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    return {"text": _text, "markdown": _markdown, "latex": _latex}[format](table, remarks, left)


def _text(table: Sequence[tuple[str, ...]], remarks: Sequence[str], left: int) -> str:
    return "\n".join([*aligned(table), *([""] if remarks else []), *remarks])


def _markdown(table: Sequence[tuple[str, ...]], remarks: Sequence[str], left: int) -> str:
    head, *rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join([head, "|" + "---|" * left + "---:|" * (len(table[0]) - left), *rows, "", " ".join(remarks)])


def _latex(table: Sequence[tuple[str, ...]], remarks: Sequence[str], left: int) -> str:
    head, *rows = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in table]
    columns = "l" * left + "r" * (len(table[0]) - left)
    return "\n".join(
        [f"% {remark}" for remark in remarks]
        + [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    )


def _escaped(cell: str) -> str:
    for mark in "%&#_$":
        cell = cell.replace(mark, "\\" + mark)
    # A hyphen before a digit or between A and B is a minus sign, save in an exponent.
    words = [f"${word}$" if word.strip("[],").startswith("-") else word for word in cell.split(" ")]
    return " ".join(words)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `compare` brings none."""
    flags.DEFINE_list("metric", [], "Metrics to compare; default: the runs' headline.", flag_values=values)
    flags.DEFINE_float("window", 0.1, "Share of the run, at its end, that is compared.", flag_values=values)
    flags.DEFINE_enum("interval", "se", INTERVALS, "95% interval of the difference.", flag_values=values)
    flags.DEFINE_enum("format", "text", FORMATS, "How the table is written.", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: prints the table."""
    if not 1 <= len(arguments) <= 2:
        raise InputError(f"launch.compare: {len(arguments)} folders given, one or two are needed: A [B]")
    rows = compare(*arguments, metrics=values.metric, window=values.window, interval=values.interval)
    warn_of_tuning(run for folder in arguments for run in read_runs(folder).values())
    print(render(rows, notes(rows, values.window, values.interval), values.format))


if __name__ == "__main__":
    define_flags()
    run_cli(main)
