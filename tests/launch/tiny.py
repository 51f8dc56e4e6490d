"""A task and a network that compile in no time, runs that stop where a test says, and what "bit for bit" compares."""

import dataclasses
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from launch.config.methods import METHODS
from launch.config.syntax import Every
from launch.engine.checkpoint_policy import CheckpointPolicy
from launch.engine.scheduler import Launch, labels_of, run_workers, work_through
from launch.engine.stopping import Stop, Stopped
from launch.storage import checkpoint
from launch.storage.run_folder import CHECKPOINTS, METRICS
from plastic_jax.networks import dropped
from tasks.base import Batch, Schedule, Spec, Task

TASK, NETWORK = "tests.launch.tiny:Drift", "tests.launch.tiny:Line"

SMALL = {
    "slowly_changing_regression": "change_every=20",
    "permuted_mnist": "probe_size=5,evaluation_size=8,change_every=20",
    "label_permuted_mnist": "probe_size=5,evaluation_size=8,change_every=20,abruptness=0.5",
    "teacher": "change_every=20,batch=4,inputs=3,widths=(5,),probe_size=5",
    "continual_imagenet": "batch=8,epochs=4,evaluations_per_task=2,probe_size=5",
    "incremental_cifar100": "batch=18,classes_per_increment=1,increments=8,epochs=3,probe_size=5",
    "warm_start": "batch=20,epochs=8,probe_size=5",
    "text_stream": "period=70,context=5,batch=2,change_every=6,evaluation_size=3,probe_size=2",
    "ant_model": "environment=fast,change=none,environments=2,episode_length=7,change_every=8,windows=2",
    "ant": "environment=fast,environments=2,episode_length=7,change_every=7",
    "minatar": "game=breakout,environments=2,episode_length=7,change_every=20",
}
"""Settings by task for the pictures of `write_pictures`: tasks of a few steps. Reduced protocols are left out."""
PPO = "ppo(rollout=10,epochs=2,minibatches=2,probe_every=1)"

MADE = ("teacher", "ant_model")
"""Streams that differ from `LEAD` in what they show, and in nothing that a learner or a checkpoint sees."""
LEAD = ("slowly_changing_regression", "permuted_mnist")
ACTED_ON = ("ant", "minatar")
WITHOUT_DATA = ("slowly_changing_regression", "teacher", "ant_model", *ACTED_ON)
TRAINED_OTHERWISE = ("backprop", "dropout", "head_reset", "continual_backprop", "fresh_network", "online_normalization")
METHOD_NAMES = [name for name, spec in METHODS.items() if name == "layer_norm" or not spec.network_options]
"""All methods but those that are L2 on a network with other options, of which one stands for all."""
PAIRS = [(task, method) for task in LEAD for method in METHOD_NAMES]
PAIRS += [
    (task, method)
    for task in SMALL
    if task not in (*LEAD, *MADE, *ACTED_ON)
    for method in TRAINED_OTHERWISE
    if (task, method) != ("text_stream", "online_normalization")  # tokens have no moments
]
PAIRS += [(task, method) for task in MADE for method in ("continual_backprop", "fresh_network")]
PAIRS += [("ant", method) for method in ("backprop", "l2", "continual_backprop", "redo")]
PAIRS += [("minatar", method) for method in ("continual_backprop", "fresh_network")]
"""Tasks and methods that between them go through all of both: every method on two tasks, and on the others the methods
that make the learner do something else."""
LATER = (*MADE, "minatar", "warm_start")
"""Tasks that only `make test-slow` stops and goes on with: the games compile for long, a warm start has the learner of
growing classes."""
IN_SHORT = ("dropout", "continual_backprop", "fresh_network", "online_normalization", "redo", "shrink_and_perturb")
QUICK = [
    (task, method)
    for task, method in PAIRS
    if (task == LEAD[0] and method in IN_SHORT) or (method == "continual_backprop" and task not in LATER)
]
"""Those of `make test`: the other tasks with continual backprop, and on one task the methods that replace, draw or make
the learner do something else. What the others keep is the business of the contract suite, and `make test-slow` has
all."""


