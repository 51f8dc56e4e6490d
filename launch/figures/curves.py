"""What is drawn and how it is told apart: metrics and their units, one curve per label and setting, names, colours."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch.errors import InputError, unknown
from launch.storage.run_folder import Run, number_texts


class MetricStyle(NamedTuple):
    """Axis label with its unit, which direction is better, and what a value is multiplied by to be in that unit."""

    label: str
    better: str
    scale: float = 1.0


METRICS: dict[str, MetricStyle] = {
    "squared_error": MetricStyle("squared error", "lower"),
    "online_accuracy": MetricStyle("online accuracy (%)", "higher", 100.0),
    "test_accuracy": MetricStyle("test accuracy (%)", "higher", 100.0),
    "test_accuracy_in_task": MetricStyle("test accuracy on the way (%)", "higher", 100.0),
    "validation_accuracy": MetricStyle("validation accuracy (%)", "higher", 100.0),
    "accuracy_newest_classes": MetricStyle("accuracy on the newest classes (%)", "higher", 100.0),
    "accuracy_middle_classes": MetricStyle("accuracy on the classes in the middle (%)", "higher", 100.0),
    "accuracy_oldest_classes": MetricStyle("accuracy on the oldest classes (%)", "higher", 100.0),
    "episode_return": MetricStyle("episode return", "higher"),
    "episode_length": MetricStyle("episode length (steps)", "higher"),
    "condition": MetricStyle("value of what changes", "higher"),
    "accuracy_one_task_ago": MetricStyle("accuracy on the task before (%)", "higher", 100.0),
    "accuracy_ten_tasks_ago": MetricStyle("accuracy on the tenth task before (%)", "higher", 100.0),
    "loss": MetricStyle("loss", "lower"),
    "dead_units": MetricStyle("dead units (%)", "lower", 100.0),
    "dormant_units": MetricStyle("dormant units (%)", "lower", 100.0),
    "saturated_units": MetricStyle("saturated units (%)", "lower", 100.0),
    "mean_weight_magnitude": MetricStyle("mean weight magnitude", "lower"),
    "dead_units_old_classes": MetricStyle("dead units, old classes (%)", "lower", 100.0),
    "dormant_units_old_classes": MetricStyle("dormant units, old classes (%)", "lower", 100.0),
    "effective_rank_old_classes": MetricStyle("effective rank, old classes (% of units)", "higher", 100.0),
    "stable_rank_old_classes": MetricStyle("stable rank, old classes (% of units)", "higher", 100.0),
    "effective_rank": MetricStyle("effective rank (% of units)", "higher", 100.0),
    "stable_rank": MetricStyle("stable rank (% of units)", "higher", 100.0),
    "approximate_rank": MetricStyle("approximate rank (% of units)", "higher", 100.0),
    "rank": MetricStyle("rank (% of units)", "higher", 100.0),
    "replaced_units": MetricStyle("replaced units per step", "lower"),
    "units_replaced": MetricStyle("units replaced per iteration", "lower"),
    "weight_change": MetricStyle("weight change per iteration, sum", "lower"),
    "largest_weight_change": MetricStyle("largest weight change per iteration", "lower"),
    "clip_fraction": MetricStyle("clipped samples (%)", "lower", 100.0),
    "approximate_kl": MetricStyle("approximate KL divergence (nats)", "lower"),
    "entropy": MetricStyle("entropy of the policy (nats)", "higher"),
}
ACCELERATOR = "accelerator"
HEADLINES = ("squared_error", "online_accuracy", "test_accuracy", "episode_return")

# Okabe and Ito's colours for the methods met most often, Tol's muted ones for every other label: all can be told
# apart with the common colour blindnesses.
_METHOD_COLOURS = {
    "backprop": "#D55E00",
    "continual_backprop": "#0072B2",
    "shrink_and_perturb": "#CC79A7",
    "weight_decay": "#009E73",
    "l2": "#009E73",
    "adam": "#E69F00",
    "redo": "#56B4E9",
}
_OTHER_COLOURS = ("#332288", "#882255", "#999933", "#44AA99", "#AA4499", "#6699CC", "#661100", "#117733", "#DDAA33")
_BASELINES = {"fresh_network": ("#555555", (0, (5, 2))), "linear": ("#111111", (0, (1, 1.5)))}
_LINE_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
_PLACES = (
    "folder",
    "workdir",
    "seeds",
    "methods",
    "label",
    "method",
    "data_dir",
    "log",
    "history",
)  # name no setting of a curve
# Mean the same whatever the method; every other setting is its method's own.
_SHARED = ("task", "network", "preset", "steps", "bin", "optimizer", "step_size", "momentum", "b1", "b2")
INK = "#333333"


def metric_style(name: str) -> MetricStyle:
    """How `name` is drawn; a metric that is not in `METRICS` gets its own name, and a direction guessed from it."""
    higher = any(word in name for word in ("accuracy", "return", "rank", "reward"))
    return METRICS.get(name, MetricStyle(name.replace("_", " "), "higher" if higher else "lower"))


def default_metric(runs: Iterable[Run]) -> str:
    """The first of `HEADLINES` that any run holds, else its first metric; InputError where there is none.

    Where a task has epochs, what counts is the accuracy after the last, not on the way.
    """
    present = [name for run in runs for name in run.metrics]
    if "test_accuracy_in_task" in present and "test_accuracy" in present:
        return "test_accuracy"
    if not present:
        raise InputError("metric: the runs hold no metric at all")
    return next((name for name in HEADLINES if name in present), present[0])


def checked_metrics(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[str]:
    """The metrics to draw or tell of; InputError for one that no run holds, or for runs that share no axis."""
    check_presets(runs)
    present = {name for run in runs for name in run.metrics}
    for name in metrics or ():
        if name not in present:
            raise unknown("--metric", name, present)
    return list(dict.fromkeys(metrics)) if metrics else [default_metric(runs)]


def check_presets(runs: Sequence[Run]) -> None:
    """Refuse with an InputError runs with many times as many steps an update as the others beside them."""
    names = {str(run.meta["settings"].get("preset")): run for run in runs}
    if len(names) > 1 and ACCELERATOR in names:
        place = names[ACCELERATOR].meta.get("folder", names[ACCELERATOR].label)
        others = ", ".join(sorted(names.keys() - {ACCELERATOR}))
        raise InputError(f"{place}: of preset {ACCELERATOR}, which shares no axis with {others}: fewer updates a step")


@dataclass(frozen=True)
class Curve:
    """Lanes of one run that share a line: its label, the settings that tell it from others, colour and line style."""

    run: Run
    lanes: np.ndarray
    distinction: str = ""
    colour: Any = INK
    line: Any = "-"

    @property
    def name(self) -> str:
        """Label and distinction, as the legend writes them."""
        return self.run.label.replace("_", " ") + (f", {self.distinction}" if self.distinction else "")

    @property
    def diverged(self) -> int:
        """How many of the lanes diverged."""
        return len(set(self.run.meta.get("diverged", ())) & set(self.lanes.tolist()))

    @property
    def note(self) -> str:
        """Seeds, diverged lanes, whether the method is told of changes: what stands in brackets in the legend."""
        notes = [f"{len(self.lanes)} seed{'s' * (len(self.lanes) != 1)}"]
        notes += [f"{self.diverged} diverged"] * (self.diverged > 0)
        notes += ["told of changes"] * bool(self.run.meta.get("task_aware"))
        notes += ["unfinished"] * (not self.run.meta.get("finished", True))
        return ", ".join(notes)


def curves(runs: Mapping[str, Run] | Iterable[Run]) -> list[Curve]:
    """One curve per run and group of hyperparameters, baselines last, each told from the others by name and look."""
    runs = list(runs.values()) if isinstance(runs, Mapping) else list(runs)
    found = [Curve(run, lanes) for run in runs for _, lanes in run.settings_groups()]
    found = [replace(curve, distinction=text) for curve, text in zip(found, _distinctions(found), strict=True)]
    return sorted(_coloured(found), key=lambda curve: baseline(curve.run) is not None)


def _attributes(curve: Curve) -> dict[str, Any]:
    settings = {"task": curve.run.meta["task"], **curve.run.meta["settings"]}
    settings |= curve.run.lanes[curve.lanes[0]]["hyper"] if len(curve.lanes) else {}
    return {key: value for key, value in settings.items() if key not in _PLACES}


def _distinctions(found: list[Curve]) -> list[str]:
    """Per curve the settings that differ among curves of the same label, of the same method, and, if shared, of all.

    A method's own settings tell it from no other method, whose name does so. The linear baseline differs from all
    others in its network by what it is: it is compared with its like only. A value that is the label is not repeated.
    """
    attributes = [_attributes(curve) for curve in found]
    labels = [curve.run.label for curve in found]
    methods = [None if baseline(curve.run) == "linear" else curve.run.meta["method"] for curve in found]
    others = [each for each, method in zip(attributes, methods, strict=True) if method is not None]
    texts = []
    for label, method, own in zip(labels, methods, attributes, strict=True):
        same = [each for other, each in zip(labels, attributes, strict=True) if other == label]
        like = [each for other, each in zip(methods, attributes, strict=True) if other == method]
        names = [
            key
            for key in own
            if str(own[key]) != label
            and (_varies(key, same) or (method is not None and _differs(key, others if _is_shared(key) else like)))
        ]
        texts.append(", ".join(f"{key}={_text(own[key], [each.get(key) for each in attributes])}" for key in names))
    return _unique(found, labels, texts)


def _is_shared(key: str) -> bool:
    return key in _SHARED or key.startswith("task.")


def _differs(key: str, attributes: list[dict[str, Any]]) -> bool:
    """Whether all have the setting, and not the same."""
    return all(key in each for each in attributes) and _varies(key, attributes)


def _varies(key: str, attributes: list[dict[str, Any]]) -> bool:
    return len({repr(each.get(key)) for each in attributes}) > 1


def _text(value: Any, beside: list[Any]) -> str:
    numbers = list(dict.fromkeys(each for each in beside if isinstance(each, (int, float))))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return dict(zip(numbers, number_texts(numbers), strict=True))[value]
    return str(value)


def _unique(found: list[Curve], labels: list[str], texts: list[str]) -> list[str]:
    """Curves whose settings are all equal are told apart by their seeds, else by their folder."""
    texts = list(texts)
    for name in set(zip(labels, texts, strict=True)):
        alike = [i for i, each in enumerate(zip(labels, texts, strict=True)) if each == name]
        for choose in (_seeds_of, _folder_of):
            additions = [choose(found[i]) for i in alike]
            if len(set(additions)) == len(alike) > 1:
                for i, addition in zip(alike, additions, strict=True):
                    texts[i] = ", ".join(filter(None, (texts[i], addition)))
                break
    return texts


def _folder_of(curve: Curve) -> str:
    return Path(curve.run.meta.get("folder", "")).parent.name


def _seeds_of(curve: Curve) -> str:
    return _seeds_text(curve.run.seeds[curve.lanes])


def _seeds_text(seeds: np.ndarray) -> str:
    seeds = np.unique(seeds)
    if len(seeds) > 1 and len(seeds) == seeds[-1] - seeds[0] + 1:
        return f"seeds {seeds[0]}–{seeds[-1]}"
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def baseline(run: Run) -> str | None:
    """Which of the two baselines a run is: a network that starts afresh at every change, or a linear one."""
    if run.meta["method"] == "fresh_network" or run.label == "fresh_network":
        return "fresh_network"
    words = run.label.split("_")
    return "linear" if "linear" in words or run.meta["settings"].get("network") == "linear" else None


def label_colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour per label: a label has the same one in every figure, save where two labels would meet in one."""
    chosen: dict[str, str] = {}
    for label in sorted(set(labels), key=lambda label: (label not in _METHOD_COLOURS, label)):
        start = zlib.crc32(label.encode()) % len(_OTHER_COLOURS)
        others = _OTHER_COLOURS[start:] + _OTHER_COLOURS[:start]
        wanted = [_METHOD_COLOURS[label]] if label in _METHOD_COLOURS else []
        free = [colour for colour in (*wanted, *others) if colour not in chosen.values()]
        chosen[label] = free[0] if free else others[0]
    return chosen


