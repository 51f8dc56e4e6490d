"""MinAtar's games, by gymnax: one of them, or one after the other with the same network."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tasks.base import ControlSpec, Environment, Schedule, Step, check_fields


class Game(NamedTuple):
    """A game: gymnax's name, channels of its 10 x 10 picture, and the actions that do anything in it."""

    name: str
    channels: int
    actions: int


GAMES = {
    "asterix": Game("Asterix-MinAtar", 4, 5),
    "breakout": Game("Breakout-MinAtar", 4, 3),
    "freeway": Game("Freeway-MinAtar", 7, 3),
    "seaquest": Game("Seaquest-MinAtar", 10, 6),
    "space_invaders": Game("SpaceInvaders-MinAtar", 6, 4),
}
SIDE, ALL_ACTIONS = 10, 6

_STEP, _RESET = 0, 1


class MinAtarState(NamedTuple):
    """Where the environments of a lane are, `E` of them.

    Attributes:
        key: typed key; all chance follows from it.
        games: gymnax's state of every game of the sequence, `[E, ...]`; only that of the game played moves.
        observation: float32 `[E, n]`.
        length: int32 `[E]`, steps of this episode.
        total: float32 `[E]`, rewards of this episode.
    """

    key: jax.Array
    games: tuple[Any, ...]
    observation: jax.Array
    length: jax.Array
    total: jax.Array


