"""The door to pictures by class: what it gives from every source, and one line for everything that can be wrong."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from tasks import classes, data
from tasks.classes import ClassData, class_facts, load_classes
from tests.tasks.test_data import png

REAL = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plastic_jax" / "data"


def some(number, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *(shape or (4, 5, 3))), np.uint8)


def write(folder, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def three(number=9):
    return {name: some(number, seed=seed) for seed, name in enumerate(("b", "a", "c"))}


def refused(*arguments, error=ValueError, parts=(), **options):
    """The same one line from both functions; with all of `parts`."""
    texts = []
    for function in (class_facts, load_classes):
        with pytest.raises(error) as raised:
            function(*arguments, **options)
        texts.append(str(raised.value))
    assert texts[0] == texts[1]
    assert "\n" not in texts[0]
    for part in parts:
        assert str(part) in texts[0], texts[0]
    return texts[0]


def assert_agree(name, folder, **options):
    """The data, after a check that the facts say what it is and that nobody can write to it."""
    got, facts = load_classes(name, str(folder), **options), class_facts(name, str(folder), **options)
    assert facts == (got.names, got.train.shape, got.test.shape)
    for pictures in (got.train, got.test):
        assert pictures.dtype == np.uint8
        assert not pictures.flags.writeable
        assert isinstance(pictures, np.memmap)
    return got


# Folders


def test_a_folder_is_split_at_its_ends_in_the_order_of_its_names(tmp_path):
    arrays = three()
    write(tmp_path / "mine", **arrays)
    got = assert_agree("mine", tmp_path, train_per_class=5, test_per_class=2)
    assert got.names == ("a", "b", "c")
    for name, train, test in zip(*got, strict=True):
        np.testing.assert_array_equal(train, arrays[name][:5])
        np.testing.assert_array_equal(test, arrays[name][-2:])


def test_numbers_are_in_their_order_and_hidden_and_other_files_left_out(tmp_path):
    write(tmp_path, **{str(k): some(3, seed=k) for k in (10, 9, 2)}, **{"._9": some(1)})
    (tmp_path / "read.me").write_text("no picture")
    assert load_classes(str(tmp_path), test_per_class=1).names == ("2", "9", "10")
    write(tmp_path, x=some(3))
    assert load_classes(str(tmp_path), test_per_class=1).names == ("10", "2", "9", "x")


@pytest.mark.parametrize(("held", "train", "test"), [(700, 600, 100), (900, 600, 100), (550, 450, 100), (101, 51, 50)])
def test_the_published_split_or_what_is_left(tmp_path, held, train, test):
    folder = write(tmp_path, a=some(held, 2, 2, 3), b=some(held, 2, 2, 3, seed=1))
    facts = class_facts(str(folder))
    assert facts.train[1:3] == (train, 2)
    assert facts.test[1:3] == (test, 2)


def test_every_class_is_cut_to_the_smallest(tmp_path):
    long = some(9)
    write(tmp_path / "d", a=some(6, seed=1), b=long)
    got = assert_agree("d", tmp_path, test_per_class=2)
    np.testing.assert_array_equal(got.train[1], long[:4])
    np.testing.assert_array_equal(got.test[1], long[4:6])


def test_channels_may_come_first_as_in_the_published_files(tmp_path):
    last = three()
    write(tmp_path / "last", **last)
    write(tmp_path / "first", **{name: np.moveaxis(array, -1, 1) for name, array in last.items()})
    write(tmp_path / "fortran", **{name: np.asfortranarray(array) for name, array in last.items()})
    wanted = assert_agree("last", tmp_path, test_per_class=2)
    for name in ("first", "fortran"):
        for a, b in zip(assert_agree(name, tmp_path, test_per_class=2), wanted, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i8", ">u2"])
def test_whole_numbers_of_another_type(tmp_path, kind):
    arrays = three()
    write(tmp_path / "d", **{name: array.astype(kind) for name, array in arrays.items()})
    np.testing.assert_array_equal(assert_agree("d", tmp_path, test_per_class=2).train[0], arrays["a"][:7])


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 8])
def test_values_that_are_no_pixels(tmp_path, cache, value, place):
    arrays = {name: array.astype(np.float32) for name, array in three().items()}
    arrays["c"][place, 1, 1, 1] = value
    folder = write(tmp_path / "d", **arrays)
    with pytest.raises(ValueError, match=r"c\.npy: float32 with a value") as error:
        load_classes("d", str(tmp_path), test_per_class=2)
    assert str(error.value).startswith(str(folder / "c.npy"))
    assert not list(cache.glob("d-*"))
    if place == 0:
        refused("d", str(tmp_path), test_per_class=2, parts=["c.npy", f"value {value}"])


def test_a_path_or_a_name_or_a_folder_here(tmp_path, monkeypatch):
    write(tmp_path / "some" / "mine", **three())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path / "some" / "mine"), "./some/mine", "some/mine", "~/some/mine", "some/../some/mine"):
        assert load_classes(name, "/nowhere", test_per_class=2).names == ("a", "b", "c")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "some"))
    assert load_classes("mine", test_per_class=2).names == ("a", "b", "c")


SPOILED = {
    "no channels": (lambda a: a[..., 0], ["uint8 (9, 4, 5)", "allowed are shapes"]),
    "two channels": (lambda a: a[..., :2], ["uint8 (9, 4, 5, 2)"]),
    "flat": (lambda a: a.reshape(9, -1), ["uint8 (9, 60)"]),
    "no pictures": (lambda a: a[:0], ["uint8 (0, 4, 5, 3)"]),
    "booleans": (lambda a: a > 3, ["bool (9, 4, 5, 3)"]),
    "text": (lambda a: a.astype(str), ["allowed are uint8"]),
    "complex": (lambda a: a.astype(complex), ["complex128"]),
    "objects": (lambda a: a.astype(object), ["Python objects"]),
    "fields": (lambda a: np.zeros((9, 4, 5, 3), [("r", "u1")]), ["allowed are uint8"]),
    "other size": (lambda a: a[:, 1:], ["b.npy", "(4, 5, 3)", "(3, 5, 3)"]),
    "grey": (lambda a: a[..., :1], ["b.npy", "(4, 5, 1)"]),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_class_file_of_the_wrong_shape_or_type(tmp_path, cache, how):
    spoil, parts = SPOILED[how]
    arrays = three()
    write(tmp_path / "d", **arrays | {"b": spoil(arrays["b"])})
    refused("d", str(tmp_path), test_per_class=2, parts=["b.npy", *parts])
    assert not cache.exists()


DAMAGED = {
    "truncated": (lambda raw: raw[:-1], "truncated"),
    "header only": (lambda raw: raw[:128], "truncated"),
    "half a header": (lambda raw: raw[:50], "truncated"),
    "magic only": (lambda raw: raw[:8], "truncated"),
    "nothing": (lambda raw: b"", "truncated"),
    "too long": (lambda raw: raw + b"\0", "damaged"),
    "web page": (lambda raw: b"<html>no</html>", "not an npy file"),
    "pickle": (lambda raw: pickle.dumps([1]), "not an npy file"),
    "zip": (lambda raw: b"PK\3\4" + raw, "not an npy file"),
    "version 9": (lambda raw: raw[:6] + b"\x09" + raw[7:], "npy format (9, 0)"),
    "no dict": (lambda raw: raw.replace(b"{'descr'", b"('descr'"), "cannot be read"),
    "huge": (lambda raw: raw.replace(b"(9, 4, 5, 3), }  ", b"(999, 4, 5, 3), }"), "needs 60068 bytes"),
    "negative": (lambda raw: raw.replace(b"(9, 4, 5, 3), }  ", b"(-9, -4, 5, 3),} "), "(-9, -4, 5, 3)"),
    "zeros": (lambda raw: bytes(len(raw)), "not an npy file"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_class_file(tmp_path, cache, how):
    spoil, text = DAMAGED[how]
    path = write(tmp_path / "d", **three()) / "b.npy"
    raw = path.read_bytes()
    assert spoil(raw) != raw
    path.write_bytes(spoil(raw))
    refused("d", str(tmp_path), test_per_class=2, parts=[path, text])
    assert not cache.exists()


def test_a_header_cut_or_changed_anywhere_is_one_line_or_right(tmp_path):
    path = write(tmp_path / "d", a=some(2), b=some(2, seed=1)) / "b.npy"
    raw, rng = path.read_bytes(), np.random.default_rng(0)
    for cut in range(0, 130, 3):
        path.write_bytes(raw[:cut])
        refused(str(path.parent), test_per_class=1, parts=["b.npy"])
    for _ in range(150):
        changed = bytearray(raw)
        changed[rng.integers(0, 100)] = rng.integers(0, 256)
        path.write_bytes(changed)
        try:
            class_facts(str(path.parent), test_per_class=1)
        except ValueError as error:
            assert "b.npy" in str(error)
            assert "\n" not in str(error)


def test_links_that_lead_nowhere_and_folders_in_place_of_files(tmp_path):
    folder = write(tmp_path / "d", **three())
    (folder / "x.npy").symlink_to(tmp_path / "gone")
    refused("d", str(tmp_path), test_per_class=2, parts=[folder / "x.npy"])
    (folder / "x.npy").unlink()
    (folder / "x.npy").mkdir()
    refused("d", str(tmp_path), test_per_class=2, parts=[folder / "x.npy"])


def test_too_few_pictures(tmp_path):
    folder = write(tmp_path / "d", a=some(9), b=some(5, seed=1))
    text = refused("d", str(tmp_path), train_per_class=4, test_per_class=2)
    assert "asked are 4 training and 2 test pictures" in text
    assert f"{folder / 'b.npy'} holds 5" in text
    assert [each.shape[1] for each in load_classes("d", str(tmp_path))[1:]] == [3, 2]  # nothing was asked
    assert [each.shape[1] for each in load_classes("d", str(tmp_path), train_per_class=4)[1:]] == [4, 1]
    refused("d", str(tmp_path), train_per_class=5, parts=["5 training and at least 1 test", "b.npy holds 5"])
    refused("d", str(tmp_path), test_per_class=5, parts=["at least 1 training and 5 test", "b.npy holds 5"])


@pytest.mark.parametrize("argument", ["train_per_class", "test_per_class"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "5", True])
def test_numbers_that_are_none(tmp_path, argument, value):
    write(tmp_path / "d", **three())
    refused("d", str(tmp_path), **{argument: value}, parts=[argument, repr(value), "integers from 1 up"])


def test_fewer_than_two_classes_and_duplicates(tmp_path):
    refused(str(write(tmp_path / "one", a=some(9))), test_per_class=2, parts=["1 class (a.npy)", "at least 2"])
    twice = write(tmp_path / "twice", **{"1": some(9), "2": some(9, seed=1), "01": some(9, seed=2)})
    refused(str(twice), test_per_class=2, parts=["01.npy and 1.npy are both class 1"])
    same = write(tmp_path / "same", **three(), d=three()["a"])
    with pytest.raises(ValueError, match=r"a\.npy and d\.npy hold the same pictures"):
        load_classes(str(same), test_per_class=2)
    begin = some(9)
    begin[1:] = 0
    write(same, d=begin, b=some(9))  # the same first picture only
    assert load_classes(str(same), test_per_class=2).names == ("a", "b", "c", "d")
    write(tmp_path / "blank", **three() | {"b": np.zeros((9, 4, 5, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"b\.npy: damaged or empty: its 9 pictures are all the same"):
        load_classes("blank", str(tmp_path), test_per_class=2)


# Nothing there


def test_missing_says_what_where_and_how(tmp_path):
    (tmp_path / "imagenet32").mkdir()
    refused("", str(tmp_path), parts=["allowed are names and folders"])
    missing = {"error": FileNotFoundError}
    refused("imagnet32", str(tmp_path), **missing, parts=["(did you mean 'imagenet32'?)", "imagnet32/<class>.npy"])
    text = refused("imagenet32", str(tmp_path), **missing, parts=[f"({tmp_path}/imagenet32 holds no .npy file)"])
    assert "did you mean" not in text
    parts = [f"python -m tasks.prepare cifar100 --data_dir={tmp_path}", "did you mean 'cifar100'"]
    refused("cifar_100", str(tmp_path), **missing, parts=parts)
    parts = [f"python -m tasks.prepare imagenet_resized/32x32 --data_dir={tmp_path}"]
    refused("imagenet_resized", str(tmp_path), **missing, parts=parts)
    refused("cifar100", str(tmp_path / "no"), **missing, parts=["no, which is not a folder"])
    refused(str(tmp_path / "no"), **missing, parts=[tmp_path / "no", "is not a folder"])
    refused(str(tmp_path / "imagenet32"), **missing, parts=["holds no .npy file"])
    refused("x" * 300, str(tmp_path), parts=["too long"])


# Image sets


def images(**change):
    rng = np.random.default_rng(0)
    found = {
        "train_images": some(40, 4, 4, 3),
        "train_labels": rng.permutation(np.arange(40) % 10),
        "test_images": some(20, 4, 4, 3, seed=1),
        "test_labels": rng.permutation(np.arange(20) % 10),
    }
    return found | change


def test_an_image_set_by_label_in_its_own_order(tmp_path):
    held = images()
    np.savez(tmp_path / "cifar10.npz", **held)
    got = assert_agree("cifar10", tmp_path, train_per_class=3)
    assert got.names == tuple("0123456789")
    assert (got.train.shape, got.test.shape) == ((10, 3, 4, 4, 3), (10, 2, 4, 4, 3))
    for label in range(10):
        np.testing.assert_array_equal(got.train[label], held["train_images"][held["train_labels"] == label][:3])
        np.testing.assert_array_equal(got.test[label], held["test_images"][held["test_labels"] == label])


def test_grey_pictures_get_a_channel(tmp_path):
    grey = images(train_images=some(40, 4, 6), test_images=some(20, 4, 6))
    np.savez(tmp_path / "mnist.npz", **grey)
    assert assert_agree("mnist", tmp_path).train.shape == (10, 4, 4, 6, 1)


def test_an_image_set_is_cut_to_its_smallest_class(tmp_path):
    held = images()
    held["train_labels"][np.flatnonzero(held["train_labels"] == 4)[0]] = 5
    held["test_labels"][np.flatnonzero(held["test_labels"] == 7)[0]] = 8
    np.savez(tmp_path / "cifar10.npz", **held)
    got = assert_agree("cifar10", tmp_path)
    assert (got.train.shape[1], got.test.shape[1]) == (3, 1)
    for split, pictures in (("train", got.train), ("test", got.test)):
        for label in range(10):
            of_it = held[f"{split}_images"][held[f"{split}_labels"] == label]
            np.testing.assert_array_equal(pictures[label], of_it[: pictures.shape[1]])
    path = tmp_path / "cifar10.npz"
    refused("cifar10", str(tmp_path), train_per_class=4, parts=["train_per_class: got 4", "label 4", path, "holds 3"])
    refused(
        "cifar10", str(tmp_path), test_per_class=2, parts=["test_per_class: got 2", "label 7", path, "holds 1 test"]
    )


def test_a_label_without_pictures(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **images(test_labels=np.arange(20) % 9))
    refused("cifar10", str(tmp_path), parts=[tmp_path / "cifar10.npz", "label 9 has no test pictures"])
    np.savez(tmp_path / "one.npz", **images(train_labels=np.zeros(40, int), test_labels=np.zeros(20, int)))
    refused("one", str(tmp_path), parts=[tmp_path / "one.npz", "holds 1 class"])


def test_a_folder_of_classes_goes_before_an_image_set(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **images())
    write(tmp_path / "cifar10", **three())
    assert load_classes("cifar10", str(tmp_path), test_per_class=2).names == ("a", "b", "c")


# imagenet_resized


def write_resized(root, labels, classes=3, config="32x32"):
    """A prepared set of tiny pictures, as tensorflow-datasets lays it out; picture `k` is filled with `k`."""
    tfds = pytest.importorskip("tensorflow_datasets")
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter
    names = [f"n{k:08d}" for k in range(classes)]
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(2, 2, 3)), "label": tfds.features.ClassLabel(names=names)}
    )
    folder = root / "imagenet_resized" / config / "0.1.1"
    folder.mkdir(parents=True)
    splits = []
    for split, held in (("train", labels), ("validation", labels[:1])):
        path = folder / f"imagenet_resized-{split}.array_record-00000-of-00001"
        records = writer(str(path), "group_size:1")
        for number, label in enumerate(held):
            picture = np.full((2, 2, 3), number, np.uint8)
            records.write(features._example_serializer.serialize_example({"image": png(picture), "label": label}))
        records.close()
        splits.append({"name": split, "shardLengths": [str(len(held))], "numBytes": str(path.stat().st_size)})
        splits[-1]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    features.save_config(folder)
    info = {"name": "imagenet_resized", "version": "0.1.1", "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"configName": config}))
    return folder


def test_imagenet_resized_is_the_first_pictures_of_each_class_in_the_order_of_the_files(tmp_path, monkeypatch):
    labels = np.random.default_rng(0).permutation(np.arange(60) % 3).tolist()
    write_resized(tmp_path, labels)
    monkeypatch.setattr(classes, "TRAIN_PER_CLASS", 5)
    monkeypatch.setattr(classes, "TEST_PER_CLASS", 3)
    monkeypatch.setattr(classes, "_CHUNK", 7)
    chunks = []
    real = classes._in_chunks
    monkeypatch.setattr(classes, "_in_chunks", lambda *a: (chunks.append(1) or chunk for chunk in real(*a)))
    got = assert_agree("imagenet_resized", tmp_path)
    assert got.names == ("n00000000", "n00000001", "n00000002")
    for label in range(3):
        first = np.flatnonzero(np.array(labels) == label)[:8]
        assert got.train[label, :, 0, 0, 0].tolist() == first[:5].tolist()
        assert got.test[label, :, 0, 0, 0].tolist() == first[5:].tolist()
    full = max(np.flatnonzero(np.array(labels) == label)[7] for label in range(3))
    assert len(chunks) == full // 7 + 1 < 9  # not the whole set, and only once
    write_resized(tmp_path, labels, config="16x16")
    assert load_classes("imagenet_resized/16x16", str(tmp_path)).train.shape == (3, 5, 2, 2, 3)


def test_a_smaller_imagenet_resized_is_cut_to_its_smallest_class(tmp_path):
    folder = write_resized(tmp_path, [0, 1, 2, 2, 1, 0, 1, 0, 2, 2])
    assert assert_agree("imagenet_resized", tmp_path, test_per_class=1).train.shape == (3, 2, 2, 2, 3)
    refused("imagenet_resized", str(tmp_path), train_per_class=3, test_per_class=1, parts=[folder, "holds 3"])


def test_a_damaged_imagenet_resized(tmp_path, cache):
    folder = write_resized(tmp_path, [0, 1, 1, 0])
    refused("imagenet_resized", str(tmp_path), test_per_class=1, parts=[folder, "label 2 has no pictures"])
    shard = folder / "imagenet_resized-train.array_record-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-100])
    remedy = f"python -m tasks.prepare imagenet_resized/32x32 --data_dir={tmp_path}"
    refused("imagenet_resized", str(tmp_path), test_per_class=1, parts=[folder, remedy])
    assert not list(cache.glob("imagenet*"))


def test_those_who_wait_are_told_how_long(tmp_path, monkeypatch, capsys):
    write_resized(tmp_path, [0, 1, 2] * 2)
    monkeypatch.setattr(classes, "_CHUNK", 2)
    monkeypatch.setattr(classes, "_SECONDS_BETWEEN_LINES", 0.0)
    load_classes("imagenet_resized", str(tmp_path), test_per_class=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"imagenet_resized/32x32: read {k} of 6 pictures, about 0 s left" for k in (2, 4)]


# The cache


def test_facts_need_no_pictures(tmp_path, monkeypatch, cache):
    write(tmp_path / "d", **three())
    monkeypatch.setattr(classes, "_as_pictures", lambda *a: pytest.fail("read pictures"))
    assert class_facts("d", str(tmp_path), 5, 2) == (("a", "b", "c"), (3, 5, 4, 5, 3), (3, 2, 4, 5, 3))
    assert not cache.exists()


def test_read_once_then_mapped_for_any_split_until_a_file_changes(tmp_path, monkeypatch):
    folder, arrays = tmp_path / "d", three()
    write(folder, **arrays)
    load_classes("d", str(tmp_path), test_per_class=2)
    with monkeypatch.context() as patch:
        patch.setattr(classes, "_stacked", lambda *a: pytest.fail("read again"))
        again = load_classes("d", str(tmp_path), 1, 3)
    np.testing.assert_array_equal(again.test[0], arrays["a"][-3:])
    write(folder, a=255 - arrays["a"])
    os.utime(folder / "a.npy", (1, 1))  # same size: only the time tells
    np.testing.assert_array_equal(load_classes("d", str(tmp_path), 1, 3).test[0], 255 - arrays["a"][-3:])


def test_a_file_damaged_after_the_first_time_is_still_seen(tmp_path):
    path = write(tmp_path / "d", **three()) / "a.npy"
    load_classes("d", str(tmp_path), test_per_class=2)
    path.write_bytes(path.read_bytes()[:-1])
    refused("d", str(tmp_path), test_per_class=2, parts=[path, "truncated"])


def test_a_damaged_cache_is_made_anew(tmp_path, cache):
    write(tmp_path / "d", **three())
    wanted = np.array(load_classes("d", str(tmp_path), test_per_class=2).train)
    (folder,) = cache.glob("d-*")
    path = folder / "pictures.npy"
    path.write_bytes(path.read_bytes()[:-10])
    np.testing.assert_array_equal(load_classes("d", str(tmp_path), test_per_class=2).train, wanted)


def test_without_room_for_a_cache_the_pictures_are_given_all_the_same(tmp_path, cache, monkeypatch):
    arrays = three()
    write(tmp_path / "d", **arrays)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(data.np, "save", lambda *a: (_ for _ in ()).throw(full))
    with pytest.warns(UserWarning, match="No space left"):
        got = load_classes("d", str(tmp_path), test_per_class=2)
    np.testing.assert_array_equal(got.train[0], arrays["a"][:7])
    assert not got.train.flags.writeable
    assert [path.name for path in cache.iterdir() if not path.name.startswith(".lock")] == []


def _load_when_all_are_ready(barrier, folder, log, results):
    real = classes._stacked

    def slowly(*arguments):
        with open(log, "a") as file:
            file.write("read\n")
        time.sleep(0.3)
        return real(*arguments)

    classes._stacked = slowly
    barrier.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.put(int(load_classes("d", folder, test_per_class=2).train.sum()))


def test_of_several_processes_one_reads(tmp_path, cache):
    arrays = three()
    write(tmp_path / "d", **arrays)
    # Forking after JAX has started threads is unsafe.
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (barrier, str(tmp_path), str(tmp_path / "log"), results)
    processes = [context.Process(target=_load_when_all_are_ready, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    sums = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(timeout=300)
    assert sums == [sum(int(array[:7].sum()) for array in arrays.values())] * 3
    assert len(list(cache.glob("d-*"))) == 1
    assert (tmp_path / "log").read_text() == "read\n"


def test_a_wait_is_told_once_and_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(classes, "_SECONDS_BETWEEN_LINES", 0.0)
    answers = [BlockingIOError(), BlockingIOError(), BlockingIOError(), None]

    def take():
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    classes._wait_for(take, tmp_path)
    assert answers == []
    assert capsys.readouterr().err == f"waiting for another process that makes {tmp_path}\n"
    answers = [OSError(95, "Operation not supported")]
    classes._wait_for(take, tmp_path)


# Real pictures


@pytest.mark.skipif(not (REAL / "imagenet32").is_dir(), reason=f"REAL PICTURES NOT TESTED: no {REAL}/imagenet32")
def test_real_pictures(tmp_path):
    subprocess.run([sys.executable, REAL / "unpack.py", tmp_path, "imagenet32"], check=True, stdout=subprocess.DEVNULL)
    got = assert_agree("imagenet32", tmp_path)
    assert isinstance(got, ClassData)
    assert (got.train.shape, got.test.shape) == ((40, 450, 32, 32, 3), (40, 100, 32, 32, 3))
    for index in (0, 7, 39):
        held = np.load(tmp_path / "imagenet32" / f"{got.names[index]}.npy")
        np.testing.assert_array_equal(np.concatenate([got.train[index], got.test[index]]), held)
