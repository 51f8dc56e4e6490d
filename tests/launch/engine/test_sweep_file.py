"""`sweep.json`: what is read back is what was written, and what cannot be read is one line."""

import dataclasses
import json

import pytest

from launch.engine.sweep_file import SWEEP, check_sweep_file, read_experiments, write_sweep_file
from launch.engine.workers import Sweep
from launch.errors import InputError
from tests.launch import tiny

ASKED = tiny.experiment(methods="backprop,l2", sweep=("l2.weight_decay=0.1,0.2",), tuning=True)


@pytest.fixture
def sweep(tmp_path):
    made = Sweep(tmp_path, (ASKED, tiny.experiment(methods="again=l2", steps=20)), tiny.keeping())
    write_sweep_file(made)
    return made


def test_what_is_read_is_what_was_written(sweep):
    assert read_experiments(sweep.root) == sweep.experiments
    before = (sweep.root / SWEEP).read_bytes()
    write_sweep_file(dataclasses.replace(sweep, experiments=read_experiments(sweep.root)))
    assert (sweep.root / SWEEP).read_bytes() == before


def test_where_the_data_are_is_not_kept(tmp_path):
    asked = dataclasses.replace(ASKED, task=f"tests.launch.test_sweep:Stored(data_dir='{tmp_path}',change_every=10)")
    write_sweep_file(Sweep(tmp_path, (asked,), tiny.keeping()))
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
