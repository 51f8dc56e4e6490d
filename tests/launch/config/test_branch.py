"""Branching: runs that go on with the very networks and streams of another run at a step."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import launch
from launch.config.branch import Source, check_fits, find_source
from launch.config.experiment import branched, resolve
from launch.engine.lane_program import continued
from launch.engine.source_lanes import source_lanes
from launch.errors import InputError
from tests.launch import tiny

AT = 30


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three seeds of backprop, and the same with momentum, with checkpoints at step 30; two units each."""
    folder = tmp_path_factory.mktemp("source")
    asked = tiny.experiment(methods="backprop,heavy=backprop(optimizer=momentum)", lanes_per_batch=2)
    tiny.run(asked, folder, policy=tiny.policy(1000, at=(AT,)))
    return folder


def ran(source, workdir=None, **changes):
    return tiny.run(branched(f"{source}@{AT}", **changes), workdir)


def test_the_same_method_goes_on_as_the_run_itself(source, tmp_path):
    """Plain gradient descent keeps nothing but its weights, so every bit is that of the source, before and after."""
    (same,) = ran(source / "backprop", tmp_path, methods="same=backprop").values()
    whole = launch.storage.run_folder.read_run(source / "backprop")
    assert same.metrics.keys() == whole.metrics.keys()
    for name, values in whole.metrics.items():
        assert tiny.raw(same.metrics[name]) == tiny.raw(values), name
    assert same.meta["settings"]["branch"] == f"backprop@{AT}"
    assert same.meta["settings"]["from.method"] == "backprop"


def test_the_optimizers_state_is_fresh_and_the_networks_are_not(source):
    """With momentum the first update differs; the error of the step before it, in the same bin, does not."""
    (same,) = ran(source / "heavy", methods="same=backprop(optimizer=momentum)").values()
    whole = launch.storage.run_folder.read_run(source / "heavy")
    found, expected = same.metrics["squared_error"], whole.metrics["squared_error"]
    np.testing.assert_array_equal(found[:, 0], expected[:, 0])
    assert (found[:, 1:] != expected[:, 1:]).all()
    there = find_source(f"{source}/heavy@{AT}")
    earlier = source_lanes(there, [0, 1, 2], tiny.TASK)
    assert earlier.tree.learner.params["Dense_0"]["kernel"].shape == (3, 2, 1)
    count = earlier.bins["squared_error"].count
    np.testing.assert_array_equal(count[:, 1], 10)


def test_all_of_the_network_is_taken_over_and_nothing_of_the_optimizer(source):
    plan = resolve(tiny.experiment(methods="backprop(optimizer=momentum)"))
    program = launch.engine.build.job_program(plan, plan.jobs[0])
    hyper = launch.engine.build.hyper_arrays(plan.jobs[0], plan.jobs[0].lanes[:1])
    one = jax.tree.map(lambda leaf: leaf[0], hyper)
    own, earlier = (program.init(jax.random.key(seed), one, ()) for seed in (0, 1))
    earlier = earlier._replace(learner=earlier.learner._replace(variables={"mean": 3.0}))
    lane = continued(program, own, earlier)
    assert lane.learner.params is earlier.learner.params and lane.learner.variables is earlier.learner.variables
    assert lane.task is earlier.task and lane.diverged is earlier.diverged
    assert lane.learner.optimizer is own.learner.optimizer and lane.learner.method_key is own.learner.method_key
    assert (int(own.learner.restarts), int(lane.learner.restarts)) == (
        0,
        1,
    )  # the seed's first network is not drawn twice


def test_lanes_are_paired_by_seed_whatever_the_order_and_the_number(source):
    whole = launch.storage.run_folder.read_run(source / "backprop").metrics["squared_error"]
    (fewer,) = ran(source / "backprop", methods="same=backprop", seeds=(2, 0), lanes_per_batch=2).values()
    np.testing.assert_array_equal(fewer.seeds, [2, 0])
    np.testing.assert_array_equal(fewer.metrics["squared_error"], whole[[2, 0]])


def test_several_settings_of_another_method_on_the_same_networks(source):
    (swept,) = ran(source / "backprop", methods="l2", sweep=("weight_decay=0,0.1",)).values()
    whole = launch.storage.run_folder.read_run(source / "backprop").metrics["squared_error"]
    found = swept.metrics["squared_error"]
    np.testing.assert_array_equal(found[:, 0], np.concatenate([whole, whole])[:, 0])
    np.testing.assert_allclose(found[:3], whole, rtol=1e-4)
    assert (found[3:, 1:] != whole[:, 1:]).all()


def test_longer_than_the_source(source):
    (longer,) = ran(source / "backprop", methods="same=backprop", steps=80).values()
    straight = tiny.run(tiny.experiment(steps=80, lanes_per_batch=2), None)["backprop"]
    for name, values in straight.metrics.items():
        assert tiny.raw(longer.metrics[name]) == tiny.raw(values), name


