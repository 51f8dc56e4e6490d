"""What is measured: its name on an axis and in a table, its unit, its bounds, and which direction is better."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from launch.errors import InputError, unknown
from launch.storage.run_folder import Run

ACCELERATOR = "accelerator"
HEADLINES = ("squared_error", "bits_per_byte_before", "online_accuracy", "test_accuracy", "episode_return")
BESIDE = {
    "bits_per_byte_before": (
        "bits_per_byte",
        "bits_per_byte_one_period_ago",
        "bits_per_byte_five_periods_ago",
        "bits_per_byte_twenty_periods_ago",
        "bits_per_byte_held_out",
    )
}
"""Metrics that are told beside a headline, task by task."""
IN_TASK = "_in_task"
"""Ending of the names of metrics that are measured several times within a task."""

STEP_SIZE = "log10_step_size_"
"""Beginning of the names of the quantiles of learned step sizes; what follows is the quantile, a dot and the layer."""


class MetricStyle(NamedTuple):
    """Axis label with its unit, which direction is better, what a value is multiplied by to be in that unit, bounds.

    Shares are drawn in percent and lie between 0 and 100.
    """

    label: str
    better: str
    scale: float = 1.0
    least: float = -np.inf

    @property
    def bounds(self) -> tuple[float, float]:
        """What no value can lie beyond, in the unit of the axis."""
        return (0.0, 100.0) if self.scale == 100 else (self.least, np.inf)


METRICS: dict[str, MetricStyle] = {
    "squared_error": MetricStyle("squared error", "lower", least=0.0),
    "error_one_step": MetricStyle("one-step error (share of the variance)", "lower", least=0.0),
    "error_ten_steps": MetricStyle("ten-step error (share of the variance)", "lower", least=0.0),
    "error_one_step_after_change": MetricStyle("one-step error just after a change", "lower", least=0.0),
    "error_ten_steps_after_change": MetricStyle("ten-step error just after a change", "lower", least=0.0),
    "online_accuracy": MetricStyle("online accuracy (%)", "higher", 100.0),
    "test_accuracy": MetricStyle("test accuracy (%)", "higher", 100.0),
    "train_accuracy": MetricStyle("accuracy on the training images (%)", "higher", 100.0),
    "test_accuracy_in_task": MetricStyle("test accuracy on the way (%)", "higher", 100.0),
    "validation_accuracy": MetricStyle("validation accuracy (%)", "higher", 100.0),
    "accuracy_newest_classes": MetricStyle("accuracy on the newest classes (%)", "higher", 100.0),
    "accuracy_middle_classes": MetricStyle("accuracy on the classes in the middle (%)", "higher", 100.0),
    "accuracy_oldest_classes": MetricStyle("accuracy on the oldest classes (%)", "higher", 100.0),
    "episode_return": MetricStyle("episode return", "higher"),
    "episode_length": MetricStyle("episode length (steps)", "higher", least=0.0),
    "condition": MetricStyle("value of what changes", "higher"),
    "accuracy_one_task_ago": MetricStyle("accuracy on the task before (%)", "higher", 100.0),
    "accuracy_ten_tasks_ago": MetricStyle("accuracy on the tenth task before (%)", "higher", 100.0),
    "loss": MetricStyle("loss", "lower"),
    "bits_per_byte_before": MetricStyle("bits per byte before learning it", "lower", least=0.0),
    "bits_per_byte": MetricStyle("bits per byte after learning it", "lower", least=0.0),
    "bits_per_byte_in_task": MetricStyle("bits per byte on the way", "lower", least=0.0),
    "bits_per_byte_one_period_ago": MetricStyle("bits per byte, one period ago", "lower", least=0.0),
    "bits_per_byte_five_periods_ago": MetricStyle("bits per byte, five periods ago", "lower", least=0.0),
    "bits_per_byte_twenty_periods_ago": MetricStyle("bits per byte, twenty periods ago", "lower", least=0.0),
    "bits_per_byte_held_out": MetricStyle("bits per byte, clones on held-out text", "lower", least=0.0),
    "dead_units": MetricStyle("dead units (%)", "lower", 100.0),
    "dormant_units": MetricStyle("dormant units (%)", "lower", 100.0),
    "saturated_units": MetricStyle("saturated units (%)", "lower", 100.0),
    "mean_weight_magnitude": MetricStyle("mean weight magnitude", "lower", least=0.0),
    "dead_units_old_classes": MetricStyle("dead units, old classes (%)", "lower", 100.0),
    "dormant_units_old_classes": MetricStyle("dormant units, old classes (%)", "lower", 100.0),
    "effective_rank_old_classes": MetricStyle("effective rank, old classes (% of units)", "higher", 100.0),
    "stable_rank_old_classes": MetricStyle("stable rank, old classes (% of units)", "higher", 100.0),
    "effective_rank": MetricStyle("effective rank (% of units)", "higher", 100.0),
    "stable_rank": MetricStyle("stable rank (% of units)", "higher", 100.0),
    "approximate_rank": MetricStyle("approximate rank (% of units)", "higher", 100.0),
    "rank": MetricStyle("rank (% of units)", "higher", 100.0),
    "replaced_units": MetricStyle("replaced units per step", "lower", least=0.0),
    "units_replaced": MetricStyle("units replaced per iteration", "lower", least=0.0),
    "weight_change": MetricStyle("weight change per iteration, sum", "lower", least=0.0),
    "largest_weight_change": MetricStyle("largest weight change per iteration", "lower", least=0.0),
    "clip_fraction": MetricStyle("clipped samples (%)", "lower", 100.0),
    "approximate_kl": MetricStyle("approximate KL divergence (nats)", "lower"),
    "collapsed_step_sizes": MetricStyle("step sizes below 1/1000 of the first (%)", "lower", 100.0),
    "shortened_steps": MetricStyle("steps shortened so far", "lower"),
    "step_size_age_correlation": MetricStyle("correlation of a unit's step sizes and age", "higher"),
    "step_size_utility_correlation": MetricStyle("correlation of a unit's step sizes and utility", "higher"),
    "entropy": MetricStyle("entropy of the policy (nats)", "higher"),
}


def metric_style(name: str) -> MetricStyle:
    """How `name` is drawn; a metric that is not in `METRICS` gets its own name, and a direction guessed from it."""
    if name.startswith(STEP_SIZE):
        quantile, _, layer = name.removeprefix(STEP_SIZE).partition(".")
        return MetricStyle(f"log10 of step sizes, {quantile}{', ' * bool(layer)}{layer}", "higher")
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
