"""A lane's program: what is measured and selected between steps, and what every method shares."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import launch
from launch.analysis.curves import caption
from launch.config.experiment import Experiment, lane_keys, resolve
from launch.engine.build import hyper_arrays, job_program, load_data
from launch.engine.lane_program import supervised_program
from launch.engine.loop import chunk_of_steps, initial
from launch.errors import InputError
from launch.storage.bins import Mean
from launch.storage.run_folder import read_meta, read_run
from plastic_jax.learners.supervised import SupervisedLearner
from tasks.base import Batch, Evaluation, Schedule, Spec, Task, Trial
from tests.launch import tiny
from tests.marks import slow_unless

HYPER = {"step_size": jnp.float32(0.0)}
X = jnp.arange(10.0).reshape(5, 2)


KINDS = (*tiny.IN_SHORT, *tiny.METHOD_NAMES[::3])
"""Methods that are looked at on the leading tasks; the contract suite looks at all."""


@pytest.mark.parametrize("task", tiny.SMALL)
def test_a_step_returns_lanes_of_the_types_of_new_ones(task, tmp_path, monkeypatch):
    """From shapes alone. Were one another, weakly typed for instance, the second chunk would be compiled anew."""
    tiny.write_pictures(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    methods = ",".join(method for of, method in tiny.PAIRS if of == task and (of not in tiny.LEAD or method in KINDS))
    plan = resolve(Experiment(methods=methods, seeds=(0, 1), steps=60, bin=20, **tiny.small(task, tmp_path)))
    data, clock = load_data(plan), jax.ShapeDtypeStruct((), jnp.int32)
    for job in plan.jobs:
        program, hyper = job_program(plan, job), hyper_arrays(job, job.lanes)
        new = jax.eval_shape(lambda p=program, j=job, h=hyper: initial(p, lane_keys(j.lanes), h, data))
        after, _ = jax.eval_shape(jax.vmap(program.step, (0, 0, None, None)), new, hyper, clock, data)
        assert jax.tree.map(types, new) == jax.tree.map(types, after), job.label


def types(leaf):
    return leaf.shape, leaf.dtype, leaf.weak_type


class Counted(nn.Module):
    """Answers class 1 on `weight` examples of five, 0 on the others."""

    outputs: int = 2

    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", nn.initializers.zeros, ())
        return jnp.stack([jnp.zeros(len(x)), jnp.where(x[:, 0] / 2 < weight, 1.0, -1.0)], axis=1)


@dataclasses.dataclass(frozen=True)
class Measured(Task):
    """Nothing is learned; evaluations are as given, as functions of the clock."""

    given: tuple = ()
    ends: int = 10
    selects: bool = True
    spec = Spec((2,), 2, "cross_entropy", 1, {"first": 0.25, "seen": 0.5})

    @property
    def schedule(self):
        return Schedule(5, 5, 5, None, (0, self.ends, 30))

    def init(self, key, data):
        return jnp.zeros([])

    def next(self, state, clock, data):
        no = jnp.zeros([], bool)
        return state, Batch(X[:1], jnp.zeros(1, jnp.int32), no, no)

    def evaluations(self, state, clock, data):
        return tuple(make(clock) for make in self.given)

    def probe_batches(self, state, clock, data):
        return {"": X, "_old_classes": 2 * X}


def learner(**change) -> Any:
    settings = {"network": Counted(), "input_shape": (2,), "loss": "cross_entropy", "selects": True}
    return SupervisedLearner(**(settings | {"transformation": lambda hyper, key: optax.sgd(0.0)} | change))


def carry_of(program, weight=0.0, **change):
    carry = program.init(jax.random.key(0), HYPER, ())
    return with_weight(carry, weight)._replace(**change)


def with_weight(carry, weight):
    return carry._replace(learner=carry.learner._replace(params={"weight": jnp.float32(weight)}))


def numbers(metrics):
    return {name: (float(mean.sum), float(mean.count)) for name, mean in metrics.items()}


def ones(batches, name="first", selects=False):
    """Batches of the five examples, all of class 1, the later ones with a label less."""

    def batch(i):
        return X, {name: jnp.where(jnp.arange(5) < 5 - i, 1, -1)}

    return Evaluation(batches, batch, selects=selects)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [(1, (3, 5)), (2, (6, 9)), (jnp.int32(2), (6, 9)), (jnp.int32(1), (3, 5)), (jnp.int32(0), (0, 0)), (0, (0, 0))],
)
def test_sums_are_over_as_many_batches_as_there_are_now(batches, expected):
    program = supervised_program(Measured((lambda clock: ones(batches),)), learner(), 5)
    _, metrics = jax.jit(program.evaluate)(carry_of(program, 3.0), HYPER, jnp.int32(5), ())
    assert numbers(metrics) == {"first": expected}


def test_the_number_of_batches_may_follow_the_clock():
    program = supervised_program(Measured((lambda clock: ones(clock // 10),)), learner(), 5)
    evaluate = jax.jit(program.evaluate)
    seen = [numbers(evaluate(carry_of(program, 4.0), HYPER, jnp.int32(c), ())[1])["first"] for c in (5, 10, 20)]
    assert seen == [(0, 0), (4, 5), (8, 9)]


def test_a_diverged_lane_counts_as_failure_as_often_as_it_is_measured():
    given = (lambda clock: ones(clock // 10), lambda clock: ones(1, "free"))
    program = supervised_program(Measured(given), learner(), 5)
    lost = carry_of(program, 3.0, diverged=jnp.array(True))
    evaluate = jax.jit(program.evaluate)
    assert numbers(evaluate(lost, HYPER, jnp.int32(20), ())[1]) == {"first": (0.25 * 9, 9), "free": (3, 5)}
    assert numbers(evaluate(lost, HYPER, jnp.int32(5), ())[1])["first"] == (0, 0)


def selecting():
    return Measured((lambda clock: ones(1, selects=True), lambda clock: ones(clock // 10, "seen")))


def test_what_is_selected_is_what_later_evaluations_see():
    """Weights 2, 4, 3 at the evaluations of a task: the best is 4, and the task ends with it."""
    program = supervised_program(dataclasses.replace(selecting(), ends=15), learner(), 5)
    evaluate, carry = jax.jit(program.evaluate), carry_of(program)
    found = []
    for clock, weight in ((5, 2), (10, 4), (15, 3)):
        carry, metrics = evaluate(with_weight(carry, weight), HYPER, jnp.int32(clock), ())
        found.append((numbers(metrics), float(carry.learner.params["weight"])))
    assert found == [
        ({"first": (2, 5), "seen": (0, 0)}, 2),
        ({"first": (4, 5), "seen": (4, 5)}, 4),
        ({"first": (3, 5), "seen": (4, 5)}, 4),
    ]
    carry, metrics = evaluate(with_weight(carry, 1), HYPER, jnp.int32(20), ())
    assert float(carry.learner.best.score) == pytest.approx(0.2)


def test_nothing_is_selected_by_what_was_not_measured_or_by_a_learner_that_does_not_select():
    task = Measured((lambda clock: ones(clock // 10, selects=True),))
    program = supervised_program(task, learner(), 5)
    carry = carry_of(program, 3.0)
    after, _ = jax.jit(program.evaluate)(carry, HYPER, jnp.int32(5), ())
    assert float(after.learner.best.score) == -1
    program = supervised_program(task, learner(selects=False), 5)
    after, metrics = jax.jit(program.evaluate)(carry_of(program, 3.0), HYPER, jnp.int32(10), ())
    assert after.learner.best is None
    assert numbers(metrics) == {"first": (3, 5)}


def test_lanes_select_each_for_itself():
    program = supervised_program(selecting(), learner(), 5)
    evaluate = jax.jit(jax.vmap(program.evaluate, in_axes=(0, None, None, None)))
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(carry_of(program, w) for w in (2.0, 4.0)))
    lanes, _ = evaluate(lanes, HYPER, jnp.int32(5), ())
    lanes = lanes._replace(learner=lanes.learner._replace(params={"weight": jnp.array([3.0, 3.0])}))
    lanes, _ = evaluate(lanes, HYPER, jnp.int32(10), ())
    assert lanes.learner.params["weight"].tolist() == [3, 4]


def test_every_probe_batch_has_its_ending_and_weights_are_measured_once():
    class Sees(SupervisedLearner):
        def probe(self, state, x, hyper):
            return {"dead_units": jnp.sum(x), "mean_weight_magnitude": jnp.float32(7)}

    seeing = Sees(Counted(), (2,), "cross_entropy", lambda hyper, key: optax.sgd(0.0), selects=True)
    program = supervised_program(Measured(), seeing, 5)
    found = numbers(program.probe(carry_of(program), HYPER, jnp.int32(0), ()))
    assert found == {
        "dead_units": (45, 1),
        "dead_units_old_classes": (90, 1),
        "mean_weight_magnitude": (7, 1),
    }


@dataclasses.dataclass(frozen=True)
class Previewed(Measured):
    """A preview and a trial of two updates on the five examples, at every other multiple of five steps."""

    spec = Spec((2,), 2, "cross_entropy", 1, {"tried": 8.0})

    def probe_batches(self, state, clock, data):
        return {}

    def previews(self, state, clock, data):
        return (ones(1, "before")._replace(measure="bits"),)

    def trials(self, state, clock, data):
        y = jnp.ones(5, jnp.int32)
        return (Trial("tried", jnp.where(clock % 10 == 0, 2, 0), lambda i: (X, y)),)


def test_previews_and_trials_are_measured_before_a_task_and_failures_of_a_diverged_lane():
    class Tries(SupervisedLearner):
        def evaluate(self, state, x, targets, class_mask=None, measure="accuracy"):
            return {measure: (jnp.float32(6), jnp.float32(3))}

        def trial(self, state, batch, updates):
            return 1.5 * jnp.float32(updates), jnp.float32(updates)

    tries = Tries(Counted(), (2,), "cross_entropy", lambda hyper, key: optax.sgd(0.0))
    program = supervised_program(Previewed(), tries, 5)
    assert numbers(program.probe(carry_of(program), HYPER, jnp.int32(10), ())) == {"bits": (6, 3), "tried": (3, 2)}
    assert numbers(program.probe(carry_of(program), HYPER, jnp.int32(5), ())) == {"bits": (6, 3), "tried": (0, 0)}
    lost = program.probe(carry_of(program, diverged=jnp.array(True)), HYPER, jnp.int32(0), ())
    assert numbers(lost)["tried"] == (16, 2)


def test_nothing_is_told_of_the_inside_of_a_diverged_lane():
    class Sees(SupervisedLearner):
        def probe(self, state, x, hyper):
            return {"dormant_units": jnp.zeros([]), "mean_weight_magnitude": jnp.float32(2)}

    seeing = Sees(Counted(), (2,), "cross_entropy", lambda hyper, key: optax.sgd(0.0))
    program = supervised_program(Measured(), seeing, 5)
    inside = {"dormant_units": (0, 1), "dormant_units_old_classes": (0, 1), "mean_weight_magnitude": (2, 1)}
    assert numbers(program.probe(carry_of(program), HYPER, jnp.int32(0), ())) == inside
    lost = program.probe(carry_of(program, diverged=jnp.array(True)), HYPER, jnp.int32(0), ())
    assert lost.keys() == inside.keys()
    assert all(mean.count == 0 for mean in lost.values())  # as if it had not been measured


# -- tasks of different lengths


def test_tasks_of_different_lengths_know_where_they_begin_and_end():
    schedule = Schedule(5, 5, 5, 45, (0, 5, 20, 45))
    assert [schedule.steps_of(n) for n in (1, 2, 3)] == [5, 20, 45]
    assert schedule.steps_of(4) > 45
    assert schedule.starts_until(45) == (0, 5, 20, 45)
    assert schedule.starts_until(20) == (0, 5, 20)
    assert schedule.starts_until(12) == (0, 5, 12)
    equal = Schedule(5, None, None, None)
    assert (equal.steps_of(3), equal.starts_until(12)) == (15, (0, 5, 10, 12))
    clocks = jnp.arange(0, 50, 5)
    assert clocks[jax.vmap(schedule.probes_at)(clocks)].tolist() == [0, 5, 20]
    assert jax.vmap(equal.probes_at)(clocks).all()
    assert clocks[jax.vmap(Measured(ends=10).ends_task)(clocks)].tolist() == [10, 30]


def test_the_loop_looks_inside_only_where_a_task_begins():
    program = supervised_program(Measured(ends=10), learner(), 5)
    program = dataclasses.replace(
        program, probe=lambda carry, hyper, clock, data: {"looked": Mean(clock.astype(jnp.float32), jnp.ones([]))}
    )
    lanes = jax.vmap(lambda key: program.init(key, HYPER, ()))(jax.random.split(jax.random.key(0), 2))
    chunk = jax.jit(functools.partial(chunk_of_steps, program, 5))
    hyper, counts = jax.tree.map(lambda v: jnp.stack([v, v]), HYPER), []
    for start in range(0, 20, 5):
        lanes, seen = chunk(lanes, hyper, jnp.int32(start), ())
        counts.append(np.asarray(seen["looked"].count).tolist())
    assert counts == [[1, 1], [0, 0], [1, 1], [0, 0]]


# -- what a stream of pictures needs of a run


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """`--task` of three tiny classes: three tasks of four steps, evaluated twice each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(3):
        np.save(folder / f"{k}.npy", np.random.default_rng(k).integers(0, 256, (6, 32, 32, 3), np.uint8))
    settings = "train_per_class=4,test_per_class=2,batch=4,epochs=2,evaluations_per_task=2,probe_size=4"
    return f"continual_imagenet(dataset='{folder}',{settings})"


