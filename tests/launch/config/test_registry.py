"""What holds for every registered method and task, present and future."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.config import presets
from launch.config.experiment import Experiment, lane_keys, resolve
from launch.config.hyperparameters import Option
from launch.config.methods import METHODS
from launch.config.networks import find_network
from launch.config.optimizers import OPTIMIZERS
from launch.config.presets import CORRECTED, PUBLISHED
from launch.config.registry import NETWORKS, PPO_NUMBERS, TASKS, TaskSpec, find_learner, find_task
from launch.config.syntax import Every, parse_call
from launch.engine import execution, loop
from launch.engine.build import abstract_carry, hyper_arrays, job_program
from launch.engine.checkpoint_policy import CheckpointPolicy, Place
from launch.engine.unit_of_work import units_of
from launch.errors import InputError
from plastic_jax.networks import MLP, ConvNet, ResNet
from tasks.base import Task
from tests.launch import tiny
from tests.marks import slow_unless

TASK = "slowly_changing_regression(change_every=200)"


def planned(methods, **fields):
    plan = resolve(Experiment(TASK, methods, (0, 1), **({"steps": 400, "bin": 200} | fields)))
    return plan, plan.jobs[0]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is_and_where_from_and_its_defaults_are_allowed(name):
    spec = METHODS[name]
    assert spec.name == name and spec.described and spec.references
    for setting, each in spec.settings.items():
        assert each.meaning, setting
        assert each.checked(setting, each.default) == each.default
    assert spec.network is None or parse_call("", spec.network).name in NETWORKS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizers_settings_are_told_apart_from_those_of_methods_and_learners(name):
    spec = OPTIMIZERS[name]
    assert spec.name == name and spec.described
    for setting, each in spec.settings.items():
        assert each.meaning and each.checked(setting, each.default) == each.default
        assert setting not in PPO_NUMBERS
        assert not [method.name for method in METHODS.values() if setting in method.settings], setting


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_asked_for_by_name_inside_a_method(name):
    spec = OPTIMIZERS[name]
    given = {setting: each.default for setting, each in spec.settings.items() if not isinstance(each, Option)}
    text = ",".join([f"optimizer={name}", *(f"{setting}={value!r}" for setting, value in given.items())])
    plan, job = planned(f"continual_backprop({text})")
    assert {n: job.lanes[0].hyper[n] for n in given} == given and job.static["optimizer"] == name
    assert job.lanes[0].hyper["step_size"] == spec.defaults.get("step_size", 0.01)
    program, (carry, hyper, _) = job_program(plan, job), abstract_carry(plan, job)
    after, _ = jax.eval_shape(program.step, carry, hyper, jax.ShapeDtypeStruct((), jnp.int32), ())
    assert jax.tree.structure(after) == jax.tree.structure(carry)


def test_a_preset_that_names_an_optimizer_keeps_its_step_size_for_that_one_alone(tmp_path, monkeypatch):
    """A step size of Adam's is none for Prodigy; what is typed counts always."""
    (tmp_path / "another.toml").write_text("[corrected.methods]\nall = { optimizer = 'adam', step_size = 1e-4 }\n")
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    monkeypatch.setitem(TASKS, "another", dataclasses.replace(TASKS["slowly_changing_regression"], name="another"))
    methods = "backprop,a=backprop(optimizer=prodigy),b=backprop(optimizer=prodigy,step_size=0.5)"
    jobs = resolve(Experiment("another", methods, (0,), steps=10)).jobs
    assert [job.lanes[0].hyper["step_size"] for job in jobs] == [1e-4, 1.0, 0.5]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_and_its_presets_can_be_made(name):
    spec = TASKS[name]
    assert set(spec.presets) >= {CORRECTED, PUBLISHED}
    for preset in spec.presets:
        found, task = find_task(parse_call("", name), preset)
        assert found is spec
        assert (find_learner(spec, task, None, preset) is None) == (not spec.learner)
    assert spec.described
    assert spec.default_steps is None or spec.default_steps > 0
    assert all(alias not in TASKS for alias in spec.aliases)
    find_network(parse_call("", spec.network), 1)


def test_sound_is_another_name_of_the_corrected_preset():
    one, other = (resolve(Experiment(TASK, "l2", (0,), preset=preset)) for preset in ("sound", CORRECTED))
    assert one.settings(one.jobs[0]) == other.settings(other.jobs[0])


def test_aliases_find_the_same_task():
    assert find_task(parse_call("", "bit_flipping"))[1] == find_task(parse_call("", "slowly_changing_regression"))[1]