def small(task, folder):
    """The task with little data and a change every few steps, and a network and a learner for it, as `Experiment` has
    them."""
    if task == "text_stream":
        text = f"text_stream(data_dir='{folder}',{SMALL[task]})"
        return {"task": text, "network": "tests.launch.tiny:Bytes", "learner": ""}
    where = "" if task in WITHOUT_DATA else f"dataset='tiny',data_dir='{folder}',"
    text = f"{task}({where}{SMALL[task]})"
    if task == "ant":
        return {"task": text, "network": "actor_critic(widths=(5,4))", "learner": PPO}
    if task == "minatar":
        pytest.importorskip("gymnax", reason="minatar NOT TESTED: package 'gymnax' is not installed")
        return {"task": text, "network": "actor_critic(widths=(5,4),memory=gru)", "learner": PPO}
    return {"task": text, "network": "mlp(widths=(5,4))", "learner": ""}


HANG = 300.0
"""Seconds that only what hangs takes."""
TRAIN = [
    sys.executable,
    "-c",
    f"""
import runpy
from launch.engine import stopping
stopping.GRACE_SECONDS = {HANG}
runpy.run_module("launch.train", run_name="__main__", alter_sys=True)
""",
]
"""`python -m launch.train`, more patient with a slow machine after a signal."""


def wait_until(condition, process=None):
    """Wait for a condition, at most `HANG` seconds and while `process` runs."""
    began = time.monotonic()
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() - began < HANG, "hangs"
        time.sleep(0.01)


class State(NamedTuple):
    """Key of the stream, and the weights of the line that is to be learned, `[2, 1]`."""

    key: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class Drift(Task):
    """Learn a line that walks at random: where it is depends on every step so far."""

    change_every: int = 20
    spec = Spec((2,), 1, "squared_error", 1, {"squared_error": 3.0})

    @property
    def schedule(self):
        return Schedule(self.change_every, None, None, None)

    def init(self, key, data):
        return State(key, jnp.ones((2, 1)))

    def next(self, state, clock, data):
        key = jax.random.fold_in(state.key, clock)
        x, walk = jax.random.normal(key, (1, 2)), jax.random.normal(jax.random.fold_in(key, 1), (2, 1))
        weights = 0.9 * state.weights + 0.1 * walk
        return State(state.key, weights), Batch(x, x @ weights, clock % self.change_every == 0, jnp.zeros([], bool))


class Bytes(nn.Module):
    """A language model that sees the last byte only."""

    outputs: int
    head = "head"

    @nn.compact
    def __call__(self, tokens, dropout_rate=None):
        x = nn.Dense(5)(nn.Embed(self.outputs, 3)(tokens))
        return nn.Dense(self.outputs, name=self.head)(dropped(self, nn.relu(x), dropout_rate))


