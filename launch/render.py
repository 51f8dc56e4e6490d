"""Show a body as the networks of a run's checkpoints move it, side by side: as a page and as a GIF.

    python -m launch.render DIR [--lane=LANE] [--step=peak,last] [--out=PREFIX] [--steps=200] [--sample]

DIR is a run of PPO on a Brax environment, finished or on its way. LANE is a seed, or `#I` for lane number I from 0 on.
`--step` lists what is shown: `peak`, the checkpoint nearest to the end of the bin in which the lane's episodes earned
most; `last`, the newest; or a number, the checkpoint nearest to that step. Near is within a tenth of the steps so far.
Checkpoints stay by `--checkpoint_at=STEP,...` or `--keep=all` of `launch.train`.

Of every checkpoint one episode is shown, from the same noise at its start, on what the checkpoint's first environment
stood on. Actions are the policy's mean, with `--sample` drawn as in training. The return is the sum of the rewards
until the episode is over, not discounted; it is one episode's, where the peak is chosen by the mean of a bin.

Written are `PREFIX.html`, Brax's own viewer with whole episodes, and `PREFIX.gif`, the first `--steps` steps, drawn
without a display. The page loads the viewer and three.js from jsdelivr.net and unpkg.com, so it needs a network; the
GIF does not. PREFIX is `DIR/render_peak_last` unless it is given; nothing is overwritten.
"""

import dataclasses
import functools
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch.cli import run_cli
from launch.config.experiment import Plan, experiment_of, resolve
from launch.config.saved_policy import Policy, moments_of, policy_of
from launch.errors import InputError
from launch.figures.bodies import Moves, Panel, geoms_of, moving
from launch.storage.bins import means, unpacked
from launch.storage.checkpoint import Checkpoints, Saved
from launch.storage.contents import check_new, first_good, lane_number, only_run, unit_of_lane, variables_of
from launch.storage.durable import storing
from launch.storage.run_folder import METRICS, read_meta, read_run
from plastic_jax.learners.moments import Moments
from tasks.base import MOST_STEPS, Step
from tasks.brax_environment import GYM_ANT, BraxEnvironment, brax_environment

PEAK, LAST = "peak", "last"
STEPS = 200
MEASURE = "episode_return"
SHOWN_STEPS = 12
COMMAND = "python -m launch.render DIR"


class Episode(NamedTuple):
    """An episode of `n` steps: where the links are before each step and after the last, and `reward` `[n]`."""

    moves: Moves
    reward: np.ndarray

    @property
    def total(self) -> float:
        """The return, not discounted."""
        return float(np.sum(self.reward, dtype=np.float64))


class Asked(NamedTuple):
    """A checkpoint to show: what it was asked as, the step that was meant, and the lane's number in the checkpoint."""

    names: tuple[str, ...]
    meant: int
    saved: Saved
    lane: int


class Shown(NamedTuple):
    """A checkpoint and its episode: `condition` is the value of `change`, `None` where nothing changes."""

    asked: Asked
    change: str
    condition: float | None
    episode: Episode

    @property
    def caption(self) -> str:
        """Two lines: which network, and how its episode went."""
        names, step = " and ".join(self.asked.names), self.asked.saved.step
        names += ": " * bool(names)
        near = "" if step == self.asked.meant else f" (nearest to {self.asked.meant:,})"
        on = "" if self.condition is None else f", {self.change.replace('_', ' ')} {self.condition:.3g}"
        lived = len(self.episode.reward)
        return f"{names}step {step:,}{near}\nreturn {self.episode.total:,.1f} in {lived:,} steps{on}"


