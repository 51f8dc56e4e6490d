"""The memory model against what XLA says of compiled chunks, and the lanes that it lets on a device."""

import functools

import jax
import jax.numpy as jnp
import pytest

from launch.config.experiment import Experiment, resolve
from launch.engine import unit_of_work
from launch.engine.build import abstract_carry, job_program, lane_memory, load_data
from launch.engine.loop import compiled_chunk
from launch.engine.memory import Memory, fitting, memory
from tests.launch import tiny

# The least and the most, over all pairs of the registry, of the model's bytes over XLA's.
LOW, HIGH = 1.0, 1.9


def compiled_bytes(program, abstract, number):
    carry, hyper, data = abstract
    many = functools.partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct((number, *leaf.shape), leaf.dtype))
    arguments = many(carry), many(hyper), jax.ShapeDtypeStruct((), jnp.int32), data
    found = compiled_chunk(program).lower(*arguments, 2).compile().memory_analysis()
    return (
        found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes - found.alias_size_in_bytes
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    tiny.write_images(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield f"permuted_mnist(dataset=tiny,data_dir='{folder}',batch=4,probe_size=20,evaluation_size=10)"


@pytest.mark.parametrize(
    ("name", "method", "number"),
    [
        ("slowly_changing_regression", "shrink_and_perturb", 1),  # of all pairs the lowest
        ("slowly_changing_regression", "continual_backprop", 8),
        ("permuted_mnist", "backprop", 8),  # the highest
        ("permuted_mnist", "shrink_and_perturb_at_boundary", 1),
    ],
)
def test_the_model_is_near_what_the_compiler_says_and_hardly_below(task, name, method, number):
    plan = resolve(Experiment(task if name == "permuted_mnist" else name, method, (0,)))
    program, abstract = job_program(plan, plan.jobs[0]), abstract_carry(plan, plan.jobs[0])
    said = compiled_bytes(program, abstract, number)
    assert LOW < memory(program, *abstract).of(number) / said < HIGH


def test_data_count_once_and_the_state_for_every_lane(task):
    plan = resolve(Experiment(task, "backprop", (0,)))
    found = lane_memory(plan, plan.jobs[0])
    data = sum(leaf.nbytes for leaf in jax.tree.leaves(load_data(plan)))
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_carry(plan, plan.jobs[0])[0]))
    assert found.shared >= data
    assert found.lane > state


def test_lanes_that_fit():
    model = Memory(shared=1000, lane=100)
    assert model.lanes_that_fit(10_000) == 80  # nine tenths of the budget, less what is shared
    assert model.lanes_that_fit(1_000) == 0
    assert fitting(128, 10_000, model) == 64
    assert fitting(64, 10_000, model) == 64
    assert fitting(128, 1_000, model) == 1
    assert fitting(128, None, model) == 128


def test_the_table_holds_where_memory_does_not_bind(monkeypatch):
    plan = resolve(Experiment("slowly_changing_regression", "backprop", tuple(range(64)), steps=100, bin=100))
    job = plan.jobs[0]
    lane = lane_memory(plan, job)
    sizes = {}
    for name, budget in (("large", 10**12), ("small", 10 * lane.lane), ("unknown", None)):
        monkeypatch.setattr(unit_of_work, "device_budget", lambda budget=budget: budget)
        sizes[name] = [unit.size for unit in unit_of_work.units_of(plan, job, "gpu")]
    assert sizes == {"large": [64], "small": [8] * 8, "unknown": [64]}
