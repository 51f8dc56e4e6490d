"""What a suite's page says: who is shown to be better, ranks that intervals carry, the share of good settings."""

import numpy as np
import pandas as pd
import pytest

from launch.analysis import suite
from launch.analysis.statistics import student_quantile
from launch.storage.run_folder import Run

SEEDS = 5


def run(label, values, settings=(0.1,), metric="squared_error", seeds=SEEDS, seconds=1.0):
    """A run of four bins whose last holds `values` [setting]; seeds lie 0.01 apart, the same for all."""
    spread = 0.01 * (np.arange(seeds) - (seeds - 1) / 2)
    late = (np.asarray(values, float)[:, None] + spread).ravel()
    lanes = [{"method": label, "seed": s, "hyper": {"step_size": x}} for x in settings for s in range(seeds)]
    meta = {"method": label, "task": "t", "settings": {}, "lanes": lanes, "folder": f"D/t/{label}"}
    table = np.stack([np.full_like(late, 9.0)] * 3 + [late], 1)
    step = np.arange(1, 5) * 10
    meta["wall_seconds"] = seconds * len(lanes)
    return Run(label, meta, step, np.full(4, 10), {metric: table})


def part(values, **fields):
    """A task of which every method has one setting and one late value."""
    reported = {label: run(label, [value], **fields) for label, value in values.items()}
    return suite.Part("t", reported, reported)


def test_less_error_is_better_and_is_told_as_more():
    found = suite.standings(part({"fresh_network": 0.5, "backprop": 1.0, "good": 0.4}))
    by = {each.label: each for each in found}
    assert by["good"].relative.value == pytest.approx(20) and by["backprop"].relative.value == pytest.approx(-100)
    assert by["good"].backprop.mean == pytest.approx(0.6)
    assert [suite.shown(by[name].fresh) for name in ("good", "backprop", "fresh_network")] == [1, -1, 0]
    assert by["good"].ranks == (1, 1) and by["backprop"].ranks == (3, 3)  # all seeds agree
    assert by["good"].value.value == pytest.approx(0.4)  # the mean of the last quarter alone


def test_accuracies_are_in_percent_of_the_fresh_networks():
    found = suite.standings(part({"fresh_network": 0.8, "backprop": 0.6, "x": 0.84}, metric="online_accuracy"))
    assert [each.relative.value for each in found] == pytest.approx([0, -25, 5])


def test_ranks_are_what_the_widened_intervals_allow():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, SEEDS))
    noise -= noise.mean(1, keepdims=True)
    values = {
        name: pd.Series(level + noise[i]) for i, (name, level) in enumerate({"a": 0.0, "b": 50.0, "c": 50.3}.items())
    }
    assert suite.rank_ranges(values) == {"a": (3, 3), "b": (1, 2), "c": (1, 2)}
    # A gap that Student's interval carries alone, but not beside two comparisons of each method.
    gap = noise[1] - noise[0]
    error = gap.std(ddof=1) / np.sqrt(SEEDS)
    level = (student_quantile(SEEDS) + student_quantile(SEEDS, 0.975)) / 2 * error
    values = {"a": pd.Series(noise[0]), "b": pd.Series(level + noise[1]), "c": pd.Series(500 + noise[2])}
    assert suite.rank_ranges({name: values[name] for name in ("a", "b")}) == {"a": (2, 2), "b": (1, 1)}
    assert suite.rank_ranges(values) == {"a": (2, 3), "b": (2, 3), "c": (1, 1)}


def test_one_seed_shows_nothing():
    found = suite.standings(part({"fresh_network": 0.5, "backprop": 1.0, "good": 0.1}, seeds=1))
    assert all(suite.shown(each.fresh) == 0 and each.ranks == (1, 3) for each in found)


def test_the_share_of_settings_near_the_best():
    tuned = run("x", [1.0, 1.04, 1.06, 2.0], settings=(0.1, 0.2, 0.3, 0.4))
    assert suite.near_share(tuned, "squared_error") == 0.5
    rising = run("x", [0.8, 0.77, 0.75, 0.1], settings=(0.1, 0.2, 0.3, 0.4), metric="online_accuracy")
    assert suite.near_share(rising, "online_accuracy") == 0.5


def test_verdicts_name_who_is_better_everywhere_and_nowhere():
    first = part({"fresh_network": 0.5, "backprop": 1.0, "good": 0.4, "mixed": 0.4, "once": 0.3})
    second = part({"fresh_network": 0.5, "backprop": 0.9, "good": 0.3, "mixed": 0.6})
    lines = suite.verdicts({"first": suite.standings(first), "second": suite.standings(second), "third": []})
    assert lines[:4] == [
        "Shown to be better than a fresh network on every one of 2 tasks: good.",
        "Shown to be better on none: backprop.",
        "Shown to be worse than a fresh network on every one of 2 tasks: backprop.",
        "Not on all 2 tasks, and so in none of these lists: once (1).",
    ]
    assert lines[4].startswith("4 methods on 2 tasks; each interval is at 95%, not widened")
    assert suite.verdicts({"third": []}) == [
        "Nothing can be said yet: no task has runs of backprop and of a fresh network that are over."
    ]


def test_the_overview_has_a_cell_for_every_method_and_task():
    found = {"first": suite.standings(part({"fresh_network": 0.5, "backprop": 1.0, "good": 0.4}))}
    head, fresh, backprop, good = suite.overview(found).rows
    assert head == ("method", "first, %", "better", "worse") and fresh == ("fresh_network", "0 (2)", "", "")
    assert good[1].startswith("+20 [") and good[1].endswith("(1)") and good[2:] == ("1/1", "0/1")
    assert backprop[3] == "1/1"
