"""The data door: every source gives the same arrays, damaged sources give one line, the cache is whole or absent."""

import gzip
import io
import json
import multiprocessing
import os
import re
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from tasks import data
from tasks.data import ImageData, load_images

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "tfds"
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NPZ = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plastic_jax" / "data"


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return ImageData(
        rng.integers(0, 256, (30, 4, 5), np.uint8),
        rng.permutation(np.arange(30) % 10).astype(np.int32),
        rng.integers(0, 256, (12, 4, 5), np.uint8),
        (np.arange(12) % 10).astype(np.int32),
    )


def idx_bytes(array):
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_idx(folder, images, suffix=".gz", names=IDX):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, images, strict=True):
        raw = idx_bytes(array)
        (folder / (name + suffix)).write_bytes(gzip.compress(raw) if suffix else raw)
    return folder


def png(image):
    buffer = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_prepared(root, images, name="mnist", version="3.0.1"):
    """A prepared set as tensorflow-datasets lays it out, written with its own (TensorFlow-free) tools."""
    tfds = pytest.importorskip("tensorflow_datasets")
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter
    shape = images.train_x.shape[1:] + (1,)
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=10)}
    )
    folder = root / name / version
    folder.mkdir(parents=True)
    splits = []
    for split, x, y in (("train", images.train_x, images.train_y), ("test", images.test_x, images.test_y)):
        path = folder / f"{name}-{split}.array_record-00000-of-00001"
        records = writer(str(path), "group_size:1")
        for image, label in zip(x, y, strict=True):
            records.write(features._example_serializer.serialize_example({"image": png(image), "label": int(label)}))
        records.close()
        splits.append({"name": split, "shardLengths": [str(len(x))], "numBytes": str(path.stat().st_size)})
        splits[-1]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    features.save_config(folder)
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def assert_same(got, wanted):
    for part, a, b in zip(ImageData._fields, got, wanted, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=part)
        assert a.dtype == (np.uint8 if part.endswith("x") else np.int32)


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["", "mnist"])
def test_idx_files(tmp_path, images, suffix, place):
    write_idx(tmp_path / "d" / place, images, suffix)
    assert_same(load_images("mnist", str(tmp_path / "d")), images)


def test_idx_files_with_the_name_in_front(tmp_path, images):
    names = [f"emnist-letters-{n}" for n in IDX]
    names[2:] = [n.replace("t10k", "test") for n in names[2:]]
    write_idx(tmp_path / "d", images, names=names)
    assert_same(load_images("emnist/letters", str(tmp_path / "d")), images)


def test_idx_folder_spelled_with_hyphens(tmp_path, images):
    write_idx(tmp_path / "d" / "fashion-mnist", images)
    assert_same(load_images("fashion_mnist", str(tmp_path / "d")), images)


@pytest.mark.parametrize("keys", [NPZ, ("x_train", "y_train", "x_test", "y_test")])
def test_npz(tmp_path, images, keys):
    np.savez(tmp_path / "mine.npz", **dict(zip(keys, images, strict=True)))
    assert_same(load_images("mine", str(tmp_path)), images)


def test_npz_of_colour_images_and_labels_in_a_column(tmp_path, images):
    colour = [np.stack([x] * 3, -1) for x in (images.train_x, images.test_x)]
    arrays = (colour[0], images.train_y[:, None].astype(np.int64), colour[1], images.test_y[:, None])
    np.savez(tmp_path / "cifar10.npz", **dict(zip(NPZ, arrays, strict=True)))
    assert_same(load_images("cifar10", str(tmp_path)), (colour[0], images.train_y, colour[1], images.test_y))


def test_prepared_set_comes_first_and_its_newest_version(tmp_path, images):
    write_idx(tmp_path, images._replace(train_x=images.train_x[::-1]))
    write_prepared(tmp_path, images._replace(train_x=255 - images.train_x), version="3.0.9")
    write_prepared(tmp_path, images, version="3.0.10")
    assert_same(load_images("mnist", str(tmp_path)), images)


def test_default_folder_is_that_of_tensorflow_datasets(tmp_path, images, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "d"))
    write_idx(tmp_path / "d", images)
    assert_same(load_images("mnist"), images)
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        load_images("mnist")
    one_line(error, str(tmp_path / "tensorflow_datasets"))


