"""Bodies shown as checkpoints move them: the drawing of known shapes, wrong input, and a tiny run end to end."""

import base64
import copy
import html
import io
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import launch
from launch.config.experiment import experiment_of, resolve
from launch.errors import InputError
from launch.figures import bodies
from launch.figures.bodies import AWAY, CAPSULE, DEPTH, PLANE, RIGHT, SPHERE, UP, Geoms, Moves, Panel
from launch.render import _finite, render
from launch.storage.contents import first_good, variables_of
from launch.storage.run_folder import CHECKPOINTS, read_meta, read_run, write_meta
from tasks.brax_environment import brax_environment
from tests.launch import tiny

ROOT = Path(__file__).parents[2]
BODY = "inverted_double_pendulum"
STILL = np.array([1.0, 0.0, 0.0, 0.0])
CRAWLER = Geoms(
    np.array([PLANE, SPHERE, CAPSULE]),
    np.array([-1, 0, 0]),
    np.array([[0.0, 0, 0], [0, 0, 0], [0.5, 0, 0]]),
    np.array([STILL, STILL, [np.sqrt(0.5), 0, np.sqrt(0.5), 0]]),
    np.array([[40.0, 40, 40], [0.25, 0, 0], [0.1, 0.3, 0]]),
)


def crawl(frames, speed):
    """The crawler's way along x, half a metre above the ground."""
    position = np.zeros((frames, 1, 3))
    position[:, 0, 0], position[:, 0, 2] = speed * np.arange(frames), 0.5
    return Moves(position, np.tile(STILL, (frames, 1, 1)))


# Drawing --------------------------------------------------------------------------------------------------------


def test_the_camera_sees_lengths_as_they_are_and_looks_down():
    np.testing.assert_allclose(np.array([RIGHT, UP, DEPTH]) @ np.array([RIGHT, UP, DEPTH]).T, np.eye(3), atol=1e-12)
    assert DEPTH[2] < 0 and UP[2] > 0 and AWAY @ DEPTH > 0


def test_a_ball_is_seen_as_a_circle_and_its_shadow_is_flat():
    ball = bodies.outline(np.array([[1.0, 2, 3]]), 0.5)
    middle = np.array([np.dot([1, 2, 3], RIGHT), np.dot([1, 2, 3], UP)])
    np.testing.assert_allclose(np.linalg.norm(ball - middle, axis=1), 0.5)
    cast = bodies.shadow(np.array([[1.0, 2, 3]]), 0.5, 0.0)
    np.testing.assert_allclose(np.ptp(cast, axis=0), [1, np.sin(bodies.ELEVATION)], rtol=0.02)
    np.testing.assert_allclose(cast.mean(0), [np.dot([1, 2, 0], RIGHT), np.dot([1, 2, 0], UP)], atol=1e-6)


def test_the_hull_of_points_has_its_corners_only():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5], [0.5, 0]])
    np.testing.assert_array_equal(bodies.hull(square), [[0, 0], [1, 0], [1, 1], [0, 1]])


def test_shapes_stand_where_their_link_turns_them():
    upwards = np.array([np.sqrt(0.5), 0, -np.sqrt(0.5), 0])  # x to z
    (_, centre, _), (number, ends, radius) = bodies.placed(CRAWLER, np.array([[1.0, 0, 0.5]]), upwards[None])
    np.testing.assert_allclose(centre, [[1, 0, 0.5]])
    assert (number, radius) == (2, 0.1)
    np.testing.assert_allclose(ends, [[1, 0, 0.7], [1, 0, 1.3]], atol=1e-12)


@pytest.mark.parametrize(("speed", "follows"), [(0.5, True), (0.001, False)])
def test_the_camera_follows_what_goes_away(speed, follows):
    moves = crawl(10, speed)
    camera = bodies.camera_of(CRAWLER, moves)
    moved = camera.centre[-1, 0] - camera.centre[0, 0]
    assert moved == pytest.approx(9 * speed if follows else 0) and np.all(camera.centre[:, 2] == camera.centre[0, 2])


