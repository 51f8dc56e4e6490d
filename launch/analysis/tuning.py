"""Which settings won on the tuning seeds, and the experiment that reports them on others.

A setting's score is the mean over its seeds of the mean over the whole run (or over its last part). A diverged lane
counts by the failure value that stands in its arrays, which may be less bad than what bad settings reach; so a setting
of which fewer lanes diverged goes first. What is written here is in the unit of the metric's axis.
"""

import dataclasses
import keyword
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from launch.analysis.curves import Curve
from launch.analysis.long_table import late_mean
from launch.analysis.metrics import checked_metrics, metric_style
from launch.analysis.statistics import Difference, interval, paired_difference
from launch.analysis.text import Table, percent, printed
from launch.config.methods import METHODS
from launch.config.syntax import parse_methods
from launch.errors import InputError, unknown
from launch.storage.run_folder import Run, number_texts, seeds_text

if TYPE_CHECKING:
    from launch.config.experiment import Experiment

HEADINGS = ("method", "best setting", "score", "95% interval", "seeds", "settings", "runner-up", "best - runner-up")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a label's numbers: its lanes int64 [lane], their seeds and scores [lane], the mean score, and how
    many of the lanes diverged."""

    hyper: Mapping[str, float]
    lanes: np.ndarray
    seeds: np.ndarray
    scores: np.ndarray
    score: float
    diverged: int = 0

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of the score's interval over seeds."""
        _, low, high = interval(self.scores)
        return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Winner:
    """The best setting of a label.

    Attributes:
        label: name of its folder.
        method: the method.
        metric: what is compared; `window` is the share of the run, at its end, over which its mean is taken.
        setting: every number of the method.
        values: per swept number, the values tried, ascending.
        score: mean over seeds, with the ends of its 95 percent interval `low` and `high`.
        seeds: the tuning seeds of the label, ascending.
        tried: number of settings tried.
        runner_up: the next best setting, or `None` where one setting was tried.
        difference: winner - runner-up, paired by seed, with Student's interval.
        edges: swept numbers whose best value is the lowest or highest tried, though others are allowed beyond.
        at_limit: those whose best value is the lowest or highest allowed at all.
        diverged: diverged lanes among the winner's; `diverged_tried` among all of the label.
        uneven: whether some setting was not measured on all seeds.
        finished: whether the run is over.
    """

    label: str
    method: str
    metric: str
    window: float
    setting: Mapping[str, float]
    values: Mapping[str, tuple[float, ...]]
    score: float
    low: float
    high: float
    seeds: tuple[int, ...]
    tried: int
    runner_up: Mapping[str, float] | None
    difference: Difference | None
    edges: tuple[str, ...]
    at_limit: tuple[str, ...]
    diverged: int
    diverged_tried: int
    uneven: bool
    finished: bool

    def text(self, hyper: Mapping[str, float]) -> str:
        """The swept numbers of a setting, as `name=value, ...`."""
        return ", ".join(f"{name}={value_text(hyper[name], values)}" for name, values in self.values.items())


def settings(run: Run, metric: str, window: float = 1.0) -> list[Setting]:
    """Every setting of a run with its scores, in the order of its lanes.

    A lane without a measurement has the score NaN and is left out of the mean.

    Raises:
        InputError: an unknown metric, a window outside (0, 1], nothing measured in it.
    """
    scores, seeds = late_mean(Curve(run, np.arange(len(run.lanes))), metric, window).to_numpy(), run.seeds
    diverged, found = run.meta.get("diverged", ()), []
    for _, lanes in run.settings_groups():
        known = scores[lanes][np.isfinite(scores[lanes])]
        score = float(known.mean()) if len(known) else np.nan
        gone = int(np.isin(lanes, list(diverged)).sum())
        found.append(Setting(run.lanes[lanes[0]]["hyper"], lanes, seeds[lanes], scores[lanes], score, gone))
    return found


def values_tried(found: Sequence[Setting]) -> dict[str, tuple[float, ...]]:
    """Per number of which more than one value was tried, those values, ascending."""
    tried = {name: tuple(sorted({each.hyper[name] for each in found})) for name in found[0].hyper} if found else {}
    return {name: values for name, values in tried.items() if len(values) > 1}


def ranked(found: Iterable[Setting], metric: str) -> list[Setting]:
    """The settings that were measured, best first: those of which fewest lanes diverged; equals in the order given."""
    sign = 1 if metric_style(metric).better == "lower" else -1
    known = (each for each in found if np.isfinite(each.score))
    return sorted(known, key=lambda each: (each.diverged, sign * each.score))


def by_value(found: Sequence[Setting], metric: str, name: str) -> dict[float, Setting]:
    """The best setting at each value of a swept number, values ascending; none where nothing was measured."""
    best: dict[float, Setting] = {}
    for setting in ranked(found, metric) if name in values_tried(found) else ():
        best.setdefault(setting.hyper[name], setting)
    return dict(sorted(best.items()))


