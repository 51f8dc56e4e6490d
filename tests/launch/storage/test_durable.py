"""Files and folders that are there whole or not at all."""

import errno
import os
import pickle

import pytest

from launch.storage import durable
from launch.storage.durable import StorageError, make_folder, publish, replacing, storing, why


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def recorded(monkeypatch):
    """The calls of fsync and rename, in order: the path, or (from, to)."""
    calls = []
    true_sync, true_rename = durable.sync, os.rename

    def sync(path):
        calls.append(str(path))
        true_sync(path)

    def rename(source, target):
        calls.append((str(source), str(target)))
        true_rename(source, target)

    monkeypatch.setattr(durable, "sync", sync)
    monkeypatch.setattr(os, "rename", rename)
    return calls


def test_a_file_is_replaced_when_the_block_ends_well_and_stays_when_it_does_not(tmp_path):
    path = tmp_path / "a.json"
    with replacing(path) as file:
        file.write(b"old")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_is_one_line_with_path_and_reason_and_the_old_file_stands(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(StorageError) as error, replacing(path) as file:
        file.write(b"new")
    assert str(error.value) == f"{path}: cannot be written: disk full"
    assert error.value.strerror == "disk full"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_publishing_syncs_every_file_and_folder_before_the_rename_and_the_parent_after(tmp_path, monkeypatch):
    temporary, final = tmp_path / ".new.tmp", tmp_path / "new"
    (temporary / "deep").mkdir(parents=True)
    for name in ("a", "deep/b", "deep/c"):
        (temporary / name).write_bytes(b"x")
    calls = recorded(monkeypatch)
    publish(temporary, final)
    below = {str(temporary / name) for name in ("", "a", "deep", "deep/b", "deep/c")}
    assert set(calls[:5]) == below
    assert calls[5:] == [(str(temporary), str(final)), str(tmp_path)]
    assert (final / "deep" / "b").read_bytes() == b"x"


@pytest.mark.parametrize(("make", "reason"), [("file", "a file stands"), ("folder", "a folder stands")])
def test_publishing_onto_something_leaves_it_as_it_is(tmp_path, make, reason):
    temporary, final = tmp_path / ".new.tmp", tmp_path / "new"
    temporary.mkdir()
    (temporary / "a").write_bytes(b"new")
    if make == "file":
        final.write_bytes(b"mine")
    else:
        final.mkdir()
        (final / "a").write_bytes(b"mine")
    with pytest.raises(StorageError, match=reason):
        publish(temporary, final)
    assert (final if make == "file" else final / "a").read_bytes() == b"mine"


def test_new_folders_are_made_durable_from_the_first_that_was_missing(tmp_path, monkeypatch):
    calls = recorded(monkeypatch)
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert set(calls) == {str(tmp_path / "a"), str(tmp_path)}
    calls.clear()
    make_folder(tmp_path / "a" / "b")
    assert calls == []


def test_a_file_in_place_of_a_folder_is_said(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(StorageError, match="a file stands where a folder is needed"):
            make_folder(path)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "disk full"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota"), (errno.EACCES, "permission")],
)
def test_reasons_are_found_also_where_a_library_has_wrapped_them(number, reason):
    inner = OSError(number, os.strerror(number))
    wrapped = RuntimeError("writing failed")
    wrapped.__cause__ = inner
    assert reason in why(inner)
    assert reason in why(wrapped)
    assert reason in why(ValueError(f"RESOURCE_EXHAUSTED: write [OS error {number}: {os.strerror(number)}] in a\nb"))


def test_an_unknown_reason_is_passed_on_as_one_line():
    assert why(ValueError("strange\n  thing")) == "strange thing"
    assert why(ValueError()) == "ValueError"


def test_a_network_file_system_without_sync_of_folders_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    make_folder(tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_storage_errors_are_not_wrapped_twice_and_travel_between_processes():
    with pytest.raises(StorageError) as error, storing("outer"), storing("inner"):
        raise OSError(errno.ENOSPC, "x")
    assert str(error.value) == "inner: cannot be written: disk full"
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