@pytest.mark.parametrize("damage", ["half", "empty", "flipped", "missing", "tfrecord", "no_info", "no_json"])
def test_damaged_prepared_set(tmp_path, images, cache, damage):
    assert_same(load_images("mnist", str(write_prepared(tmp_path / "whole", images).parents[1])), images)
    shutil.rmtree(cache)
    folder = write_prepared(tmp_path, images)
    shard, info = folder / "mnist-test.array_record-00000-of-00001", folder / "dataset_info.json"
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 1
    if damage == "missing":
        shard.unlink()
    elif damage in ("half", "empty", "flipped"):
        shard.write_bytes({"half": raw[: len(raw) // 2], "empty": b"", "flipped": raw}[damage])
    elif damage == "tfrecord":
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
    else:
        info.write_text("{}" if damage == "no_info" else '{"name"')
    with pytest.raises(ValueError) as error:
        load_images("mnist", str(tmp_path))
    one_line(error, str(folder), f"python -m tasks.prepare mnist --data_dir={tmp_path}")
    assert not cache.exists()


@pytest.mark.filterwarnings("error")
def test_missing_says_what_where_and_how(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_images("fashion_mnits", str(tmp_path))
    one_line(error, "'fashion_mnits'", "did you mean 'fashion_mnist'", "train-images-idx3-ubyte", f"in {tmp_path};")
    one_line(error, f"python -m tasks.prepare fashion_mnist --data_dir={tmp_path}")
    with pytest.raises(FileNotFoundError) as error:
        load_images("mnist", str(tmp_path / "nowhere"))
    one_line(error, "nowhere, which is not a folder")


@pytest.mark.parametrize("name", ["", "../mnist", "/etc/passwd", "a b"])
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(ValueError, match="is not a name"):
        load_images(name, str(tmp_path))


def test_some_idx_files_missing(tmp_path, images):
    write_idx(tmp_path, images)
    (tmp_path / (IDX[3] + ".gz")).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_images("mnist", str(tmp_path))
    one_line(error, str(tmp_path), IDX[3])


DAMAGED = {
    "truncated": (lambda raw: raw[:-3], "truncated"),
    "header only": (lambda raw: raw[:9], "truncated"),
    "nothing": (lambda raw: b"", "starts with bytes"),
    "too long": (lambda raw: raw + b"\0", "damaged"),
    "wrong magic": (lambda raw: b"\1" + raw[1:], "starts with bytes 01"),
    "float pixels": (lambda raw: raw[:2] + b"\x0d" + raw[3:], "00 00 0d 03"),
    "wrong rank": (lambda raw: raw[:3] + b"\1" + raw[4:], "00 00 08 01"),
    "huge": (lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "4294967295"),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx(tmp_path, images, cache, damage, suffix):
    spoil, text = DAMAGED[damage]
    write_idx(tmp_path, images, suffix)
    path = tmp_path / (IDX[0] + suffix)
    raw = spoil(idx_bytes(images.train_x))
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    with pytest.raises(ValueError) as error:
        load_images("mnist", str(tmp_path))
    one_line(error, str(path), text)
    assert not cache.exists()


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-20], lambda raw: b"<html>no</html>", lambda raw: raw[:40] + raw[50:]]
)
def test_damaged_gzip(tmp_path, images, spoil):
    write_idx(tmp_path, images)
    path = tmp_path / (IDX[0] + ".gz")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError) as error:
        load_images("mnist", str(tmp_path))
    one_line(error, str(path), "truncated or damaged")


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-200], lambda raw: b"", lambda raw: b"PK\3\4 no", lambda raw: b"text"]
)
def test_damaged_npz(tmp_path, images, spoil):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **dict(zip(NPZ, images, strict=True)))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError) as error:
        load_images("mine", str(tmp_path))
    one_line(error, str(path))


@pytest.mark.parametrize(
    ("part", "change", "text"),
    [
        ("train_x", lambda a: a[:-1], "29 train images but 30 train labels"),
        ("test_y", lambda a: a[:-1], "12 test images but 11 test labels"),
        ("train_y", lambda a: a + 1, "train_y has labels from 1 to 10, allowed are 0 to 9"),
        ("test_y", lambda a: a - 1, "test_y has labels from -1 to 8"),
        ("test_x", lambda a: a[:, :3], "train images are (4, 5), test images (3, 5)"),
        ("train_x", lambda a: a / 255.0, "train_x is float64"),
        ("train_x", lambda a: a.reshape(30, -1), "train_x is uint8 (30, 20)"),
        ("train_y", lambda a: a.astype(float), "train_y is float64"),
        ("train_y", lambda a: np.array(None), "Object arrays"),
        ("train_x", lambda a: a[:0], "train_x is uint8 (0, 4, 5)"),
        ("train_y", lambda a: a[:0], "30 train images but 0 train labels"),
    ],
)
def test_arrays_that_do_not_hold_together(tmp_path, images, cache, part, change, text):
    arrays = images._replace(**{part: change(getattr(images, part))})
    np.savez(tmp_path / "mnist.npz", **dict(zip(NPZ, arrays, strict=True)))
    with pytest.raises(ValueError) as error:
        load_images("mnist", str(tmp_path))
    one_line(error, str(tmp_path / "mnist.npz"), text)
    assert not cache.exists()