def render(
    directory: Path | str,
    lane: str = "#0",
    steps: Sequence[str] = (PEAK, LAST),
    out: Path | str | None = None,
    length: int = STEPS,
    sample: bool = False,
) -> tuple[list[Shown], list[Path]]:
    """Write the page and the GIF of one lane; what they show, and where they are.

    Args:
        directory: a run's folder, or a folder with a single run.
        lane: a seed, or `#I` for lane number `I`.
        steps: `peak`, `last`, or the number of a step, in the order in which they are shown.
        out: the files' path without `.html` and `.gif`.
        length: steps of the episodes in the GIF.
        sample: draw actions as in training.

    Raises:
        InputError: no such run or lane, a run without bodies, no checkpoint near a step, or files that are there
            already; all before anything is compiled.
        StorageError: a file cannot be written.
    """
    wanted = _steps(steps)
    if length < 1:
        raise InputError(f"--steps: got {length}, allowed are whole numbers from 1 on")
    folder = only_run(directory, "launch.render")
    paths = _targets(out if out is not None else folder / "_".join(["render", *map(str, wanted)]))
    meta = read_meta(folder)
    if "learner.rollout" not in meta["settings"]:
        raise InputError(f"{folder}: a run of {meta['task']}, which is no environment; only environments have bodies")
    number = lane_number(meta, lane, "--lane")
    plan = resolve(dataclasses.replace(experiment_of(meta), branch_from=""))
    task = _task_with_bodies(plan, folder)
    chosen = _chosen(folder, meta, number, wanted)
    policy = policy_of(plan, meta["label"])
    shown = [_shown(one, task, policy, sample) for one in chosen]
    about = f"{meta['label']}, seed {meta['lanes'][number]['seed']}; {task.environment} ({task.backend})"
    actions = "drawn actions" if sample else "mean actions"
    _write(paths, shown, task, f"{about}, {actions}", length)
    return shown, paths


def _steps(texts: Sequence[str]) -> list[str | int]:
    if not texts:
        raise InputError(f"--step: nothing given; allowed are {PEAK}, {LAST} and steps, separated by commas")
    found: list[str | int] = []
    for text in (each.strip() for each in texts):
        if text not in (PEAK, LAST) and not text.isdecimal():
            raise InputError(f"--step: '{text}' is not {PEAK}, {LAST} or the number of a step")
        found.append(int(text) if text.isdecimal() else text)
    return list(dict.fromkeys(found))


def _targets(prefix: Path | str) -> list[Path]:
    paths = [Path(f"{prefix}.{suffix}") for suffix in ("html", "gif")]
    for path in paths:
        check_new(path)
    return paths


def _task_with_bodies(plan: Plan, folder: Path) -> BraxEnvironment:
    task = plan.task
    if not isinstance(task, BraxEnvironment):
        raise InputError(f"{folder}: {plan.spec.name} is not of Brax, and only its environments have bodies here")
    if task.environment == GYM_ANT:
        raise InputError(f"{folder}: {GYM_ANT} is MuJoCo's, and only Brax's environments have bodies here")
    if not hasattr(brax_environment(task.environment, task.backend), "sys"):
        raise InputError(f"{folder}: Brax's environment '{task.environment}' has no bodies, so there is nothing to see")
    return task


# Checkpoints ----------------------------------------------------------------------------------------------------


def _chosen(folder: Path, meta: Mapping[str, Any], number: int, wanted: Sequence[str | int]) -> list[Asked]:
    """The checkpoints to show, each once, in the order of `wanted`."""
    unit, lane = unit_of_lane(folder, meta, number)
    steps = Checkpoints(unit).steps()
    newest = first_good(unit, reversed(steps))
    if newest is None:
        raise InputError(f"{unit} holds no good checkpoint; train with --keep=1 or more, or --checkpoint_at=STEP")
    found: dict[int, Asked] = {}
    for one in wanted:
        meant = newest.step if one == LAST else one
        if one == PEAK:
            meant = _peak(folder, meta, number, newest, lane)
        assert isinstance(meant, int)
        saved = newest if one == LAST else first_good(unit, sorted(steps, key=lambda step, at=meant: abs(step - at)))
        far = max(int(meta["settings"]["bin"]), newest.step // 10)
        if saved is None or abs(saved.step - meant) > far:
            told = f", which is {meant:,}" * (one == PEAK)
            listed = ", ".join(map(str, steps[-SHOWN_STEPS:]))
            raise InputError(
                f"--step={one}: no checkpoint within {far} steps of it{told}; those of {unit} are of {listed}; "
                f"name one of these, or train with --checkpoint_at={meant} or --keep=all to have more"
            )
        before = found.get(saved.step)
        names = (*(before.names if before else ()), *([one] if isinstance(one, str) else []))
        found[saved.step] = Asked(names, before.meant if before else meant, saved, lane)
    for one in found.values():
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables_of(one.saved, lane))):
            raise InputError(f"--lane: lane #{number} has diverged by step {one.saved.step}: its network is not finite")
    return list(found.values())