class Line(nn.Module):
    """One layer without hidden units."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(x)


def experiment(**fields):
    """Three seeds of 60 steps in chunks of 5."""
    settings = {"methods": "backprop", "seeds": (0, 1, 2), "steps": 60, "bin": 20, "chunk": 5} | fields
    return launch.Experiment(TASK, network=NETWORK, **settings)


def write_images(folder, count=64, side=5):
    """A few images as `tiny.npz` in a folder, for `dataset=tiny,data_dir=FOLDER`."""
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, side, side), np.uint8) for n in (count, 20))
    labels = {"train_labels": np.arange(count) % 10, "test_labels": np.arange(20) % 10}
    np.savez(folder / "tiny.npz", train_images=train, test_images=test, **labels)


def write_pictures(folder):
    """Ten classes of 20 training pictures of 6 x 6 pixels, and of 4 to test, as `tiny.npz` in a folder; and a text."""
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 6, 6), np.uint8) for n in (200, 40))
    (folder / "tiny.txt").write_bytes(rng.integers(97, 123, 1000, np.uint8).tobytes())
    labels = {"train_labels": np.arange(200) % 10, "test_labels": np.arange(40) % 10}
    np.savez(folder / "tiny.npz", train_images=train, test_images=test, **labels)


def policy(every=10, **fields):
    """A checkpoint every few steps."""
    return CheckpointPolicy(Every(steps=every), **fields)


def launch_of(root, *experiments, **fields):
    """A launch of these experiments, with frequent checkpoints."""
    return Launch(Path(root), experiments, **({"policy": policy()} | fields))


def work(sweep, only=None, **options):
    """Work through a launch in this process; how many units that were."""
    return work_through(sweep, labels_of(sweep), only, **options)


def work_with(sweep, workers, **options):
    """Work through a launch with worker processes."""
    run_workers(sweep, labels_of(sweep), workers, **options)


def units(sweep):
    """Every unit of a launch with its label."""
    return [(label, unit) for label in labels_of(sweep) for unit in label.units]


def units_left(sweep):
    """How many units of a launch are not over."""
    return sum(len(label.left()) for label in labels_of(sweep))


def run(asked, workdir, workers=1, **options):
    """`launch.run` in this process, with frequent checkpoints."""
    return launch.run(asked, workdir, workers, **({"policy": policy()} | options))


def stopped(asked, workdir, reports, workers=1, **options):
    """The same, asked to stop at the report of that number; True where it did."""
    stop, seen = Stop(), [0]

    def report(label, lane_steps):
        seen[0] += 1
        if seen[0] == reports:
            stop.request(signal.SIGTERM)

    try:
        run(asked, workdir, workers, report=report, stop=stop, **options)
    except Stopped as reason:
        assert reason.status == 143
        return True
    return False


def checkpoints(workdir):
    """All complete checkpoints below a folder, by their path in it, also while a run writes and removes some."""
    complete = sorted(Path(path) for path, _, files in os.walk(workdir) if checkpoint.MANIFEST in files)
    return {path.relative_to(workdir).as_posix(): path for path in complete if path.parents[1].name == CHECKPOINTS}


def raw(values):
    """Dtype, shape and bytes: all of an array, also of NaN and -0."""
    values = np.asarray(values)
    return str(values.dtype), values.shape, values.tobytes()


def contents(path):
    """Every leaf and array of a checkpoint, with what it says of itself but the time."""
    assert checkpoint.verify(path) == ""
    about = json.loads((path / checkpoint.ABOUT).read_text())
    names = [name for name, kind in about["structure"].items() if "[0" not in kind]
    leaves = {f"state/{name}": raw(values) for name, values in checkpoint.read_state(path / "state", names).items()}
    with np.load(path / checkpoint.ARRAYS) as arrays:
        said = {name: about[name] for name in ("step", "structure", "keys", "lanes", "chunk", "lanes_per_batch")}
        return leaves | {name: raw(arrays[name]) for name in arrays.files} | {"about": said}


def ends(workdir):
    """The last checkpoint of every unit, and every array of every `metrics.npz`, below a folder."""
    last = {}
    for name, path in checkpoints(workdir).items():
        unit, _, step = name.rpartition("/")
        last[unit] = max(last.get(unit, (-1, path)), (int(step), path))
    found = {f"{unit}/{step}": contents(path) for unit, (step, path) in last.items()}
    for pattern in (METRICS, "lives.npz"):
        for path in sorted(Path(workdir).glob(f"**/{pattern}")):
            with np.load(path) as arrays:
                found[path.relative_to(workdir).as_posix()] = {name: raw(arrays[name]) for name in arrays.files}
    return found


def assert_same_ends(workdir, whole):
    """The two folders hold the same last checkpoints and the same metrics, bit for bit; how many numbers that is."""
    here, there = ends(workdir), ends(whole)
    assert set(here) == set(there) and there
    for name in there:
        assert set(here[name]) == set(there[name]), name
        differ = [part for part in there[name] if here[name][part] != there[name][part]]
        assert not differ, f"{name}: {', '.join(differ)}"
    return sum(len(parts) for parts in there.values())


def snapshot(folder):
    """Every file and folder below a folder, with when it was changed and what it holds."""
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest())
        for path in [Path(folder), *Path(folder).rglob("*")]
    }


def alive(number):
    """Whether the process of that id runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(parent):
    """Ids of the processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def damage(path):
    """Turn one bit of a checkpoint's arrays."""
    data = bytearray((path / checkpoint.ARRAYS).read_bytes())
    data[len(data) // 2] ^= 1
    (path / checkpoint.ARRAYS).write_bytes(data)
