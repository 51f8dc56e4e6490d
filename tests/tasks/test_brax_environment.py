"""Environments that change: episodes, their starts, what changes and when, and what friction does to a sliding ant."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.config.registry import find_task
from launch.config.syntax import parse_call
from launch.errors import InputError
from tasks import brax_environment as module
from tasks.brax_environment import BACKENDS, BraxEnvironment, brax_environment
from tests.marks import slow_unless

KEY = jax.random.key(3)


# -- a Brax-like environment whose every step is known: it counts, and rewards with its gravity


class Counted(NamedTuple):
    obs: jax.Array
    reward: jax.Array
    done: jax.Array

    def replace(self, **change):
        return self._replace(**change)


@dataclasses.dataclass(frozen=True)
class System:
    gravity: Any = 1.0

    def replace(self, **change):
        return dataclasses.replace(self, **change)


class Counting:
    """Sees a random start and how many steps have been taken since; ends after 5 where the start is above 1."""

    observation_size, action_size = 2, 1

    def __init__(self):
        self.sys = System()

    def reset(self, rng):
        start = jax.random.uniform(rng, maxval=2.0)
        return Counted(jnp.stack([start, 0.0]), jnp.zeros([]), jnp.zeros([]))

    def step(self, state, action):
        obs = state.obs + jnp.array([0.0, 1.0])
        done = jnp.where((obs[0] > 1) & (obs[1] >= 5), 1.0, 0.0)
        return Counted(obs, self.sys.gravity * jnp.ones([]), done)


@pytest.fixture
def counting(monkeypatch):
    env = Counting()
    monkeypatch.setattr(module, "brax_environment", lambda name, backend: env)
    return functools.partial(
        BraxEnvironment, "counting", environments=3, episode_length=8, change="gravity", change_every=30
    )


def played(task, steps, key=KEY):
    """Everything that is given in some steps, `[steps, E]`, and the states before each."""

    @jax.jit
    def play(state):
        def body(state, clock):
            after, given = task.step(state, jnp.zeros((task.environments, 1)), clock)
            following = jax.lax.cond(given.renews, lambda: task.renew(after, given, clock), lambda: after)
            return following, (state, given)

        return jax.lax.scan(body, state, jnp.arange(steps, dtype=jnp.int32) * task.environments)[1]

    states, given = play(task.init(key, ()))
    return jax.tree.map(np.asarray, (states._replace(key=None), given))


def seen_in(given, name, steps=None):
    total, count = (values[:steps] for values in given.seen[name])
    return float(total.sum() / count.sum()), int(count.sum())


def test_episodes_end_by_themselves_or_in_time_and_say_which(counting):
    states, given = played(counting(change="none"), 40)
    start, steps = states.physics.obs[..., 0], states.physics.obs[..., 1]
    over = given.terminated | given.truncated
    np.testing.assert_array_equal(given.terminated, (start > 1) & (steps == 4))
    np.testing.assert_array_equal(given.truncated, (start <= 1) & (steps == 7))
    np.testing.assert_array_equal(given.observation[..., 1], steps + 1)  # where the step led, not the new start
    np.testing.assert_array_equal(steps[1:][over[:-1]], 0)
    np.testing.assert_array_equal(given.renews, over.any(axis=1))
    number = over.sum()
    lengths = np.where(given.terminated, 5, 8)[over]
    assert seen_in(given, "episode_length") == (pytest.approx(lengths.mean()), number)
    assert seen_in(given, "episode_return") == (pytest.approx(lengths.mean()), number)  # a reward of 1 each


def test_every_episode_has_a_start_of_its_own_that_repeats_with_the_seed(counting):
    task = counting(change="none")
    starts = played(task, 40)[0].physics.obs[..., 0]
    again, other = (played(task, 40, key)[0].physics.obs[..., 0] for key in (KEY, jax.random.key(4)))
    np.testing.assert_array_equal(starts, again)
    assert not np.any(starts == other)
    assert len(np.unique(starts)) == sum(1 + (np.diff(starts[:, e]) != 0).sum() for e in range(3))


@pytest.mark.parametrize("change_at", ["episode_end", "once"])
def test_what_changes_changes_for_all_that_follows_when_it_is_due(counting, change_at):
    task = counting(change_at=change_at)
    states, given = played(task, 60)
    values = np.asarray(task.condition(KEY, jnp.arange(7)))
    np.testing.assert_allclose(given.reward, states.condition)
    np.testing.assert_allclose(states.condition, values[states.changes], rtol=1e-6)
    over = given.terminated | given.truncated
    delays = []
    for e in range(3):
        for t in range(1, 60):
            due = t * 3 // 30
            if states.changes[t, e] != states.changes[t - 1, e]:
                assert states.changes[t, e] == due
                assert change_at == "once" or over[t - 1, e]
                delays.append(t * 3 - due * 30)
            elif change_at == "once" or over[t - 1, e]:
                assert states.changes[t, e] == due
    assert len(delays) > 10
    assert (max(delays) == 0) == (change_at == "once")
    assert seen_in(given, "change_delay", -1) == (pytest.approx(np.mean(delays)), len(delays))
    assert seen_in(given, "condition")[0] == pytest.approx(states.condition.mean())


def test_an_episode_whose_physics_breaks_is_over_and_earns_nothing(counting, monkeypatch):
    class Breaking(Counting):
        def step(self, state, action):
            after = super().step(state, action)
            broken = after.obs[1] == 3
            return after._replace(obs=after.obs.at[0].set(jnp.where(broken, jnp.nan, after.obs[0])))

    env = Breaking()
    monkeypatch.setattr(module, "brax_environment", lambda name, backend: env)
    states, given = played(counting(change="none"), 12)
    assert np.all(given.terminated == (np.arange(12) % 3 == 2)[:, None])
    np.testing.assert_array_equal(given.reward[:3, 0], [1, 1, 0])
    assert all(np.isfinite(each).all() for each in (given.observation, given.reward, states.physics.obs, states.total))


def test_an_action_that_is_no_number_moves_nothing(counting, monkeypatch):
    class Pushed(Counting):
        def step(self, state, action):
            after = super().step(state, action)
            return after._replace(obs=after.obs.at[0].add(action[0]))

    monkeypatch.setattr(module, "brax_environment", lambda name, backend: Pushed())
    task = counting(change="none")
    state = task.init(KEY, ())
    after, given = task.step(state, jnp.array([[jnp.nan], [1.0], [jnp.inf]]), jnp.int32(0))
    np.testing.assert_allclose(after.physics.obs[:, 0] - state.physics.obs[:, 0], [0, 1, 0], atol=1e-6)
    assert not given.terminated.any()


def test_values_follow_from_seed_and_number_alone_and_are_log_uniform():
    task = BraxEnvironment(change="friction")
    values = np.log(np.asarray(task.condition(KEY, jnp.arange(4000))))
    low, high = np.log(0.02), np.log(2)
    assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    quantiles = np.quantile(values, np.linspace(0, 1, 21))
    np.testing.assert_allclose((quantiles - low) / (high - low), np.linspace(0, 1, 21), atol=0.03)
    levels = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]
    published = [0.0257, 0.0314, 0.0648, 0.1995, 0.6080, 1.2468, 1.5734]  # of the 5,000 frictions of the authors' file
    np.testing.assert_allclose(np.exp(np.quantile(values, levels)), published, rtol=0.12)
    assert task.condition(KEY, 7) == BraxEnvironment("hopper", change="friction").condition(KEY, 7)
    assert task.condition(jax.random.key(4), 7) != task.condition(KEY, 7)
    bounds = dataclasses.replace(task, low=0.5, high=0.6).condition(KEY, jnp.arange(100))
    assert bounds.min() >= 0.5 and bounds.max() <= 0.6


def test_values_in_turn_come_back_and_are_the_first_of_those_that_do_not():
    task = BraxEnvironment(change="friction", change_every=16_000)
    once = task.condition(KEY, jnp.arange(6))
    in_turn = dataclasses.replace(task, cycle=2)
    np.testing.assert_array_equal(in_turn.condition(KEY, jnp.arange(6)), jnp.tile(once[:2], 3))
    assert [value for _, value in in_turn.changes_until(KEY, 48_000)] == [once[0], once[1], once[0]]
    assert len(set(once.tolist())) == 6


# -- Brax's ant


ANT = BraxEnvironment(environments=4, change="friction")
FRICTIONS = (0.02, 0.1, 0.5, 2.0)


@functools.cache
def ant(backend="spring"):
    return brax_environment("ant", backend)


def put(task, condition, q, qd):
    """Every environment's ant at that place with that speed, on its own value of what changes."""
    state = task.init(KEY, ())
    physics = jax.vmap(lambda value: task._changed(value).pipeline_init(q, qd))(jnp.asarray(condition))
    return state._replace(physics=state.physics.replace(pipeline_state=physics), condition=jnp.asarray(condition))


