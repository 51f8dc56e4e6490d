"""What is said of a run folder, and the network of one lane as a file."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest

from launch.errors import InputError
from launch.show import show
from launch.storage.contents import digests, lane_number, write_parameters
from launch.storage.durable import StorageError
from launch.storage.locks import locked
from launch.storage.run_folder import CHECKPOINTS, DONE, METRICS, RUN
from tests.launch import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two labels; the first with two settings of three seeds, one of which diverges, in two units."""
    folder = tmp_path_factory.mktemp("finished")
    asked = tiny.experiment(
        methods="plain=backprop,heavy=backprop(optimizer=momentum)",
        sweep=("plain.step_size=0.01,90",),
        lanes_per_batch=4,
    )
    tiny.run(asked, folder, policy=tiny.policy(10, at=(20,)))
    return folder


@pytest.fixture
def half(tmp_path):
    """A run of two units, stopped in the second one."""
    assert tiny.stopped(tiny.experiment(lanes_per_batch=2), tmp_path / "half", 20)
    return tmp_path / "half"


def test_a_finished_folder_is_told_by_label(finished):
    before = tiny.snapshot(finished)
    text = show(finished)
    assert tiny.snapshot(finished) == before
    second, first = text.split("\n\n")
    assert first.startswith("plain: finished\n") and second.startswith("heavy: finished\n")
    assert "lanes: 6, seeds 0:3; " in first and "; step_size 0.01, 90; 3 diverged: #3 (seed 0), #4 (seed 1)" in first
    assert "lanes: 3, seeds 0:3; " in second and "; 0 diverged" in second
    assert "optimizer=momentum" in second and "steps=60" in second
    assert "progress: 100 % of the lane-steps; 2 of 2 units have all 60 steps" in first
    assert len(re.findall(r"    step \d+: [\d.]+ kB, [\d.]+ seconds old, verified", text)) == 9
    assert len(re.findall(r"    step 20: .*, verified, stays for good\n", text)) == 3
    meta = json.loads((finished / "heavy" / RUN).read_text())
    assert meta["commit"] in second and f"jax {meta['versions']['jax']}" in second
    ages = re.compile(r"[\d.]+ seconds old")
    assert ages.sub("", show(finished / "heavy")) == ages.sub("", second)


def test_hashes_tell_equal_runs_from_others(finished, tmp_path):
    """The same run in another folder, checkpointed at other steps, has the same lines; another seed has not."""
    asked = tiny.experiment(methods="heavy=backprop(optimizer=momentum)", lanes_per_batch=4)
    tiny.run(asked, tmp_path / "again", policy=tiny.policy(30))
    tiny.run(dataclasses.replace(asked, seeds=(0, 1, 3)), tmp_path / "other")
    same, again, other = (list(digests(d)) for d in (finished / "heavy", tmp_path / "again", tmp_path / "other"))
    assert same == again
    assert re.fullmatch(r"heavy unit \w{12} step 60: state \w{64} measured \w{64}", same[0])
    assert same[0].split()[6::2] != other[0].split()[6::2]


def test_a_stopped_run_is_told_with_how_far_each_unit_is(half):
    text = show(half)
    assert text.startswith("backprop: stopped; the same command goes on\n")
    progress = re.search(r"progress: (\S+) % of the lane-steps; 1 of 2 units have all 60 steps", text)
    steps = [int(n) for n in re.findall(r"seeds \S+; (\d+) steps", text)]
    assert steps[0] == 60 and 0 < steps[1] < 60
    assert float(progress[1]) == pytest.approx(100 * (2 * 60 + steps[1]) / 180, rel=0.01)


def test_damage_and_saves_cut_short_are_told(half):
    units = sorted({path.parent for path in tiny.checkpoints(half).values()})
    newest = max(tiny.checkpoints(half).values(), key=lambda path: int(path.name))
    tiny.damage(newest)
    (units[0] / ".77.123.tmp").mkdir()
    (units[0] / "88").mkdir()
    text = show(half)
    assert re.search(r"step 60: .* old, DAMAGED: arrays.npz is not as it was written", text)
    assert "saves under way, or cut short: .77.123.tmp" in text
    assert "step 88: DAMAGED: manifest.json is missing" in text
    assert re.search(r"seeds 0:2; 5\d steps|seeds 0:2; 50 steps", text)


def test_who_runs_a_unit_is_told(half):
    unit = sorted({path.parent for path in tiny.checkpoints(half).values()})[0]
    with locked(unit / "LOCK"):
        text = show(half)
    assert text.startswith("backprop: running, 1 of 2 units at this moment\n")
    assert f"run by process {os.getpid()} on " in text


