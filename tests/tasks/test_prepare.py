"""`python -m tasks.prepare`: what it says, and its exit status, for everything that can be wrong."""

import importlib.util
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks import prepare

tfds = pytest.importorskip("tensorflow_datasets")

MNIST_BYTES = 11594722  # what tensorflow-datasets states as the size of the download


@pytest.fixture
def tensorflow(monkeypatch):
    """TensorFlow counts as installed, or not; nothing is ever fetched."""
    real = importlib.util.find_spec
    present = SimpleNamespace(installed=True)

    def find(name, *rest):
        return (present.installed or None) if name == "tensorflow" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("went to the network"))
    return present


def refused(capsys, *arguments):
    assert prepare.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_list(capsys):
    assert prepare.main(["--list"]) == 0
    names = capsys.readouterr().out.split()
    assert "mnist" in names
    for name in names:
        base, _, config = name.partition("/")
        assert not config or config in [c.name for c in tfds.builder_cls(base).BUILDER_CONFIGS]


def test_unknown_names(tensorflow, capsys, tmp_path):
    assert "(did you mean 'mnist'?)" in refused(capsys, "mnits", f"--data_dir={tmp_path}")
    assert "(did you mean 'balanced'?)" in refused(capsys, "emnist/balancd", f"--data_dir={tmp_path}")
    assert "emnist/letters" in refused(capsys, "emnist", f"--data_dir={tmp_path}")
    assert "NAME is missing" in refused(capsys)
    assert list(tmp_path.iterdir()) == []


def test_no_tensorflow(tensorflow, capsys, tmp_path):
    tensorflow.installed = False
    assert "pip install -e '.[tensorflow]'" in refused(capsys, "mnist", f"--data_dir={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_said_at_once(tensorflow, capsys, tmp_path, monkeypatch):
    def urlopen(*a, **k):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    message = refused(capsys, "mnist", f"--data_dir={tmp_path}")
    assert "cannot reach storage.googleapis.com (Name or service not known)" in message
    assert list(tmp_path.iterdir()) == []


def test_already_prepared(tensorflow, capsys, tmp_path):
    tensorflow.installed = False
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_bytes(b" " * 2_500_000)
    assert prepare.main(["mnist", f"--data_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"mnist: already prepared in {folder} (2.5 MB)\n"


class Builder:
    """Stands for the builder of tensorflow-datasets, which would need TensorFlow and the network."""

    def __init__(self, name, data_dir, file_format):
        assert file_format == "array_record"
        self.data_path = Path(data_dir) / name / "3.0.1"

    def download_and_prepare(self, download_config):
        self.data_path.mkdir(parents=True)
        (self.data_path / "dataset_info.json").write_bytes(b" " * 1_000_000)


def test_size_and_time_before_and_after(tensorflow, capsys, tmp_path, monkeypatch):
    hosts = []
    answer = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: hosts.append(request.host) or answer)
    monkeypatch.setattr(tfds, "builder", Builder)
    assert prepare.main(["mnist", f"--data_dir={tmp_path}"]) == 0
    before, after = capsys.readouterr().out.splitlines()
    assert f"downloading {MNIST_BYTES / 1e6:.1f} MB to {tmp_path} (about 1 s" in before
    assert after == f"mnist: prepared in {tmp_path / 'mnist' / '3.0.1'} (1.0 MB) in 0 s"
    assert hosts == ["storage.googleapis.com"]


def test_archives_at_hand_need_no_network(tensorflow, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "builder", Builder)
    archives = tmp_path / "archives"
    archives.mkdir()
    for info in tfds.builder_cls("mnist").url_infos.values():
        (archives / info.filename).touch()
    assert prepare.main(["mnist", f"--data_dir={tmp_path}", f"--manual_dir={archives}"]) == 0
    assert "preparing the archives" in capsys.readouterr().out


def test_what_the_builder_raises_is_one_line(tensorflow, capsys, tmp_path, monkeypatch):
    def builder(*a, **k):
        raise RuntimeError("wrong checksum:\n* expected 1\n* got 2")

    monkeypatch.setattr(prepare, "_check_network", lambda urls: None)
    monkeypatch.setattr(tfds, "builder", builder)
    assert prepare.main(["mnist", f"--data_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "wrong checksum: * expected 1 * got 2" in err


def test_of_imagenet_resized_only_the_size_asked_is_fetched(tensorflow, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "builder", Builder)
    monkeypatch.setattr(prepare, "_check_network", lambda urls: None)
    assert prepare.main(["imagenet_resized/32x32", f"--data_dir={tmp_path}"]) == 0
    assert "downloading 3720.1 MB" in capsys.readouterr().out
    archives = tmp_path / "archives"
    archives.mkdir()
    for name in ("Imagenet32_train_npz.zip", "Imagenet32_val_npz.zip"):
        (archives / name).touch()
    monkeypatch.setattr(prepare, "_check_network", lambda urls: pytest.fail("went to the network"))
    options = [f"--data_dir={tmp_path / 'other'}", f"--manual_dir={archives}"]
    assert prepare.main(["imagenet_resized/32x32", *options]) == 0
    assert "preparing the archives" in capsys.readouterr().out
