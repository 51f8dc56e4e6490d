"""What makes a run the run it is: settings, one's own things, data, and what others did to its folder meanwhile."""

import ast
import dataclasses
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import optax
import pytest

from launch.config.identity import ADDED, ADDED_CHOICES, text_of
from launch.config.methods import METHODS
from launch.config.registry import TASKS
from launch.config.signatures import imported
from launch.engine import scheduler
from launch.errors import InputError
from launch.storage.leaves import digest_of
from launch.storage.run_folder import DONE, METRICS, RUN, read_meta, read_run
from plastic_jax import networks
from plastic_jax.learners.ppo import PPOSettings
from tests.launch import tiny

ROOT = Path(__file__).parents[3]


def frozen(inner):
    """Never moves."""
    return optax.sgd(0.0)


class Bent(nn.Module):
    """A network with a function among its fields."""

    outputs: int = 1
    activation: Any = nn.relu

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(self.activation(nn.Dense(3)(x)))


class Numbers(NamedTuple):
    """Data."""

    values: np.ndarray


contents = np.ones(3, np.float32)


@dataclasses.dataclass(frozen=True)
class Fed(tiny.Drift):
    """The tiny task, with data that it does not look at."""

    def load(self):
        return Numbers(contents)


def test_functions_are_told_apart_and_named_alike_in_every_process():
    code = (
        "import flax.linen as nn; from launch.config.identity import text_of;"
        "from tests.launch.config.test_identity import Bent;"
        "print(text_of(Bent(1, nn.tanh)))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == text_of(Bent(1, nn.tanh)) != text_of(Bent(1, nn.relu))
    assert " at 0x" not in text_of((nn.relu, [functools.partial(nn.relu), Bent()], {"a": 1}["a"]))
    assert text_of(functools.partial(nn.gelu, approximate=True)) != text_of(
        functools.partial(nn.gelu, approximate=False)
    )
    assert text_of((5,)) == "(5,)" and text_of("relu") == "'relu'"


def test_data_are_told_apart_by_value_kind_and_shape():
    ones = np.ones(4, np.float32)
    others = [ones * 2, ones.astype(np.int32), ones.reshape(2, 2), (ones, ones)]
    assert digest_of(ones) == digest_of(ones.copy())
    assert len({digest_of(ones), *map(digest_of, others)}) == 5
    assert digest_of(()) == ""


def test_ones_own_method_of_a_taken_name_is_another_run(tmp_path):
    tiny.run(tiny.experiment(methods="m=backprop"), tmp_path)
    with pytest.raises(InputError, match=r"holds another run \(method backprop there, frozen asked; method_from None"):
        tiny.run(tiny.experiment(methods="m=tests.launch.config.test_identity:frozen", steps=80), tmp_path)


def test_a_network_with_a_function_can_be_gone_on_with(tmp_path):
    asked = dataclasses.replace(tiny.experiment(), network="tests.launch.config.test_identity:Bent")
    tiny.run(asked, tmp_path)
    assert read_meta(tmp_path / "backprop")["settings"]["network_from"] == "tests.launch.config.test_identity:Bent"
    tiny.run(dataclasses.replace(asked, steps=80), tmp_path)
    assert read_run(tmp_path / "backprop").step[-1] == 80


def test_other_data_are_another_run(tmp_path, monkeypatch):
    asked = dataclasses.replace(tiny.experiment(), task="tests.launch.config.test_identity:Fed")
    tiny.run(asked, tmp_path)
    tiny.run(asked, tmp_path)
    monkeypatch.setattr(sys.modules[Fed.__module__], "contents", np.zeros(3, np.float32))
    with pytest.raises(InputError, match=r"holds another run \(the data are others\)"):
        tiny.run(dataclasses.replace(asked, steps=80), tmp_path)


def racing(monkeypatch, other):
    """Somebody else's `other()` runs between the first look at the folder and the lock."""
    check = scheduler._check

    def slow(*arguments):
        monkeypatch.setattr(scheduler, "_check", check)
        other()
        return check(*arguments)

    monkeypatch.setattr(scheduler, "_check", slow)


def test_what_another_launch_has_written_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    racing(monkeypatch, lambda: tiny.run(tiny.experiment(), tmp_path))
    with pytest.raises(InputError, match="holds another run"):
        tiny.run(tiny.experiment(set=("step_size=0.5",)), tmp_path)
    assert read_meta(tmp_path / "backprop")["lanes"][0]["hyper"]["step_size"] == 0.01


def test_a_longer_run_with_more_seeds_that_came_first_stays(tmp_path, monkeypatch):
    tiny.run(tiny.experiment(steps=40), tmp_path)
    longer = tiny.experiment(steps=80, seeds=(0, 1, 2, 3, 4))
    racing(monkeypatch, lambda: tiny.run(longer, tmp_path, policy=tiny.policy(keep=0)))
    with pytest.raises(InputError, match=r"holds another run \(steps"):
        tiny.run(tiny.experiment(steps=60), tmp_path)
    run = read_run(tmp_path / "backprop")
    assert (len(run.lanes), run.step[-1], run.meta["finished"]) == (5, 80, True)


def test_results_without_their_description_are_not_taken_for_others(tmp_path):
    tiny.run(tiny.experiment(), tmp_path)
    (tmp_path / "backprop" / RUN).unlink()
    before = tiny.snapshot(tmp_path)
    with pytest.raises(InputError, match=rf"holds {METRICS} without {RUN}"):
        tiny.run(tiny.experiment(set=("step_size=0.5",)), tmp_path)
    assert tiny.snapshot(tmp_path) == before
    assert (tmp_path / "backprop" / DONE).exists()


def test_a_length_below_that_of_a_run_on_its_way_is_refused(tmp_path):
    tiny.run(tiny.experiment(steps=20), tmp_path)
    assert tiny.stopped(tiny.experiment(steps=100), tmp_path, 10)
    with pytest.raises(InputError, match=r"steps 100 begun, 40 asked"):
        tiny.run(tiny.experiment(steps=40), tmp_path)
    assert tiny.run(tiny.experiment(steps=20), tmp_path)["backprop"].step[-1] == 20


def test_must_resume_wants_a_checkpoint(tmp_path):
    assert tiny.stopped(tiny.experiment(), tmp_path, 8)
    tiny.run(tiny.experiment(), tmp_path, resume="must")
    for path in tiny.checkpoints(tmp_path).values():
        (path / "manifest.json").unlink()
    (tmp_path / "backprop" / DONE).unlink()
    with pytest.raises(InputError, match=r"--resume=must: .* no checkpoint"):
        tiny.run(tiny.experiment(), tmp_path, resume="must")


def test_a_run_is_not_put_into_a_run(tmp_path):
    tiny.run(tiny.experiment(), tmp_path)
    with pytest.raises(InputError, match="is itself a run; give the folder above it"):
        tiny.run(tiny.experiment(), tmp_path / "backprop")


def test_runs_for_tuning_and_others_do_not_mix(tmp_path):
    tiny.run(tiny.experiment(tuning=True), tmp_path)
    with pytest.raises(InputError, match="holds a run that was made for tuning"):
        tiny.run(tiny.experiment(steps=80), tmp_path)


def test_blocks_and_devices_have_units_of_their_own():
    from launch.config.experiment import resolve
    from launch.engine.unit_of_work import units_of

    plan = resolve(tiny.experiment(seeds=tuple(range(7))))
    counts = [len(units_of(plan, plan.jobs[0], "gpu", parts=parts)) for parts in (1, 2, 4, 7, 100)]
    assert counts == [1, 2, 4, 7, 7]
    fixed = resolve(tiny.experiment(seeds=tuple(range(7)), lanes_per_batch=7))
    assert len(units_of(fixed, fixed.jobs[0], "gpu", parts=4)) == 1


def names_written(of: type) -> set[str]:
    """The fields of a class that are always part of a run's text."""
    added = {name for base in of.__mro__ for name in ADDED.get(base.__name__, {})}
    return {field.name for field in dataclasses.fields(of) if field.init} - added - {"data_dir", "parent", "name"}


def test_runs_of_earlier_versions_can_still_be_gone_on_with():
    """What came after a committed run is in `ADDED` or `ADDED_CHOICES`, or its folder would be taken for another's."""
    learned, seen = {field.name for field in dataclasses.fields(PPOSettings)}, set()
    for path in sorted((ROOT / "results").rglob(RUN)):
        settings = read_meta(path.parent)["settings"]
        stored = {kind: {n.split(".")[1] for n in settings if n.startswith(f"{kind}.")} for kind in ("task", "learner")}
        assert names_written(imported("task", TASKS[settings["task"]].make)) <= stored["task"], path
        assert stored["learner"] in (set(), learned), path
        (network,) = [call for call in ast.walk(ast.parse(settings["network"])) if isinstance(call, ast.Call)][:1]
        of = getattr(networks, network.func.id)  # pyright: ignore[reportAttributeAccessIssue]
        assert names_written(of) <= {keyword.arg for keyword in network.keywords}, path
        seen |= {settings["task"], of.__name__}
    for path in sorted((ROOT / "results" / "suite").rglob(RUN)):
        settings = read_meta(path.parent)["settings"]
        assert METHODS[settings["method"]].options.keys() - ADDED_CHOICES.keys() <= settings.keys(), path
    assert {"slippery_ant", "permuted_mnist", "ActorCritic", "ResNet", "ConvNet", "MLP"} <= seen