def test_a_run_of_which_one_label_is_damaged_tells_the_others(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "plain" / RUN).write_text("{")
    second, first = show(folder).split("\n\n")
    assert first.startswith("plain: ") and "cannot be read" in first and "\n" not in first
    assert second.startswith("heavy: finished")
    with pytest.raises(InputError, match="cannot be read"):
        show(folder / "plain")


def test_without_checkpoints(tmp_path):
    tiny.run(tiny.experiment(), tmp_path, policy=tiny.policy(keep=0))
    text = show(tmp_path)
    assert "finished" in text and "100 % of the lane-steps" in text and "no checkpoints" in text
    with pytest.raises(InputError, match="holds no good checkpoint"):
        write_parameters(tmp_path, "1", tmp_path / "file")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_runs_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"{name}: no (such run folder|run in it)"):
        show(tmp_path / name)


def test_the_parameters_of_a_lane_are_those_of_the_run(finished, tmp_path, monkeypatch):
    """Seed 2 is alone in the second unit's place; the file gives the network back as it was at the end."""
    monkeypatch.chdir(tmp_path)
    path = write_parameters(finished / "heavy", "2")
    assert path == Path("heavy-seed2-step60.msgpack")
    variables = flax.serialization.msgpack_restore(path.read_bytes())
    assert set(variables) == {"params"}
    (unit,) = (finished / "heavy" / CHECKPOINTS).glob("*/")
    raw = tiny.contents(unit / "60")
    kind, shape, data = raw["state/learner/params/Dense_0/kernel"]
    expected = np.frombuffer(data, kind).reshape(shape)[2]
    assert tiny.raw(variables["params"]["Dense_0"]["kernel"]) == tiny.raw(expected)
    assert tiny.Line(1).apply(variables, jnp.ones((1, 2))).shape == (1, 1)


def test_lanes_by_seed_and_by_number(finished, tmp_path):
    """Lanes #3 to #5 have the step size 90, under which weights are no numbers any more."""
    with pytest.raises(InputError, match=r"2 lanes have seed 1; write #1 \(step_size=0.01\), #4 \(step_size=90\)"):
        write_parameters(finished / "plain", "1", tmp_path / "file")
    for lane, fine in ((1, True), (5, False)):
        path = write_parameters(finished / "plain", f"#{lane}", tmp_path / f"{lane}")
        kernel = flax.serialization.msgpack_restore(path.read_bytes())["params"]["Dense_0"]["kernel"]
        assert bool(np.abs(kernel).max() < 1e3) is fine
    meta = json.loads((finished / "heavy" / RUN).read_text())
    assert [lane_number(meta, text) for text in ("0", "#2", " 1 ")] == [0, 2, 1]
    for text, words in (("7", "has no seed 7; it has 0:3"), ("#3", "#0 to #2"), ("one", "neither a seed nor #I")):
        with pytest.raises(InputError, match=re.escape(words)):
            lane_number(meta, text)


def test_parameters_of_a_damaged_newest_checkpoint_are_those_before(half, tmp_path):
    newest = max(tiny.checkpoints(half).values(), key=lambda path: int(path.name))
    tiny.damage(newest)
    path = write_parameters(half, "0", tmp_path / "file")
    assert flax.serialization.msgpack_restore(path.read_bytes())["params"]["Dense_0"]["bias"].shape == (1,)


def test_no_file_is_overwritten_and_a_place_that_cannot_be_written_is_told(finished, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    with pytest.raises(InputError, match="mine is there already; nothing is overwritten"):
        write_parameters(finished / "heavy", "0", mine)
    assert mine.read_text() == "mine"
    with pytest.raises(InputError, match="--out: no folder"):
        write_parameters(finished / "heavy", "0", tmp_path / "no" / "file")
    with pytest.raises(InputError, match="holds several runs; give one of them as DIR/LABEL: heavy, plain"):
        write_parameters(finished, "0", tmp_path / "file")
    with pytest.raises((InputError, StorageError)):
        write_parameters(finished / "heavy", "0", "/proc/file")


def test_the_command(finished, tmp_path):
    command = [sys.executable, "-m", "launch.show", str(finished / "heavy")]
    done = subprocess.run([*command, "--parameters=1", f"--out={tmp_path / 'file'}"], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{tmp_path / 'file'}\n", b"")
    done = subprocess.run([*command, "--out=x"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: --out: needs --parameters=LANE\n")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("heavy: finished\n")


def test_a_reader_that_goes_away_ends_help_quietly():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "launch.show", "--help"], cwd=ROOT, stdout=gone, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_run_on_its_way_to_a_longer_end_says_of_how_many_steps(tmp_path):
    tiny.run(tiny.experiment(steps=20), tmp_path)
    assert tiny.stopped(tiny.experiment(steps=60), tmp_path, 4)
    assert "0 of 1 units have all 60 steps" in show(tmp_path)
    assert (tmp_path / "backprop" / DONE).exists() and (tmp_path / "backprop" / METRICS).exists()
