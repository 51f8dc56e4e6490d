"""Sinks write what they are given, lazily, and name the package that is missing."""

import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest

from launch.engine.sinks import check_sinks, open_sinks
from launch.errors import InputError

NAN = float("nan")


class FakeWriter:
    made: ClassVar[dict] = {}

    def __init__(self, folder, purge_step):
        self.purge_step, self.scalars, self.settings = purge_step, [], ""
        FakeWriter.made[folder] = self

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def add_text(self, name, text):
        self.settings = text

    def close(self):
        self.closed = True


class FakeWandb(SimpleNamespace):
    def __init__(self):
        super().__init__(logged=[], defined=[], started=[])

    def init(self, **given):
        self.started.append(given)
        return self

    def define_metric(self, name, step_metric):
        self.defined.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.started.append("finished")


def test_tensorboard_has_one_folder_per_label(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeWriter, "made", {})
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=FakeWriter))
    (sink,) = open_sinks(["tensorboard"], tmp_path, {"steps": 20})
    assert not FakeWriter.made
    sink("a", 10, {"loss": 1.0, "rank": NAN})
    sink("b", 10, {"loss": 3.0})
    sink("a", 20, {"loss": 2.0})
    a, b = (FakeWriter.made[str(tmp_path / "tensorboard" / label)] for label in "ab")
    assert a.scalars == [("loss", 1.0, 10), ("loss", 2.0, 20)] and a.purge_step == 10 and "steps = 20" in a.settings
    assert b.scalars == [("loss", 3.0, 10)]
    sink.close()
    assert a.closed and b.closed


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboardX")
    (sink,) = open_sinks(["tensorboard"], tmp_path, {})
    sink("a", 10, {"loss": 1.0})
    sink.close()
    (events,) = (tmp_path / "tensorboard/a").glob("events.out.tfevents.*")
    assert b"loss" in events.read_bytes()


def test_wandb_is_one_run_with_a_step_per_label(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (sink,) = open_sinks(["wandb", "wandb"], tmp_path, {"steps": 20})
    assert not fake.started
    sink("a", 10, {"loss": 1.0, "rank": NAN})
    sink("a", 20, {"loss": 2.0})
    sink("b", 10, {"loss": 3.0})
    sink.close()
    assert fake.started[0]["config"] == {"steps": 20} and fake.started[1:] == ["finished"]
    assert fake.defined == [("a/*", "a/step"), ("b/*", "b/step")]
    assert fake.logged[0] == {"a/step": 10, "a/loss": 1.0} and fake.logged[2] == {"b/step": 10, "b/loss": 3.0}


def test_nothing_asked_for_is_nothing_opened(tmp_path):
    assert open_sinks([], tmp_path, {}) == []


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named_before_anything_runs(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"--log={name}: needs the package {package}; pip install {package}"):
        check_sinks([name])


def test_an_unknown_sink():
    with pytest.raises(InputError, match="did you mean 'tensorboard'"):
        check_sinks(["tensorbord"])
