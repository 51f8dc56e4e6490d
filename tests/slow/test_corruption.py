"""Checkpoints that the disk has damaged, and disks that are full."""

import collections
import os
import random
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.storage.checkpoint import Checkpoints, verify
from launch.storage.durable import StorageError

CASES = 50
PAGE = 4096

# After a failed write the threads of orbax's storage report to an event loop that is closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def tree(step):
    keys = jax.random.split(jax.random.key(step), 4)
    return {
        "params": {"kernel": jax.random.normal(keys[0], (40, 30)), "bias": jnp.zeros(30)},
        "count": jnp.int32(step),
        "mask": jax.random.bernoulli(keys[1], 0.5, (70,)),
        "half": jax.random.normal(keys[2], (5,), jnp.bfloat16),
        "key": keys[3],
    }


def arrays(step):
    return {"loss/sum": np.random.default_rng(step).normal(size=(3, 20)), "step": np.arange(20)}


def save(folder, step, **options):
    checkpoints = Checkpoints(folder, **options)
    checkpoints.save(step, tree(step), arrays(step), {"step": step})
    checkpoints.wait()


def raw(leaves, measured):
    data = [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]
    return [np.asarray(x).tobytes() for x in data], {name: (str(x.dtype), x.tobytes()) for name, x in measured.items()}


def read(folder):
    """The newest good checkpoint's step, and the lines that were said; bit for bit what was saved, or it fails."""
    said = []
    found = Checkpoints(folder).latest_good(jax.eval_shape(lambda: tree(0)), warn=said.append)
    assert raw(jax.tree.leaves(found.tree), found.arrays) == raw(jax.tree.leaves(tree(found.step)), arrays(found.step))
    return found.step, said


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "unit"
    for step in (10, 20, 30):
        save(folder, step, keep=None)
    assert read(folder) == (30, [])
    return folder


def flip(file, dice):
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)


def garble(file, dice):
    data = file.read_bytes()
    file.write_bytes(dice.randbytes(len(data)))


def truncate(file, dice):
    os.truncate(file, dice.randrange(file.stat().st_size))


def lengthen(file, dice):
    with open(file, "ab") as end:
        end.write(dice.randbytes(1 + dice.randrange(9)))


def empty(file, dice):
    os.truncate(file, 0)


def remove(file, dice):
    file.unlink()


def remove_folder(folder, dice):
    shutil.rmtree(folder)


DAMAGES = (flip, flip, flip, flip, garble, truncate, lengthen, empty, remove, remove_folder)


def damage(kind, checkpoint, dice):
    """Do it to a file or folder drawn at random; what was damaged."""
    below = [path for path in sorted(checkpoint.rglob("*")) if path.is_dir() == (kind is remove_folder)]
    target = dice.choice([path for path in below if path.is_dir() or path.stat().st_size])
    kind(target, dice)
    return str(target.relative_to(checkpoint))


def test_fifty_damaged_checkpoints_are_noticed_and_the_one_before_is_taken(good, tmp_path, record_property):
    counts, files = collections.Counter(), set()
    for case in range(CASES):
        dice = random.Random(case)
        kind = DAMAGES[case % len(DAMAGES)]
        folder = tmp_path / str(case)
        shutil.copytree(good, folder)
        target = damage(kind, folder / "30", dice)
        assert verify(folder / "30"), (case, kind, target)
        step, said = read(folder)
        assert step == 20 and len(said) == 1 and "\n" not in said[0], (case, kind, target)
        save(folder, 30, keep=1)
        assert read(folder) == (30, [])
        assert os.listdir(folder) == ["30"]
        shutil.rmtree(folder)
        counts[kind.__name__] += 1
        files.add(target)
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    told = f"{counts.total()} of {CASES} damaged checkpoints noticed ({kinds}; {len(files)} files and folders)"
    record_property("count", told)
    assert counts.total() == CASES


def test_every_byte_of_the_manifest_matters(good, tmp_path, record_property):
    shutil.copytree(good / "30", tmp_path / "30")
    manifest = tmp_path / "30" / "manifest.json"
    data = manifest.read_bytes()
    for position in range(len(data)):
        manifest.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert verify(tmp_path / "30"), position
    record_property("count", f"{len(data)} of {len(data)} flipped bytes of the manifest noticed")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mount = shutil.which("mount") and subprocess.run(command, capture_output=True, text=True, check=False)
    if not mount or mount.returncode:
        pytest.skip(f"FULL DISK NOT TESTED: no small file system can be mounted ({mount and mount.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def leave(disk, pages):
    """Fill the disk until only so many pages are free."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    (disk / "filler").write_bytes(b"x" * (free - pages * PAGE))


def test_a_disk_that_fills_up_at_any_page_of_a_save_leaves_the_last_good_one(small_disk, record_property, caplog):
    folder = small_disk / "unit"
    save(folder, 10)
    failed = 0
    for pages in range(200):
        leave(small_disk, pages)
        checkpoints = Checkpoints(folder)
        checkpoints.save(20, tree(20), arrays(20), {"step": 20})
        try:
            checkpoints.wait()
        except StorageError as error:
            failed += 1
            start, end = f"{folder / '20'}: this checkpoint could not be written: disk full; ", str(folder / "10")
            assert str(error) == f"{start}the last good one is {end}"
            assert not caplog.records
            assert [name for name in os.listdir(folder) if not name.startswith(".")] == ["10"]
            assert read(folder) == (10, [])
            (small_disk / "filler").unlink()
        else:
            break
    (small_disk / "filler").unlink()
    assert read(folder) == (20, [])
    record_property("count", f"{failed} full disks, one for every page that the save needs; then it fits")
    assert failed > 10


def test_after_space_was_made_the_same_checkpoints_go_on(small_disk):
    folder = small_disk / "unit"
    checkpoints = Checkpoints(folder)
    checkpoints.save(10, tree(10), arrays(10), {})
    checkpoints.wait()
    leave(small_disk, 3)
    checkpoints.save(20, tree(20), arrays(20), {})
    with pytest.raises(StorageError, match="disk full"):
        checkpoints.wait()
    (small_disk / "filler").unlink()
    checkpoints.save(30, tree(30), arrays(30), {})
    checkpoints.wait()
    assert checkpoints.steps() == [10, 30]
    assert read(folder) == (30, [])


def test_a_read_only_disk_is_said_and_the_last_good_one_loads(small_disk):
    folder = small_disk / "unit"
    save(folder, 10)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"could not be written: read-only file system; the last good one is .*10"):
        save(folder, 20)
    assert read(folder) == (10, [])
