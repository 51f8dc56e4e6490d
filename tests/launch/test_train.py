"""The command: flags in, results or one line out."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from launch import sweep, train
from launch.config.experiment import resolve
from launch.config.syntax import with_settings
from launch.engine import scheduler
from launch.engine.resume import DETERMINISTIC, Manner, differences, manner_here
from launch.errors import InputError
from launch.show import define_flags as show
from launch.storage.run_folder import read_meta, read_runs
from tests.launch import tiny

ROOT = Path(__file__).parents[2]
TASK = "--task=slowly_changing_regression"
GOOD = (TASK, "--methods=backprop", "--seeds=2", "--steps=400", "--change_every=200", "--bin=200", "--workers=1")


def command(*arguments):
    values = flags.FlagValues()
    train.define_flags(values)
    return train.main(values(["train", *arguments])[1:], values)


WRONG = [
    (["--task=permuted_mnis", "--methods=backprop"], ["--task", "'permuted_mnis'", "did you mean 'permuted_mnist'?"]),
    ([TASK, "--methods=bakprop"], ["--methods", "'bakprop'", "did you mean 'backprop'?", "continual_backprop"]),
    ([TASK], ["--methods: missing", "--list"]),
    (["--methods=backprop"], ["--task: missing", "--list"]),
    ([*GOOD, "--metric=squared_eror"], ["--metric", "did you mean 'squared_error'?", "dormant_units"]),
    ([*GOOD, "--metric=squared_error,test_accuracy"], ["--metric", "'test_accuracy'", "squared_error"]),
    ([*GOOD, "--log=tensorbord"], ["--log", "did you mean 'tensorboard'?"]),
    ([*GOOD, "--data_dir=/nowhere"], ["--task", "data_dir"]),
    ([*GOOD, "--seeds=0"], ["--seeds", "'0'"]),
    ([*GOOD, "--seeds=-3"], ["--seeds", "'-3'"]),
    ([*GOOD, "--seeds=x"], ["--seeds", "'x'"]),
    ([*GOOD, "--steps=0"], ["--steps", "0", "positive"]),
    ([*GOOD, "--steps=-1"], ["--steps", "-1", "positive"]),
    ([*GOOD, "--tasks=2"], ["--steps and --tasks"]),
    ([*GOOD, "--bin=0"], ["--bin", "0"]),
    ([*GOOD, "--change_every=0"], ["change_every=0"]),
    ([*GOOD, "--workers=0"], ["--workers", "0"]),
    ([*GOOD, "--preset=correct"], ["--preset", "did you mean 'corrected'?"]),
    ([*GOOD, "--network=mlp(widths=(0,))"], ["--network", "widths=(0,)"]),
    ([*GOOD, "--network=mpl"], ["--network", "did you mean 'mlp'?"]),
    ([*GOOD, "--set=step_size"], ["--set", "NAME=VALUE"]),
    ([*GOOD, "--set=step_size=large"], ["--set", "'large'", "number from 0 to 100"]),
    ([*GOOD, "--sweep=step_size=1e-3:1:log0"], ["--sweep", "1e-3:1:log0"]),
    ([*GOOD, "--sweep=step_size=-1,1"], ["--sweep", "-1", "from 0 to 100"]),
    ([*GOOD, "--methods=a=backprop,a=l2"], ["--methods", "'a' appears twice"]),
    ([*GOOD, "--methods=a/b=backprop"], ["--methods", "'a/b'"]),
    ([*GOOD, "--methods=continual_backprop(utility=randm)"], ["--methods", "did you mean 'random'?"]),
    ([*GOOD, "--methods=continual_backprop(replacement_rate=1.1)"], ["replacement_rate", "1.1", "from 0 to 1"]),
    (["--explain=l3"], ["--explain", "did you mean 'l2'?"]),
    ([*GOOD, "typo"], ["'typo'", "--name=value"]),
]


COMPILED = []
"""What has been compiled in this process."""
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(event) if "backend_compile" in event else None
)


def test_compiling_is_noticed():
    before = len(COMPILED)
    jax.jit(lambda x: x + len(COMPILED))(1.0)
    assert len(COMPILED) > before


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_wrong_input_is_one_line_at_once_and_leaves_nothing(arguments, words, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "run_units", lambda *_: pytest.fail("something was run"))
    monkeypatch.chdir(tmp_path)
    before = len(COMPILED)
    with pytest.raises(InputError) as error:
        command(f"--workdir={tmp_path / 'new'}", *arguments)
    assert len(COMPILED) == before
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*GOOD, "--methods=continual_backprp"], ["--methods", "did you mean 'continual_backprop'?"]),
        ([*GOOD, "--steps=many"], ["--steps", "many"]),
    ],
)
def test_the_shell_sees_status_2_and_one_line(arguments, words, tmp_path):
    call = [sys.executable, "-m", "launch.train", f"--workdir={tmp_path / 'new'}", *arguments]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "accepted"),
    [("train", lambda: defined(train.define_flags)), ("sweep", sweep.accepted), ("show", lambda: defined(show))],
)
def test_help_shows_every_flag_that_the_command_accepts(name, accepted):
    call = [sys.executable, "-m", f"launch.{name}", "--help"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    shown = set(re.findall(r"^  --(?:\[no\])?(\w+):", done.stdout, re.MULTILINE))
    assert set(accepted()) == shown
    assert all(line.endswith("\\") for line in done.stdout.splitlines() if "--sweep=step_size" in line)


def defined(define_flags):
    values = flags.FlagValues()
    define_flags(values)
    return list(values)


def test_a_manner_of_working_that_can_change_the_last_bits_is_refused_on_the_way(tmp_path):
    tiny.run(tiny.experiment(), tmp_path)
    before = tiny.snapshot(tmp_path)
    with pytest.raises(InputError, match=r"holds another run \(parallel lanes there, batch asked\)"):
        tiny.run(tiny.experiment(steps=80), tmp_path, workers=None, parallel="batch")
    assert tiny.snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("there", "here", "differ"),
    [
        ({}, Manner("lanes", True), []),
        ({}, Manner("batch"), ["parallel lanes there, batch asked"]),
        ({"parallel": "batch", "deterministic": None}, Manner("batch", True), []),
        ({"deterministic": False}, Manner("lanes", True), ["deterministic False there, True asked"]),
        ({"deterministic": True}, Manner("lanes", None), []),
    ],
)
def test_which_manners_differ(there, here, differ, tmp_path):
    experiment = tiny.experiment()
    tiny.run(experiment, tmp_path)
    plan = resolve(experiment)
    meta = {name: value for name, value in read_meta(tmp_path / "backprop").items() if name not in Manner._fields}
    assert differences(plan, plan.jobs[0], meta | there, here) == differ


def test_deterministic_operations_are_a_matter_of_gpus(monkeypatch):
    for given, wanted in (("", False), (DETERMINISTIC, True), (f"--xla_a=1 {DETERMINISTIC}", True)):
        monkeypatch.setenv("XLA_FLAGS", given)
        assert manner_here("lanes", "gpu") == ("lanes", wanted)
        assert manner_here("lanes", "cpu") == ("lanes", None)


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"^--workdir: .*file is a file"):
        command(*GOOD, f"--workdir={tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "mine"


def test_flags_are_the_fields_of_an_experiment():
    values = flags.FlagValues()
    train.define_flags(values)
    values(
        ["train", *GOOD, "--set=a=1", "--set=b=2", "--sweep=c=1,2", "--network=mlp(widths=(7,))", "--lanes_per_batch=3"]
    )
    experiment = train.from_flags(values)
    assert experiment.task == "slowly_changing_regression(change_every=200)"
    assert (experiment.seeds, experiment.steps, experiment.bin, experiment.lanes_per_batch) == ((0, 1), 400, 200, 3)
    assert (experiment.set, experiment.sweep) == (("a=1", "b=2"), ("c=1,2",))
    assert experiment.network == "mlp(widths=(7,))"


@pytest.mark.parametrize(
    ("given", "task", "network"),
    [
        (
            ["--dataset=cifar100", "--head=keep", "--epochs=3", "--train_per_class=9"],
            "continual_imagenet(dataset='cifar100',head='keep',epochs=3,train_per_class=9)",
            "",
        ),
        (["--width=8"], "continual_imagenet", "convnet(width=8)"),
        (["--dtype=bfloat16", "--network=resnet(width=4)"], "continual_imagenet", "resnet(width=4,dtype='bfloat16')"),
        (["--network=resnet", "--width=4", "--data_dir=d"], "continual_imagenet(data_dir='d')", "resnet(width=4)"),
        ([], "continual_imagenet", ""),
    ],
)
def test_short_forms_of_settings_go_to_the_task_or_its_network(given, task, network):
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", "--task=continual_imagenet", "--methods=backprop", *given])
    experiment = train.from_flags(values)
    assert (experiment.task, experiment.network) == (task, network)


def test_the_command_trains_the_networks_that_its_flags_describe(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for k in range(3):
        pictures = np.random.default_rng(k).integers(0, 256, (6, 32, 32, 3), np.uint8)
        (tmp_path / "d").mkdir(exist_ok=True)
        np.save(tmp_path / "d" / f"{k}.npy", pictures)
    settings = "test_per_class=2,batch=4,evaluations_per_task=2,probe_size=4"
    asked = [
        f"--task=continual_imagenet({settings})",
        "--seeds=1",
        "--tasks=1",
        "--workers=1",
        f"--data_dir={tmp_path}",
    ]
    asked += ["--dataset=d", "--head=keep", "--epochs=2", "--train_per_class=3", "--width=1", "--dtype=bfloat16"]
    assert command(*asked, "--methods=backprop", f"--workdir={tmp_path / 'run'}") == 0
    assert "test accuracy" in capsys.readouterr().out
    meta = read_meta(tmp_path / "run" / "backprop")
    assert meta["note"] == "pairs of 3 classes of d (3 + 2 pictures a class), 2 epochs a task; output layer kept"
    assert meta["task_starts"] == [0, 2]
    assert "bfloat16" in str(meta["settings"])
    with pytest.raises(InputError, match=r"^--tasks: 4 is beyond the 3 tasks, 6 steps, that continual_"):
        command(*asked, "--methods=backprop", "--tasks=4")


@pytest.mark.parametrize(
    ("task", "whole"),
    [("t", "t(change_every=5)"), ("t(a=1)", "t(a=1,change_every=5)"), ("t()", "t(change_every=5)"),
     ("t(a=(1,),)", "t(a=(1,),change_every=5)")],
)  # fmt: skip
def test_task_flags_join_the_tasks_own_settings(task, whole):
    assert with_settings(task, change_every=5, data_dir=None) == whole


def test_list_explain_and_dry_run_print_and_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scheduler, "run_units", lambda *_: pytest.fail("something was run"))
    for arguments, word in (
        (["--list"], "backprop"),
        (["--explain=l2"], "weight_decay"),
        ([*GOOD, "--dry_run"], "2 lanes"),
    ):
        assert command(*arguments) == 0
        assert word in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_run_ends_with_table_figure_and_a_warning_where_nothing_can_be_replaced(tmp_path, capsys):
    methods = "--methods=backprop,never=continual_backprop(maturity_threshold=400)"
    assert command(*GOOD, methods, f"--workdir={tmp_path / 'new'}", "--metric=squared_error,dormant_units") == 0
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("warning: never: ")
    assert str(tmp_path / "new" / "figure.png") in said.out
    assert (tmp_path / "new" / "figure.png").stat().st_size > 1000
    runs = read_runs(tmp_path / "new")
    assert set(runs) == {"backprop", "never"}
    assert all(label in said.out for label in runs)