def test_a_gif_has_the_frames_of_the_longest_panel_in_real_time():
    panels = [Panel(f"{n} frames\nand more", crawl(n, 0.1), [f"step {i}" for i in range(n)]) for n in (4, 9)]
    drawn = bodies.frames(CRAWLER, panels, 2, "below")
    first, last = (np.asarray(image)[:, : drawn[0].width // 2] for image in (drawn[3], drawn[4]))
    np.testing.assert_array_equal(first, last)  # the shorter is over
    assert (np.asarray(drawn[3]) != np.asarray(drawn[4])).any()
    made = Image.open(io.BytesIO(bodies.moving(CRAWLER, panels, 0.05)))
    assert (made.n_frames, made.info["duration"], made.info["loop"]) == (5, 100, 0)
    seen = np.array([colour for _, colour in made.convert("RGB").getcolors(1 << 20)])
    for text in (bodies.TRUNK, bodies.FLOOR, bodies.TILES, bodies.SHADOW):
        assert np.min(np.abs(seen - [int(text[i : i + 2], 16) for i in (1, 3, 5)]).max(1)) < 6


def test_frames_are_left_out_until_a_gif_is_small(monkeypatch):
    panels = [Panel("one\ntwo", crawl(9, 0.1), [f"step {i}" for i in range(9)])]
    sizes = [len(bodies.moving(CRAWLER, panels, 0.1))]
    monkeypatch.setattr(bodies, "MOST_BYTES", sizes[0] - 1)
    less = Image.open(io.BytesIO(bodies.moving(CRAWLER, panels, 0.1)))
    assert (less.n_frames, less.info["duration"]) == (5, 100)
    monkeypatch.undo()
    monkeypatch.setattr(bodies, "MOST_FRAMES", 3)
    assert Image.open(io.BytesIO(bodies.moving(CRAWLER, panels, 0.1))).n_frames == 3


def test_an_episode_that_broke_ends_as_it_stood_before():
    moves = crawl(4, 0.1)
    for whole, part in ((moves, slice(None)), (crawl(4, 0.1), slice(None, -1))):
        broken = Moves(*(each.copy() for each in whole))
        if part.stop:
            broken.rotation[-1] = np.nan
        mended = _finite(broken)
        np.testing.assert_array_equal(mended.position[part], moves.position[part])
        assert len(mended.position) == 4 and np.isfinite(mended.rotation).all()
    np.testing.assert_array_equal(mended.position[-1], moves.position[-2])
    bodies.camera_of(CRAWLER, mended)


# Wrong input ----------------------------------------------------------------------------------------------------


def told(folder, task, **settings):
    """A `run.json` of two lanes without anything beside it."""
    asked = {"task": task, "methods": "backprop", "seeds": [0, 1], "steps": 20, "network": "actor_critic(widths=(5,4))"}
    lanes = [{"method": "backprop", "seed": seed, "hyper": {}} for seed in (3, 4)]
    units = [{"name": "unit", "lanes": 2, "size": 2, "chunk": 10}]
    meta = {"label": "backprop", "method": "backprop", "task": "ant", "settings": settings, "lanes": lanes}
    write_meta(folder, meta | {"units": units, "experiment": asked | {"learner": tiny.PPO * (task != "t")}})
    return folder


@pytest.fixture
def fast(tmp_path):
    return told(tmp_path / "run", "ant(environment=fast,environments=2)", **{"learner.rollout": 10, "bin": 10})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lane": "7"}, "--lane: backprop has no seed 7; it has 3:5"),
        ({"lane": "#2"}, "--lane: '#2' is not a lane; backprop has #0 to #1"),
        ({"steps": ["pek"]}, "--step: 'pek' is not peak, last or the number of a step"),
        ({"steps": ["-5"]}, "--step: '-5' is not peak, last or the number of a step"),
        ({"steps": []}, "--step: nothing given"),
        ({"length": 0}, "--steps: got 0, allowed are whole numbers from 1 on"),
        ({"out": "nowhere/at/all"}, "--out: no folder nowhere/at"),
        ({}, "Brax's environment 'fast' has no bodies"),
    ],
)
def test_what_is_asked_wrongly_is_told(fast, options, text):
    with pytest.raises(InputError, match=re.escape(text)):
        render(fast, **options)


def test_folders_that_hold_nothing_to_show_are_told(fast, tmp_path):
    with pytest.raises(InputError, match="no such run folder"):
        render(tmp_path / "none")
    stream = told(tmp_path / "more" / "stream", "t")
    with pytest.raises(InputError, match="no environment; only environments have bodies"):
        render(stream)
    told(tmp_path / "more" / "other", "t")
    with pytest.raises(InputError, match="holds several runs; give one of them as DIR/LABEL: other, stream"):
        render(tmp_path / "more")
    (fast / "render_peak_last.gif").touch()
    with pytest.raises(InputError, match=r"render_peak_last\.gif is there already; nothing is overwritten"):
        render(fast)
    gym = told(tmp_path / "gym", "ant(environment=gym_ant,backend=mjx)", **{"learner.rollout": 10, "bin": 10})
    with pytest.raises(InputError, match="gym_ant is MuJoCo's, and only Brax's environments have bodies here"):
        render(gym)
    bare = told(tmp_path / "bare", f"ant(environment={BODY})", **{"learner.rollout": 10, "bin": 10})
    with pytest.raises(InputError, match="unit holds no good checkpoint"):
        render(bare)


