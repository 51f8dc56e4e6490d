"""From an experiment to jobs and lanes: all is checked before anything is compiled."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from launch.config.experiment import Experiment, lane_keys, resolve, warnings
from launch.config.methods import METHODS
from launch.config.registry import TASKS
from launch.engine.build import _as_it_is, _layout, forward_multiplications, job_program, parameter_count
from launch.engine.dry_run import dry_run
from launch.engine.unit_of_work import units_of
from launch.errors import InputError
from plastic_jax.networks.convolutions import as_products
from tests.launch import tiny

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
    ("methods", "redo(max_replacements=-1)", ["--methods", "'-1'", "positive whole number, or None"]),
    ("methods", "redo(max_replacements=True)", ["--methods", "'True'", "positive whole number, or None"]),
    ("methods", "continual_backprop(reset_state=1)", ["--methods", "'1'", "True"]),
    ("methods", "continual_backprop(leave_out=3)", ["--methods", "'3'", "text"]),
    ("methods", "backprop(b2=0.99999999)", ["--methods", "number from 0 to below 1"]),
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
    ("methods", "sparse(inner=rigl)", ["--methods: sparse.inner", "rigl", "continual_backprop"]),
    ("methods", "sparse(inner=redo,replacement_rate=1e-4)", ["--methods", "replacement_rate", "threshold"]),
    ("set", ("step_size",), ["--set", "NAME=VALUE"]),
    ("set", ("step_size=nan",), ["--set", "nan", "number"]),
    ("sweep", ("step_size=1,-1",), ["--sweep", "-1", "from 0 to 100"]),
    ("sweep", ("optimizer=sgd,adam",), ["--sweep", "optimizer is an option"]),
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


def test_a_method_may_be_around_another_with_the_settings_and_presets_of_both():
    text = "sparse(inner=continual_backprop,density=0.5,maturity_threshold=7,optimizer=adam)"
    job = changed(methods=text, preset="published").jobs[0]
    assert job.method.needs_units
    assert (job.static["inner"], job.static["optimizer"]) == ("continual_backprop", "adam")
    assert (job.lanes[0].hyper["density"], job.lanes[0].hyper["maturity_threshold"]) == (0.5, 7)
    assert job.static["reset_state"] is False  # what the published code of the method inside does
    by_set = changed(methods="rigl", set=("rigl.inner=redo", "rigl.threshold=0.2")).jobs[0]
    assert by_set.lanes[0].hyper["threshold"] == 0.2
    assert "threshold" not in changed(methods="rigl").jobs[0].lanes[0].hyper


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

    tuned = TASKS["slowly_changing_regression"].presets["corrected"].methods["l2"]["weight_decay"]
    assert tuned != METHODS["l2"].settings["weight_decay"].default
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
    defaults = {setting: field.default for setting, field in spec.settings.items()}
    typed = ",".join(f"{setting}={value if value != '' else repr('')}" for setting, value in defaults.items())
    job = changed(methods=f"{name}({typed})").jobs[0]
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


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Pictures of four classes: six tasks of four steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for k in range(4):
        np.save(tmp_path / f"{k}.npy", np.random.default_rng(k).integers(0, 256, (6, 32, 32, 3), np.uint8))

    fitting = "test_per_class=2,batch=4,epochs=2,evaluations_per_task=2,probe_size=4"

    def asked(methods="backprop", task="continual_imagenet", settings="", known=fitting, **fields):
        call = f"{task}(dataset='{tmp_path}',{known}{settings})"
        return resolve(Experiment(call, methods, (0,), **({"network": "convnet(width=1)"} | fields)))

    return asked


def test_a_stream_with_an_end_is_run_to_its_end_in_bins_of_an_evaluation(pictures):
    assert (pictures().steps, pictures().bin) == (24, 2)
    assert (pictures(tasks=6).steps, pictures(tasks=2).steps, pictures(steps=24).steps) == (24, 8, 24)
    assert pictures(bin=4).bin == 4
    for fields, said in (({"tasks": 7}, "--tasks: 7"), ({"steps": 25}, "--steps: 25")):
        with pytest.raises(InputError) as error:
            pictures(**fields)
        assert str(error.value) == f"{said} is beyond the 6 tasks, 24 steps, that continual_imagenet has here"


def test_what_the_data_do_not_allow_is_said_before_anything_else(pictures):
    for settings, words in (
        (",train_per_class=5", ["train_per_class", "5 training", "holds 6"]),
        (",train_per_class=1", ["batch", "4", "2 pictures"]),
        (",normalisation=none", ["--task", "normalisation", "standardised"]),
    ):
        with pytest.raises(InputError) as error:
            pictures(settings=settings)
        text = str(error.value)
        assert "\n" not in text
        assert all(word in text for word in words), text


def test_pictures_are_learned_with_momentum_at_the_published_numbers(pictures):
    plan = pictures("backprop,l2,published_shrink_and_perturb,continual_backprop", preset="published")
    found = {job.label: (job.static, job.lanes[0].hyper) for job in plan.jobs}
    assert {(static["optimizer"], hyper["momentum"]) for static, hyper in found.values()} == {("momentum", 0.9)}
    assert {label: hyper["step_size"] for label, (_, hyper) in found.items()} == {
        "backprop": 0.01, "l2": 0.03, "published_shrink_and_perturb": 0.01, "continual_backprop": 0.01,
    }  # fmt: skip
    assert found["l2"][1]["weight_decay"] == 3e-6
    static, hyper = found["continual_backprop"]
    assert (hyper["replacement_rate"], hyper["maturity_threshold"], hyper["decay_rate"]) == (3e-4, 100, 0.99)
    assert (static["utility"], static["reset_state"]) == ("adaptable_contribution", False)
    noise = found["published_shrink_and_perturb"][1]
    assert (noise["weight_decay"], noise["noise_std"]) == (1e-5, 1e-5)


def test_a_network_must_have_what_a_method_asks_of_it(pictures):
    class Plain(nn.Module):
        outputs: int = 2

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs)(nn.relu(nn.Dense(3)(x.reshape(x.shape[0], -1))))

    def refused(methods, settings):
        plan = pictures(methods, settings=settings)
        with pytest.raises(InputError) as error:
            job_program(plan, dataclasses.replace(plan.jobs[0], network=Plain()))
        text = str(error.value)
        assert text.startswith("--network")
        assert "\n" not in text
        return text

    assert "dropout_rate" in refused("dropout", ",head=keep")
    for methods, settings in (("backprop", ""), ("head_reset", ",head=keep")):
        assert "'head'" in refused(methods, settings)
    plan = pictures("backprop", settings=",head=keep")
    job_program(plan, dataclasses.replace(plan.jobs[0], network=Plain()))
    with pytest.raises(InputError, match=r"^--network: .*ResNet"):
        plan = pictures("dropout", network="resnet(width=1)")
        job_program(plan, plan.jobs[0])


def test_convolutions_are_products_on_this_backend_and_other_networks_as_they_are(pictures):
    plan = pictures()
    assert as_products in (_layout(plan, plan.jobs[0]),) or jax.default_backend() != "cpu"
    plan = pictures(network="mlp(widths=(3,))")
    assert _layout(plan, plan.jobs[0]) is _as_it_is
    assert forward_multiplications(plan, plan.jobs[0]) == {"dot_general": 3072 * 3 + 3 * 2}


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


@pytest.mark.parametrize(("batch", "lines"), [(20, 0), (33, 1)])
def test_warns_where_epochs_have_hardly_a_common_divisor(batch, lines, tmp_path):
    """Epochs of 5 and 10 steps, or of 3 and 6."""
    tiny.write_pictures(tmp_path)
    task = f"warm_start(dataset='tiny',data_dir='{tmp_path}',batch={batch},epochs=2,probe_size=5)"
    found = warnings(resolve(Experiment(task, "backprop", (0,), network="mlp(widths=(3,))")))
    assert len(found) == lines
    assert all("only 3 steps as a common divisor" in line for line in found)


@pytest.mark.parametrize(
    ("task", "learner", "chosen"),
    [
        ("ant(environment=fast)", "", {"change_every": 2_000_000, "rollout": 2048}),
        ("ant(environment=fast,environments=24)", "", {"change_every": 2_000_000, "rollout": 2016}),
        ("ant(environment=fast,environments=24)", "ppo(minibatches=5)", {"change_every": 2_000_000, "rollout": 2040}),
        ("ant(environment=fast,environments=4096)", "", {"change_every": 4_096_000, "rollout": 4096}),
        ("ant(environment=fast,change_every=16000)", "ppo(rollout=64)", {}),
    ],
)
def test_sizes_of_an_agent_that_nobody_asks_for_fit_its_environments(task, learner, chosen):
    plan = resolve(Experiment(task, "backprop", (0,), learner=learner))
    assert plan.chosen == chosen
    with pytest.raises(InputError, match=r"^--learner: rollout: 2048 steps do not divide into 5 minibatches"):
        resolve(Experiment(task, "backprop", (0,), learner="ppo(rollout=2048,minibatches=5)"))


def test_sizes_that_nobody_asks_for_are_kept_with_the_run(pictures):
    """Six pictures a class, three of them for training: what fits is chosen, said and kept."""
    plan = pictures(settings="", known="epochs=5")
    assert plan.chosen == {"batch": 6, "evaluations_per_task": 5, "probe_size": 6}
    assert plan.settings(plan.jobs[0])["task.batch"] == 6
    assert "chosen to fit: batch=6, evaluations_per_task=5, probe_size=6" in dry_run(plan)


@pytest.mark.parametrize(("steps", "whole"), [(2**31 - 2048, 2**31 - 2048), (2**31 - 2047, None), (2047, 2048)])
def test_steps_of_an_agent_are_rounded_up_to_iterations_and_still_numbers_of_steps(steps, whole):
    asked = Experiment("ant(environment=fast)", "backprop", (0,), steps=steps)
    if whole:
        assert resolve(asked).steps == whole
    else:
        with pytest.raises(InputError, match=f"--steps: {steps}, rounded up to {2**31}, is beyond {2**31 - 1}"):
            resolve(asked)


def test_ages_of_an_agent_are_compared_with_its_updates():
    """An iteration of 2048 steps makes 160 updates."""
    asked = Experiment("ant(environment=fast)", "continual_backprop(maturity_threshold=160)", (0,), steps=2048)
    (line,) = warnings(resolve(asked))
    assert "160 is not below the 160 updates" in line
    assert not warnings(resolve(dataclasses.replace(asked, steps=4096)))
