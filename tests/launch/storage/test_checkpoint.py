"""Checkpoints: what is read is what was saved, and what is damaged is not read."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.config.experiment import Experiment, lane_keys, resolve
from launch.engine.build import hyper_arrays, job_program
from launch.errors import InputError
from launch.storage import checkpoint, durable
from launch.storage.checkpoint import ABOUT, ARRAYS, MANIFEST, STATE, Checkpoints, describe, structure, verify
from launch.storage.durable import StorageError
from launch.storage.leaves import with_keys
from plastic_jax.paths import leaf_names


class Pair(NamedTuple):
    first: Any
    second: Any


def raw(leaf):
    """Dtype, shape and bytes of a leaf: what "bit for bit" compares, also of NaN, -0 and keys."""
    key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(leaf) if key else leaf)
    return str(leaf.dtype), data.shape, data.tobytes()


def assert_same(read, saved):
    assert jax.tree.structure(read) == jax.tree.structure(saved)
    for name, a, b in zip(leaf_names(saved), jax.tree.leaves(read), jax.tree.leaves(saved), strict=True):
        assert raw(a) == raw(b), name


def back(read):
    """The tree of a checkpoint, with its keys."""
    return with_keys(read.tree, read.keys)


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def small(step):
    return {"w": jnp.arange(6.0).reshape(2, 3) + step, "key": jax.random.key(step)}


ARRAY = {"loss": np.array([[1 / 3, np.nan], [-0.0, 1e300]])}


def saved(folder, *steps, **options):
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, small(step), {"loss": ARRAY["loss"] * step}, {"step": step})
    checkpoints.wait()
    return checkpoints


def latest(folder, **options):
    said = []
    return Checkpoints(folder).latest_good(abstract(small(0)), warn=said.append, **options), said


def flip(path, position=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def number_file(path):
    """The largest file of the state: the one with the numbers."""
    return max((path / STATE).rglob("*"), key=lambda file: file.is_file() * file.stat().st_size)


def every_kind():
    """A leaf of every dtype that JAX holds without 64 bits, all shapes, all containers."""
    bits = np.random.default_rng(0).bytes
    kinds = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "bfloat16", "float32"]
    kinds += ["complex64", "float8_e4m3fn", "float8_e5m2"]
    leaves = {}
    for kind in kinds:
        dtype = jnp.dtype(kind)
        words = np.frombuffer(bits(60 * dtype.itemsize), np.uint8)  # NaNs of all kinds among them
        words = words & 1 if kind == "bool" else words
        leaves[kind] = jnp.asarray(words.view(dtype).reshape(3, 4, 5))
        leaves[f"{kind} scalar"] = jnp.asarray(words.view(dtype)[7])
        leaves[f"{kind} empty"] = jnp.zeros((0, 3), dtype)
        leaves[f"{kind} zero"] = jnp.zeros((2,), dtype)
    return Pair(
        first=leaves,
        second=[
            jax.random.key(3),
            jax.random.split(jax.random.key(4, impl="rbg"), (2, 2)),
            jax.random.split(jax.random.key(5), 0),
            Pair(-jnp.zeros(3), {}),
            (),
            None,
            np.full((2, 2), 7, np.int32),
            {"a name with spaces, dots . and ümlauts": jnp.ones(())},
            optax.adam(1e-3).init({"w": jnp.ones((2, 2))}),
        ],
    )


def test_every_dtype_shape_and_container_comes_back_bit_for_bit(tmp_path):
    tree = every_kind()
    arrays = ARRAY | {"file": np.zeros((0, 2)), "count": np.arange(3), "flag": np.array(True), "a/b": np.float64(0.1)}
    about = {"settings": {"steps": np.int64(3), "rate": np.float32(0.5)}, "lanes": [1, 2], "folder": tmp_path}
    checkpoints = Checkpoints(tmp_path / "unit")
    checkpoints.save(12, tree, arrays, about)
    read = checkpoints.latest_good(abstract(tree))
    assert read.step == 12 and read.path == tmp_path / "unit" / "12"
    assert_same(back(read), tree)
    assert set(read.arrays) == set(arrays)
    for name, values in arrays.items():
        assert raw(read.arrays[name]) == raw(np.asarray(values)), name
    assert read.about["settings"] == {"steps": 3, "rate": 0.5} and read.about["folder"] == str(tmp_path)
    assert read.about["structure"]["first/float32"] == "float32[3,4,5]"
    assert set(read.about["versions"]) == {"python", "jax", "jaxlib", "orbax-checkpoint", "numpy"}


def test_a_tree_that_is_one_leaf_and_a_tree_without_leaves(tmp_path):
    for i, tree in enumerate((jnp.arange(3.0), {"a": (), "b": None})):
        checkpoints = Checkpoints(tmp_path / str(i))
        checkpoints.save(0, tree, {}, {})
        assert_same(back(checkpoints.latest_good(abstract(tree))), tree)


def test_the_lanes_of_a_real_method_go_on_from_disk_as_if_never_stopped(tmp_path):
    plan = resolve(
        Experiment(
            task="slowly_changing_regression",
            methods="continual_backprop",
            steps=200,
            seeds=(0, 1),
            preset="published",
        )
    )
    job = plan.jobs[0]
    program, hyper, data = job_program(plan, job), hyper_arrays(job, job.lanes), plan.task.load()
    lanes = jax.vmap(program.init, in_axes=(0, 0, None))(lane_keys(job.lanes), hyper, data)

    @jax.jit
    def advance(lanes, start):
        def step(lanes, clock):
            return jax.vmap(program.step, in_axes=(0, 0, None, None))(lanes, hyper, clock, data)[0], None

        return jax.lax.scan(step, lanes, start + jnp.arange(50))[0]

    lanes = advance(lanes, 0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(50, lanes, {}, {})
    read = back(checkpoints.latest_good(abstract(lanes)))
    assert_same(read, lanes)
    assert_same(advance(read, 50), advance(lanes, 50))


def test_what_was_saved_may_be_donated_and_written_over_at_once(tmp_path):
    tree = {"w": jnp.arange(1 << 16, dtype=jnp.float32), "n": np.ones(4, np.float32)}
    arrays = {"loss": np.ones(4)}
    expected = jax.tree.map(np.array, tree)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree, arrays, {})
    overwrite = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)
    overwrite(tree["w"]).block_until_ready()
    assert tree["w"].is_deleted()
    tree["n"][:] = arrays["loss"][:] = -1
    read = checkpoints.latest_good(abstract(expected))
    assert_same(back(read), jax.tree.map(jnp.asarray, expected))
    np.testing.assert_array_equal(read.arrays["loss"], np.ones(4))


def test_what_was_read_is_in_the_hosts_memory_with_keys_as_their_data(tmp_path):
    read, _ = latest(saved(tmp_path, 1).folder)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(read.tree))
    assert read.tree["key"].dtype == np.uint32 and read.keys == {"key": "threefry2x32"}


def test_arrays_alone_are_those_of_a_checkpoint_that_is_there_and_good(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    np.testing.assert_array_equal(checkpoints.arrays(2)["loss"], ARRAY["loss"] * 2)
    assert checkpoints.arrays(3) is None
    flip(number_file(tmp_path / "2"))
    assert checkpoints.arrays(2) is None, "the pytree is damaged, the arrays are not"
    assert raw(checkpoints.arrays(1)["loss"]) == raw(ARRAY["loss"])


def test_the_newest_stay_and_milestones_always(tmp_path):
    assert saved(tmp_path / "two", 10, 20, 30, 40).steps() == [30, 40]
    assert saved(tmp_path / "one", 10, 20, 30, keep=1).steps() == [30]
    assert saved(tmp_path / "all", 10, 20, 30, keep=None).steps() == [10, 20, 30]
    assert saved(tmp_path / "some", 10, 20, 30, 40, 50, keep=1, milestones=(20, 35)).steps() == [20, 50]
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


def test_later_steps_than_the_one_saved_are_left_alone(tmp_path):
    saved(tmp_path, 10, 20, 30, keep=None)
    assert saved(tmp_path, 15, keep=1).steps() == [15, 20, 30]


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path):
    saved(tmp_path, 10, 20, 30, keep=None)
    for step in (20, 30):
        flip(number_file(tmp_path / str(step)))
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_good(abstract(small(0)), warn=lambda line: None).step == 10
    checkpoints.save(40, small(40), {}, {})
    checkpoints.wait()
    assert {10, 40} <= set(checkpoints.steps())


def test_a_good_checkpoint_of_the_step_is_not_written_again_and_a_damaged_one_is(tmp_path):
    saved(tmp_path, 10)
    before = (tmp_path / "10" / MANIFEST).stat().st_mtime_ns
    saved(tmp_path, 10)
    assert (tmp_path / "10" / MANIFEST).stat().st_mtime_ns == before
    flip(number_file(tmp_path / "10"))
    assert verify(tmp_path / "10")
    saved(tmp_path, 10)
    assert verify(tmp_path / "10") == ""
    assert os.listdir(tmp_path) == ["10"]


def test_old_ones_that_a_killed_process_did_not_come_to_remove_go_with_a_save_of_the_same_step(tmp_path):
    saved(tmp_path, 10, 20, keep=None)
    assert saved(tmp_path, 20, keep=1).steps() == [20]


def remove_manifest(path):
    (path / MANIFEST).unlink()


def damage_manifest(old, new):
    return lambda path: (path / MANIFEST).write_text((path / MANIFEST).read_text().replace(old, new))


def truncate(name):
    return lambda path: os.truncate(path / name, (path / name).stat().st_size // 2)


DAMAGES = {
    "a flipped byte of the numbers": (lambda path: flip(number_file(path), 5), "not as it was written"),
    "numbers truncated": (lambda path: os.truncate(number_file(path), 3), "not as it was written"),
    "numbers gone": (lambda path: number_file(path).unlink(), "is missing"),
    "no state": (lambda path: shutil.rmtree(path / STATE), "is missing (and"),
    "no arrays": (lambda path: (path / ARRAYS).unlink(), f"{ARRAYS} is missing"),
    "arrays truncated": (truncate(ARRAYS), f"{ARRAYS} is not as it was written"),
    "garbled JSON": (lambda path: (path / ABOUT).write_text('{"step": '), f"{ABOUT} is not as it was written"),
    "an empty file": (lambda path: (path / ABOUT).write_bytes(b""), f"{ABOUT} is not as it was written"),
    "no manifest": (remove_manifest, f"{MANIFEST} is missing"),
    "manifest truncated": (truncate(MANIFEST), f"{MANIFEST} is damaged"),
    "manifest of another kind": (lambda path: (path / MANIFEST).write_text("[1, 2]"), f"{MANIFEST} is damaged"),
    "manifest with one more space": (damage_manifest("{", "{ "), f"{MANIFEST} is damaged"),
    "manifest of another step": (damage_manifest('"step": 30', '"step": 31'), f"{MANIFEST} is damaged"),
    "manifest not text": (lambda path: (path / MANIFEST).write_bytes(b"\xff\x00"), f"{MANIFEST} is damaged"),
    "one file more": (lambda path: (path / STATE / "new").write_bytes(b""), "state/new is not of this checkpoint"),
    "a folder for a file": (lambda path: ((path / ABOUT).unlink(), (path / ABOUT).mkdir()), f"{ABOUT} is missing"),
}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    saved(folder, 10, 20, 30, keep=None)
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_newest_one_is_told_in_one_line_and_the_one_before_is_taken(three, tmp_path, name):
    damage, problem = DAMAGES[name]
    shutil.copytree(three, tmp_path / "unit")
    damage(tmp_path / "unit" / "30")
    read, said = latest(tmp_path / "unit")
    assert problem in verify(tmp_path / "unit" / "30")
    assert len(said) == 1 and "\n" not in said[0] and problem in said[0] and str(tmp_path / "unit" / "30") in said[0]
    assert read.step == 20
    assert_same(back(read), small(20))
    assert raw(read.arrays["loss"]) == raw(ARRAY["loss"] * 20)


def test_a_checkpoint_under_another_name_is_damaged(three, tmp_path):
    shutil.copytree(three / "30", tmp_path / "40")
    assert verify(tmp_path / "40") == "the folder is called 40 and holds step 30"


def test_a_note_beside_the_files_does_not_matter(three, tmp_path):
    shutil.copytree(three / "30", tmp_path / "30")
    (tmp_path / "30" / "note.txt").write_text("mine")
    assert verify(tmp_path / "30") == ""


def listing(folder):
    return {str(path): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_none_readable_is_an_error_and_nothing_is_deleted(tmp_path):
    saved(tmp_path, 10, 20)
    flip(number_file(tmp_path / "10"))
    (tmp_path / "20" / MANIFEST).unlink()
    before = listing(tmp_path)
    with pytest.raises(InputError) as error:
        latest(tmp_path)
    text = str(error.value)
    assert "\n" not in text
    assert str(tmp_path) in text and "nothing was deleted" in text and "step 10: " in text and "step 20: " in text
    assert listing(tmp_path) == before


def test_none_at_all_is_none(tmp_path):
    assert latest(tmp_path / "nothing") == (None, [])
    assert latest(tmp_path) == (None, [])
    assert Checkpoints(tmp_path / "nothing").steps() == []


def test_one_step_or_only_those_accepted(three):
    assert latest(three, at=10)[0].step == 10
    assert latest(three, accept=lambda step: step < 30)[0].step == 20
    assert latest(three, accept=lambda step: False) == (None, [])
    with pytest.raises(InputError, match="no checkpoint of step 15; there are: 10, 20, 30"):
        latest(three, at=15)


def test_a_damaged_one_that_is_asked_for_is_not_replaced_by_another(three, tmp_path):
    shutil.copytree(three, tmp_path / "unit")
    flip(number_file(tmp_path / "unit" / "20"))
    with pytest.raises(InputError, match=r"step 20: .* is not as it was written"):
        latest(tmp_path / "unit", at=20)


def test_what_is_no_checkpoint_is_ignored(three, tmp_path):
    shutil.copytree(three / "10", tmp_path / "10")
    shutil.copytree(three / "20", tmp_path / ".20.1.tmp")
    shutil.copytree(three / "20", tmp_path / "20.orbax-checkpoint-tmp")
    (tmp_path / "40").write_text("a file")
    (tmp_path / "LOCK").touch()
    assert Checkpoints(tmp_path).steps() == [10]
    read, said = latest(tmp_path)
    assert read.step == 10 and said == []


def test_what_killed_saves_left_behind_goes_with_the_next_save_and_nothing_else(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, own, mine = f".5.{process.pid}.tmp", f".5.{os.getpid()}.old.tmp", ".5.mine.tmp"
    alive = f".5.{os.getppid()}.tmp"
    for name in (dead, own, alive, mine):
        (tmp_path / name / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    saved(tmp_path, 10)
    assert set(os.listdir(tmp_path)) == {"10", alive, mine}


DIFFERENT = {
    "shape": ({"w": jnp.zeros((3, 3)), "key": jax.random.key(0)}, "w: saved float32[2,3], needed float32[3,3]"),
    "dtype": ({"w": jnp.zeros((2, 3), jnp.int32), "key": jax.random.key(0)}, "saved float32[2,3], needed int32[2,3]"),
    "missing": ({"w": jnp.zeros((2, 3))}, "key: saved key<fry>[], needed nothing"),
    "added": ({**small(0), "age": jnp.zeros(2)}, "age: saved nothing, needed float32[2]"),
    "key": ({**small(0), "key": jax.random.key(0, impl="rbg")}, "key: saved key<fry>[], needed key<rbg>[]"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_structure_is_refused_with_what_differs_before_orbax_is_asked(three, monkeypatch, name):
    tree, text = DIFFERENT[name]
    monkeypatch.setattr(checkpoint, "read_state", None)
    with pytest.raises(InputError) as error:
        Checkpoints(three).latest_good(abstract(tree))
    assert text in str(error.value) and str(three / "30") in str(error.value)


def test_a_long_list_of_differences_is_cut_and_other_versions_are_named(three, monkeypatch):
    monkeypatch.setattr(checkpoint, "format_versions", lambda: {"jax": "99"})
    with pytest.raises(InputError, match=r"and 6 more; written with .*jax .* \(now 99\)"):
        Checkpoints(three).latest_good([jnp.zeros(i) for i in range(10)])


def test_what_orbax_gives_is_compared_with_what_was_saved(three, monkeypatch):
    read_state = checkpoint.read_state

    def wrong(path, names):
        numbers = read_state(path, names)
        return numbers | {"w": np.nextafter(numbers["w"], 99)} if path.parent.name == "30" else numbers

    monkeypatch.setattr(checkpoint, "read_state", wrong)
    read, said = latest(three)
    assert read.step == 20 and "other numbers for w" in said[0]


def test_a_checkpoint_that_cannot_be_read_back_gets_no_name_and_the_old_one_stays(tmp_path, monkeypatch):
    saved(tmp_path, 10)
    write_state = checkpoint.write_state
    monkeypatch.setattr(checkpoint, "write_state", lambda path, leaves: write_state(path, leaves | {"w": -leaves["w"]}))
    with pytest.raises(StorageError, match=r"orbax gives other numbers for w .* the last good one is .*10"):
        saved(tmp_path, 20, keep=1)
    assert os.listdir(tmp_path) == ["10"]


def test_only_the_first_of_several_processes_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match="process 1: only process 0"):
        Checkpoints(tmp_path).save(1, small(1), {}, {})


def test_what_cannot_be_saved_is_said_at_once(tmp_path):
    save = Checkpoints(tmp_path).save
    for tree, arrays, about, text in (
        ({"w": np.ones(3)}, {}, {}, "w is float64"),
        ({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, {}, {}, "same name 'a/b'"),
        ({}, {"x": np.array([object()])}, {}, "x holds Python objects"),
        ({}, {}, {"x": object()}, "object"),
        ({}, {}, {"versions": 1}, "versions is written by the checkpoint"),
    ):
        with pytest.raises(ValueError, match=text):
            save(1, tree, arrays, about)
    with pytest.raises(ValueError, match="step is -1"):
        save(-1, {}, {}, {})
    assert os.listdir(tmp_path) == []


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["state", "array file", "fsync", "rename", "folder"])
def test_a_full_disk_is_told_by_the_next_call_and_the_last_good_one_loads(tmp_path, monkeypatch, place):
    checkpoints = saved(tmp_path, 10)
    with monkeypatch.context() as patch:
        match place:
            case "state":
                patch.setattr(checkpoint, "write_state", full)
            case "array file":
                patch.setattr(np.lib.format, "write_array", full)
            case "fsync":
                patch.setattr(os, "fsync", full)
            case "rename":
                patch.setattr(durable.os, "rename", full)
            case "folder":
                patch.setattr(os, "mkdir", full)
        checkpoints.save(20, small(20), {"loss": np.ones(3)}, {})
        checkpoints._thread.join()
    with pytest.raises(StorageError) as error:
        checkpoints.save(30, small(30), {}, {})
    last = f"the last good one is {tmp_path / '10'}"
    assert str(error.value) == f"{tmp_path / '20'}: this checkpoint could not be written: disk full; {last}"
    assert os.listdir(tmp_path) == ["10"]
    checkpoints.save(40, small(40), {}, {})  # space was made
    assert checkpoints.latest_good(abstract(small(0))).step == 40
    assert checkpoints.latest_good(abstract(small(0)), at=10).step == 10


def test_a_disk_without_room_is_told_before_orbax_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 20, 20))
    monkeypatch.setattr(checkpoint, "write_state", None)
    with pytest.raises(StorageError, match="disk full"):
        saved(tmp_path, 10)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "unit").write_bytes(b"mine")
    checkpoints = Checkpoints(tmp_path / "unit")
    checkpoints.save(10, small(10), {}, {})
    with pytest.raises(StorageError, match="a file stands where a folder is needed; there is no good one before it"):
        checkpoints.wait()
    assert (tmp_path / "unit").read_bytes() == b"mine"


def test_a_file_with_the_name_of_a_step_is_not_touched(tmp_path):
    (tmp_path / "10").write_bytes(b"mine")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        saved(tmp_path, 10)
    assert (tmp_path / "10").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["10"]


def test_any_failure_in_the_background_is_raised_once(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_state", lambda *_: 1 / 0)
        checkpoints.save(10, small(10), {}, {})
        with pytest.raises(StorageError, match="division by zero; there is no good one before it"):
            checkpoints.wait()
    checkpoints.wait()
    assert os.listdir(tmp_path) == []


def test_saving_returns_before_it_is_written_and_the_next_save_waits(tmp_path, monkeypatch):
    gate, order, write_state = threading.Event(), [], checkpoint.write_state

    def slow(path, leaves):
        order.append(path.parent.name.split(".")[1])
        assert gate.wait(20)
        order.append("written")
        write_state(path, leaves)

    monkeypatch.setattr(checkpoint, "write_state", slow)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, small(10), {}, {})
    assert checkpoints.steps() == []
    threading.Timer(0.2, gate.set).start()
    checkpoints.save(20, small(20), {}, {})
    assert checkpoints.steps() == [10]
    checkpoints.wait()
    checkpoints.wait()
    assert checkpoints.steps() == [10, 20]
    assert order == ["10", "written", "20", "written"]


def test_a_description_for_people(three):
    told = describe(three / "20")
    assert told["step"] == 20 and told["about"]["step"] == 20 and 0 <= told["age"] < 3600
    assert told["bytes"] == sum(path.stat().st_size for path in (three / "20").rglob("*") if path.is_file())
    assert told["about"]["structure"] == structure(small(0)) == {"key": "key<fry>[]", "w": "float32[2,3]"}


def test_a_description_of_something_else_is_an_error(three, tmp_path):
    with pytest.raises(InputError, match="not a readable checkpoint"):
        describe(tmp_path)
    shutil.copytree(three / "20", tmp_path / "20")
    (tmp_path / "20" / ABOUT).write_text(json.dumps([1]))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        describe(tmp_path / "20")


LEAVING = """
import sys, time, jax.numpy as jnp
from pathlib import Path
from launch.storage import checkpoint
store = checkpoint.Checkpoints(Path(sys.argv[1]))
tree = {"w": jnp.arange(6.0)}
store.save(10, tree, {}, {})
store.wait()
write = checkpoint.write_state
checkpoint.write_state = lambda *a: (time.sleep(0.5), write(*a))
store.save(20, tree, {}, {})
"""


def test_a_program_that_ends_during_a_save_leaves_the_old_one_good_and_is_not_silent(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", LEAVING, str(tmp_path)], capture_output=True, text=True, timeout=300, check=True
    )
    tree = {"w": jnp.arange(6.0)}
    read = Checkpoints(tmp_path).latest_good(abstract(tree), warn=lambda line: pytest.fail(line))
    assert_same(back(read), tree)
    assert read.step == 20 or "20: this checkpoint could not be written" in result.stderr
