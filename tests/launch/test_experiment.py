"""From an experiment to jobs and lanes: all is checked before anything is compiled."""

import dataclasses

import jax
import numpy as np
import pytest

from launch.errors import InputError
from launch.experiment import Experiment, lane_keys, resolve, warnings
from launch.lanes import parameter_count, units_of
from launch.methods import METHODS
from launch.registry import TASKS

SMALL = Experiment("slowly_changing_regression(change_every=200)", "backprop", (0, 1, 2), steps=2000, bin=400)


def changed(**fields):
    return resolve(dataclasses.replace(SMALL, **fields))


WRONG = [
    ("task", "slowly_changing_regresion", ["--task", "did you mean 'slowly_changing_regression'?", "bit_flipping"]),
    ("task", "slowly_changing_regression(variant=flip)", ["--task", "'flip'", "redraw, flip_one"]),
    ("task", "slowly_changing_regression(change_evry=1)", ["--task", "did you mean 'change_every'?"]),
    ("task", "slowly_changing_regression(change_every=0)", ["--task", "change_every=0", "positive"]),
    ("task", "slowly_changing_regression(data_dir='/x')", ["--task", "data_dir", "allowed"]),
    ("methods", "continual_backpropp", ["--methods", "did you mean 'continual_backprop'?", "shrink_and_perturb"]),
    ("methods", "backprop(step_sise=1)", ["--methods", "did you mean 'step_size'?"]),
    ("methods", "backprop(step_size=-0.1)", ["--methods", "backprop.step_size", "-0.1", "from 0 to 100"]),
    ("methods", "backprop(step_size=fast)", ["--methods", "'fast'", "number from 0 to 100"]),
    ("methods", "continual_backprop(replacement_rate=1.5)", ["--methods", "1.5", "from 0 to 1"]),
    ("methods", "continual_backprop(utility=contributon)", ["--methods", "did you mean 'contribution'?"]),
    ("methods", "continual_backprop(maturity_threshold=1.5)", ["--methods", "1.5", "whole number"]),
    ("methods", "continual_backprop(max_replacements=0)", ["--methods", "'0'", "positive whole number"]),
    ("methods", "redo(max_replacements=-1)", ["--methods", "'-1'", "whole number from 0 on"]),
    ("methods", "redo(history=0.5)", ["--methods", "'0.5'", "whole number from 0 on"]),
    ("methods", "continual_backprop(reset_state=maybe)", ["--methods", "'maybe'", "True"]),
    ("methods", "backprop(step_size=True)", ["--methods", "'True'", "number"]),
    ("methods", "a=backprop@1000->l2", ["--methods", "'a=backprop@1000->l2'", "--branch_from"]),
    ("branch_from", "runs/first", ["--branch_from", "'runs/first'", "DIR/LABEL@STEP"]),
    ("branch_from", "no/such/folder@100", ["--branch_from", "no/such/folder", "no such run folder"]),
    ("chunk", 0, ["--chunk", "0"]),
    ("seeds", (), ["--seeds"]),
    ("seeds", (1, 1), ["--seeds", "different"]),
    ("seeds", (-1, 1), ["--seeds"]),
    ("steps", 0, ["--steps", "0", "positive"]),
    ("steps", -5, ["--steps", "-5", "positive"]),
    ("steps", 2**31, ["--steps", str(2**31)]),
    ("steps", 1.5, ["--steps", "1.5", "whole"]),
    ("tasks", 3, ["--steps and --tasks"]),
    ("preset", "publshed", ["--preset", "did you mean 'published'?"]),
    ("bin", 0, ["--bin", "0"]),
    ("bin", -1, ["--bin", "-1"]),
    ("lanes_per_batch", 0, ["--lanes_per_batch", "0"]),
    ("network", "mpl", ["--network", "did you mean 'mlp'?", "linear"]),
    ("network", "mlp(widths=(0,))", ["--network", "widths=(0,)", "positive integers"]),
    ("network", "mlp(activation=rely)", ["--network", "did you mean 'relu'?"]),
    ("network", "mlp(width=(5,))", ["--network", "did you mean 'widths'?"]),
    ("network", "mlp(outputs=3)", ["--network", "outputs=3"]),
    ("network", "mlp(activation=[1])", ["--network", "[1]", "relu"]),
    ("set", ("step_sise=1",), ["--set", "did you mean 'step_size'?"]),
    ("set", ("bakprop.step_size=1",), ["--set", "did you mean 'backprop'?"]),
    ("set", ("step_size=-1",), ["--set", "backprop.step_size", "-1"]),
    ("set", ("step_size=big",), ["--set", "'big'", "number"]),
    ("set", ("step_size",), ["--set", "NAME=VALUE"]),
    ("set", ("step_size=nan",), ["--set", "nan", "number"]),
    ("sweep", ("step_size=1,-1",), ["--sweep", "-1", "from 0 to 100"]),
    ("sweep", ("optimizer=sgd,adam",), ["--sweep", "optimizer is a choice"]),
    ("sweep", ("backprop.weight_decay=1,2",), ["--sweep", "weight_decay", "step_size"]),
    ("sweep", ("step_size=a,b",), ["--sweep", "a,b", "numbers"]),
]


@pytest.mark.parametrize(("field", "value", "words"), WRONG)
def test_wrong_input_is_refused_in_one_line_that_names_it(field, value, words):
    with pytest.raises(InputError) as error:
        changed(**{field: value})
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(words[0])
    assert all(word in text for word in words), text