def test_npz_without_the_arrays(tmp_path):
    np.savez(tmp_path / "mine.npz", pictures=np.zeros(3))
    with pytest.raises(ValueError) as error:
        load_images("mine", str(tmp_path))
    one_line(error, "holds pictures", "train_images")


def test_decoded_once_then_memory_mapped(tmp_path, images, cache, monkeypatch):
    write_idx(tmp_path / "d", images)
    load_images("mnist", str(tmp_path / "d"))
    monkeypatch.setattr(data, "_read_idx", lambda path: pytest.fail("decoded again"))
    again = load_images("mnist", str(tmp_path / "d"))
    assert isinstance(again.train_x, np.memmap)
    assert_same(again, images)
    assert [re.fullmatch(r"mnist-[0-9a-f]{16}", p.name) is not None for p in cache.iterdir()] == [True]


def test_a_changed_source_is_decoded_again(tmp_path, images):
    write_idx(tmp_path / "d", images, "")
    load_images("mnist", str(tmp_path / "d"))
    changed = images._replace(train_x=255 - images.train_x)
    write_idx(tmp_path / "d", changed, "")
    os.utime(tmp_path / "d" / IDX[0], (1, 1))  # same size: only the time tells
    assert_same(load_images("mnist", str(tmp_path / "d")), changed)


def test_a_damaged_cache_is_decoded_again(tmp_path, images, cache):
    write_idx(tmp_path / "d", images)
    load_images("mnist", str(tmp_path / "d"))
    (folder,) = cache.iterdir()
    (folder / "train_x.npy").write_bytes((folder / "train_x.npy").read_bytes()[:-10])
    assert_same(load_images("mnist", str(tmp_path / "d")), images)


def test_nothing_is_left_of_a_write_that_fails(tmp_path, images, cache, monkeypatch):
    write_idx(tmp_path / "d", images)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(data.np, "save", lambda *a: (_ for _ in ()).throw(full))
    with pytest.warns(UserWarning, match="No space left"):
        assert_same(load_images("mnist", str(tmp_path / "d")), images)
    assert list(cache.iterdir()) == []


def test_what_a_killed_writer_left_is_removed(tmp_path, images, cache):
    old, young = cache / ".partial-old", cache / ".partial-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (1, 1))
    write_idx(tmp_path / "d", images)
    load_images("mnist", str(tmp_path / "d"))
    assert not old.exists()
    assert young.exists()


def _load_when_all_are_ready(barrier, folder, results):
    barrier.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.put(int(load_images("mnist", folder).train_x.sum()))


def test_several_processes_at_once(tmp_path, images, cache):
    write_idx(tmp_path / "d", images)
    # Forking after JAX has started threads is unsafe.
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (barrier, str(tmp_path / "d"), results)
    processes = [context.Process(target=_load_when_all_are_ready, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    sums = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(timeout=300)
    assert sums == [int(images.train_x.sum())] * 3
    assert [p.name.startswith("mnist-") for p in cache.iterdir()] == [True]


def test_the_loser_of_a_race_takes_the_winner_s_cache(tmp_path, images, cache, monkeypatch):
    write_idx(tmp_path / "d", images)
    load_images("mnist", str(tmp_path / "d"))
    monkeypatch.setattr(data, "_open_cache", lambda folder, keep=data._open_cache, calls=[]: _late(keep, calls, folder))
    assert_same(load_images("mnist", str(tmp_path / "d")), images)
    assert len(list(cache.iterdir())) == 1


def _late(open_cache, calls, folder):
    """As if the cache appeared only after the first look."""
    calls.append(folder)
    return open_cache(folder) if len(calls) > 1 else None


@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason=f"REAL MNIST NOT TESTED: no {REAL}/mnist")
def test_real_mnist():
    got = load_images("mnist", str(REAL))
    assert [array.shape for array in got] == [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
    assert got.train_x.mean() / 255 == pytest.approx(0.1307, abs=1e-4)  # the mean everybody normalises MNIST by
    assert np.bincount(got.train_y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
