"""MinAtar's games: one after the other, episodes cut off at a change, the same for all seeds."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.config.experiment import Experiment, resolve
from launch.engine.build import load_data
from launch.errors import InputError
from tasks import minatar
from tasks.minatar import ALL_ACTIONS, GAMES, SIDE, MinAtar, gymnax_game

NUMBER, STEPS, EVERY = 3, 60, 60
TASK = MinAtar("space_invaders", NUMBER, 15, "game", EVERY, ("breakout", "space_invaders"))


def needs_gymnax():
    pytest.importorskip("gymnax", reason="THE GAMES ARE NOT TESTED: package 'gymnax' is not installed")


@pytest.fixture(scope="module")
def played():
    """Everything of two seeds, `[seed, steps, E, ...]`: before each step what is seen, and what is given."""
    needs_gymnax()
    TASK.load()

    def play(key):
        def body(state, clock):
            action = jax.random.randint(jax.random.fold_in(key, clock), (NUMBER,), 0, ALL_ACTIONS)
            after, given = TASK.step(state, action, clock)
            following = jax.lax.cond(given.renews, lambda: TASK.renew(after, given, clock), lambda: after)
            return following, (state.observation, state.length, given)

        clocks = NUMBER * jnp.arange(STEPS, dtype=jnp.int32)
        return jax.lax.scan(body, TASK.init(key, ()), clocks)[1]

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), 2)))


def test_games_follow_each_other_and_episodes_are_cut_off_at_a_change(played):
    observation, length, given = played
    clock = NUMBER * np.arange(STEPS)
    turn = clock // EVERY % 2
    np.testing.assert_array_equal(given.seen["condition"][0] / NUMBER, np.broadcast_to(1 - turn, (2, STEPS)))
    pictures = observation.reshape(2, STEPS, NUMBER, SIDE, SIDE, 6)
    # Of breakout's four channels the last holds bricks, of which space invaders has none in its two last channels.
    assert np.all(pictures[:, turn == 1][..., 4:] == 0)
    assert np.all(pictures[:, turn == 1][..., 3].sum((-1, -2)) > 0)
    assert np.all(pictures[:, turn == 0][..., 0].sum((-1, -2)) == 1)  # the cannon
    last = (clock + NUMBER) % EVERY == 0
    over = given.terminated | given.truncated
    assert last.sum() == 3 and over[:, last].all() and not (given.terminated & given.truncated).any()
    np.testing.assert_array_equal(given.truncated, ~given.terminated & ((length == 14) | last[:, None]))
    assert given.terminated.any()
    np.testing.assert_array_equal(length[:, 1:], np.where(over[:, :-1], 0, length[:, :-1] + 1))
    assert not np.array_equal(observation[0], observation[1])
    goes_on = ~over[:, :-1]
    np.testing.assert_array_equal(observation[:, 1:][goes_on], given.observation[:, :-1][goes_on])


def test_returns_are_those_of_episodes_that_end_without_a_change(played):
    _, length, given = played
    last = ((NUMBER * np.arange(STEPS) + NUMBER) % EVERY == 0)[:, None]
    ended = given.terminated | (given.truncated & ((length == 14) | ~last))
    total, returns = np.zeros((2, NUMBER)), np.zeros((2, STEPS))
    for t in range(STEPS):
        total += given.reward[:, t]
        returns[:, t] = np.sum(total * ended[:, t], axis=1)
        total *= ~(given.terminated | given.truncated)[:, t]
    np.testing.assert_allclose(given.seen["episode_return"][0], returns, rtol=1e-6)
    np.testing.assert_array_equal(given.seen["episode_return"][1], ended.sum(-1))
    np.testing.assert_array_equal(given.seen["episode_length"][0], np.sum((length + 1) * ended, axis=-1))
    assert returns.sum() > 0


def test_only_the_game_that_is_played_is_computed_though_lanes_share_a_program():
    needs_gymnax()
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.eval_shape(jax.vmap(lambda key: TASK.init(key, ())), keys)
    action = jax.ShapeDtypeStruct((2, NUMBER), jnp.int32)
    program = jax.make_jaxpr(jax.vmap(TASK.step, (0, 0, None)))(states, action, jax.ShapeDtypeStruct((), jnp.int32))
    assert [len(each.params["branches"]) for each in program.eqns if each.primitive.name == "cond"] == [2]


def test_sizes_are_those_of_gymnax():
    needs_gymnax()
    for name, game in GAMES.items():
        for everything in (False, True):
            env = gymnax_game(name, everything)
            assert env.name == game.name and env.obs_shape == (SIDE, SIDE, game.channels)
            assert env.num_actions == (ALL_ACTIONS if everything else game.actions)


def test_a_sequence_is_known_beforehand():
    assert TASK.sequence == ("space_invaders", "breakout")
    assert TASK.spec.input_shape == (600,) and TASK.spec.outputs == 6 and TASK.spec.discrete
    assert MinAtar("freeway").spec.input_shape == (700,) and MinAtar("freeway").spec.outputs == 3
    assert TASK.changes_until(jax.random.key(0), 150) == [(0, 1.0), (60, 0.0), (120, 1.0)]
    assert MinAtar().changes_until(jax.random.key(0), 150) == []
    assert "another game: space_invaders, breakout" in TASK.note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("game=brekout", "game: got 'brekout', allowed are asterix, breakout, freeway"),
        ("change=friction", "change: got 'friction', allowed are none, game"),
        ("games=('pong',)", r"games: got \('pong',\), allowed are tuples of asterix"),
        ("change=game,games=('breakout','breakout')", "a sequence has two or more different games"),
        ("change=game,game=freeway,games=('breakout','asterix')", "game: got 'freeway', the sequence begins with one"),
        ("change=game,change_every=1000", "change_every: got 1000, allowed are multiples of 64"),
        ("environments=0", "environments: got 0, allowed are integers from 1 up"),
    ],
)
def test_wrong_settings_are_one_line(text, message):
    with pytest.raises(InputError, match=f"--task: .*{message}"):
        resolve(Experiment(f"minatar({text})", "backprop", (0,)))


def test_without_gymnax_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    minatar.gymnax_game.cache_clear()
    with pytest.raises(InputError, match=r"game: breakout needs the package gymnax .*pip install 'gymnax>=1.0.1,<2'"):
        load_data(resolve(Experiment("minatar", "backprop", (0,))))