def test_lanes_are_the_product_of_swept_numbers_and_seeds():
    plan = changed(
        methods="backprop,cbp=continual_backprop(step_size=0.5)",
        seeds=(7, 9),
        sweep=("step_size=0.1,0.2", "cbp.replacement_rate=0:1:lin2"),
    )
    seen = [(lane.hyper["step_size"], lane.seed) for lane in plan.jobs[0].lanes]
    assert seen == [(0.1, 7), (0.1, 9), (0.2, 7), (0.2, 9)]
    assert len(plan.jobs[1].lanes) == 8
    assert {(n.hyper["step_size"], n.hyper["replacement_rate"]) for n in plan.jobs[1].lanes} == {
        (0.1, 0.0), (0.1, 1.0), (0.2, 0.0), (0.2, 1.0),
    }  # fmt: skip


def test_later_settings_win_default_preset_call_set():
    def hyper(**fields):
        return changed(**fields).jobs[0].lanes[0].hyper

    tuned = TASKS["slowly_changing_regression"].presets["sound"]["l2"]["weight_decay"]
    assert tuned != METHODS["l2"].numbers["weight_decay"].default
    assert hyper(methods="l2")["weight_decay"] == tuned
    assert hyper(methods="l2(weight_decay=0.5)")["weight_decay"] == 0.5
    assert hyper(methods="l2(weight_decay=0.5)", set=("weight_decay=0.25",))["weight_decay"] == 0.25
    assert hyper(methods="l2(weight_decay=0.5)", set=("l2.weight_decay=0.25",))["weight_decay"] == 0.25
    assert hyper(methods="a=l2", set=("a.weight_decay=0.25",))["weight_decay"] == 0.25
    published = changed(methods="continual_backprop", preset="published").jobs[0]
    assert published.static["count"] == "bernoulli"
    assert published.lanes[0].hyper["maturity_threshold"] == 10


@pytest.mark.parametrize("name", METHODS)
def test_every_default_may_be_typed(name):
    spec = METHODS[name]
    defaults = {setting: field.default for setting, field in (*spec.numbers.items(), *spec.static.items())}
    job = changed(methods=f"{name}({','.join(f'{setting}={value}' for setting, value in defaults.items())})").jobs[0]
    assert {**job.lanes[0].hyper, **job.static} == defaults


def test_the_published_redo_asks_one_batch_and_keeps_the_optimizers_state():
    job = changed(methods="redo", preset="published").jobs[0]
    assert job.lanes[0].hyper["decay_rate"] == 0 and job.static["reset_state"] is False
    job = changed(methods="redo").jobs[0]
    assert job.lanes[0].hyper["decay_rate"] > 0 and job.static["reset_state"] is True


def test_length_comes_from_steps_or_tasks_or_the_task():
    assert changed().steps == 2000
    assert changed(steps=None, tasks=3).steps == 600
    assert changed(steps=None).steps == 1_000_000
    assert resolve(Experiment("bit_flipping", "backprop")).bin == 20_000
    assert resolve(Experiment("bit_flipping", "backprop")).spec.name == "slowly_changing_regression"


def test_lane_keys_depend_on_the_seed_alone():
    plan = changed(methods="backprop,continual_backprop", sweep=("step_size=0.1,0.2",))
    one, other = (np.asarray(jax.random.key_data(lane_keys(job.lanes))) for job in plan.jobs)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[:3], one[3:])
    assert len({tuple(row) for row in one}) == 3


def test_lanes_are_cut_into_batches_of_one_size():
    plan = changed(seeds=tuple(range(5)), lanes_per_batch=2)
    units = units_of(plan, plan.jobs[0], "cpu")
    assert [[lane.seed for lane in u.lanes] for u in units] == [[0, 1], [2, 3], [4]]
    assert [[lane.seed for lane in u.batch] for u in units] == [[0, 1], [2, 3], [4, 4]]
    assert {(u.size, u.chunk) for u in units} == {(2, 200)}
    assert len({u.name for u in units}) == 3
    assert parameter_count(plan, plan.jobs[0]) == 20 * 5 + 5 + 5 + 1


def test_a_units_name_knows_all_that_decides_its_numbers_but_the_length():
    def name(**fields):
        plan = changed(**{"methods": "x=backprop", "seeds": (0, 1)} | fields)
        return units_of(plan, plan.jobs[0], "cpu")[0].name

    same = [name(), name(steps=4000), name(tasks=3, steps=None), name(tuned_on="elsewhere")]
    others = [name(seeds=(0, 2)), name(chunk=100), name(lanes_per_batch=1), name(bin=200), name(methods="y=backprop"),
              name(methods="x=backprop(step_size=0.02)"), name(methods="x=backprop(optimizer=adam)")]  # fmt: skip
    assert len(set(same)) == 1
    assert len({*others, *same}) == len(others) + 1


def test_a_chunk_of_a_wide_network_is_over_in_seconds():
    plan = changed(network="mlp(widths=(4000,4000,4000))")
    small, wide = (units_of(p, p.jobs[0], "cpu")[0].chunk for p in (changed(), plan))
    assert small == 200
    assert wide < small and small % wide == 0


@pytest.mark.parametrize(
    ("methods", "lines"),
    [
        ("continual_backprop(maturity_threshold=1999)", 0),
        ("continual_backprop(maturity_threshold=2000)", 1),
        ("backprop,l2", 0),
    ],
)
def test_warns_where_no_unit_can_ever_be_replaced(methods, lines):
    found = warnings(changed(methods=methods))
    assert len(found) == lines
    assert all("maturity_threshold" in line and "\n" not in line for line in found)
