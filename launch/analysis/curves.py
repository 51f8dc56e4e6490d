"""Curves: lanes of a run that share a line, and the words that tell one from another."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from launch.analysis.metrics import metric_style
from launch.analysis.statistics import FEW, RESAMPLED_FROM
from launch.config.experiment import task_ending
from launch.config.identity import ADDED
from launch.errors import InputError, unknown
from launch.storage.run_folder import Run, number_texts, read_runs

# Settings that say where a run lies or who reads it, and tell no curve from another.
_PLACES = ("folder", "workdir", "seeds", "methods", "label", "method", "data_dir", "log", "history", "log_size")
# Mean the same whatever the method; every other setting is its method's own.
_SHARED = ("task", "network", "preset", "steps", "bin", "optimizer", "step_size", "momentum", "b1", "b2")
LATER = {f"task.{name}": value for name, value in ADDED["Task"].items()}
"""Settings that every stream has, and that are written down only where they are not this."""


def read(directories: Sequence[Path | str] | Path | str, command: str = "plot") -> list[Run]:
    """Every run in some folders, those under way from their checkpoints.

    Raises:
        InputError: no folder is given, or one holds no run that can be read.
    """
    directories = [directories] if isinstance(directories, (str, Path)) else list(directories)
    if not directories:
        raise InputError(f"launch.{command}: no run folder given; usage: python -m launch.{command} DIR...")
    return [run for directory in directories for run in read_runs(directory, partial=True).values()]


@dataclass(frozen=True)
class Curve:
    """Lanes of one run that share a line: its label, and the settings that tell it from others.

    `setting` has all that differ from those of other curves, `own` only what tells curves of the same label apart.
    """

    run: Run
    lanes: np.ndarray
    setting: str = ""
    own: str = ""

    @property
    def name(self) -> str:
        """Label and setting, as tables write them."""
        return self.run.label.replace("_", " ") + (f", {self.setting}" if self.setting else "")

    @property
    def short_name(self) -> str:
        """Label and what tells it from others of the label, as legends write them."""
        return self.run.label.replace("_", " ") + (f", {self.own}" if self.own else "")

    @property
    def seeds(self) -> np.ndarray:
        """The seed of every lane, int64 [lane]."""
        return self.run.seeds[self.lanes]

    @property
    def hyper(self) -> Mapping[str, float]:
        """The method's numbers."""
        return self.run.lanes[self.lanes[0]]["hyper"]

    def number(self, name: str) -> float | None:
        """The method's number of that name, or the task's setting; `None` where it has no such number."""
        found = {**_numbers_of_task(self.run), **self.hyper}.get(name)
        return None if found is None else float(found)

    @property
    def numbers(self) -> set[str]:
        """The names for which there is a `number`."""
        return {*_numbers_of_task(self.run), *self.hyper}

    @property
    def diverged(self) -> int:
        """How many of the lanes diverged."""
        return len(set(self.run.meta.get("diverged", ())) & set(self.lanes.tolist()))

    @property
    def marked(self) -> str:
        """The name, and how many of the lanes diverged."""
        return self.name + (f" ({self.diverged} diverged)" if self.diverged else "")

    @property
    def note(self) -> str:
        """Seeds, diverged lanes, whether the method sees task boundaries: what stands in brackets in the legend."""
        notes = [f"{len(self.lanes)} seed{'s' * (len(self.lanes) != 1)}"]
        notes += [f"{self.diverged} diverged"] * (self.diverged > 0)
        notes += ["task-aware"] * bool(self.run.meta.get("task_aware"))
        notes += ["partial" if self.run.progress else "unfinished"] * (not self.run.meta.get("finished", True))
        return ", ".join(notes)

    @property
    def short_note(self) -> str:
        """The note for a column that is headed by seeds."""
        return self.note.replace(" seeds", "").replace(" seed", "")

    def values(self, metric: str) -> np.ndarray:
        """A metric [lane, bin] in the unit of its axis; NaN where it was not measured."""
        held = self.run.metrics.get(metric)
        if held is None:
            return np.full((len(self.lanes), len(self.run.step)), np.nan)
        return held[self.lanes] * metric_style(metric).scale


def curves(runs: Mapping[str, Run] | Iterable[Run]) -> list[Curve]:
    """One curve per run and group of hyperparameters, baselines last, each told from the others by its name."""
    runs = list(runs.values()) if isinstance(runs, Mapping) else list(runs)
    found = [Curve(run, lanes) for run in runs for _, lanes in run.settings_groups()]
    found = [replace(curve, setting=text, own=own) for curve, (text, own) in zip(found, _settings(found), strict=True)]
    return sorted(found, key=lambda curve: baseline(curve.run) is not None)


def runs_of(found: Iterable[Curve]) -> list[Run]:
    """The runs of some curves, each once."""
    return list({id(curve.run): curve.run for curve in found}.values())