def test_a_run_says_what_its_tasks_are_and_where_they_begin(pictures, tmp_path):
    asked = Experiment(pictures, "backprop", (0, 1), network="mlp(widths=(3,))")
    assert (resolve(asked).steps, resolve(asked).bin) == (12, 2)
    run = launch.run(asked, tmp_path / "run", 1)["backprop"]
    meta = read_meta(tmp_path / "run" / "backprop")
    note = "pairs of 3 classes of pictures (4 + 2 pictures a class), 2 epochs a task"
    assert meta["note"].startswith(note)
    assert meta["task_starts"] == [0, 4, 8, 12]
    assert f"continual imagenet: {note}" in caption([run])
    assert "evaluations_per_task" not in caption([run])
    metrics = read_run(tmp_path / "run" / "backprop").metrics
    measured = {name: np.isfinite(values).all(0).tolist() for name, values in metrics.items()}
    assert measured["test_accuracy"] == [False, True] * 3
    assert measured["test_accuracy_in_task"] == measured["online_accuracy"] == [True] * 6
    assert measured["dormant_units"] == [True, False] * 3
    ends = slice(1, None, 2)
    np.testing.assert_array_equal(metrics["test_accuracy"][:, ends], metrics["test_accuracy_in_task"][:, ends])
    for values in metrics["test_accuracy_in_task"].ravel():
        assert values in (0, 0.25, 0.5, 0.75, 1)