def winners(runs: Mapping[str, Run] | Iterable[Run], metric: str | None = None, window: float = 1.0) -> list[Winner]:
    """The best setting of every run, in the order given; the metric is by default the runs' headline.

    Raises:
        InputError: no run; a metric that a run does not hold; nothing measured in the window.
    """
    runs = list(runs.values()) if isinstance(runs, Mapping) else list(runs)
    (metric,) = checked_metrics(runs, [metric] if metric else None)
    return [_winner(run, metric, window) for run in runs]


def _winner(run: Run, metric: str, window: float) -> Winner:
    found = settings(run, metric, window)
    order = ranked(found, metric)
    best, second = order[0], order[1] if len(order) > 1 else None
    values = values_tried(found)
    at_end = [name for name, tried in values.items() if best.hyper[name] in (tried[0], tried[-1])]
    limited = [name for name in at_end if best.hyper[name] in _limits(run.meta["method"], name)]
    mean, low, high = (float(value) for value in interval(best.scores))
    seeds = set(run.seeds.tolist())
    return Winner(
        label=run.label,
        method=run.meta["method"],
        metric=metric,
        window=window,
        setting=best.hyper,
        values=values,
        score=mean,
        low=low,
        high=high,
        seeds=tuple(sorted(seeds)),
        tried=len(found),
        runner_up=second.hyper if second else None,
        difference=_paired(best, second, metric) if second else None,
        edges=tuple(name for name in at_end if name not in limited),
        at_limit=tuple(limited),
        diverged=best.diverged,
        diverged_tried=sum(each.diverged for each in found),
        uneven=any(set(each.seeds[np.isfinite(each.scores)].tolist()) != seeds for each in found),
        finished=run.meta.get("finished", True),
    )


def _limits(method: str, name: str) -> tuple[float, ...]:
    number = METHODS[method].hyperparameters.get(name) if method in METHODS else None
    return (number.low, number.high) if number else ()


def _paired(one: Setting, other: Setting, metric: str) -> Difference:
    a, b = (pd.Series(each.scores, each.seeds) for each in (one, other))
    a, b = a.align(b, join="inner")
    return paired_difference(a.to_numpy(), b.to_numpy(), metric_style(metric).better)


# Text ---------------------------------------------------------------------------------------------------------------


def value_text(value: float, tried: Sequence[float]) -> str:
    """A value in few digits, in more where another value tried would look the same."""
    return dict(zip(tried, number_texts(list(tried)), strict=True)).get(value, f"{value:g}")


def render(found: Sequence[Winner]) -> str:
    """The winners as aligned text."""
    return printed(table(found))


def table(found: Sequence[Winner]) -> Table:
    """The winners, with what has to be known to read them, and warnings."""
    remarks = [*notes(found), *(f"warning: {line}" for line in warnings(found))]
    return Table([HEADINGS, *(_cells(winner) for winner in found)], remarks)


def _cells(winner: Winner) -> tuple[str, ...]:
    gap = winner.difference
    known = gap is not None and gap.n > 1
    return (
        winner.label,
        winner.text(winner.setting) or "the only one",
        f"{winner.score:.4g}",
        f"[{winner.low:.4g}, {winner.high:.4g}]" if np.isfinite(winner.low) else "",
        str(len(winner.seeds)),
        str(winner.tried),
        winner.text(winner.runner_up) if winner.runner_up else "",
        f"{gap.mean:+.2g} [{gap.low:+.2g}, {gap.high:+.2g}]" if gap and known else "",
    )


def notes(found: Sequence[Winner]) -> list[str]:
    """What the score is, how many settings were tried on which seeds, and lanes that diverged, a sentence each."""
    if not found:
        return []
    style, first = metric_style(found[0].metric), found[0]
    span = "the whole run" if first.window == 1 else f"the last {percent(first.window)} of the run"
    lines = [
        f"Score: {style.label}, mean over {span}, {style.better} is better; best - runner-up paired by seed.",
        f"Tuned on {tuned_on(found)}.",
    ]
    for each in found:
        if each.diverged_tried:
            lanes = f"{each.diverged_tried} lane{'s' * (each.diverged_tried != 1)} diverged"
            lines.append(
                f"{each.label}: {lanes}, {each.diverged or 'none'} of the best setting, and count as failures."
            )
        lines += [
            f"{each.label}: the best {name}={value_text(each.setting[name], each.values[name])} is at its limit; "
            "no value beyond it is allowed."
            for name in each.at_limit
        ]
    return lines