def own_factory(outputs, **sizes):
    """A network of one's own that takes settings by any name."""
    return MLP(widths=(sizes["units"],), outputs=outputs)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("convnet", ConvNet(7)),
        ("convnet(width=3)", ConvNet(7, (3, 6, 12), (5, 3, 3), (12, 12))),
        ("convnet(dtype=bfloat16,width=1)", ConvNet(7, (1, 2, 4), (5, 3, 3), (4, 4), "bfloat16")),
        ("convnet(dtype=float32)", ConvNet(7)),
        ("resnet", ResNet(7)),
        ("resnet(width=8)", ResNet(7, (8, 16, 32, 64))),
        ("resnet(dtype=bfloat16)", ResNet(7, dtype="bfloat16")),
        ("tests.launch.config.test_registry:own_factory(units=4)", MLP((4,), 7)),
    ],
)
def test_a_networks_settings_are_its_width_and_what_it_computes_in(text, network):
    assert find_network(parse_call("", text), 7) == network


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("convnet(width=0)", ["convnet: width=0", "positive integer"]),
        ("resnet(width=True)", ["resnet: width=True", "positive integer"]),
        ("resnet(width=1.5)", ["resnet: width=1.5"]),
        ("convnet(widht=3)", ["setting of convnet", "did you mean 'width'?"]),
        ("resnet(dtype=float16)", ["dtype='float16'", "float32 or bfloat16"]),
        ("resnet(outputs=3)", ["outputs=3"]),
        ("actor_critic(memory=lstm)", ["memory: unknown 'lstm'", "gru, none"]),
        ("actor_critic(memory=gru,widths=())", ["memory=gru is the last hidden layer, and widths=() has none"]),
        ("rsnet", ["'rsnet'", "did you mean 'resnet'?"]),
    ],
)
def test_a_network_that_cannot_be_is_one_line(text, words):
    with pytest.raises(InputError) as error:
        find_network(parse_call("", text), 7)
    said = str(error.value)
    assert said.startswith("--network")
    assert "\n" not in said
    assert all(word in said for word in words), said


def test_a_tasks_presets_come_before_the_settings_that_are_typed(tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Own(Task):
        epochs: int = 1
        pictures: int = 1

    (tmp_path / "own.toml").write_text("[published]\ntask = { pictures = 3 }\n")
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    monkeypatch.setitem(TASKS, "own", TaskSpec("own", Own, "mlp", None, settings={"epochs": 2}))

    def made(text, preset):
        task = find_task(parse_call("", text), preset)[1]
        return task.epochs, task.pictures

    assert made("own", "corrected") == (2, 1)
    assert made("own", "published") == (2, 3)
    assert made("own(pictures=4,epochs=5)", "published") == (5, 4)


SWEPT = ("continual_backprop", "shrink_and_perturb")


@pytest.mark.parametrize("name", slow_unless(lambda name: name in SWEPT, tiny.METHOD_NAMES))
def test_a_sweep_over_every_number_compiles_once_and_all_learn(name, monkeypatch, tmp_path):
    """Two values of every hyperparameter at once, in several batches: one trace, one program."""
    numbers = METHODS[name].hyperparameters
    traced, compiled = [], []
    chunk, compile_chunk = loop.chunk_of_steps, loop.compiled_chunk
    monkeypatch.setattr(loop, "chunk_of_steps", lambda *arguments: traced.append(1) or chunk(*arguments))
    monkeypatch.setattr(
        execution, "compiled_chunk", lambda *what: compiled.append(compile_chunk(*what)) or compiled[-1]
    )
    sweep = tuple(f"{n}={_two_values(number)}" for n, number in numbers.items())
    lanes = 2 ** len(numbers)
    plan = resolve(
        Experiment(
            f"{TASK}", f"{name}(optimizer=adam)", (0,), steps=400, bin=200, sweep=sweep, lanes_per_batch=lanes // 2
        )
    )
    units = units_of(plan, plan.jobs[0], "cpu")
    assert [unit.size for unit in units] == [lanes // 2] * 2
    for unit in units:
        (arrays,) = execution.run_units(plan, [unit], Place(tmp_path, CheckpointPolicy(Every())))
        assert not arrays["diverged"].any()
        assert all(np.isfinite(values).all() for values in arrays.values())
    assert len(traced) == 1
    assert {program._cache_size() for program in compiled} == {1}
    assert len({id(program) for program in compiled}) == 1


def _two_values(number):
    low = number.default * 0.9 if number.default else min(1e-4, number.high)
    if number.integer:
        low = round(low) if round(low) != number.default else number.default + 1
    return f"{number.default:g},{low:g}"


BY_WEIGHT = [name for name, spec in OPTIMIZERS.items() if spec.by_weight]
"""Optimizers that learn a step size for every weight."""


def in_short(name, optimizer):
    return (name, optimizer) == ("continual_backprop", "smd") or (
        optimizer not in BY_WEIGHT and name in (*tiny.IN_SHORT, "swr", "upgd")
    )


@pytest.mark.parametrize(
    ("name", "optimizer"),
    slow_unless(in_short, itertools.product(tiny.METHOD_NAMES, ("sgd", "momentum", "muon", *BY_WEIGHT))),
)
def test_every_method_stays_finite_with_every_optimizer(name, optimizer):
    """Some steps across a task change, two lanes; Adam is swept above."""
    own = ",new_step_size=inherited" if optimizer in BY_WEIGHT else ""
    plan, job = planned(f"{name}(optimizer={optimizer}{own})")
    program, hyper = job_program(plan, job), hyper_arrays(job, job.lanes)
    carry = jax.vmap(program.init, in_axes=(0, 0, None))(lane_keys(job.lanes), hyper, ())

    def steps(carry, hyper):
        step = jax.vmap(program.step, in_axes=(0, 0, None, None))
        return jax.lax.scan(lambda c, clock: step(c, hyper, clock, ()), carry, jnp.arange(190, 210, dtype=jnp.int32))

    after, metrics = jax.jit(steps)(carry, hyper)
    assert np.isfinite(metrics["squared_error"].sum).all()
    assert not after.diverged.any()
    before, now = (jax.tree.map(np.asarray, c.learner.params) for c in (carry, after))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(now))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(now), strict=True))


