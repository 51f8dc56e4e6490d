"""Runs killed with SIGKILL again and again end in the bits of a run that was left alone."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from launch.storage.run_folder import CHECKPOINTS
from tests.launch import tiny

ROOT = Path(__file__).parents[2]
REGRESSION = [
    "--task=slowly_changing_regression", "--change_every=1000", "--bin=1000", "--chunk=500",
    "--network=mlp(widths=(4,))",
    "--methods=continual_backprop(maturity_threshold=10,replacement_rate=0.01,optimizer=adam,log_size=500)",
    "--seeds=4", "--lanes_per_batch=2", "--workers=2", "--steps=40000", "--checkpoint_every=1000",
]  # fmt: skip
IMAGES = [
    "--task=permuted_mnist(dataset='tiny',data_dir='{}',probe_size=5,evaluation_size=8)", "--change_every=500",
    "--chunk=250", "--network=mlp(widths=(5,4))", "--methods=backprop(optimizer=momentum),redo(period=100)",
    "--seeds=2", "--lanes_per_batch=2", "--workers=1", "--steps=20000", "--checkpoint_every=1000",
]  # fmt: skip
OWN = [
    f"--task={tiny.TASK}", f"--network={tiny.NETWORK}", "--change_every=1000", "--bin=1000", "--chunk=1000",
    "--methods=backprop", "--seeds=3", "--lanes_per_batch=2", "--workers=1", "--steps=30000", "--checkpoint_every=1000",
    "--keep=1",
]  # fmt: skip
# What changes does so every 1000 of 24000 steps.
AGENT = [
    "--task=slippery_ant(environment=inverted_pendulum,change=gravity,environments=2,episode_length=20)",
    "--change_every=1000", "--learner=ppo(rollout=40,epochs=2,minibatches=2,probe_every=5)",
    "--network=actor_critic(widths=(4,))", "--bin=1000", "--chunk=200", "--seeds=2", "--lanes_per_batch=2",
    "--methods=continual_backprop(maturity_threshold=20,replacement_rate=0.01)", "--workers=1", "--steps=24000",
    "--checkpoint_every=1000",
]  # fmt: skip
# Name, flags, kills at random moments, kills inside a save.
RUNS = [("regression", REGRESSION, 11, 2), ("images", IMAGES, 11, 2), ("own", OWN, 13, 1), ("agent", AGENT, 6, 1)]


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Twenty pictures of 12 pixels."""
    rng = np.random.default_rng(0)
    pictures = {f"{part}_images": rng.integers(0, 256, (20, 3, 4), np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "tiny.npz", **pictures, train_labels=np.arange(20) % 10, test_labels=np.arange(20) % 10)
    return tmp_path


@pytest.mark.parametrize(("name", "flags", "at_random", "inside"), RUNS, ids=[run[0] for run in RUNS])
def test_a_run_killed_at_random_moments_ends_as_the_run_left_alone(
    name, flags, at_random, inside, images, tmp_path, record_property
):
    draw = random.Random(name)
    command = [sys.executable, "-m", "launch.train", *(flag.replace("{}", str(images)) for flag in flags)]
    began = time.monotonic()
    assert _wait(_start(command, tmp_path / "whole")) == 0
    length = time.monotonic() - began
    moments = ["save"] * inside + ["random"] * at_random
    draw.shuffle(moments)
    done, left_over, folders, equal = 0, 0, 1, 0
    while done < len(moments):
        folder = tmp_path / f"cut{folders}"
        process = _start(command, folder)
        ended = (
            _until_save(process, folder) if moments[done] == "save" else _sleep(process, draw.uniform(0.1, 1) * length)
        )
        if ended:  # before the moment came: this one is whole, and the kills go on with another
            assert process.returncode == 0
            equal += tiny.assert_same_ends(folder, tmp_path / "whole")
            folders += 1
            continue
        workers = tiny.children(process.pid)
        process.kill()
        process.wait()
        _gone(workers)
        left_over += any(folder.rglob(f"{CHECKPOINTS}/*/.*.tmp"))
        done += 1
    assert _wait(_start(command, tmp_path / f"cut{folders}")) == 0
    equal += tiny.assert_same_ends(tmp_path / f"cut{folders}", tmp_path / "whole")
    assert left_over >= inside
    assert not list(tmp_path.rglob(f"{CHECKPOINTS}/*/.*.tmp"))
    record_property(
        "count", f"{done} kills, {left_over} of them inside a save, of {folders} runs: {equal} arrays and leaves equal"
    )


def _start(command, folder):
    return subprocess.Popen(
        [*command, f"--workdir={folder}"],
        cwd=ROOT,
        env=os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        stdout=subprocess.DEVNULL,
    )


def _wait(process):
    return process.wait(timeout=600)


def _sleep(process, seconds):
    """Whether the process ended within these seconds."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _until_save(process, folder):
    """Until a checkpoint is half written; whether the process ended instead."""
    before = set(folder.rglob(f"{CHECKPOINTS}/*/.*.tmp"))
    while process.poll() is None:
        for unit in folder.glob(f"*/{CHECKPOINTS}/*/"):
            try:
                names = [entry.path for entry in os.scandir(unit) if entry.name.endswith(".tmp")]
            except OSError:
                continue
            if any(Path(name) not in before and not name.endswith(".old.tmp") for name in names):
                return False
        time.sleep(0.001)
    return True


def _gone(workers):
    """Wait until orphans have ended by themselves."""
    tiny.wait_until(lambda: not any(tiny.alive(worker) for worker in workers))