# End to end -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two lanes of 60 steps in one unit, on gravity that changes, a checkpoint every 10 steps."""
    folder = tmp_path_factory.mktemp("trained")
    settings = "environments=2,episode_length=10,change=gravity,change_every=20"
    asked = launch.Experiment(
        f"ant(environment={BODY},{settings})",
        "backprop",
        seeds=(0, 1),
        steps=60,
        bin=20,
        chunk=10,
        network="actor_critic(widths=(5,4))",
        learner="ppo(rollout=10,epochs=2,minibatches=2,probe_every=1,normalise_observations=True)",
    )
    tiny.run(asked, folder, policy=tiny.policy(10, keep=None))
    return folder / "backprop"


@pytest.fixture(scope="module")
def rendered(trained):
    return render(trained.parent, "1", steps=["peak", "last", "31"], out=trained / "shown")


def played():
    """`(gravity, key)` and `(gravity, state, action)` -> the environment's state, compiled once."""
    env = brax_environment(BODY, "spring")

    def under(factor):
        other = copy.copy(env)
        other.sys = env.sys.replace(gravity=env.sys.gravity * factor)
        return other

    reset = jax.jit(lambda factor, key: under(factor).reset(jax.random.key_data(key)))
    return reset, jax.jit(lambda factor, state, action: under(factor).step(state, action))


def stepwise(trained, step, lane, reset, advance):
    """Return and length of the episode that a checkpoint's network has, in plain Python; its positions."""
    (unit,) = (trained / CHECKPOINTS).glob("*/")
    saved = first_good(unit, [step])
    network = resolve(experiment_of(read_meta(trained))).jobs[0].network
    count, mean, squares = (saved.tree[f"learner/observations/{n}"][lane] for n in ("number", "mean", "squares"))
    deviation = np.sqrt(np.maximum(squares / count, 1e-8))
    factor = saved.tree["task/condition"][lane][0]
    key = jax.random.key(0)
    for number in (1, 0, 1):  # starts of episodes, the first environment, its second episode
        key = jax.random.fold_in(key, number)
    state = reset(factor, key)
    total, lived, position = 0.0, 0, [state.pipeline_state.x.pos]
    while lived < 10 and not state.done:
        seen = np.clip((np.asarray(state.obs) - mean) / deviation, -10, 10)
        state = advance(factor, state, network.apply(variables_of(saved, lane), seen[None])[0][0])
        total, lived = total + float(state.reward), lived + 1
        position.append(state.pipeline_state.x.pos)
    return total, lived, np.array(position)


def test_the_episode_shown_is_that_of_the_checkpoints_network(trained, rendered):
    reset, advance = played()
    for one in rendered[0]:
        total, lived, position = stepwise(trained, one.asked.saved.step, 1, reset, advance)
        assert f"return {total:,.1f} in {lived} steps, gravity {one.condition:.3g}" in one.caption
        np.testing.assert_allclose(one.episode.moves.position, position, atol=2e-3)
        assert len(one.episode.moves.rotation) == lived + 1


def test_peak_last_and_a_number_are_the_checkpoints_nearest(trained, rendered):
    run = read_run(trained)
    peak = int(run.step[np.nanargmax(run.metrics["episode_return"][1])])
    captions = {one.asked.saved.step: one.caption.partition("\n")[0] for one in rendered[0]}
    assert captions[30] == "step 30 (nearest to 31)"
    assert captions[60] == ("peak and last: step 60" if peak == 60 else "last: step 60")
    assert set(captions) == {peak, 60, 30} and captions[peak].startswith("peak")


def test_the_files_hold_every_checkpoint(rendered):
    shown, (page, gif) = rendered
    with Image.open(gif) as made:
        number = made.n_frames
    longest = max(len(one.episode.moves.position) for one in shown)
    stride = max(1, int(bodies.FRAME_SECONDS / float(brax_environment(BODY, "spring").dt) + 1e-6))
    assert number == len(range(0, longest, stride)) and gif.stat().st_size < bodies.MOST_BYTES
    inner = [html.unescape(text) for text in re.findall(r'<iframe srcdoc="([^"]*)"', page.read_text())]
    assert len(inner) == len(shown)
    for text, one in zip(inner, shown, strict=True):
        packed = re.search(r'var system = "([^"]*)"', text)[1]
        system = json.loads(zlib.decompress(base64.b64decode(packed)))
        positions = [state["pos"] for state in system["states"]["x"]]
        np.testing.assert_allclose(positions, one.episode.moves.position, atol=1e-4)
        assert all(html.escape(line) in page.read_text() for line in one.caption.split("\n"))


def test_a_step_without_a_checkpoint_near_is_told_and_how_to_have_one(trained, tmp_path):
    text = r"no checkpoint within 20 steps of it; .* are of 10, 20, 30, 40, 50, 60; .* --checkpoint_at=99 or --keep=all"
    with pytest.raises(InputError, match=text):
        render(trained, steps=["99"], out=tmp_path / "out")


def test_the_command_tells_of_wrong_input_in_one_line(trained, rendered):
    command = [sys.executable, "-m", "launch.render", str(trained), f"--out={trained / 'shown'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    text = f"error: --out: {trained / 'shown.html'} is there already; nothing is overwritten\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", text)
