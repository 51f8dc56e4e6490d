"""Several devices: lanes on 1, 2 and 4 of them are equal bit for bit, and so is a run that changes their number;
batches shared by 1, 2 and 4 of them teach the same, and replace the same units.

All runs are made by this file as a program of its own, which has four devices; see `main`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import run
from launch.checkpoint import Checkpoints
from launch.experiment import Experiment, resolve
from launch.processes import enable_compilation_cache
from launch.resume import recorded
from launch.run_folder import read_meta, unit_folders
from launch.stopping import Stop, Stopped
from launch.work import abstract_data, abstract_lanes, program_of
from plastic_jax.paths import leaf_names

ROOT = Path(__file__).parents[2]
DEVICES = (1, 2, 4)
STEPS = 400
CBP = "continual_backprop(replacement_rate=0.02,maturity_threshold=10)"


def lanes_experiment():
    task = "slowly_changing_regression(change_every=100)"
    methods, network = f"cbp={CBP}", "mlp(widths=(7,))"
    return Experiment(task, methods, tuple(range(7)), steps=STEPS, bin=50, lanes_per_batch=2, network=network)


def batch_experiment(folder):
    task = f"permuted_mnist(dataset=tiny,data_dir='{folder}',batch=8,change_every=200,probe_size=20,evaluation_size=10)"
    methods = f"cbp={CBP[:-1]},step_size=0.1)"
    return Experiment(task, methods, (0,), steps=200, bin=50, network="mlp(widths=(16,12))")


def write_images(folder):
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (64, 6, 6), np.uint8), rng.integers(0, 256, (20, 6, 6), np.uint8)
    arrays = {"train_images": train, "train_labels": np.arange(64) % 10}
    np.savez(folder / "tiny.npz", **arrays, test_images=test, test_labels=np.arange(20) % 10)


def main(kind, folder):
    """Every run of a kind, on every number of devices; one stopped half way on two goes on on others."""
    jax.config.update("jax_num_cpu_devices", 4)
    enable_compilation_cache()
    experiment = lanes_experiment() if kind == "lanes" else batch_experiment(folder)
    for number in DEVICES:
        run(experiment, folder / str(number), devices=number, parallel=kind, workers=1)
    stop, seen = Stop(), []

    def report(label, lane_steps):
        seen.append(lane_steps)
        if sum(seen) >= 100:
            stop.request(15)

    with pytest.raises(Stopped):
        run(experiment, folder / "stopped", devices=2, parallel=kind, stop=stop, report=report)
    for number in (1, 4) if kind == "lanes" else (4,):
        shutil.copytree(folder / "stopped", folder / f"then{number}")
        run(experiment, folder / f"then{number}", devices=number, parallel=kind, workers=1)


def made(kind, folder):
    write_images(folder)
    # On two cores an all-reduce of four devices waits for ever if there are fewer threads than devices.
    threads = "8" if kind == "batch" else "1"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NPROC": threads, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, __file__, kind, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def lanes(tmp_path_factory):
    return made("lanes", tmp_path_factory.mktemp("lanes"))


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    return made("batch", tmp_path_factory.mktemp("batch"))


def metrics(folder):
    with np.load(folder / "cbp" / "metrics.npz") as file:
        return dict(file)


def final_checkpoints(folder):
    """By unit of work: CRC-32 of every leaf, and the arrays."""
    found = {}
    for path in sorted((folder / "cbp" / "checkpoints").glob("*/*/manifest.json")):
        manifest = json.loads(path.read_text())
        with np.load(path.with_name("arrays.npz")) as file:
            found[f"{path.parts[-3]}/{path.parts[-2]}"] = manifest["leaves"], {k: v.tobytes() for k, v in file.items()}
    return {name: kept for name, kept in found.items() if name.endswith(f"/{STEPS}")}


@pytest.mark.parametrize("other", ["2", "4", "then1", "then4"])
def test_lanes_do_not_know_how_many_devices_there_are(lanes, other):
    one, several = metrics(lanes / "1"), metrics(lanes / other)
    assert one.keys() == several.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, several[name], name)
    expected = final_checkpoints(lanes / "1")
    assert len(expected) == 4
    assert final_checkpoints(lanes / other) == expected


def test_the_run_that_went_on_had_been_stopped_half_way(lanes, batch):
    for folder, length in ((lanes, STEPS), (batch, 200)):
        steps = [int(path.name) for path in (folder / "stopped" / "cbp" / "checkpoints").glob("*/[0-9]*")]
        assert steps and max(steps) < length
        assert not (folder / "stopped" / "cbp" / "DONE").exists()


@pytest.mark.parametrize("other", ["2", "4", "then4"])
def test_a_batch_shared_by_devices_teaches_the_same(batch, other):
    one, several = metrics(batch / "1"), metrics(batch / other)
    assert one.keys() == several.keys()
    assert one["loss"].min() < 2.2
    for name, values in one.items():
        np.testing.assert_allclose(several[name], values, 1e-4, 1e-6, err_msg=name)


@pytest.mark.parametrize("other", ["2", "4", "then4"])
def test_devices_that_share_a_batch_replace_the_same_units(batch, other):
    one, several = state(batch / "1"), state(batch / other)
    ages = [name for name in one if "/age/" in name or "/replaced/" in name or "/count" in name]
    assert len(ages) >= 4
    for name in ages:
        np.testing.assert_array_equal(one[name], several[name], name)
    assert any((one[name] < 150).mean() > 0.3 for name in ages if "/age/" in name), "many units have been replaced"


def state(folder):
    """The leaves of the last checkpoint of the only unit of work, by name."""
    plan = resolve(batch_experiment(folder.parent))
    meta = read_meta(folder / "cbp")
    found = {}
    for unit, path in zip(recorded(plan, plan.jobs[0], meta), unit_folders(folder / "cbp", meta), strict=True):
        abstract = abstract_lanes(program_of(plan, plan.jobs[0]), plan.jobs[0], unit, abstract_data(plan))
        tree = Checkpoints(path).latest_good(abstract).tree
        found |= dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
    return found


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