def _coloured(found: list[Curve]) -> list[Curve]:
    colours = label_colours(curve.run.label for curve in found if baseline(curve.run) is None)
    by_label: dict[str, list[int]] = {}
    for index, curve in enumerate(found):
        by_label.setdefault(baseline(curve.run) or curve.run.label, []).append(index)
    looks: dict[int, tuple[Any, Any]] = {}
    for label, members in by_label.items():
        base, line = _BASELINES.get(label) or (colours[label], None)
        shades = _shades(base, len(members), alone=len(colours) == 1 and label in colours)
        for place, index in enumerate(members):
            looks[index] = (shades[place], line or _LINE_STYLES[place % 4 if len(members) <= 4 else 0])
    return [replace(curve, colour=looks[i][0], line=looks[i][1]) for i, curve in enumerate(found)]


def _shades(base: str, number: int, alone: bool) -> list[Any]:
    """`number` shades of a colour from light to dark; a sweep of a single label has the whole range from a map."""
    import matplotlib
    from matplotlib.colors import to_rgb

    if number == 1:
        return [base]
    if alone and number > 2:
        return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, number)))
    colour = np.array(to_rgb(base))
    amounts = np.linspace(0.45, -0.45, number)
    return [tuple(colour + (1 - colour) * a if a > 0 else colour * (1 + a)) for a in amounts]


