"""Several devices: lanes on 1, 2 and 4 of them are equal bit for bit, and so is a run that changes their number;
batches shared by 1, 2 and 4 of them teach the same, and replace the same units.

All runs are made by this file as a program of its own, which has four devices; see `main`.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import run
from launch.config.experiment import Experiment, resolve
from launch.engine.build import job_program
from launch.engine.checkpoint_policy import abstract_data, abstract_lanes
from launch.engine.devices import Devices, part, put_lanes, put_state
from launch.engine.label import find_label
from launch.engine.processes import enable_compilation_cache
from launch.engine.stopping import Stop, Stopped
from launch.storage.checkpoint import Checkpoints
from launch.storage.leaves import on_host
from launch.storage.run_folder import unit_folders
from plastic_jax.paths import leaf_names

ROOT = Path(__file__).parents[3]
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
    if kind == "lanes":
        (folder / "watched.json").write_text(json.dumps(watched(experiment, folder)))


def watched(experiment, folder):
    """The most bytes on each of four devices, and how often a chunk was compiled: a run stopped, and gone on with."""
    found, compiled, said = [], [], []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("jax").addHandler(listener)
    for stops in (True, False):
        stop, most = Stop(), dict.fromkeys(map(str, jax.devices()), 0)
        reports = itertools.count()

        def report(label, lane_steps, stop=stop, stops=stops, most=most, reports=reports):
            here = dict.fromkeys(most, 0)
            for shard in (shard for array in jax.live_arrays() for shard in array.addressable_shards):
                here[str(shard.device)] += shard.data.nbytes
            most.update({device: max(most[device], size) for device, size in here.items()})
            if stops and next(reports) == 4:
                stop.request(15)

        said.clear()
        with contextlib.suppress(Stopped), jax.log_compiles():
            run(experiment, folder / "watched", devices=4, stop=stop, report=report)
        found.append(most)
        compiled.append(sum(bool(re.match(r"Compiling (jit\()?chunk\b", line)) for line in said))
    return {"bytes": found, "compiled": compiled, "parts": parts()}


def parts():
    """Where the parts of lanes on four devices lie, and what they hold."""
    tree = {"n": np.arange(8, dtype=np.int32), "key": jax.random.split(jax.random.key(0), 8)}
    put = put_lanes(tree, 4, "lanes")
    each = [part(put, index, 4, "lanes") for index in range(4)]
    same = [bool((one["key"] == tree["key"][2 * i : 2 * i + 2]).all()) for i, one in enumerate(each)]
    places = [[str(device) for leaf in one.values() for device in leaf.devices()] for one in each]
    return {"devices": places, "n": [one["n"].tolist() for one in each], "same keys": same}


def made(kind, folder):
    write_images(folder)
    # On two cores an all-reduce of four devices waits for ever if there are fewer threads than devices.
    threads = "8" if kind == "batch" else "1"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NPROC": threads, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, __file__, kind, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
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


def test_a_run_that_goes_on_holds_on_every_device_what_it_held_before(lanes):
    first, then = json.loads((lanes / "watched.json").read_text())["bytes"]
    sizes = [*first.values(), *then.values()]
    assert len(first) == len(then) == 4 and min(sizes) > 0
    assert max(sizes) < 1.05 * min(sizes), "but for a few constants"


def test_a_run_that_goes_on_compiles_its_chunk_once(lanes):
    assert json.loads((lanes / "watched.json").read_text())["compiled"] == [1, 1]


def test_the_part_of_a_unit_lies_on_its_device_alone(lanes):
    parts = json.loads((lanes / "watched.json").read_text())["parts"]
    assert parts["n"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert all(parts["same keys"]) and len(parts["same keys"]) == 4
    assert [len(set(places)) for places in parts["devices"]] == [1] * 4
    assert len({place for places in parts["devices"] for place in places}) == 4


def aligned(shape):
    """Zeros in host memory that a CPU device takes as they are."""
    memory = np.zeros(4 * math.prod(shape) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * math.prod(shape)].view(np.float32).reshape(shape)


def test_a_state_that_was_put_shares_no_memory_with_the_host():
    host = aligned((4, 1000))
    put = put_state({"w": host}, {}, 1, "lanes")["w"]
    host[:] = 1
    assert not np.asarray(put).any()
    jax.jit(lambda w: w + 2, donate_argnums=0)(put).block_until_ready()
    assert put.is_deleted()
    assert (host == 1).all()


def test_keys_are_put_as_typed_keys():
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 4)
    host, kinds = on_host({"key": keys, "n": np.arange(4, dtype=np.int32)})
    put = put_state(host, kinds, 1, "lanes")
    assert put["key"].dtype == keys.dtype
    np.testing.assert_array_equal(jax.random.key_data(put["key"]), jax.random.key_data(keys))


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
    devices = Devices(int(folder.name.removeprefix("then")), "batch")
    label, found = find_label(plan, plan.jobs[0], folder / "cbp", devices=devices), {}
    for unit, path in zip(label.units, unit_folders(label.folder, label.meta), strict=True):
        abstract = abstract_lanes(job_program(plan, plan.jobs[0]), plan.jobs[0], unit, abstract_data(plan))
        tree = Checkpoints(path).latest_good(abstract).tree  # keys as their data
        found |= dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
    return found


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