def test_a_branch_stopped_and_gone_on_and_made_longer_is_the_branch_never_stopped(source, tmp_path):
    asked = branched(f"{source}/backprop@{AT}", methods="heavy=backprop(optimizer=momentum)")
    longer = dataclasses.replace(asked, steps=80)
    tiny.run(longer, tmp_path / "whole")
    assert tiny.stopped(asked, tmp_path / "cut", 4)
    tiny.run(asked, tmp_path / "cut")
    assert tiny.stopped(longer, tmp_path / "cut", 3)
    tiny.run(longer, tmp_path / "cut")
    tiny.assert_same_ends(tmp_path / "cut", tmp_path / "whole")


def test_a_branch_of_a_branch(source, tmp_path):
    first = branched(f"{source}/backprop@{AT}", methods="same=backprop")
    tiny.run(first, tmp_path, policy=tiny.policy(1000, at=(45,)))
    (second,) = tiny.run(branched(f"{tmp_path}/same@45", methods="again=backprop"), None).values()
    whole = launch.storage.run_folder.read_run(source / "backprop").metrics["squared_error"]
    np.testing.assert_array_equal(second.metrics["squared_error"], whole)


WRONG = [
    ("{0}/backprop@31", {}, ["no checkpoint of step 31", "there: 30, 60", "--checkpoint_at=31"]),
    ("{0}/bakprop@30", {}, ["bakprop: no such run folder"]),
    ("{0}@30", {}, ["holds several runs", "backprop, heavy"]),
    ("{0}/backprop", {}, ["is not of the form DIR/LABEL@STEP"]),
    ("{0}/backprop@x", {}, ["is not of the form DIR/LABEL@STEP"]),
    (
        "{0}/backprop@30",
        {"task": "slowly_changing_regression"},
        ["is of another kind", "slowly_changing_regression asked"],
    ),
    ("{0}/backprop@30", {"network": "linear"}, ["is of another kind", "network Line("]),
    ("{0}/backprop@30", {"bin": 10}, ["bin 20 there, 10 asked"]),
    ("{0}/backprop@30", {"seeds": (1, 5)}, ["has no seed 5; it has 0:3"]),
    ("{0}/backprop@30", {"steps": 30}, ["--steps: 30 is not beyond step 30"]),
    ("{0}/backprop@30", {"steps": 20}, ["--steps: 20 is not beyond step 30"]),
]


@pytest.mark.parametrize(("place", "changes", "words"), WRONG)
def test_what_cannot_be_branched_is_one_line_and_leaves_nothing(source, tmp_path, place, changes, words):
    before = tiny.snapshot(source)
    with pytest.raises(InputError) as error:
        tiny.run(branched(place.format(source), **({"methods": "same=backprop"} | changes)), tmp_path / "new")
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "new").exists()
    assert tiny.snapshot(source) == before


def test_a_source_with_several_settings_a_seed_is_refused(tmp_path):
    tiny.run(tiny.experiment(sweep=("step_size=0.01,0.1",)), tmp_path)
    with pytest.raises(InputError, match=r"^--branch_from: .*backprop holds 2 settings a seed"):
        branched(f"{tmp_path}@60", methods="backprop", steps=80)


def test_a_damaged_source_is_an_error_and_the_source_stays(source, tmp_path):
    folder = shutil.copytree(source / "backprop", tmp_path / "backprop")
    for name, path in tiny.checkpoints(folder).items():
        if name.endswith(f"/{AT}"):
            tiny.damage(path)
    before = tiny.snapshot(folder)
    with pytest.raises(InputError, match=r"--branch_from: .* arrays.npz is not as it was written"):
        ran(folder, tmp_path / "new", methods="same=backprop")
    assert tiny.snapshot(folder) == before
    assert not (tmp_path / "new").exists()


def test_a_branch_is_not_the_run_that_began_at_step_0(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "copy")
    with pytest.raises(InputError, match=r"holds another run \(.*branch None there, heavy@30 asked"):
        ran(folder / "heavy", folder, methods="heavy=backprop(optimizer=momentum)")


@pytest.mark.parametrize("name", ["learner.rollout", "learner.normalise_observations", "learner.normalise_rewards"])
def test_agents_go_on_only_with_states_of_their_own_shape(name, tmp_path):
    there = {"task": "ant", "learner.rollout": 10, "learner.epochs": 2, "learner.normalise_observations": False}
    source = Source(tmp_path, 20, {"settings": there, "lanes": [{"seed": 0}]})
    check_fits(source, there | {"learner.epochs": 3}, [0], 40)
    with pytest.raises(InputError, match=f"is of another kind.*{name}"):
        check_fits(source, there | {name: 20}, [0], 40)
