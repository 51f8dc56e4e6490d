"""`run(experiment)`: what methods share, switches, divergence, the run folder, workers and padding."""

import dataclasses
import json
import re
import sys
import textwrap

import numpy as np
import pytest

import launch
from launch.config.experiment import Experiment, branched
from launch.engine import scheduler
from launch.engine.checkpoint_policy import CheckpointPolicy
from launch.errors import InputError
from launch.storage.run_folder import read_runs

REPLACING = "continual_backprop(maturity_threshold=10,replacement_rate=0.05)"
METHODS = "backprop,zero_l2=l2(weight_decay=0),zero_rate=continual_backprop(replacement_rate=0),wild=backprop"
EXPERIMENT = Experiment(
    "slowly_changing_regression(change_every=200)",
    METHODS,
    (0, 1, 2),
    steps=1900,
    bin=400,
    sweep=("wild.step_size=0.01,100",),
)
OWN = '''
    """A task, a method and a network of one's own."""
    import dataclasses
    from typing import Annotated, NamedTuple

    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from plastic_jax.signature import Range
    from tasks.base import Batch, Schedule, Spec, Task


    @dataclasses.dataclass(frozen=True)
    class Line(Task):
        """Learn the sum of two inputs."""

        noise: float = 0.0
        change_every: int = 50
        spec = Spec((2,), 1, "squared_error", 1, {"squared_error": 1.0})

        @property
        def schedule(self):
            return Schedule(self.change_every, None, None, None)

        def init(self, key, data):
            return key

        def next(self, state, clock, data):
            x = jax.random.normal(jax.random.fold_in(state, clock), (1, 2))
            false = jnp.zeros([], bool)
            return state, Batch(x, x.sum(1, keepdims=True), clock % self.change_every == 0, false)


    def signs(inner, *, rate: Annotated[float | jax.Array, Range(0, 1)] = 0.01):
        """Sign descent."""
        return optax.sign_sgd(rate)


    class Tiny(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs)(x)


    class Wide(Tiny):
        def __call__(self, x):
            return jnp.concatenate([x, x], -1)


    number = 3
'''


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "first"


@pytest.fixture(scope="module")
def runs(workdir):
    return launch.run(EXPERIMENT, workdir, workers=1, policy=CheckpointPolicy(at=(1000,)))


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_things.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_things"
    sys.modules.pop("own_things", None)


def test_methods_that_do_nothing_are_backprop(runs):
    """Also: the stream and the initial weights know neither the method nor its numbers.

    They are other programs, in which XLA may contract g + 0 w differently; their updates are compared bit for bit in
    the contract suite.
    """
    for label in ("zero_l2", "zero_rate"):
        for name in ("squared_error", "mean_weight_magnitude"):
            expected = runs["backprop"].metrics[name]
            np.testing.assert_allclose(runs[label].metrics[name], expected, rtol=1e-4, err_msg=f"{label} {name}")


def test_branches_take_over_the_very_weights(runs, workdir, tmp_path):
    """The bins up to step 1000 of 1900 are the source's; the mean weight of bin 2 holds probes at 800 and at 1000, the
    latter of the weights that were taken over. Going on with the same method is as if nothing had happened."""
    source = f"{workdir / 'backprop'}@1000"
    branches = launch.run(branched(source, methods=f"rescue={REPLACING},same=backprop"), tmp_path, workers=1)
    rescue, same, backprop = (r.metrics for r in (branches["rescue"], branches["same"], runs["backprop"]))
    for name in backprop:
        np.testing.assert_array_equal(rescue[name][:, :2], backprop[name][:, :2], err_msg=name)
        np.testing.assert_array_equal(same[name], backprop[name], err_msg=name)
    np.testing.assert_array_equal(rescue["mean_weight_magnitude"][:, 2], backprop["mean_weight_magnitude"][:, 2])
    assert (rescue["squared_error"][:, 4] != backprop["squared_error"][:, 4]).all()


def test_a_diverged_lane_counts_as_a_failure_and_disturbs_no_other(runs):
    wild = runs["wild"]
    assert wild.meta["diverged"] == [3, 4, 5]
    assert runs["backprop"].meta["diverged"] == []
    errors = wild.metrics["squared_error"]
    assert np.isfinite(errors).all()
    np.testing.assert_allclose(errors[3:, 1:], 0.9, rtol=1e-5)
    np.testing.assert_allclose(errors[:3, :2], runs["backprop"].metrics["squared_error"][:, :2], rtol=1e-3)


def test_bins_cover_all_steps(runs):
    run = runs["backprop"]
    np.testing.assert_array_equal(run.step, [400, 800, 1200, 1600, 1900])
    np.testing.assert_array_equal(run.count, [400, 400, 400, 400, 300])
    assert set(run.metrics) >= {"squared_error", "dormant_units", "mean_weight_magnitude", "effective_rank"}
    assert all(values.shape == (3, 5) and np.isfinite(values).all() for values in run.metrics.values())
    assert runs["wild"].metrics["squared_error"].shape == (6, 5)
    for name in ("dormant_units", "dead_units", "effective_rank"):
        assert ((run.metrics[name] >= 0) & (run.metrics[name] <= 1)).all(), name