INTERVAL_WORDS = {
    "bootstrap": "mean and 95% bootstrap interval over seeds",
    "se": "mean and 95% Student interval over seeds",
}


def caption(runs: Mapping[str, Run] | Iterable[Run], interval: str | None = None) -> str:
    """Task, preset, steps, network, seeds and, as `name=value`, every other setting that is the same in all runs.

    The linear baseline's network is passed over, as its name tells it.
    """
    runs = list(runs.values()) if isinstance(runs, Mapping) else list(runs)
    plain = [run for run in runs if baseline(run) != "linear"] or runs
    attributes = [_attributes(Curve(run, lanes)) for run in plain for _, lanes in run.settings_groups()]
    if not attributes:
        return ""
    first = attributes[0]
    equal = {
        key: value
        for key, value in first.items()
        if value is not None and all(key in each for each in attributes) and not _varies(key, attributes)
    }
    seeds = sorted({_seeds_text(run.seeds) for run in runs})
    steps = equal.pop("steps", None)
    notes = {run.meta.get("note", "") for run in runs}
    note = notes.pop() if len(notes) == 1 else ""
    if note:  # it says in words what the task's settings are
        equal = {key: value for key, value in equal.items() if not key.startswith("task.")}
    parts = [
        str(equal.pop("task", "several tasks")).replace("_", " ") + f": {note}" * bool(note),
        _worded("preset", equal),
        f"{steps:,} steps" if isinstance(steps, int) else "",
        _worded("network", equal),
        seeds[0] if len(seeds) == 1 else "seeds differ between runs",
        INTERVAL_WORDS.get(interval or "", ""),
    ]
    rest = ", ".join(f"{key}={_text(value, [value])}" for key, value in equal.items())
    return "; ".join(filter(None, parts)) + (f". {rest}." if rest else ".")


def _worded(name: str, settings: dict[str, Any]) -> str:
    return f"{settings.pop(name)} {name}" if name in settings else ""