def test_other_tasks_say_neither(tmp_path):
    asked = Experiment("tests.launch.tiny:Drift", "backprop", (0,), steps=40, network="tests.launch.tiny:Line")
    run = launch.run(asked, tmp_path, 1)["backprop"]
    meta = read_meta(tmp_path / "backprop")
    assert "note" not in meta
    assert "task_starts" not in meta
    assert "Change every 20" in caption([run])


NETWORKS = ["convnet(width=1,dtype=bfloat16)", "resnet(width=1,dtype=bfloat16)"]
NOT_HERE = [(NETWORKS[1], "dropout")]


@pytest.mark.parametrize(
    ("network", "name"),
    slow_unless(
        lambda network, name: network == NETWORKS[0] and name in tiny.IN_SHORT,
        [(of, name) for of in NETWORKS for name in tiny.METHOD_NAMES if (of, name) not in NOT_HERE],
    ),
)
def test_with_every_method_the_state_keeps_its_types_whatever_is_computed_in(network, name, pictures):
    """Traced only."""

    def form(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    plan = resolve(Experiment(pictures, name, (0,), network=network))
    job = plan.jobs[0]
    program, data = job_program(plan, job), plan.task.load()
    hyper = jax.tree.map(lambda leaf: leaf[0], hyper_arrays(job, job.lanes))
    carry = jax.eval_shape(functools.partial(program.init, lane_keys(job.lanes)[0]), hyper, data)
    assert {leaf.dtype for leaf in jax.tree.leaves(carry.learner.params)} == {jnp.dtype("float32")}
    for later in (
        jax.eval_shape(program.step, carry, hyper, jnp.int32(0), data)[0],
        jax.eval_shape(program.evaluate, carry, hyper, jnp.int32(2), data)[0],
    ):
        assert form(later) == form(carry)


class Normalised(nn.Module):
    """Normalises by batch, and cannot be told of an axis."""

    outputs: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.outputs)(nn.BatchNorm(use_running_average=not train)(x))


def test_a_network_that_normalises_by_its_own_part_of_a_batch_is_refused():
    network = "tests.launch.engine.test_lane_program:Normalised"
    plan = resolve(Experiment(tiny.TASK, "backprop", (0,), steps=20, network=network))
    job_program(plan, plan.jobs[0])
    with pytest.raises(InputError, match=r"--parallel=batch: Normalised .*axis_name"):
        job_program(plan, plan.jobs[0], "batch")
