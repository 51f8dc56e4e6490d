"""Warnings that need the units of a network: rates that replace nothing, and rates beyond the bound."""

import pytest

from launch.config.experiment import Experiment, resolve, warnings
from launch.engine.build import group_widths
from launch.engine.dry_run import all_warnings


def planned(methods, task="slowly_changing_regression(change_every=200)", **fields):
    fields = {"steps": 10_000, "bin": 400, "network": "mlp(widths=(400,))"} | fields
    return resolve(Experiment(task, methods, (0, 1), **fields))


def test_the_widths_are_those_of_the_layers_that_a_method_may_replace():
    plan = planned("continual_backprop,backprop", network="mlp(widths=(7,5))")
    assert list(group_widths(plan, plan.jobs[0]).values()) == [7, 5]
    assert group_widths(plan, plan.jobs[1]) == {}


@pytest.mark.parametrize(
    ("methods", "fields", "words"),
    [
        ("continual_backprop(replacement_rate=1e-3)", {}, []),
        ("backprop,redo", {}, []),
        # 400 units, one of which may go a step: from 1/400 on the bound binds.
        ("continual_backprop", {"sweep": ("replacement_rate=0.001,0.01,1",)}, ["0.01", "1"]),
        ("continual_backprop(replacement_rate=0.01,max_replacements=4)", {}, []),
        # 400 * 9900 steps * 2e-7 = 0.8 replacements
        ("continual_backprop(replacement_rate=2e-7)", {}, ["2e-07"]),
        ("continual_backprop(replacement_rate=0)", {}, []),
    ],
)
def test_warns_of_rates_that_the_bound_cuts_or_that_replace_nothing(methods, fields, words):
    plan = planned(methods, **fields)
    lines = all_warnings(plan)
    said = [line.split(": ")[1] for line in lines]
    assert said == [f"replacement_rate={word}" for word in words]
    assert all(line.startswith("continual_backprop: ") and "\n" not in line for line in lines)


def test_a_run_in_which_no_unit_gets_old_enough_is_warned_of_once():
    plan = planned("continual_backprop(maturity_threshold=10000)")
    assert all_warnings(plan) == warnings(plan) and len(warnings(plan)) == 1


@pytest.mark.parametrize(("decay_rate", "number"), [(0, 1), (0.99, 0)])
def test_warns_where_one_example_decides_what_is_dormant(decay_rate, number):
    lines = warnings(planned(f"redo(decay_rate={decay_rate})"))
    assert len(lines) == number and all("half of all ReLU" in line for line in lines)