def _peak(folder: Path, meta: Mapping[str, Any], number: int, newest: Saved, lane: int) -> int:
    """The step at which the bin of the lane's highest return ends, of all that was measured so far."""
    if meta["finished"] and (folder / METRICS).is_file():
        run = read_run(folder)
        ends, returns = run.step, run.metrics[MEASURE][number]
    else:
        measured = means(unpacked(newest.arrays, len(newest.about["lanes"])))
        returns, size = measured[MEASURE][lane], int(meta["settings"]["bin"])
        ends = np.minimum(size * np.arange(1, len(returns) + 1), newest.step)
    if np.isnan(returns).all():
        raise InputError(f"--step={PEAK}: no episode of lane #{number} had come to an end by step {newest.step}")
    return int(ends[np.nanargmax(returns)])


# Episodes -------------------------------------------------------------------------------------------------------


def _shown(asked: Asked, task: BraxEnvironment, policy: Policy, sample: bool) -> Shown:
    tree, lane = asked.saved.tree, asked.lane
    params = variables_of(asked.saved, lane)["params"]
    moments = moments_of(tree, lane)
    condition = np.float32(tree["task/condition"][lane][0])
    made = episode(task, policy, params, moments, condition, sample)
    return Shown(asked, task.change, float(condition) if task.changes else None, made)


def episode(
    task: BraxEnvironment, policy: Policy, params: Any, moments: Moments | None, condition: Any, sample: bool = False
) -> Episode:
    """One episode of one environment from noise that is always the same; compiled once for all networks of a run."""
    position, rotation, reward, ended = jax.device_get(
        _scanned(task, policy, sample)(params, moments, jnp.float32(condition))
    )
    over = np.flatnonzero(ended)
    lived = int(over[0]) + 1 if len(over) else len(ended)
    return Episode(_finite(Moves(position[: lived + 1], rotation[: lived + 1])), reward[:lived])


def _finite(moves: Moves) -> Moves:
    """The moves; where an episode ended because physics broke, its last frame is the one before."""
    broken = not all(np.isfinite(each[-1]).all() for each in moves)
    return Moves(*(np.concatenate([each[:-1], each[-2:-1]]) for each in moves)) if broken else moves


@functools.lru_cache(maxsize=2)
def _scanned(task: BraxEnvironment, policy: Policy, sample: bool) -> Callable[..., Any]:
    one = dataclasses.replace(task, environments=1, change_every=MOST_STEPS)
    key, size = jax.random.key(0), one.spec.outputs
    yes, clock = jnp.ones(1, bool), jnp.zeros([], jnp.int32)

    def run(params: Any, moments: Moments | None, condition: jax.Array) -> Any:
        state = one.init(key, None)._replace(condition=condition[None])
        over = Step(state.physics.reward, state.physics.obs, yes, ~yes, yes, {})
        state = one.renew(state, over, clock)

        def act(state: Any, noise: jax.Array) -> tuple[Any, Any]:
            action = policy(params, moments, one.observe(state), noise if sample else None)
            state, given = one.step(state, action, clock)
            x = state.physics.pipeline_state.x
            return state, (x.pos[0], x.rot[0], given.reward[0], given.terminated[0])

        noise = jax.random.normal(jax.random.fold_in(key, 1), (one.episode_length, 1, size))
        first = state.physics.pipeline_state.x
        _, (position, rotation, reward, ended) = jax.lax.scan(act, state, noise)
        return jnp.concatenate([first.pos, position]), jnp.concatenate([first.rot, rotation]), reward, ended

    return jax.jit(run)


