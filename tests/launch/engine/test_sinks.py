"""Sinks get every setting's bins while the run goes on; one that fails costs a warning; a missing package is named."""

import sys
import threading
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from launch.config.experiment import resolve
from launch.engine import sinks
from launch.engine.sinks import Curves, check_sinks, sending
from launch.engine.unit_of_work import Unit
from launch.errors import InputError
from launch.storage.bins import Mean
from tests.launch import tiny

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

    def flush(self):
        pass

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


class FakeTensorBoard(SimpleNamespace):
    SummaryWriter = FakeWriter


@pytest.fixture
def tensorboard(monkeypatch):
    monkeypatch.setattr(FakeWriter, "made", {})
    monkeypatch.setitem(sys.modules, "tensorboardX", FakeTensorBoard())


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    return fake


def test_tensorboard_has_one_folder_per_curve(tmp_path, tensorboard):
    with sending(["tensorboard"], tmp_path, {"steps": 20}) as log:
        assert not FakeWriter.made
        log("a", 10, {"loss": 1.0})
        log("b", 10, {"loss": 3.0})
        log("a", 20, {"loss": 2.0})
    a, b = (FakeWriter.made[str(tmp_path / "tensorboard" / curve)] for curve in "ab")
    assert a.scalars == [("loss", 1.0, 10), ("loss", 2.0, 20)] and a.purge_step == 10 and "steps = 20" in a.settings
    assert b.scalars == [("loss", 3.0, 10)]
    assert a.closed and b.closed


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboardX")
    with sending(["tensorboard"], tmp_path, {}) as log:
        log("a/seeds=0:3", 10, {"loss": 1.0})
    (events,) = (tmp_path / "tensorboard/a/seeds=0:3").glob("events.out.tfevents.*")
    assert b"loss" in events.read_bytes()


def test_wandb_is_one_run_with_a_step_per_curve(tmp_path, wandb):
    with sending(["wandb", "wandb"], tmp_path, {"steps": 20}) as log:
        log("a", 10, {"loss": 1.0})
        log("a", 20, {"loss": 2.0})
        log("b", 10, {"loss": 3.0})
    assert wandb.started[0]["config"] == {"steps": 20} and wandb.started[1:] == ["finished"]
    assert wandb.defined == [("a/*", "a/step"), ("b/*", "b/step")]
    assert wandb.logged[0] == {"a/step": 10, "a/loss": 1.0} and wandb.logged[2] == {"b/step": 10, "b/loss": 3.0}


def test_nothing_asked_for_is_nothing_opened(tmp_path):
    with sending([], tmp_path, {}) as log:
        assert log is None


SWEPT = tiny.experiment(methods="l2", sweep=("l2.weight_decay=0.1,0.2",), seeds=(0, 1, 2), lanes_per_batch=6)


def test_every_setting_is_a_curve_of_its_own_and_its_bins_come_while_the_run_goes_on(tmp_path):
    events = []
    runs = tiny.run(
        SWEPT, tmp_path, log=lambda *bin: events.append(bin), report=lambda label, steps: events.append(steps)
    )
    seen = [event for event in events if isinstance(event, tuple)]
    names = ["l2/weight_decay=0.1/seeds=0:3", "l2/weight_decay=0.2/seeds=0:3"]
    assert [(curve, step) for curve, step, _ in seen] == [(name, step) for step in (20, 40, 60) for name in names]
    assert isinstance(events[-3], int)  # a chunk, and then its two bins
    for curve, step, values in seen:
        own = slice(0, 3) if curve == names[0] else slice(3, 6)
        for name, value in values.items():
            assert value == pytest.approx(runs["l2"].metrics[name][own, step // 20 - 1].mean(), rel=1e-12)


def test_workers_send_the_curves_of_their_units_and_a_run_that_goes_on_sends_the_rest(tmp_path):
    asked, seen = tiny.experiment(lanes_per_batch=2), []
    assert tiny.stopped(asked, tmp_path, 6, log=lambda *bin: seen.append(bin[:2]))
    assert seen == [("backprop/seeds=0:2", 20)]
    tiny.run(asked, tmp_path, workers=2, log=lambda *bin: seen.append(bin[:2]))
    rest = [("backprop/seeds=0:2", 40), ("backprop/seeds=0:2", 60), *[("backprop/seeds=2", s) for s in (20, 40, 60)]]
    assert sorted(seen[1:]) == sorted(rest)


def test_a_bin_without_a_measurement_is_left_out():
    plan = resolve(tiny.experiment(seeds=(0, 1)))
    unit = Unit("backprop", plan.jobs[0].lanes, 2, 5, "name")
    bins = {
        "loss": Mean(np.array([[4.0, 0.0], [9.0, 0.0]]), np.array([[2.0, 0.0], [3.0, 0.0]])),
        "rank": Mean(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])),
        "bad": Mean(np.full((2, 2), NAN), np.ones((2, 2))),
    }
    seen = []
    Curves(plan, plan.jobs[0], unit, 0, 0).send(45, bins, lambda *bin: seen.append(bin))
    assert seen == [("backprop/seeds=0:2", 20, {"loss": 2.5, "rank": 1.0}), ("backprop/seeds=0:2", 40, {})]


@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_a_server_that_fails_costs_a_warning(when, tmp_path, wandb, tensorboard, capsys):
    def fail(*given, **named):
        raise ConnectionError("server away\ntry later")

    setattr(wandb, when, fail)
    with sending(["wandb", "tensorboard"], tmp_path, {}) as log:
        runs = tiny.run(SWEPT, tmp_path / "runs", log=log)
    assert runs["l2"].meta["finished"]
    said = capsys.readouterr().err
    assert said == "warning: --log=wandb: failed, and gets nothing more of this run (server away try later)\n"
    assert len(FakeWriter.made) == 2 and all(len(one.scalars) % 3 == 0 for one in FakeWriter.made.values())


def test_a_server_that_hangs_does_not_hold_up_the_run(tmp_path, wandb, monkeypatch, capsys):
    away = threading.Event()
    monkeypatch.setattr(sinks, "CLOSING_SECONDS", 0.1)
    wandb.init = lambda **given: away.wait(tiny.HANG)
    with sending(["wandb"], tmp_path, {}) as log:
        log("a", 10, {"loss": 1.0})
    assert "--log=wandb: not everything was sent within 0.1 seconds" in capsys.readouterr().err
    away.set()


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named_before_anything_runs(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"--log={name}: needs the package {package}; pip install {package}"):
        check_sinks([name])


def test_an_unknown_sink():
    with pytest.raises(InputError, match="did you mean 'tensorboard'"):
        check_sinks(["tensorbord"])
