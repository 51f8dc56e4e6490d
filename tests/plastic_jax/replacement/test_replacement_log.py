"""The replacement log: what is recorded is what happened, the ring loses the oldest and says how many."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, continual_backprop, trace_units
from plastic_jax.methods.redo import redo
from plastic_jax.replacement.draw import Replacement
from plastic_jax.replacement.replacement_log import AGES, LOOK_EVERY, empty, events, find, record

WIDTHS = {"b": 5, "a": 3}  # not in the order of their names
STEPS, BOUND = 450, 2
recorded = jax.jit(record)


class State(NamedTuple):
    log: Any
    age: Any


def story(seed):
    """Random replacements: per group index [steps, bound], valid [steps, bound] and utility [steps, width]."""
    rng = np.random.default_rng(seed)
    index = {
        n: np.stack([rng.permutation(w)[:BOUND] for _ in range(STEPS)]).astype(np.int32) for n, w in WIDTHS.items()
    }
    valid = {n: rng.random((STEPS, BOUND)) < 0.05 for n in WIDTHS}
    return index, valid, {n: rng.normal(size=(STEPS, w)).astype(np.float32) for n, w in WIDTHS.items()}


def told(index, valid, utility):
    """The same story by a plain loop: rows of (step, group, unit, age, utility), and counts by age."""
    born = {n: np.full(w, -1) for n, w in WIDTHS.items()}
    before, looked = {}, -LOOK_EVERY
    rows, seen = [], {n: np.zeros((len(AGES), 2), int) for n in WIDTHS}
    for t in range(STEPS):
        for name in sorted(WIDTHS):
            going = index[name][t][valid[name][t]]
            rows += [(t, name, unit, t - born[name][unit], utility[name][t][unit]) for unit in going]
            before[name] = born[name].copy()
            born[name][going] = t
        if t - looked >= LOOK_EVERY and any(valid[name][t].any() for name in WIDTHS):
            looked = t
            for name in WIDTHS:
                for birth, value in zip(before[name], utility[name][t], strict=True):
                    if birth >= 0:
                        row = seen[name][max(i for i, edge in enumerate(AGES) if edge <= t - birth)]
                        row += [1, value > np.median(utility[name][t])]
    return rows, seen


@jax.jit
def written(index, valid, utility):
    def step(carry, row):
        now, age = carry
        t, index, valid, utility = row
        age = {n: a + 1 for n, a in age.items()}
        going = {n: Replacement(index[n], valid[n], {}) for n in WIDTHS}
        now = record(now, t, going, age, utility)
        return (now, {n: jnp.where(going[n].mask(w), 0, age[n]) for n, w in WIDTHS.items()}), None

    start = empty(8, WIDTHS), {n: jnp.zeros(w, jnp.int32) for n, w in WIDTHS.items()}
    return jax.lax.scan(step, start, (jnp.arange(STEPS), index, valid, utility))[0][0]


def test_the_ring_keeps_the_newest_and_counts_what_it_lost():
    index, valid, utility = story(0)
    rows, seen = told(index, valid, utility)
    found = written(index, valid, utility)
    kept = events(found)
    assert len(rows) > 8 and kept.lost == len(rows) - 8
    ours = list(zip(kept.step, kept.group, kept.unit, kept.age, kept.utility, strict=True))
    assert ours == [(t, g, u, a, np.float32(v)) for t, g, u, a, v in rows[-8:]]
    for name in WIDTHS:
        np.testing.assert_array_equal(found.usefulness[name], seen[name])
    assert 15 <= seen["b"][:, 0].sum() <= 25  # in 450 steps five looks at five units, without those of the beginning


def test_lanes_are_as_alone():
    stories = [story(seed) for seed in (1, 2, 3)]
    alone = [written(*one) for one in stories]
    together = jax.vmap(written)(*jax.tree.map(lambda *leaves: np.stack(leaves), *stories))
    jax.tree.map(lambda a, *b: np.testing.assert_array_equal(a, np.stack(b)), together, *alone)


def test_nothing_valid_leaves_it_as_it_is():
    index, valid, utility = story(0)
    found = written(index, jax.tree.map(np.zeros_like, valid), utility)
    jax.tree.map(np.testing.assert_array_equal, found, empty(8, WIDTHS))
    assert events(found).lost == 0 and events(found).step.shape == (0,)


def test_a_full_count_stops_and_does_not_wrap():
    now = empty(4, "a")
    full = jnp.full_like(now.usefulness["a"], 2**30 + 5)
    now = now._replace(usefulness={"a": full}, written=jnp.int32(2**31 - 1))
    goes = {"a": Replacement(jnp.array([1], jnp.int32), jnp.array([True]), {})}
    after = recorded(now, jnp.int32(7), goes, {"a": jnp.array([3, 8])}, {"a": jnp.array([2.0, 1.0])})
    np.testing.assert_array_equal(after.usefulness["a"], full)
    assert after.written == 2**31 - 1


def test_classes_of_age_begin_where_they_say():
    assert AGES[:8] == (1, 2, 3, 4, 6, 8, 12, 16) and AGES[-1] < 2**31
    age = {"a": jnp.array([8, 7, 12, 101])}  # the last one is there from the beginning
    goes = {"a": Replacement(jnp.array([0], jnp.int32), jnp.array([True]), {})}
    seen = recorded(empty(4, "a"), jnp.int32(100), goes, age, {"a": jnp.array([1.0, 2.0, 4.0, 3.0])}).usefulness["a"]
    assert {AGES[i]: tuple(map(int, seen[i])) for i in np.flatnonzero(seen[:, 0])} == {6: (1, 0), 8: (1, 0), 12: (1, 1)}


def test_it_is_found_wherever_it_lies():
    now = empty(2, WIDTHS)
    state = State(now, {"a": 1, "b": 2})
    assert find((1, {"x": (state, jnp.ones(3))})) == (now, state.age)
    assert find({"x": jnp.ones(3)}) is None and find(State(None, {})) is None


def test_one_step_may_fill_more_than_the_ring():
    """The last rows of that step stay."""
    goes = {n: Replacement(jnp.arange(w)[::-1], jnp.ones(w, bool), {}) for n, w in WIDTHS.items()}
    values = {n: jnp.arange(w, dtype=jnp.float32) for n, w in WIDTHS.items()}
    ages = {n: jnp.full(w, 10) for n, w in WIDTHS.items()}
    kept = events(recorded(empty(6, WIDTHS), jnp.int32(9), goes, ages, values))
    assert kept.lost == 2 and kept.age.tolist() == [10] * 6
    assert kept.group.tolist() == ["a"] + ["b"] * 5 and kept.unit.tolist() == [0, 4, 3, 2, 1, 0]
    np.testing.assert_array_equal(kept.utility, kept.unit)


def test_no_history_stays_none():
    assert empty(0, WIDTHS) is None and record(None, jnp.int32(0), {}, {}, {}) is None


NETWORK = MLP(widths=(6, 4), outputs=1)
METHODS = {
    "continual_backprop": lambda units, key: continual_backprop(
        optax.sgd(0.05), units, replacement_rate=0.1, maturity_threshold=5, key=key, max_replacements=2, log_size=16
    ),
    "redo": lambda units, key: redo(optax.sgd(0.05), units, threshold=0.6, period=7, key=key, log_size=16),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_tells_what_its_ages_tell(method):
    """Under `vmap` too, where lanes replace at different steps; nothing else of the method depends on the history."""
    x = jax.random.normal(jax.random.key(0), (60, 5, 3))
    params = NETWORK.init(jax.random.key(1), x[0])["params"]
    units = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), params, x[0])

    def learn(seed):
        tx = METHODS[method](units, jax.random.key(seed))

        def step(carry, x):
            params, state = carry

            def objective(params):
                y, features = units.apply(params, x)
                return jnp.mean((y - jnp.sin(x[:, :1])) ** 2), features

            grads, features = jax.grad(objective, has_aux=True)(params)
            updates, state = tx.update(grads, state, params, features=features)
            return (optax.apply_updates(params, updates), state), state.age

        start = jax.tree.map(lambda p: p + 0.01 * seed, params)
        (_, state), ages = jax.lax.scan(step, (start, tx.init(start)), x)
        return state, ages

    states, ages = jax.jit(jax.vmap(learn))(jnp.arange(3))
    number = 0
    for lane in range(3):
        state, age = jax.tree.map(lambda leaf, i=lane: leaf[i], (states, ages))
        rows = []
        for t in range(60):
            for name in sorted(age):
                before = age[name][t - 1] if t else np.zeros_like(age[name][0])
                gone = np.flatnonzero(age[name][t] == 0)
                rows += sorted((t, name, int(unit), int(before[unit]) + 1) for unit in gone)
        kept = events(state.log)
        assert kept.lost == max(0, len(rows) - 16) and len(kept.step) == min(len(rows), 16)
        ours = zip(kept.step.tolist(), kept.group.tolist(), kept.unit.tolist(), kept.age.tolist(), strict=True)
        assert set(ours) <= set(rows) and kept.step.tolist() == [row[0] for row in rows[-16:]]
        assert sum(int(n) for n in state.replaced.values()) == len(rows)
        number += len(rows)
    assert number > 20