@dataclasses.dataclass(frozen=True)
class MinAtar(Environment):
    """A game of MinAtar, `environments` times; with `change="game"` another game every `change_every` steps.

    What is seen are the 10 x 10 cells of every channel, 0 or 1, in one row. A game alone has the actions that do
    anything in it. In a sequence all games share the network with its heads: they have MinAtar's six actions, and
    pictures of fewer channels are filled up with 0.

    Game number `k` of a sequence, from `k * change_every` steps of all environments together on, is the one `k` places
    after `game` in `games`, which begins again after its last; the sequence is the same for all seeds. At a change all
    episodes are cut off, as by a time limit.

    Measured: `episode_return` and `episode_length` of episodes that end otherwise; in a sequence `condition`, the
    place in `games` of what is played.

    Source: Young and Tian 2019, "MinAtar: An Atari-inspired testbed for thorough and reproducible reinforcement
    learning experiments"; Lange 2022, gymnax. Sequences of its games: Anand and Precup 2023, "Prediction and control in
    continual reinforcement learning".

    Differs from MinAtar as gymnax does: actions do not stick, and an episode is cut off.

    Attributes:
        game: one of `GAMES`; of a sequence the first.
        environments: how many at once.
        episode_length: steps after which an episode is cut off; `None`: 1000, of freeway 2500.
        change: `none` or `game`.
        change_every: steps of all environments together with a game, a multiple of `environments`.
        games: the sequence, of which `game` is one.
    """

    game: str = "breakout"
    environments: int = 64
    episode_length: int | None = None
    change: str = "none"
    change_every: int = 1_024_000
    games: tuple[str, ...] = ("breakout", "space_invaders", "freeway", "asterix", "seaquest")

    def __post_init__(self) -> None:
        check_fields(
            self,
            ("environments", "episode_length", "change_every"),
            ("episode_length",),
            choices={"game": tuple(GAMES), "change": ("none", "game")},
        )
        if not isinstance(self.games, tuple) or any(game not in GAMES for game in self.games):
            raise ValueError(f"games: got {self.games!r}, allowed are tuples of {', '.join(GAMES)}")
        if not self.changes:
            return
        if len(set(self.games)) != len(self.games) or len(self.games) < 2:
            raise ValueError(f"games: got {self.games!r}, a sequence has two or more different games")
        if self.game not in self.games:
            raise ValueError(f"game: got {self.game!r}, the sequence begins with one of its games, {self.games}")
        if self.change_every % self.environments:
            raise ValueError(
                f"change_every: got {self.change_every}, allowed are multiples of {self.environments}, a step of all"
            )

    @property
    def sequence(self) -> tuple[str, ...]:
        """What is played, in order, over and over."""
        if not self.changes:
            return (self.game,)
        first = self.games.index(self.game)
        return self.games[first:] + self.games[:first]

    @property
    def changes(self) -> bool:
        return self.change == "game"

    @property
    def spec(self) -> ControlSpec:
        channels = max(GAMES[game].channels for game in self.sequence)
        actions = ALL_ACTIONS if self.changes else GAMES[self.game].actions
        # A lane that has diverged counts as one that earns nothing.
        failure = {"episode_return": 0.0, "episode_length": 1.0}
        return ControlSpec((SIDE * SIDE * channels,), actions, self.environments, failure, discrete=True)

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.change_every, None, None, None)

    @property
    def note(self) -> str:
        if not self.changes:
            return f"MinAtar {self.game}, {self.environments} at once"
        return f"MinAtar, {self.environments} at once; every {self.change_every:,} steps another game: " + ", ".join(
            self.sequence
        )

    def changes_until(self, key: jax.Array, steps: int) -> list[tuple[int, float]]:
        if not self.changes:
            return []
        return [(due, float(self.place(due))) for due in range(0, steps, self.change_every)]

    def place(self, clock: Any) -> Any:
        """The place in `games` of what is played at that step."""
        return (self.games.index(self.game) + clock // self.change_every) % len(self.games)

    def load(self) -> tuple[()]:
        for game in self.sequence:
            gymnax_game(game, self.changes)
        return ()

    def init(self, key: jax.Array, data: Any) -> MinAtarState:
        keys = self._keys(key, _RESET, jnp.int32(0))
        starts = [self._reset(i, keys) for i in range(len(self.sequence))]
        nothing = jnp.zeros(self.environments)
        games = tuple(state for state, _ in starts)
        return MinAtarState(key, games, starts[0][1], nothing.astype(jnp.int32), nothing)

    def observe(self, state: MinAtarState) -> jax.Array:
        """What is seen now, `[E, n]`."""
        return state.observation

    def step(self, state: MinAtarState, action: jax.Array, clock: jax.Array) -> tuple[MinAtarState, Step]:
        """One step of all environments with int32 actions `[E]`; `clock` counts their steps together before it."""
        keys = self._keys(state.key, _STEP, clock)
        branches = [functools.partial(self._play, i) for i in range(len(self.sequence))]
        games, observation, reward, terminated, over = self._switch(clock, branches, state.games, action, keys)
        state = state._replace(
            games=games, observation=observation, length=state.length + 1, total=state.total + reward
        )
        over = over & ~terminated
        ended = terminated | over
        number = jnp.sum(ended, dtype=jnp.float32)
        seen = {
            "episode_return": (jnp.sum(jnp.where(ended, state.total, 0)), number),
            "episode_length": (jnp.sum(jnp.where(ended, state.length, 0), dtype=jnp.float32), number),
        }
        if self.changes:
            each = jnp.float32(self.environments)
            seen |= {"condition": (self.place(clock).astype(jnp.float32) * each, each)}
            over = over | (self._due(clock) & ~terminated)
        renews = jnp.any(terminated | over)
        return state, Step(reward, observation, terminated, over, renews, seen)

    def renew(self, state: MinAtarState, step: Step, clock: jax.Array) -> MinAtarState:
        """A new episode where one has ended, of the game that is played from now on."""
        ended = step.terminated | step.truncated
        following = clock + self.environments

        def begin(i: int, games: tuple[Any, ...], keys: jax.Array) -> tuple[tuple[Any, ...], jax.Array]:
            fresh, observation = self._reset(i, keys)
            return _replaced(games, i, jax.tree.map(functools.partial(_where, ended), fresh, games[i])), observation

        branches = [functools.partial(begin, i) for i in range(len(self.sequence))]
        keys = self._keys(state.key, _RESET, following)
        games, observation = self._switch(following, branches, state.games, keys)
        return MinAtarState(
            state.key,
            games,
            _where(ended, observation, state.observation),
            jnp.where(ended, 0, state.length),
            jnp.where(ended, 0.0, state.total),
        )

    def _due(self, clock: jax.Array) -> jax.Array:
        """Whether the step at `clock` is the last with its game."""
        return (clock + self.environments) % self.change_every == 0

    def _switch(self, clock: jax.Array, branches: list[Callable[..., Any]], *arguments: Any) -> Any:
        """The branch of the game that is played; the clock is the same in all lanes, so that no other is computed."""
        if len(branches) == 1:
            return branches[0](*arguments)
        return jax.lax.switch(clock // self.change_every % len(branches), branches, *arguments)

    def _keys(self, key: jax.Array, purpose: int, clock: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, purpose), clock)
        return jax.random.split(own, self.environments)

    def _play(self, i: int, games: tuple[Any, ...], action: jax.Array, keys: jax.Array) -> tuple[Any, ...]:
        """A step of game `i` of the sequence: all games, what is seen, reward, terminated, and whether time is over."""
        env, params = self._game(i)

        def one(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, ...]:
            observation, after, reward, terminated, _ = env.step_env(key, state, action, params)
            return after, observation, reward, terminated, env.is_truncated(after, params)

        after, observation, reward, terminated, over = jax.vmap(one)(keys, games[i], action)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, games[i])
        reward = reward.astype(jnp.float32)
        return _replaced(games, i, after), self._row(observation), reward, terminated.astype(bool), over.astype(bool)

    def _reset(self, i: int, keys: jax.Array) -> tuple[Any, jax.Array]:
        env, params = self._game(i)
        observation, state = jax.vmap(lambda key: env.reset_env(key, params))(keys)
        # Without weak types, which gymnax leaves in some states and not in others.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state), self._row(observation)

    def _game(self, i: int) -> tuple[Any, Any]:
        env = gymnax_game(self.sequence[i], self.changes)
        params = env.default_params
        length = self.episode_length
        return env, params if length is None else params.replace(max_steps_in_episode=length)

    def _row(self, observation: jax.Array) -> jax.Array:
        channels = self.spec.input_shape[0] // SIDE**2
        missing = channels - observation.shape[-1]
        filled = jnp.pad(observation.astype(jnp.float32), ((0, 0), (0, 0), (0, 0), (0, missing)))
        return filled.reshape(self.environments, -1)


@functools.lru_cache
def gymnax_game(game: str, all_actions: bool) -> Any:
    """gymnax's environment of one of `GAMES`, with MinAtar's six actions or those alone that do anything.

    Raises:
        ValueError: gymnax is not installed, or has another interface.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import gymnax  # takes seconds
    except ImportError as error:
        raise ValueError(
            f"game: {game} needs the package gymnax ({error}); pip install 'gymnax>=1.0.1,<2', with jax below 0.12"
        ) from None
    # Kept for all programs, so it must not belong to the trace of one.
    with jax.ensure_compile_time_eval():
        env, _ = gymnax.make(GAMES[game].name, use_minimal_action_set=not all_actions)
    if not hasattr(env, "is_truncated"):
        raise ValueError(f"game: {game} needs gymnax from 1.0 on, which tells time limits from ends; this one is older")
    return env


def _replaced(games: tuple[Any, ...], i: int, state: Any) -> tuple[Any, ...]:
    return (*games[:i], state, *games[i + 1 :])


def _where(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