def baseline(run: Run) -> str | None:
    """Which of the two baselines a run is: a network that starts afresh at every change, or a linear one."""
    if run.meta["method"] == "fresh_network" or run.label == "fresh_network":
        return "fresh_network"
    words = run.label.split("_")
    return "linear" if "linear" in words or run.meta["settings"].get("network") == "linear" else None


def place(run: Run) -> str:
    """Where a run lies, for messages."""
    return str(run.meta.get("folder", run.label))


def _numbers_of_task(run: Run) -> dict[str, float]:
    settings = {**LATER, **run.meta["settings"]}
    found = {name.removeprefix("task."): value for name, value in settings.items() if name.startswith("task.")}
    return {name: v for name, v in found.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _attributes(curve: Curve) -> dict[str, Any]:
    """Every setting of a curve; of one that is written as a call, its arguments each by itself."""
    settings = {"task": curve.run.meta["task"], **LATER, **curve.run.meta["settings"]}
    settings |= curve.hyper if len(curve.lanes) else {}
    found = {}
    for key, value in settings.items():
        if key not in _PLACES:
            found |= _arguments(key, value) if isinstance(value, str) and value.endswith(")") else {key: value}
    return found


def _arguments(key: str, value: str) -> dict[str, Any]:
    """`MLP(widths=(5,), outputs=1)` of `network` as `network`, `network.widths`, `network.outputs`."""
    try:
        call = ast.parse(value, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            return {key: value}
        own = {f"{key}.{each.arg}": ast.literal_eval(each.value) for each in call.keywords}
    except (SyntaxError, ValueError):
        return {key: value}
    return {key: call.func.id, **own}


def _settings(found: list[Curve]) -> list[tuple[str, str]]:
    """Per curve the settings that differ among curves of the same label, of the same method, and, if shared, of all.

    And those that differ among curves of the same label alone.

    A method's own settings tell it from no other method, whose name does so. The linear baseline differs from all
    others in its network by what it is: it is compared with its like only. A value that is the label is not repeated.
    """
    attributes = [_attributes(curve) for curve in found]
    labels = [curve.run.label for curve in found]
    methods = [None if baseline(curve.run) == "linear" else curve.run.meta["method"] for curve in found]
    others = [each for each, method in zip(attributes, methods, strict=True) if method is not None]
    texts, short = [], []
    for label, method, own in zip(labels, methods, attributes, strict=True):
        same = [each for other, each in zip(labels, attributes, strict=True) if other == label]
        like = [each for other, each in zip(methods, attributes, strict=True) if other == method]
        names = [
            key
            for key in own
            if str(own[key]) != label
            and not _in_label(label, key, own[key])
            and (_varies(key, same) or (method is not None and _differs(key, others if _is_shared(key) else like)))
        ]
        words = {key: setting_text(key, own[key], [each.get(key) for each in attributes]) for key in names}
        texts.append(", ".join(words.values()))
        short.append(", ".join(text for key, text in words.items() if _varies(key, same)))
    return list(zip(_unique(found, labels, texts), _unique(found, labels, short), strict=True))


def _in_label(label: str, key: str, value: Any) -> bool:
    """Whether the label says it already, as those of a sweep over a setting of the task do."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and key.startswith("task.") and label.endswith(task_ending(key.removeprefix("task."), value))


def _is_shared(key: str) -> bool:
    return key.partition(".")[0] in _SHARED


def _differs(key: str, attributes: list[dict[str, Any]]) -> bool:
    """Whether all have the setting, and not the same."""
    return all(key in each for each in attributes) and _varies(key, attributes)


def _varies(key: str, attributes: list[dict[str, Any]]) -> bool:
    return len({repr(each.get(key)) for each in attributes}) > 1


def setting_text(key: str, value: Any, beside: Sequence[Any] = ()) -> str:
    """A setting in words, as `step size 0.1`; with more digits where a value `beside` it would look the same."""
    name = key.rpartition(".")[2].replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, (int, float)):
        numbers = list(dict.fromkeys([value, *(each for each in beside if isinstance(each, (int, float)))]))
        return f"{name} {number_texts(numbers)[0]}"
    if isinstance(value, tuple):
        return f"{name} {'-'.join(map(str, value)) or 'none'}"
    return f"{name} {str(value).replace('_', ' ')}"


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
    return _seeds_text(curve.seeds)


def _seeds_text(seeds: np.ndarray) -> str:
    seeds = np.unique(seeds)
    if len(seeds) > 1 and len(seeds) == seeds[-1] - seeds[0] + 1:
        return f"seeds {seeds[0]}–{seeds[-1]}"
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


# Comparisons --------------------------------------------------------------------------------------------------------


def matched(one: Run, other: Run, told: Sequence[Curve] = ()) -> list[tuple[Curve, Curve]]:
    """The settings of two runs to compare: those that agree on every hyperparameter which both runs sweep.

    They are named as among the curves that are `told`, or as among the two runs'.
    """
    found = list(told) or curves([one, other])
    firsts, seconds = ([curve for curve in found if curve.run is run] for run in (one, other))
    both = _swept(firsts) & _swept(seconds)
    pairs = [(x, y) for x in firsts for y in seconds if all(x.hyper.get(k) == y.hyper.get(k) for k in both)]
    if not pairs:
        raise InputError(f"{one.label} and {other.label}: no setting in common of {', '.join(sorted(both))}")
    return pairs


def _swept(group: list[Curve]) -> set[str]:
    hypers = [curve.hyper for curve in group]
    return {name for hyper in hypers for name in hyper if len({each.get(name) for each in hypers}) > 1}


def beside(run: Run, others: Sequence[Run]) -> list[Run]:
    """Those of `others` that lie in the same folder as `run`; all of them where none does."""
    folder = Path(run.meta.get("folder", "")).parent
    return [each for each in others if Path(each.meta.get("folder", "")).parent == folder] or list(others)


def named(flag: str, label: str, runs: Sequence[Run]) -> list[Run]:
    """The runs with a label; InputError where there is none."""
    found = [run for run in runs if run.label == label]
    if not found:
        raise unknown(flag, label, {run.label for run in runs})
    return found


def unequal_numbers(one: Curve, two: Curve) -> list[str]:
    """The numbers that both methods have and that differ, as text; a method without weight decay has 0 of it."""
    names = [n for n in one.hyper | two.hyper if n == "weight_decay" or (n in one.hyper and n in two.hyper)]
    values = [(name, one.hyper.get(name, 0.0), two.hyper.get(name, 0.0)) for name in names]
    return [f"{name.replace('_', ' ')} {a:g} and {b:g}" for name, a, b in values if a != b]


# Captions -----------------------------------------------------------------------------------------------------------


def interval_words(found: Sequence[Curve]) -> str:
    """What a figure draws of the seeds of these curves: an interval, the seeds themselves, or a single one."""
    numbers = [len(curve.lanes) for curve in found]
    parts = [
        ("the single seed", [n for n in numbers if n == 1]),
        (f"mean and each seed as a thin line (fewer than {FEW} seeds)", [n for n in numbers if 1 < n < FEW]),
        ("mean and 95% Student interval over seeds", [n for n in numbers if FEW <= n < RESAMPLED_FROM]),
        ("mean and 95% bootstrap interval over seeds", [n for n in numbers if n >= RESAMPLED_FROM]),
    ]
    return ", or ".join(words for words, those in parts if those)


def caption(runs: Mapping[str, Run] | Iterable[Run], drawn: Sequence[Curve] = ()) -> str:
    """Task, preset, steps, network, seeds, intervals, how far runs under way are, and every other common setting.

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
        if LATER.get(key) != value
    }
    seeds = sorted({_seeds_text(run.seeds) for run in runs})
    steps = equal.pop("steps", None)
    notes = {run.meta.get("note", "") for run in runs}
    note = notes.pop() if len(notes) == 1 else ""
    if note:  # it says in words what the task's settings are
        equal = {key: value for key, value in equal.items() if not key.startswith("task.")}
    network = [str(equal.pop("network"))] if "network" in equal else []
    network += [setting_text(key, equal.pop(key)) for key in list(equal) if key.startswith("network.")]
    parts = [
        str(equal.pop("task", "several tasks")).replace("_", " ") + f": {note}" * bool(note),
        f"{equal.pop('preset')} preset".replace("_", " ") if "preset" in equal else "",
        f"{steps:,} steps" if isinstance(steps, int) else "",
        f"network: {', '.join(network)}" if network else "",
        seeds[0] if len(seeds) == 1 else "seeds differ between runs",
        interval_words(drawn),
        *dict.fromkeys(f"{run.label.replace('_', ' ')} is {run.progress}" for run in runs if run.progress),
    ]
    rest = ", ".join(setting_text(key, value) for key, value in equal.items())
    told = "; ".join(filter(None, parts)) + (f". {rest[:1].upper()}{rest[1:]}." if rest else ".")
    unlike = dict.fromkeys(f"{_without_task(curve.run)}: {text}" for curve in drawn if (text := _unsaid(curve)))
    return told + f" Settings that differ: {'; '.join(unlike)}." * bool(unlike)


def _without_task(run: Run) -> str:
    """The label without the numbers of the task that `by_task` puts behind it."""
    label = run.label
    for name, value in _numbers_of_task(run).items():
        label = label.removesuffix(task_ending(name, value))
    return label.replace("_", " ")


def _unsaid(curve: Curve) -> str:
    """What of a curve's setting its short name does not say."""
    return ", ".join(text for text in curve.setting.split(", ") if text and text not in curve.own.split(", "))


def tuned_on(runs: Iterable[Run]) -> list[str]:
    """Where the numbers of the runs come from, a sentence for each answer."""
    return [f"Tuned on {text}." for text in dict.fromkeys(run.meta.get("tuned_on") for run in runs) if text]