def warnings(found: Sequence[Winner]) -> list[str]:
    """What makes the choice doubtful, a line each."""
    lines = []
    if len({each.tried for each in found}) > 1:
        counts = ", ".join(f"{each.label} {each.tried}" for each in found)
        lines.append(f"not as many settings were tried for each method ({counts}): more tries find a better best")
    if len({each.seeds for each in found}) > 1:
        seeds = ", ".join(f"{each.label} {seeds_text(each.seeds)}" for each in found)
        lines.append(f"the methods were tuned on different seeds: {seeds}")
    for each in found:
        for name in each.edges:
            tried = each.values[name]
            low, high = (value_text(value, tried) for value in (tried[0], tried[-1]))
            best = value_text(each.setting[name], tried)
            lines.append(
                f"{each.label}: the best {name}={best} lies on the edge of the {len(tried)} values tried, "
                f"{low} to {high}; try values beyond it"
            )
        if each.uneven:
            lines.append(f"{each.label}: not every setting was measured on all of its {len(each.seeds)} seeds")
        if not each.finished:
            lines.append(f"{each.label}: unfinished; the best may change")
    return lines


def tuned_on(found: Sequence[Winner]) -> str:
    """On which seeds and among how many settings the winners were found, as `seeds 100:120, 9 settings a method`."""
    return f"seeds {seeds_text({seed for each in found for seed in each.seeds})}, {counts_text(found)}"


def counts_text(found: Sequence[Winner]) -> str:
    """`9 settings a method`, or how many each method had."""
    counts = {each.tried for each in found}
    if len(counts) == 1:
        return f"{found[0].tried} setting{'s' * (found[0].tried != 1)} a method"
    return "settings: " + ", ".join(f"{each.label} {each.tried}" for each in found)


# Reporting ----------------------------------------------------------------------------------------------------------


def report_experiment(experiment: "Experiment", found: Sequence[Winner], seeds: Sequence[int]) -> "Experiment":
    """The winners of the experiment's labels, and nothing else, on other seeds; `tuned_on` says how they were found.

    Labels stay. `set` and `sweep` become settings in `methods`: those swept, and those that differ from the preset's.

    Raises:
        InputError: a seed that was tuned on; a label without a winner, or whose winner is of another method.
    """
    from launch.config.experiment import resolve

    used = {*experiment.seeds, *(seed for each in found for seed in each.seeds)}
    both = sorted(used & set(seeds))
    if both:
        raise InputError(
            f"--report_seeds: {seeds_text(seeds)} holds {len(both)} of the tuning seeds {seeds_text(used)}, "
            f"{both[0]} among them; give others, such as {max(used) + 1}:{max(used) + 1 + len(seeds)}"
        )
    by_label = {each.label: each for each in found}
    entries = parse_methods(experiment.methods)
    names = {entry.label: entry.call.name for entry in entries}
    plain = dataclasses.replace(experiment, set=(), sweep=(), methods=",".join(f"{k}={v}" for k, v in names.items()))
    texts = []
    for asked, preset in zip(resolve(experiment).jobs, resolve(plain).jobs, strict=True):
        if asked.label not in by_label:
            raise unknown("--methods: a winner for label", asked.label, by_label)
        winner = by_label[asked.label]
        if winner.method != asked.method.name:
            raise InputError(f"--methods: '{asked.label}' is {asked.method.name}, its winner is {winner.method}")
        usual = {**preset.lanes[0].hyper, **preset.static}
        chosen = {**winner.setting, **asked.static}
        written = {name: value for name, value in chosen.items() if name in winner.values or value != usual.get(name)}
        inside = ",".join(f"{name}={_literal(value)}" for name, value in written.items())
        name = names[asked.label]
        label = "" if asked.label == name else f"{asked.label}="
        texts.append(f"{label}{name}({inside})" if inside else f"{label}{name}")
    tuning = [by_label[label] for label in names]
    return dataclasses.replace(
        plain, methods=",".join(texts), seeds=tuple(int(seed) for seed in seeds), tuned_on=tuned_on(tuning)
    )


def _literal(value: Any) -> str:
    """The value as `launch.config.syntax.parse_call` reads it back, numbers exactly."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value) else repr(value)


def refuse_tuning(runs: Mapping[str, Run] | Iterable[Run]) -> None:
    """Refuse runs made for tuning: the best of many settings looks better on the seeds it was chosen by than it is.

    Raises:
        InputError: a run whose `run.json` says `"tuning": true`.
    """
    told = _tuning_told(runs)
    if told:
        raise InputError(
            f"{told}; --report_seeds=A:B launches the winners on other seeds; --tuning draws them all the same"
        )


def warn_of_tuning(runs: Mapping[str, Run] | Iterable[Run]) -> None:
    """One line on stderr where there are runs made for tuning."""
    told = _tuning_told(runs)
    if told:
        print(f"warning: {told}", file=sys.stderr)


def _tuning_told(runs: Mapping[str, Run] | Iterable[Run]) -> str:
    tuning = [run for run in (runs.values() if isinstance(runs, Mapping) else runs) if run.meta.get("tuning")]
    if not tuning:
        return ""
    labels = ", ".join(run.label for run in tuning)
    folder = tuning[0].meta.get("folder", "")
    return f"{folder}: runs on tuning seeds ({labels}), which favour the settings chosen by them"
