"""The loop against a plain Python loop, on a program that only counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.config.experiment import Experiment, lane_keys, resolve
from launch.engine import loop
from launch.engine.build import hyper_arrays, job_program
from launch.engine.lane_program import Program
from launch.storage import bins
from launch.storage.bins import Mean

ONE = jnp.float32(1)


def _init(key, hyper, data):
    return {"steps": jnp.int32(0), "value": jax.random.uniform(key) + hyper["a"]}


def _step(carry, hyper, clock, data):
    value = carry["value"] * 0.9 + data[clock % len(data)] * hyper["a"]
    rare = (clock % 7 == 0).astype(jnp.float32)
    metrics = {"value": Mean(value, ONE), "rare": Mean(clock * rare, rare)}
    return {"steps": carry["steps"] + 1, "value": value}, metrics


def _probe(carry, hyper, clock, data):
    return {"probed": Mean(1000.0 * clock + carry["steps"], ONE)}


def _evaluate(carry, hyper, clock, data):
    return carry, {"evaluated": Mean(2 * (1000.0 * clock + carry["steps"]), 2 * ONE)}


def counting(bin_size=20, probe_every=15, evaluate_every=10):
    diverged = lambda carry: carry["value"] > 1e6  # noqa: E731
    return Program(_init, _step, _probe, _evaluate, diverged, bin_size, probe_every, evaluate_every)


DATA = np.linspace(-1, 1, 11, dtype=np.float32)
HYPER = {"a": np.array([0.5, 1.0, 2.0], np.float32)}
KEYS = jax.vmap(jax.random.key)(jnp.arange(3, dtype=jnp.uint32))


def ran(program, steps, stops=(), lanes=slice(None)):
    hyper = {name: values[lanes] for name, values in HYPER.items()}
    state = loop.RunState(0, loop.initial(program, KEYS[lanes], hyper, DATA), {})
    for stop in (*stops, steps):
        state = loop.run_chunks(program, state, hyper, DATA, loop.chunk_length(program), stop)
    return state


def by_hand(program, steps, lane):
    """Sums and counts per bin of a plain Python loop."""
    hyper = {name: values[lane] for name, values in HYPER.items()}
    carry, seen = _init(KEYS[lane], hyper, DATA), {}

    def add(bin_index, metrics):
        for name, (total, count) in metrics.items():
            seen.setdefault(name, np.zeros((2, -(-steps // program.bin))))[:, bin_index] += float(total), float(count)

    for clock in range(steps):
        if clock % program.probe_every == 0:
            add(clock // program.bin, _probe(carry, hyper, clock, DATA))
        carry, metrics = _step(carry, hyper, jnp.int32(clock), DATA)
        add(clock // program.bin, metrics)
        if (clock + 1) % program.evaluate_every == 0:
            add(clock // program.bin, _evaluate(carry, hyper, clock + 1, DATA)[1])
    return carry, seen


@pytest.mark.parametrize("steps", [60, 73])
def test_bins_average_what_a_plain_loop_observes_also_in_a_partial_bin(steps):
    program = counting()
    carry = ran(program, steps)
    for lane in (0, 2):
        expected, seen = by_hand(program, steps, lane)
        assert set(carry.bins) == set(seen)
        for name, (total, count) in seen.items():
            np.testing.assert_array_equal(carry.bins[name].count[lane], count, err_msg=name)
            np.testing.assert_allclose(carry.bins[name].sum[lane], total, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(carry.lanes["value"][lane], expected["value"], rtol=1e-6)
    assert (carry.lanes["steps"] == steps).all()


def test_a_lane_without_an_axis_is_the_lane_among_others():
    """Of a program that asks for it, a lane alone is computed without the axis; several share one as ever."""
    shapes = set()

    def step(carry, hyper, clock, data):
        shapes.add("BatchTracer" in type(carry["value"]).__name__)
        return _step(carry, hyper, clock, data)

    program = dataclasses.replace(counting(), step=step, bare=True)
    alone, mapped = ran(program, 60, lanes=slice(1, 2)), shapes.copy()
    together = ran(program, 60)
    assert (mapped, shapes) == ({False}, {False, True})
    assert {leaf.shape for leaf in jax.tree.leaves(alone.lanes)} == {(1,)}
    jax.tree.map(lambda one, all: np.testing.assert_allclose(one[0], all[1], rtol=1e-6), alone.lanes, together.lanes)
    for name, mean in bins.means(alone.bins).items():
        np.testing.assert_allclose(mean[0], bins.means(together.bins)[name][1], rtol=1e-5, err_msg=name)


def test_probes_come_before_and_evaluations_after_their_step():
    carry = ran(counting(bin_size=10, probe_every=10, evaluate_every=10), 40)
    means = bins.means(carry.bins)
    np.testing.assert_array_equal(means["probed"][0], [0, 10010, 20020, 30030])  # at clock c, c steps done, bin c // 10
    np.testing.assert_array_equal(means["evaluated"][0], [10010, 20020, 30030, 40040])  # at c, in bin (c - 1) // 10


def test_bins_without_a_measurement_are_nan_and_nothing_else_is():
    means = bins.means(ran(counting(bin_size=10, probe_every=30, evaluate_every=None), 60).bins)
    np.testing.assert_array_equal(np.isnan(means["probed"][1]), [False, True, True, False, True, True])
    assert np.isfinite(means["value"]).all()
    assert "evaluated" not in means
    assert means["value"].dtype == np.float64


@pytest.mark.parametrize("stops", [(25,), (10, 15, 40), (1, 2, 33), (30, 31, 59)])
def test_a_run_cut_anywhere_ends_bit_for_bit_the_same(stops):
    program = counting()
    whole, cut = ran(program, 60), ran(program, 60, stops)
    jax.tree.map(np.testing.assert_array_equal, whole.lanes, cut.lanes)
    for name in whole.bins:
        np.testing.assert_array_equal(whole.bins[name].count, cut.bins[name].count)
        whole_chunks = all(stop % 5 == 0 for stop in stops)  # the sums of other parts of a chunk round otherwise
        np.testing.assert_allclose(whole.bins[name].sum, cut.bins[name].sum, rtol=0 if whole_chunks else 1e-6)


def test_lanes_are_independent():
    program = counting()
    together, alone = ran(program, 60), ran(program, 60, lanes=slice(1, 2))
    np.testing.assert_allclose(together.lanes["value"][1:2], alone.lanes["value"], rtol=1e-6)
    np.testing.assert_allclose(bins.means(together.bins)["value"][1:2], bins.means(alone.bins)["value"], rtol=1e-6)


def test_the_carry_is_donated():
    program = counting()
    lanes = loop.initial(program, KEYS, HYPER, DATA)
    loop.run_chunks(program, loop.RunState(0, lanes, {}), HYPER, DATA, 5, 5)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(lanes))


@pytest.mark.parametrize(
    ("bin_size", "probe", "evaluate", "length"),
    [
        (20, 15, 10, 5),
        (20_000, 10_000, None, 10_000),
        (60_000, 60_000, 60_000, 10_000),
        (7, None, None, 7),
        (3, 2, None, 1),
    ],
)
def test_a_chunk_divides_every_period(bin_size, probe, evaluate, length):
    assert loop.chunk_length(counting(bin_size, probe, evaluate)) == length


def test_the_calls_of_a_run_meet_every_multiple_of_the_chunk():
    assert list(loop.chunk_lengths(10, 3, 34)) == [7, 10, 10, 4]
    assert list(loop.chunk_lengths(10, 0, 4)) == [4]
    assert list(loop.chunk_lengths(10, 4, 4)) == []


def test_progress_is_told_after_every_chunk():
    program, seen = counting(10, None, None), []
    state = loop.RunState(0, loop.initial(program, KEYS, HYPER, DATA), {})
    loop.run_chunks(program, state, HYPER, DATA, 10, 25, lambda state: seen.append(state.step))
    assert seen == [10, 20, 25]


def test_bins_grow_with_the_run_and_forget_nothing():
    short = bins.grown(ran(counting(), 40).bins, 2)
    longer = bins.grown(short, 4)
    for name, one in short.items():
        np.testing.assert_array_equal(longer[name].sum, np.pad(one.sum, ((0, 0), (0, 2))))
        np.testing.assert_array_equal(longer[name].count[:, 2:], 0)


def test_continual_backprop_cut_anywhere_keeps_its_very_parameters():
    """The real thing: replacements, random keys and the stream all come from the carry and the clock."""
    method = "continual_backprop(maturity_threshold=10,replacement_rate=0.05)"
    plan = resolve(Experiment("slowly_changing_regression(change_every=200)", method, (0, 1), steps=600, bin=200))
    job = plan.jobs[0]
    program, hyper = job_program(plan, job), hyper_arrays(job, job.lanes)

    def final(*stops):
        lanes = loop.initial(program, lane_keys(job.lanes), hyper, ())
        state = loop.RunState(0, lanes, {})
        before = jax.tree.map(np.array, lanes.learner.params)
        for stop in (*stops, 600):
            state = loop.run_chunks(program, state, hyper, (), 200, stop)
        return before, state

    def numbers(state):
        leaves = jax.tree.leaves(state)
        return [np.asarray(x) for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]

    (first, whole), (_, cut) = final(), final(100, 300)
    jax.tree.map(np.testing.assert_array_equal, whole.lanes.learner.params, cut.lanes.learner.params)
    for one, other in zip(numbers(whole.lanes), numbers(cut.lanes), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(first["Dense_0"]["kernel"], whole.lanes.learner.params["Dense_0"]["kernel"])
