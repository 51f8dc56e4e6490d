"""Winners on known numbers, the warnings they come with, and the experiment that reports them."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest

from launch.analysis.tuning import refuse_tuning, render, report_experiment, settings, winners
from launch.config.experiment import Experiment, resolve
from launch.errors import InputError
from launch.storage.run_folder import Run

SEEDS = (100, 101, 102, 103)


def made(label, scores, seeds=SEEDS, metric="squared_error", bins=4, method=None, diverged=(), **meta):
    """A run whose lanes score as `scores` says: ((name, value), ...) to a mean, or a mean per seed."""
    lanes, values = [], []
    for hyper, score in scores.items():
        for seed, one in zip(seeds, np.broadcast_to(score, len(seeds)), strict=True):
            lanes.append({"method": method or label, "seed": seed, "hyper": dict(hyper)})
            values.append(np.full(bins, one, float))
    about = {"label": label, "method": method or label, "task": "toy", "settings": {}, "lanes": lanes}
    about |= {"diverged": list(diverged), "finished": True, **meta}
    step = 10 * np.arange(1, bins + 1)
    return Run(label, about, step, np.full(bins, 10), {metric: np.array(values)})


def swept(name, **scores):
    """`swept("a", x1=5.0)`: the value 1 of `a` scores 5."""
    return {((name, float(value[1:].replace("_", "."))),): score for value, score in scores.items()}


def test_the_best_mean_over_seeds_wins_with_its_runner_up():
    run = made("l2", swept("weight_decay", x1=[4, 4, 4, 4], x2=[1, 2, 3, 6], x3=[2, 3, 4, 7], x4=[9, 9, 9, 0]))
    (winner,) = winners([run])
    assert (winner.label, winner.method, winner.metric) == ("l2", "l2", "squared_error")
    assert winner.setting == {"weight_decay": 2.0} and winner.score == 3.0
    assert winner.runner_up == {"weight_decay": 1.0} or winner.runner_up == {"weight_decay": 3.0}
    assert (winner.tried, winner.seeds, winner.values) == (4, SEEDS, {"weight_decay": (1.0, 2.0, 3.0, 4.0)})
    half = 3.182446305284263 * np.std([1, 2, 3, 6], ddof=1) / 2  # Student's 97.5% point with 3 degrees of freedom
    assert (winner.low, winner.high) == pytest.approx((3 - half, 3 + half))
    assert winner.edges == winner.at_limit == ()


def test_the_difference_to_the_runner_up_is_paired_by_seed():
    run = made("l2", swept("weight_decay", x1=[11, 2, 33, 4], x2=[10, 1, 32, 3]))
    (winner,) = winners([run])
    assert winner.setting == {"weight_decay": 2.0}
    assert winner.difference == (-1.0, -1.0, -1.0, 4, 4)  # alike on every seed: no width, though seeds differ much


def test_more_is_better_where_it_is_and_scores_are_in_percent():
    run = made("l2", swept("weight_decay", x1=0.5, x2=0.9, x3=0.7), metric="test_accuracy")
    (winner,) = winners({"l2": run})
    assert winner.setting == {"weight_decay": 2.0} and winner.score == pytest.approx(90.0)
    assert winner.difference.mean == pytest.approx(20.0) and winner.difference.wins == 4


def test_the_whole_run_decides_unless_a_window_is_given():
    run = made("l2", swept("weight_decay", x1=1.0, x2=1.0))
    run.metrics["squared_error"][:4] = [9, 9, 9, 0]  # bad at first, best at the end
    assert winners([run])[0].setting == {"weight_decay": 2.0}
    assert winners([run], window=0.25)[0].setting == {"weight_decay": 1.0}
    assert "the last 25% of the run" in render(winners([run], window=0.25))
    with pytest.raises(InputError, match="--window"):
        winners([run], window=0.0)


def test_a_bin_weighs_as_many_steps_as_it_holds():
    run = made("l2", swept("weight_decay", x1=0.0, x2=1.0), bins=2)
    run.metrics["squared_error"][:4] = [0, 3]
    run = dataclasses.replace(run, count=np.array([30, 10]))
    assert [each.score for each in settings(run, "squared_error")] == [0.75, 1.0]


def test_what_was_not_measured_is_left_out_and_told():
    run = made("l2", swept("weight_decay", x1=2.0, x2=1.0, x3=0.0))
    run.metrics["squared_error"][8:] = np.nan  # weight_decay=3 was measured nowhere
    run.metrics["squared_error"][0, 1:] = np.nan
    run.metrics["squared_error"][0, 0] = 6.0
    (winner,) = winners([run])
    assert winner.setting == {"weight_decay": 2.0}
    assert [each.score for each in settings(run, "squared_error")][:2] == [3.0, 1.0]
    assert winner.uneven and "warning: l2: not every setting was measured on all of its 4 seeds" in render([winner])


def test_a_diverged_lane_counts_as_what_stands_in_the_arrays():
    run = made("l2", swept("weight_decay", x1=[1, 1, 1, 1e6], x2=2.0, x3=[3, 3, 3, 1e6]), diverged=[3, 11])
    (winner,) = winners([run])
    assert winner.setting == {"weight_decay": 2.0}
    assert (winner.diverged, winner.diverged_tried) == (0, 2)
    assert "l2: 2 lanes diverged, none of the best setting" in render([winner])
    (winner,) = winners([made("l2", swept("weight_decay", x1=1.0, x2=2.0), diverged=[2, 6])])
    assert (winner.diverged, winner.diverged_tried) == (1, 2)
    assert "1 of the best setting" in render([winner])


def test_a_setting_that_diverges_is_not_chosen_for_a_failure_value_that_is_less_bad():
    run = made("l2", swept("weight_decay", x1=0.9, x2=1.2, x3=1.5), diverged=[0])
    (winner,) = winners([run])
    assert winner.setting == {"weight_decay": 2.0} and winner.runner_up == {"weight_decay": 3.0}


def test_equals_are_won_by_the_first():
    (winner,) = winners([made("l2", swept("weight_decay", x3=1.0, x1=1.0, x2=1.0))])
    assert winner.setting == {"weight_decay": 3.0} and winner.runner_up == {"weight_decay": 1.0}


@pytest.mark.parametrize(
    ("scores", "edges", "at_limit"),
    [
        (swept("weight_decay", x1=1, x2=2, x3=3), ("weight_decay",), ()),
        (swept("weight_decay", x1=3, x2=2, x3=1), ("weight_decay",), ()),
        (swept("weight_decay", x1=3, x2=1, x3=2), (), ()),
        (swept("weight_decay", x0=1, x2=2, x3=3), (), ("weight_decay",)),
        (swept("weight_decay", x1=1), (), ()),
    ],
)
def test_the_edge_of_what_was_tried_is_told_from_the_limit_of_the_number(scores, edges, at_limit):
    (winner,) = winners([made("l2", scores)])
    assert (winner.edges, winner.at_limit) == (edges, at_limit)
    text = render([winner])
    assert ("lies on the edge" in text) == bool(edges)
    assert ("is at its limit" in text) == bool(at_limit)


def test_the_upper_limit_of_a_number_is_no_edge():
    (winner,) = winners([made("continual_backprop", swept("replacement_rate", x1=1, x0_5=2, x0_1=3))])
    assert (winner.edges, winner.at_limit) == ((), ("replacement_rate",))


def test_only_swept_numbers_can_lie_on_an_edge():
    grid = itertools.product((1.0, 2.0, 3.0), (0.1, 0.2))
    scores = {(("weight_decay", w), ("step_size", s), ("momentum", 0.9)): abs(w - 2) + s for w, s in grid}
    (winner,) = winners([made("l2", scores)])
    assert winner.edges == ("step_size",)
    assert winner.text(winner.setting) == "weight_decay=2, step_size=0.1"
    assert "step_size=0.1 lies on the edge of the 2 values tried, 0.1 to 0.2" in render([winner])


def test_a_method_of_ones_own_has_no_known_limit():
    (winner,) = winners([made("mine", swept("zeal", x0=1, x1=2), method="mine")])
    assert (winner.edges, winner.at_limit) == (("zeal",), ())


def test_numbers_of_settings_are_told_and_unequal_ones_warned_of():
    a, b = (made(label, swept("weight_decay", x1=2, x2=1, x3=2)) for label in ("a", "b"))
    c = made("c", swept("weight_decay", x1=2, x2=1))
    text = render(winners([a, b]))
    assert "Tuned on seeds 100:104, 3 settings a method." in text
    assert "warning" not in text
    text = render(winners([a, c]))
    assert "settings: a 3, c 2" in text
    assert "warning: not as many settings were tried for each method (a 3, c 2)" in text


def test_a_single_setting_has_no_runner_up():
    (winner,) = winners([made("fresh_network", {(("step_size", 0.1),): 1.0})])
    assert (winner.tried, winner.runner_up, winner.difference, winner.values) == (1, None, None, {})
    assert "the only one" in render([winner])


def test_one_seed_has_no_interval():
    (winner,) = winners([made("l2", swept("weight_decay", x1=2, x2=1, x3=2), seeds=(5,))])
    assert np.isnan(winner.low) and winner.seeds == (5,)
    assert "nan" not in render([winner])


def test_other_seeds_and_unfinished_runs_are_warned_of():
    scores = swept("weight_decay", x1=2, x2=1, x3=2)
    text = render(winners([made("a", scores), made("b", scores, seeds=(1, 2, 3, 5), finished=False)]))
    assert "the methods were tuned on different seeds: a 100:104, b 1:4,5" in text
    assert "b: unfinished" in text


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'squared_error'"):
        winners([made("l2", swept("weight_decay", x1=1))], "squared_eror")


# Reporting ----------------------------------------------------------------------------------------------------------

ASKED = Experiment(
    task="slowly_changing_regression(change_every=200)",
    methods="backprop(optimizer=momentum),decay=l2,continual_backprop(utility=random)",
    seeds=SEEDS,
    steps=400,
    preset="published",
    set=("l2.momentum=0.5", "step_size=0.02"),
    sweep=("step_size=0.1,0.3", "decay.weight_decay=0.001,0.123456789"),
    network="mlp(widths=(3,))",
)


def runs_of(experiment):
    """What a sweep of the experiment leaves, the last setting of every label being the best."""
    found = []
    for job in resolve(experiment).jobs:
        hypers = list(dict.fromkeys(tuple(lane.hyper.items()) for lane in job.lanes))
        scores = {hyper: float(len(hypers) - place) for place, hyper in enumerate(hypers)}
        found.append(made(job.label, scores, experiment.seeds, method=job.method.name))
    return found


def test_the_winners_and_nothing_else_run_on_other_seeds():
    found = winners(runs_of(ASKED))
    report = report_experiment(ASKED, found, range(200, 203))
    before, after = resolve(ASKED), resolve(report)
    assert [job.label for job in after.jobs] == ["backprop", "decay", "continual_backprop"]
    for old, new, winner in zip(before.jobs, after.jobs, found, strict=True):
        assert [lane.seed for lane in new.lanes] == [200, 201, 202]
        assert all(lane.hyper == winner.setting for lane in new.lanes)
        assert (new.method, new.static, new.network) == (old.method, old.static, old.network)
        assert after.settings(new) == before.settings(old)
    assert after.jobs[1].lanes[0].hyper["weight_decay"] == 0.123456789
    # What `set` gives reaches only the method that it names.
    assert [job.lanes[0].hyper["momentum"] for job in after.jobs] == [0.9, 0.5, 0.9]
    assert (report.set, report.sweep, report.seeds) == ((), (), (200, 201, 202))
    assert report.tuned_on == "seeds 100:104, settings: backprop 2, decay 4, continual_backprop 2"


def test_only_what_was_swept_or_differs_from_the_preset_is_written():
    report = report_experiment(ASKED, winners(runs_of(ASKED)), (7,))
    assert report.methods == (
        "backprop(step_size=0.3,optimizer=momentum),decay=l2(weight_decay=0.123456789,step_size=0.3,momentum=0.5),"
        "continual_backprop(step_size=0.3,utility=random)"
    )


def test_a_part_of_a_sweep_takes_its_own_winners():
    found = winners(runs_of(ASKED))
    part = dataclasses.replace(ASKED, methods="decay=l2", set=(), sweep=("weight_decay=1,2",))
    report = report_experiment(part, found, (7,))
    assert [job.label for job in resolve(report).jobs] == ["decay"]
    assert report.tuned_on == "seeds 100:104, 4 settings a method"


@pytest.mark.parametrize("seeds", [range(103, 110), range(0, 200), (100,)])
def test_reporting_on_tuning_seeds_is_refused(seeds):
    with pytest.raises(InputError, match=r"--report_seeds: .* of the tuning seeds 100:104, 10[03] among them; give "):
        report_experiment(ASKED, winners(runs_of(ASKED)), seeds)


def test_seeds_of_the_runs_count_where_the_experiment_says_others():
    with pytest.raises(InputError, match="--report_seeds"):
        report_experiment(dataclasses.replace(ASKED, seeds=(1, 2)), winners(runs_of(ASKED)), (101,))
    with pytest.raises(InputError, match="--report_seeds"):
        report_experiment(dataclasses.replace(ASKED, seeds=(1, 2)), winners(runs_of(ASKED)), (2,))


def test_a_label_needs_a_winner_of_its_method():
    found = winners(runs_of(ASKED))
    with pytest.raises(InputError, match=r"label: unknown 'decay'.*; allowed: backprop, continual_backprop"):
        report_experiment(ASKED, [found[0], found[2]], (7,))
    with pytest.raises(InputError, match="'decay' is l2, its winner is backprop"):
        report_experiment(ASKED, [found[0], dataclasses.replace(found[1], method="backprop"), found[2]], (7,))


def test_figures_of_tuning_runs_are_refused():
    scores = swept("weight_decay", x1=1)
    refuse_tuning([made("a", scores), made("b", scores, tuning=False)])
    with pytest.raises(InputError, match=r"^some/folder: runs on tuning seeds \(b\).*--report_seeds=A:B .*--tuning"):
        refuse_tuning({"a": made("a", scores), "b": made("b", scores, tuning=True, folder="some/folder")})


def test_figures_can_refuse_without_jax():
    code = "import sys, launch.analysis.tuning; print({'jax', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
