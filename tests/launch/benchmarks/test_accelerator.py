"""The checks of a new accelerator: what each finds, and that time ends them. Whole, in a small size: tests/slow."""

import json

import pytest

from launch.benchmarks import accelerator
from launch.benchmarks.workloads import RANDOM_TASKS, REGRESSION
from launch.errors import InputError


def checks_of(monkeypatch, **rows):
    monkeypatch.setattr(accelerator, "CHECKS", {name: (check, 1.0) for name, check in rows.items()})


def test_a_stopped_run_is_the_same_bit_for_bit():
    found = accelerator.exact_resume(REGRESSION, "", 400, deterministic=False)
    assert found["same bits"] is True and found["steps"] == 400


def test_a_program_that_does_not_compile_is_a_finding(monkeypatch):
    monkeypatch.setattr(accelerator, "TASKS", {})
    monkeypatch.setattr(accelerator, "METHODS", ("linear", "no_such_method"))
    fine, wrong = accelerator.steps(False, 0.0)
    assert fine["ok"] and fine["seconds"] > 0
    assert not wrong["ok"] and "no_such_method" in wrong["error"]


def test_findings_are_written_as_they_come_and_time_ends_a_check(monkeypatch, tmp_path):
    def many(quick, until):
        for i in range(5):
            if i:
                assert json.loads((tmp_path / "accelerator.json").read_text())["many"]["rows"][-1] == {"n": i - 1}
            yield {"n": i}

    def missing(quick, until):
        raise InputError("no recordings")
        yield {}

    checks_of(monkeypatch, many=many, missing=missing)
    found = accelerator.check(1, tmp_path, say=lambda line: None)
    assert [row["n"] for row in found["many"]["rows"]] == list(range(5)) and not found["many"]["cut"]
    assert found["missing"] == {"rows": [], "cut": "not all done: no recordings"}
    found = accelerator.check(1e-9, tmp_path, say=lambda line: None)
    assert len(found["many"]["rows"]) == 1 and "cut short after 1" in found["many"]["cut"]
    assert "cut short after 1" in (tmp_path / "accelerator.md").read_text()


def test_recordings_that_take_longer_than_their_share_end_the_check():
    with pytest.raises(InputError, match="test_golden was not over"):
        list(accelerator.parity(True, 0.0))


def test_minutes_are_positive():
    with pytest.raises(InputError, match=r"--minutes: 0 is not a positive number"):
        accelerator.check(0)


def test_streams_without_data_are_tasks():
    for name, random in RANDOM_TASKS.items():
        assert name in accelerator.TASKS
        assert accelerator.Case(random, "", "backprop", 1, 1).plan().spec.name.startswith("random_")
