"""`launch.suite`: every method is tuned alike and reported on other seeds; a second call goes on with what is there."""

import dataclasses
import json

import jax
import optax
import pytest
from absl import flags

from launch import suite as command
from launch.config import suite as config
from launch.engine import scheduler
from launch.errors import InputError
from launch.storage.locks import LOCK, locked
from launch.storage.run_folder import read_run
from tests.launch import tiny

FILE = f"""
[tasks.drift]
task = "{tiny.TASK}"
network = "{tiny.NETWORK}"
tasks = 4
least = 2
[methods.fresh_network]
number = ""
"""


def shrinking(inner, *, amount: float | jax.Array = 0.01):
    """Somebody's own method: weights shrink."""

    def update(updates, state, params):
        updates, state = inner.update(updates, state, params)
        return jax.tree.map(lambda u, w: u - amount * w, updates, params), state

    return optax.GradientTransformation(inner.init, update)


@pytest.fixture(autouse=True, scope="module")
def one_course(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite") / "suite.toml"
    path.write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "FILE", path)
        config._read.cache_clear()
        yield
    config._read.cache_clear()


def suite(folder, *arguments):
    """The command in this process; its exit status."""
    values = flags.FlagValues()
    command.define_flags(values)
    asked = ["suite", f"--workdir={folder}", "--workers=1", *arguments]
    return command.main(values(asked)[1:], values)


OWN = "tests.launch.test_suite:shrinking"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "runs"
    asked = ("--settings=3", "--tuning_seeds=10:12", "--seeds=3")
    assert suite(folder, f"--methods={OWN},dropout", *asked) == 0
    return folder


def test_every_method_is_tuned_alike_and_reported_on_other_seeds(whole):
    for label in ("fresh_network", "backprop", "shrinking"):
        tuned, told = (read_run(whole / "drift" / kind / label) for kind in ("tuning", "report"))
        assert len(tuned.settings_groups()) == 3 and set(tuned.seeds) == {10, 11} and tuned.meta["tuning"]
        assert len(told.settings_groups()) == 1 and told.seeds.tolist() == [0, 1, 2] and not told.meta["tuning"]
        assert "10:12, 3 settings a method" in told.meta["tuned_on"]
        chosen = told.lanes[0]["hyper"]["step_size"]
        scores = {}
        for _, lanes in tuned.settings_groups():
            late = tuned.metrics["squared_error"][lanes][:, -1]  # the last of four bins
            scores[tuned.lanes[lanes[0]]["hyper"]["step_size"]] = late.mean()
        assert chosen == min(scores, key=scores.get)


def test_the_page_has_every_number_with_its_folder_and_who_was_not_run(whole):
    text = (whole / "suite.md").read_text()
    assert "## Beside a fresh network" in text and "| shrinking | drift/report/shrinking | step_size=" in text
    assert "Not run: dropout: --network: " in text and "Over: drift 3 of 4 methods" in text
    page = (whole / "suite.html").read_text()
    assert "data:image/png;base64" in page and "drift/report/backprop" in page
    listed = json.loads((whole / "suite.json").read_text())
    assert listed["tasks"] == {"drift": 4} and listed["methods"][:2] == ["fresh_network", "backprop"]


def test_a_second_call_runs_nothing_and_further_methods_alone(whole, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("something was run")

    before = (whole / "suite.md").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "run_units", never)
        assert suite(whole) == 0
        assert suite(whole, "--page") == 0
    assert (whole / "suite.md").read_text() == before
    ran, run_units = [], scheduler.run_units
    monkeypatch.setattr(
        scheduler,
        "run_units",
        lambda plan, units, *rest: ran.extend(u.label for u in units) or run_units(plan, units, *rest),
    )
    assert suite(whole, "--methods=l2") == 0
    assert set(ran) == {"l2"}
    assert "| l2 | drift/report/l2 |" in (whole / "suite.md").read_text()


def test_a_dry_run_writes_nothing_and_says_how_much_it_would_be(tmp_path, capsys):
    assert suite(tmp_path / "runs", "--methods=l2", "--dry_run") == 0
    told = capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    # 9 settings on 3 seeds and 5 seeds for the report are 32 runs of each of three methods.
    assert told.splitlines()[1].split()[:6] == ["drift", "4", "80", "3", "32", "96"]


def test_a_budget_shortens_runs_and_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "rate_of", lambda *arguments: config.Rate(0.1, 20))
    # 3 methods, 32 runs of 20 steps of 0.13 seconds: 249.6 seconds a task.
    assert suite(tmp_path, "--methods=l2", "--budget=0.21", "--dry_run") == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1] == "3"
    with pytest.raises(InputError, match=r"^--budget: 0\.001 hours are not enough; 3 methods on 1 tasks take 0\.0\d+ "):
        suite(tmp_path, "--methods=l2", "--budget=0.001", "--dry_run")


def test_a_rate_is_measured(tmp_path):
    asked = config.Suite(("fresh_network", "backprop"), {"drift": 4}, 1, (10,), (0,))
    rate = command.rate_of(asked, "drift", None, True)
    assert rate.steps == 20 and 0 < rate.seconds < 1 and rate.compiling >= 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--methods=nothing_such"], "--methods: unknown 'nothing_such'"),
        (
            ["--methods=l2(weight_deca=1)"],
            "--methods: setting of l2: unknown 'weight_deca' (did you mean 'weight_decay'?)",
        ),
        (["--tasks=drifts"], "--tasks: unknown 'drifts' (did you mean 'drift'?)"),
        (["--settings=4"], "--settings: 4 is none of 9, 3, 1"),
        (["--seeds=1000:1002"], "--seeds: 1000:1002 and --tuning_seeds 1000:1003 have seeds in common"),
        (["--workers=0"], "--workers: 0 is not a positive number"),
        (["--page"], "holds no suite (no suite.json)"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(tmp_path, arguments, told):
    with pytest.raises(InputError) as error:
        suite(tmp_path / "runs", *arguments)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("asked", [{"settings": 9}, {"seeds": (5,)}, {"methods": ["l2(weight_decay=1)"]}])
def test_a_folder_keeps_to_what_it_was_begun_with(asked):
    there = config.Suite(("backprop", "l2"), {"drift": 4}, 3, (10, 11), (0, 1))
    with pytest.raises(InputError, match=rf"^--{next(iter(asked))}: "):
        config.joined(there, asked)
    assert config.joined(there, {"methods": ["l2"], "settings": 3}) == there
    assert config.joined(there, {"methods": ["redo"]}) == dataclasses.replace(there, methods=("backprop", "l2", "redo"))


def test_what_another_process_runs_is_left_to_it(tmp_path, capsys):
    asked = config.Suite(("fresh_network", "backprop"), {"drift": 4}, 1, (10,), (0,))
    sweep = scheduler.Launch(tmp_path / "drift" / "tuning", (asked.tuning("drift", asked.methods),))
    (unit,) = scheduler.labels_of(sweep)[1].units
    flags_of_it = ("--methods=backprop", "--settings=1", "--tuning_seeds=10:11", "--seeds=1")
    with locked(sweep.root / "backprop" / "checkpoints" / unit.name / LOCK):
        assert suite(tmp_path, *flags_of_it) == 0
        assert "units of drift/tuning are run by other processes" in capsys.readouterr().out
    assert not (tmp_path / "drift" / "report").exists()
    assert suite(tmp_path) == 0
    assert "Over: drift 2 of 2 methods" in (tmp_path / "suite.md").read_text()
