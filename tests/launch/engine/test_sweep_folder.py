"""`sweep.json`: what is read back is what was written, and what cannot be read is one line; and how far a sweep is."""

import dataclasses
import json
import os
import re

import pytest

from launch.engine.scheduler import labels_of, prepare
from launch.engine.sweep_folder import SWEEP, check_sweep_file, read_experiments, status, write_sweep_file
from launch.errors import InputError
from launch.storage.locks import locked
from tests.launch import tiny

ASKED = tiny.experiment(methods="backprop,l2", sweep=("l2.weight_decay=0.1,0.2",), tuning=True)


@pytest.fixture
def sweep(tmp_path):
    made = tiny.launch_of(tmp_path, ASKED, tiny.experiment(methods="again=l2", steps=20))
    write_sweep_file(made, labels_of(made))
    return made


def test_what_is_read_is_what_was_written(sweep):
    assert read_experiments(sweep.root) == sweep.experiments
    before = (sweep.root / SWEEP).read_bytes()
    again = dataclasses.replace(sweep, experiments=read_experiments(sweep.root))
    write_sweep_file(again, labels_of(again))
    assert (sweep.root / SWEEP).read_bytes() == before


def test_where_the_data_are_is_not_kept(tmp_path):
    asked = dataclasses.replace(ASKED, task=f"tests.launch.test_sweep:Stored(data_dir='{tmp_path}',change_every=10)")
    made = tiny.launch_of(tmp_path, asked)
    write_sweep_file(made, labels_of(made))
    assert str(tmp_path) not in (tmp_path / SWEEP).read_text()
    assert "change_every=10" in read_experiments(tmp_path)[0].task


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read, truncated or damaged"),
        ('{"schema": 1, "experim', "cannot be read, truncated or damaged"),
        ("[]", "cannot be read, truncated or damaged"),
        ('{"schema": 1}', "cannot be read, truncated or damaged"),
        ('{"schema": 1, "experiments": [3]}', "cannot be read, truncated or damaged"),
        ('{"schema": 1, "experiments": [{"seeds": [1]}]}', "cannot be read, truncated or damaged"),
        ('{"schema": 7}', "schema 7, this program reads schema 1"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_line(sweep, text, words):
    (sweep.root / SWEEP).write_text(text)
    for read in (lambda: read_experiments(sweep.root), lambda: check_sweep_file(sweep)):
        with pytest.raises(InputError) as error:
            read()
        assert str(error.value).startswith(f"{sweep.root / SWEEP}: ") and words in str(error.value)
        assert "\n" not in str(error.value)
    assert (sweep.root / SWEEP).read_text() == text


def test_a_sweep_may_have_more_labels_than_the_one_before_and_not_fewer(sweep):
    check_sweep_file(sweep)
    check_sweep_file(dataclasses.replace(sweep, experiments=(*sweep.experiments, tiny.experiment(methods="third=l2"))))
    with pytest.raises(InputError, match=r"labels that are not asked for \(again\); keep them, or choose another"):
        check_sweep_file(dataclasses.replace(sweep, experiments=(ASKED,)))


def test_bytes_are_those_of_a_units_lanes(sweep):
    units = json.loads((sweep.root / SWEEP).read_text())["units"]
    sizes = {unit["bytes"] / unit["lanes_per_batch"] for unit in units if unit["label"] == "backprop"}
    assert len(sizes) == 1 and sizes.pop() >= 3 * 4 + 2 * 4  # three parameters, and the line that is learned


SEEDS = (1, 2, 3)


def made(root, **fields):
    asked = tiny.experiment(methods="backprop", seeds=SEEDS, lanes_per_batch=2, **fields)
    return tiny.launch_of(root, asked)


def row(sweep):
    return said(sweep).splitlines()[1].split()


def said(sweep):
    return status(labels_of(sweep))


def test_from_the_beginning_to_the_end(tmp_path):
    sweep = made(tmp_path)
    assert row(sweep) == ["backprop", "3", "2", "0", "0", "2", "0%"]
    assert not list(tmp_path.iterdir())
    prepare(sweep)
    first, second = labels_of(sweep)[0].units
    lines = said(sweep).splitlines()
    assert lines[3:] == [
        f"{first.name} backprop: 2 lanes, step 0 of 60", f"{second.name} backprop: 1 lane, step 0 of 60"
    ]  # fmt: skip
    assert tiny.stopped(sweep.experiments[0], tmp_path, reports=6)  # in its first unit
    at = max(int(path.name) for path in tiny.checkpoints(tmp_path).values())
    assert 0 < at < 60
    assert row(sweep)[-1] == f"{int(100 * 2 * at / 180)}%"
    assert f"{first.name} backprop: 2 lanes, step {at} of 60\n" in said(sweep)
    with locked(tmp_path / "backprop" / "checkpoints" / second.name / "LOCK"):
        assert row(sweep) == ["backprop", "3", "2", "0", "1", "1", f"{int(100 * 2 * at / 180)}%"]
        wanted = rf"{second.name} backprop: 1 lane, step 0 of 60, process {os.getpid()} on \S+"
        assert re.fullmatch(wanted, said(sweep).splitlines()[-1])
        tiny.work(sweep)
        assert row(sweep) == ["backprop", "3", "2", "1", "1", "0", "66%"]
    tiny.work(sweep)
    assert row(sweep) == ["backprop", "3", "2", "2", "0", "0", "100%"]
    assert said(sweep).splitlines()[2:] == ["", "all units are over"]
    (tmp_path / "backprop" / "DONE").unlink()
    assert said(sweep).splitlines()[2:] == ["", "backprop: to be joined; the same command does"]
    longer = made(tmp_path, steps=120)
    assert row(longer) == ["backprop", "3", "2", "0", "0", "2", "50%"]