def test_the_folder_holds_what_was_run(runs, workdir):
    assert sorted(p.name for p in workdir.iterdir()) == sorted(runs)
    for label in runs:
        names = sorted(p.name for p in (workdir / label).iterdir())
        assert names == ["DONE", "checkpoints", "metrics.npz", "run.json"]
    meta = json.loads((workdir / "wild" / "run.json").read_text())
    assert meta["schema"] == 1
    assert (meta["label"], meta["method"], meta["task"]) == ("wild", "backprop", "slowly_changing_regression")
    assert meta["lanes"][4] == {
        "method": "backprop",
        "seed": 1,
        "hyper": meta["lanes"][1]["hyper"] | {"step_size": 100.0},
    }
    wanted = {"task.variant": "redraw", "task.change_every": 200, "preset": "corrected", "steps": 1900, "bin": 400}
    assert meta["settings"].items() >= (wanted | {"optimizer": "sgd", "method": "backprop"}).items()
    assert "widths=(5,)" in meta["settings"]["network"]
    assert meta["versions"].keys() >= {"python", "jax", "flax", "optax", "numpy"}
    assert re.fullmatch(r"([0-9a-f]{12,}(-dirty)?)?", meta["commit"])
    assert meta["machine"]["backend"] == "cpu"
    assert meta["task_aware"] is False
    assert meta["wall_seconds"] > 0
    with np.load(workdir / "wild" / "metrics.npz") as file:
        assert file["step"].dtype == file["count"].dtype == np.int64
        assert file["squared_error"].dtype == np.float64
    for label, run in read_runs(workdir).items():
        for name, values in run.metrics.items():
            np.testing.assert_array_equal(values, runs[label].metrics[name])


def test_what_is_finished_is_read_and_not_run_again(runs, workdir, monkeypatch):
    monkeypatch.setattr(scheduler, "run_units", lambda *_: pytest.fail("ran again"))
    again = launch.run(EXPERIMENT, workdir, workers=1)
    assert list(again) == list(runs)
    np.testing.assert_array_equal(again["wild"].metrics["squared_error"], runs["wild"].metrics["squared_error"])


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 1800},
        {"seeds": (0, 1)},
        {"seeds": (0, 1, 3)},
        {"set": ("backprop.step_size=0.02",)},
        {"preset": "published"},
        {"network": "mlp(widths=(6,))"},
        {"bin": 200},
        {"methods": "zero_l2=l2(weight_decay=0.1)"},
        {"methods": "wild=backprop(optimizer=adam)"},
        {"chunk": 50},
        {"lanes_per_batch": 1},
    ],
)
def test_other_settings_are_refused_and_nothing_changes(runs, workdir, monkeypatch, change):
    monkeypatch.setattr(scheduler, "run_units", lambda *_: pytest.fail("ran"))
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in workdir.rglob("*")}
    sweep = () if "methods" in change else EXPERIMENT.sweep
    with pytest.raises(InputError, match=r"^--workdir: .* holds another run") as error:
        launch.run(dataclasses.replace(EXPERIMENT, sweep=sweep, **change), workdir, workers=1)
    assert "\n" not in str(error.value)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in workdir.rglob("*")} == before


@pytest.mark.parametrize(
    ("where", "words"), [("file", "is a file"), ("file/below", "cannot write"), ("folder", "is a file")]
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, monkeypatch, where, words):
    monkeypatch.setattr(scheduler, "run_units", lambda *_: pytest.fail("ran"))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "backprop").touch()  # where the label's folder would be
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=rf"^--workdir: .*{words}"):
        launch.run(dataclasses.replace(EXPERIMENT, methods="backprop", sweep=()), tmp_path / where, workers=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_workers_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"^--workers: 0"):
        launch.run(EXPERIMENT, tmp_path / "new", workers=0)
    assert not (tmp_path / "new").exists()


def test_an_own_task_method_and_network_run_in_workers_in_padded_batches_as_in_one(own, tmp_path):
    """Three lanes as two batches of two in two processes, the last one filled up, against one batch in this process."""
    experiment = Experiment(f"{own}:Line", f"{own}:signs", (0, 1, 2), tasks=4, bin=100, network=f"{own}:Tiny")
    one = launch.run(experiment, workers=1)["signs"]
    reported = []
    two = launch.run(
        dataclasses.replace(experiment, lanes_per_batch=2), tmp_path / "two", 2, lambda *what: reported.append(what)
    )["signs"]
    assert one.metrics["squared_error"].shape == (3, 2)
    np.testing.assert_allclose(two.metrics["squared_error"], one.metrics["squared_error"], rtol=1e-5)
    np.testing.assert_array_equal(two.seeds, [0, 1, 2])
    assert two.meta["lanes_per_batch"] == 2
    assert sum(steps for _, steps in reported) == 3 * 200
    assert {label for label, _ in reported} == {"signs"}
    assert len(np.unique(one.metrics["squared_error"])) == 6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "{}:Lime"}, "--task: cannot import"),
        ({"task": "{}:number"}, "neither a launch.config.registry.TaskSpec nor a subclass"),
        ({"task": "{}:Line(nois=1)"}, "did you mean 'noise'"),
        ({"task": "no_such_module:Line"}, "--task: cannot import 'no_such_module:Line'"),
        (
            {"methods": "{}:number"},
            "--methods: own_things:number is a int, not a function (inner, ...) -> optax",
        ),
        ({"methods": "{}:signs(rate=2)"}, "signs.rate: 2 is not a number from 0 to 1"),
        ({"network": "{}:Wide"}, "--network: Wide gives (1, 4), the task needs (1, 1)"),
        ({"network": "{}:number"}, "--network:"),
        ({"network": "{}:Tiny", "methods": "continual_backprop"}, "replaces hidden units; Tiny has none"),
    ],
)
def test_own_things_that_do_not_fit_are_refused(own, tmp_path, fields, words):
    fields = {name: text.format(own) for name, text in fields.items()}
    experiment = Experiment(**({"task": f"{own}:Line", "methods": f"{own}:signs", "steps": 10} | fields))
    with pytest.raises(InputError) as error:
        launch.run(experiment, tmp_path / "new", workers=1)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