@pytest.mark.parametrize("optimizer", ["idbd", "smd"])
def test_devices_that_share_a_batch_are_refused_to_optimizers_that_need_the_curvature(optimizer):
    plan, job = planned(f"backprop(optimizer={optimizer})")
    with pytest.raises(InputError, match=f"--parallel=batch: optimizer={optimizer} needs the whole batch"):
        job_program(plan, job, "devices")


def test_all_methods_of_a_seed_start_from_the_same_weights():
    seen = {}
    for name in tiny.METHOD_NAMES:
        plan, job = planned(name)
        carry = jax.vmap(job_program(plan, job).init, in_axes=(0, 0, None))(
            lane_keys(job.lanes), hyper_arrays(job, job.lanes), ()
        )
        seen.setdefault(METHODS[name].network or METHODS[name].network_options.get("norm"), []).append(carry)
    assert len(seen[None]) == len(tiny.METHOD_NAMES) - 2
    hidden = [carry.learner.params["Dense_0"] for carry in (seen[None][0], *seen["layer_norm"])]
    jax.tree.map(np.testing.assert_array_equal, *hidden)
    for carry in seen[None][1:]:
        jax.tree.map(np.testing.assert_array_equal, carry.learner.params, seen[None][0].learner.params)
    for carry in (c for carries in seen.values() for c in carries):
        jax.tree.map(np.testing.assert_array_equal, carry.task.target, seen[None][0].task.target)
    assert (
        seen[None][0].learner.params["Dense_0"]["kernel"][0] != seen[None][0].learner.params["Dense_0"]["kernel"][1]
    ).any()


def test_a_fresh_network_at_each_change_is_drawn_from_the_folded_key():
    """With a step size of 0 the weights after the first step of a task are the fresh ones."""
    plan, job = planned("fresh_network(step_size=0)")
    program, hyper = job_program(plan, job), hyper_arrays(job, job.lanes)
    carry = jax.vmap(program.init, in_axes=(0, 0, None))(lane_keys(job.lanes), hyper, ())
    step = jax.jit(jax.vmap(program.step, in_axes=(0, 0, None, None)))
    for restarts, clock in enumerate((0, 200, 400)):
        for later in (0, 1):
            carry, _ = step(carry, hyper, clock + later, ())
            for lane in range(2):
                key = jax.random.fold_in(carry.learner.params_key[lane], restarts)
                fresh = job.network.init(key, jnp.zeros((1, 20)))["params"]
                mine = jax.tree.map(lambda leaf, lane=lane: leaf[lane], carry.learner.params)
                jax.tree.map(np.testing.assert_array_equal, mine, fresh)
