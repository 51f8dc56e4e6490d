"""Grid files become checked experiments; every mistake in one, as in a command line, is one line that says where."""

import json
from pathlib import Path

import pytest
from absl import flags

from launch import train
from launch.config.experiment import Experiment, resolve
from launch.config.grid import read_grid
from launch.errors import InputError
from tests.launch.malformed import COMMANDS, GOOD, GRIDS


def written(folder, text, name="sweep.toml"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


WHOLE = """
task = "slowly_changing_regression(change_every=500)"
methods = ["backprop", "decay=l2(step_size=0.02)"]
seeds = "100:120"
steps = 2_000
preset = "published"
network = "mlp(widths=(7,))"
bin = 1000
lanes_per_batch = 4
set = ["optimizer=momentum"]

[sweep]
"backprop.step_size" = "1e-3:1e-1:log3"
decay.weight_decay = [0, 1e-4, 1e-10]
"""


def test_every_key_becomes_the_field_that_the_flag_fills(tmp_path):
    assert read_grid(written(tmp_path, WHOLE)) == [
        Experiment(
            task="slowly_changing_regression(change_every=500)",
            methods="backprop,decay=l2(step_size=0.02)",
            seeds=tuple(range(100, 120)),
            steps=2000,
            preset="published",
            set=("optimizer=momentum",),
            sweep=("backprop.step_size=1e-3:1e-1:log3", "decay.weight_decay=0,0.0001,1e-10"),
            network="mlp(widths=(7,))",
            bin=1000,
            lanes_per_batch=4,
        )
    ]


def test_json_says_the_same(tmp_path):
    table = {"task": "slowly_changing_regression", "methods": "l2", "seeds": 3, "tasks": 2}
    table |= {"set": {"l2.step_size": 0.02, "optimizer": "adam"}, "sweep": {"weight_decay": [1e-4, 1]}}
    (experiment,) = read_grid(written(tmp_path, json.dumps(table), "sweep.json"))
    assert (experiment.seeds, experiment.tasks, experiment.steps) == ((0, 1, 2), 2, None)
    assert (experiment.set, experiment.sweep) == (
        ("l2.step_size=0.02", "optimizer=adam"),
        ("weight_decay=0.0001,1",),
    )


def test_dotted_names_need_no_quotes(tmp_path):
    head = 'task = "slowly_changing_regression"\nmethods = "l2"\n'
    quoted = read_grid(written(tmp_path, head + '[sweep]\n"l2.weight_decay" = [1, 2]\n[set]\n"l2.step_size" = 0.5\n'))
    nested = read_grid(written(tmp_path, head + "[sweep.l2]\nweight_decay = [1, 2]\n[set]\nl2.step_size = 0.5\n"))
    assert quoted == nested
    assert quoted[0].sweep == ("l2.weight_decay=1,2",)


def test_numbers_reach_the_lanes_unchanged(tmp_path):
    text = 'task = "slowly_changing_regression"\nmethods = "l2"\nseeds = 1\n'
    values = [1 / 3, 5e-324, 0.1 + 0.2, 7]
    (experiment,) = read_grid(written(tmp_path, f"{text}[sweep]\nweight_decay = {values}\n"))
    assert [lane.hyper["weight_decay"] for lane in resolve(experiment).jobs[0].lanes] == values


def test_parts_share_the_file_and_take_the_place_of_its_keys(tmp_path):
    text = """
        task = "slowly_changing_regression"
        seeds = 5
        steps = 20_000
        sweep.step_size = [0.1, 0.2]
        [[grid]]
        methods = "backprop"
        [[grid]]
        methods = "l2"
        tasks = 3
        sweep = { weight_decay = [0.1, 0.2] }
    """
    first, second = read_grid(written(tmp_path, text))
    assert (first.methods, first.steps, first.tasks, first.sweep) == ("backprop", 20_000, None, ("step_size=0.1,0.2",))
    assert (second.methods, second.steps, second.tasks, second.sweep) == ("l2", None, 3, ("weight_decay=0.1,0.2",))
    assert first.seeds == second.seeds == (0, 1, 2, 3, 4)


def test_a_mark_that_editors_put_before_text_does_no_harm(tmp_path):
    text = 'task = "slowly_changing_regression"\nmethods = "l2"\n'
    assert read_grid(written(tmp_path, b"\xef\xbb\xbf" + text.encode())) == read_grid(written(tmp_path, text))


@pytest.mark.parametrize(("name", "text", "words"), GRIDS, ids=range(len(GRIDS)))
def test_a_malformed_grid_file_is_one_line_with_file_and_key(name, text, words, tmp_path):
    path = written(tmp_path, text, name)
    with pytest.raises(InputError) as error:
        read_grid(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert "--" not in said.replace("launch.train --list", "")  # keys are spoken of, no flags
    assert all(word in said for word in words), said
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_missing_file_and_a_folder(tmp_path):
    written(tmp_path, "", "sweep.toml")
    with pytest.raises(InputError, match=r"swep\.toml: no such grid file \(did you mean 'sweep\.toml'\?\)"):
        read_grid(tmp_path / "swep.toml")
    with pytest.raises(InputError, match="no such grid file"):
        read_grid(tmp_path / "nowhere" / "a.toml")
    with pytest.raises(InputError, match="is a folder"):
        read_grid(str(tmp_path))


def test_there_are_sixty_of_each():
    assert min(len(GRIDS), len(COMMANDS)) >= 60
    assert len({(name, text) for name, text, _ in GRIDS}) == len(GRIDS)
    assert len({tuple(arguments) for arguments, _ in COMMANDS}) == len(COMMANDS)


def parsed(*arguments):
    values = flags.FlagValues()
    train.define_flags(values)
    return values, values(["train", *arguments])[1:]


@pytest.mark.parametrize(("arguments", "words"), COMMANDS, ids=range(len(COMMANDS)))
def test_a_malformed_command_line_is_one_line_before_anything_runs(arguments, words, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.engine.scheduler.run", lambda *_, **__: pytest.fail("something was run"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, flags.Error)) as error:
        values, rest = parsed(f"--workdir={Path('new')}", *arguments)
        train.main(rest, values)
    said = str(error.value)
    assert all(word in said for word in words), said
    assert "\n" not in said or isinstance(error.value, flags.Error)  # the command puts those of absl on one line
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_they_spoil_is_right():
    values, rest = parsed(*GOOD)
    assert rest == []
    resolve(train.from_flags(values))