def slid(backend):
    """Metres that ants slide that are pushed at 3 m/s, by friction: 3 s but the first step, in which they land."""
    task = dataclasses.replace(ANT, backend=backend)
    system = ant(backend).sys

    @jax.jit
    def slide():
        state = put(task, FRICTIONS, system.init_q, jnp.zeros(system.qd_size()).at[0].set(3.0))
        step = lambda _, state: task.step(state, jnp.zeros((4, 8)), jnp.int32(0))[0]  # noqa: E731
        landed = step(0, state)
        stopped = jax.lax.fori_loop(1, 60, step, landed)
        return (stopped.physics.pipeline_state.x.pos - landed.physics.pipeline_state.x.pos)[:, 0, 0]

    return np.asarray(slide())


def test_an_ant_slides_as_far_as_its_friction_lets_it():
    found = slid("spring")
    known = [3 * 3 - 0.5 * 9.81 * 0.02 * 9, *(3**2 / (2 * 9.81 * f) for f in FRICTIONS[1:])]  # a sliding body's
    np.testing.assert_allclose(found[:3], known[:3], rtol=0.2)
    assert 0.1 < found[3] < 0.4  # it tips over its legs, and does not only slide


@pytest.mark.parametrize("backend", BACKENDS[:3])
def test_a_factor_of_1_leaves_masses_as_the_backend_takes_them(backend):
    system = ant(backend).sys
    scaled = module._mass(system, jnp.float32(1.0), backend)
    exponents = (1 - system.spring_mass_scale, 1 - system.spring_inertia_scale) if backend != "generalized" else (1, 1)
    inertia = system.link.inertia
    np.testing.assert_allclose(scaled.link.inertia.mass, inertia.mass ** exponents[0], rtol=1e-6)
    np.testing.assert_allclose(scaled.link.inertia.i, inertia.i ** exponents[1], rtol=1e-6)
    assert scaled.spring_mass_scale == scaled.spring_inertia_scale == 0
    twice = module._mass(system, jnp.float32(2.0), backend).link.inertia
    np.testing.assert_allclose(twice.i, 2 * np.asarray(scaled.link.inertia.i), rtol=1e-6)