# Files ----------------------------------------------------------------------------------------------------------


def _write(paths: Sequence[Path], shown: Sequence[Shown], task: BraxEnvironment, about: str, length: int) -> None:
    env = brax_environment(task.environment, task.backend)
    panels = [_panel(one, length) for one in shown]
    made = page(env, shown, about).encode(), moving(geoms_of(env.sys), panels, float(env.dt), about)
    for path, data in zip(paths, made, strict=True):
        with storing(path), open(path, "xb") as file:
            file.write(data)


def _panel(one: Shown, length: int) -> Panel:
    moves = Moves(*(each[: length + 1] for each in one.episode.moves))
    so_far = np.concatenate([[0.0], np.cumsum(one.episode.reward, dtype=np.float64)])
    along = moves.position[:, 0, 0]
    lines = [f"step {i:,}   x {x:.1f} m   return so far {so_far[i]:,.1f}" for i, x in enumerate(along)]
    if len(lines) == len(so_far):
        lines[-1] += ", over"
    return Panel(one.caption, moves, lines)


def page(env: Any, shown: Sequence[Shown], about: str) -> str:
    """A page with Brax's viewer for every episode, side by side."""
    from brax.base import Transform
    from brax.io import html as viewer

    system = env.sys.tree_replace({"opt.timestep": env.dt})
    parts = []
    for one in shown:
        position, rotation = (np.round(np.asarray(each, np.float64), 4) for each in one.episode.moves)
        states = [_State(Transform(pos=p, rot=r)) for p, r in zip(position, rotation, strict=True)]
        inner = html.escape(viewer.render(system, states))  # type: ignore[arg-type]
        first, _, rest = (html.escape(text) for text in one.caption.partition("\n"))
        parts.append(
            f'<figure><figcaption><b>{first}</b><br>{rest}</figcaption><iframe srcdoc="{inner}"></iframe></figure>'
        )
    return PAGE.format(about=html.escape(about), figures="\n".join(parts))


class _State(NamedTuple):
    """What Brax's viewer needs of a state: where the links are."""

    x: Any


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{about}</title>
<style>
body {{ font-family: sans-serif; color: #333; margin: 1rem; }}
main {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
figure {{ flex: 1 1 420px; margin: 0; }}
iframe {{ width: 100%; height: 490px; border: 1px solid #ddd; margin-top: .4rem; }}
p {{ color: #777; font-size: .85rem; }}
</style>
</head>
<body>
<main>
{figures}
</main>
<p>{about}. The viewer is Brax's; it comes from jsdelivr.net and three.js from unpkg.com.</p>
</body>
</html>
"""


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing this module brings none."""
    plain = {"flag_values": values}
    flags.DEFINE_string("lane", "#0", "The lane: a seed, or #I.", **plain)
    flags.DEFINE_list("step", [PEAK, LAST], "Which checkpoints: peak, last, or numbers of steps.", **plain)
    flags.DEFINE_string("out", None, "Path of the files without suffix; default: DIR/render_peak_last.", **plain)
    flags.DEFINE_integer("steps", STEPS, "Steps of the episodes in the GIF; the page holds all.", **plain)
    flags.DEFINE_bool("sample", False, "Draw actions as in training, in place of the policy's mean.", **plain)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: writes the files, prints the returns and where the files are."""
    if len(arguments) != 1:
        raise InputError(f"launch.render: {len(arguments)} folders given, one is needed: {COMMAND}")
    shown, paths = render(arguments[0], values.lane, values.step, values.out, values.steps, values.sample)
    for one in shown:
        print(one.caption.replace("\n", "; "))
    print(*paths, sep="\n")


if __name__ == "__main__":
    define_flags()
    run_cli(main)