def test_two_episodes_of_an_ant_start_from_different_places():
    task = dataclasses.replace(ANT, episode_length=2, change="none")

    @jax.jit
    def starts():
        state = task.init(KEY, ())
        places = [state.physics.pipeline_state.q]
        for clock in (0, 4):
            state, given = task.step(state, jnp.zeros((4, 8)), jnp.int32(clock))
        places.append(task.renew(state, given, jnp.int32(4)).physics.pipeline_state.q)
        return jnp.concatenate(places)

    q = np.asarray(starts())
    assert len(np.unique(q, axis=0)) == 8
    np.testing.assert_array_less(np.abs(q - np.asarray(ant().sys.init_q)), 0.1 + 1e-6)


@pytest.mark.parametrize("change", slow_unless(lambda name: name == "mass", ["gravity", "mass", "actuator_strength"]))
def test_an_ant_feels_what_changes(change):
    task = dataclasses.replace(ANT, environments=2, change=change)
    system = ant().sys

    @jax.jit
    def moved():
        high = system.init_q.at[2].set(5.0)
        state = put(task, (0.5, 1.0), high, jnp.zeros(system.qd_size()))
        after, _ = task.step(state, jnp.full((2, 8), 0.2), jnp.int32(0))
        return after.physics.pipeline_state.qd

    half, whole = np.asarray(moved())
    fall, joints = half[2] / whole[2], np.abs(half[6:]).sum() / np.abs(whole[6:]).sum()
    np.testing.assert_allclose(fall, 0.5 if change == "gravity" else 1.0, rtol=0.1)
    low, high = {"gravity": (0.9, 1.1), "mass": (1.15, 2.0), "actuator_strength": (0.4, 0.6)}[change]  # joints damp
    assert low < joints < high


# -- what cannot be


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slippery_ant(environment=antt)", ["environment: Brax has no 'antt'", "did you mean ant?"]),
        ("ant(environment=zebra)", ["Brax has no 'zebra'", "allowed are ant,"]),
        ("ant(backend=mujoco)", ["backend: got 'mujoco'", ", ".join(BACKENDS)]),
        ("slippery_ant(backend=mjx)", ["backend: got 'mjx'", "slides wrongly", "spring, positional, generalized"]),
        ("ant(backend=mjx,change=gravity)", ["backend: got 'mjx'", "gravity"]),
        ("slippery_ant(low=0)", ["low: got 0", "friction must be above 0"]),
        ("slippery_ant(high=-1.0)", ["high: got -1.0", "above 0"]),
        ("slippery_ant(cycle=0)", ["cycle: got 0"]),
        ("ant(cycle=2)", ["cycle: got 2", "nothing changes"]),
        ("ant(low=2)", ["low: got 2", "nothing changes", "change=friction"]),
        ("slippery_ant(change_every=2147483648)", ["change_every: got 2147483648", "up to 2147483647"]),
        ("slippery_ant(low=3)", ["low: got 3, above high, 2"]),
        ("slippery_ant(change_every=999,environments=1)", ["change_every: got 999", "from 1000 on", "an episode"]),
        ("slippery_ant(change_every=15999)", ["got 15999", "from 16000 on", "each of 16 environments"]),
        ("slippery_ant(change_at=now)", ["change_at: got 'now'", "episode_end, once"]),
        ("ant(change=colour)", ["change: got 'colour'", "friction, mass, gravity"]),
        ("ant(change=mass,change_at=once)", ["change_at", "mass", "episode_end"]),
        ("ant(environments=0)", ["environments: got 0"]),
        ("ant(environment=fast,change=friction)", ["fast has no bodies"]),
    ],
)
def test_what_cannot_be_is_one_line(text, words):
    with pytest.raises((InputError, ValueError)) as error:
        _ = find_task(parse_call("--task", text))[1].spec
    said = str(error.value)
    assert "\n" not in said
    assert all(word in said for word in words), said


def test_what_can_be_made_and_not_be_used_is_one_line(monkeypatch):
    from brax import envs

    class Old(Counting):
        def step(self, state, action):
            return jnp.clip(state, a_minimum=0)

    monkeypatch.setitem(envs._envs, "old", lambda backend: Old())
    with pytest.raises(ValueError, match=r"^backend: 'spring' does not do for old: clip\(\) got an unexpected"):
        _ = BraxEnvironment("old").spec


def test_notes_say_what_changes():
    assert BraxEnvironment().note == "Brax ant (spring), 16 at once"
    note = find_task(parse_call("", "slippery_ant(change_at=once,environments=1)"))[1].note
    assert note == "Brax ant (spring), 1 at once; friction from [0.02, 2] every 2,000,000 steps, at once"


def test_the_environment_itself_is_never_changed():
    before = ant().sys
    assert ANT._changed(jnp.float32(0.3)).sys is not before
    assert ant().sys is before
