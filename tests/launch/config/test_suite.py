"""The settings that a suite tries: the same number for every method, all allowed, around what the preset has."""

import math

import pytest

from launch.config import suite
from launch.config.experiment import resolve
from launch.config.hyperparameters import Hyperparameter
from launch.config.methods import METHODS
from launch.config.registry import find_task_spec
from launch.config.syntax import parse_call
from launch.errors import InputError


@pytest.mark.parametrize("settings", sorted(suite.SETTINGS))
def test_every_method_of_the_registry_has_as_many_settings(settings):
    asked = suite.Suite(suite.every_method(), {"slowly_changing_regression": 5}, settings, (10, 11), (0,))
    plan = resolve(asked.tuning("slowly_changing_regression", asked.methods))
    assert {job.label for job in plan.jobs} == set(METHODS)
    assert {job.label: len(job.lanes) for job in plan.jobs} == dict.fromkeys(METHODS, 2 * settings)
    assert asked.lanes == 2 * settings + 1


def test_courses_are_tasks_that_there_are_with_presets_that_they_have():
    for name, course in suite.courses().items():
        spec = find_task_spec(parse_call("--task", course.task))
        assert spec.name == name and course.preset in spec.presets
        assert 1 <= course.least <= course.tasks


@pytest.mark.parametrize(
    ("number", "centre", "ratio", "expected"),
    [
        (Hyperparameter(0, 0, math.inf, ""), 1e-3, 10, [1e-4, 1e-3, 1e-2]),
        (Hyperparameter(0, 0, 1, ""), 0.3, 10, [0.003, 0.03, 0.3]),  # 3 is beyond
        (Hyperparameter(0, 0, 1, "", below=True), 0.99, 10, [0.9, 0.99, 0.999]),
        (Hyperparameter(0, 0, 1, ""), 0.5, 10, [0.5, 0.95, 0.995]),  # -4 is beyond
        (Hyperparameter(0, 1, math.inf, "", integer=True), 1, 10, [1, 10, 100]),
        (Hyperparameter(0, 1, math.inf, "", integer=True), 100, 10, [10, 100, 1000]),
    ],
)
def test_values_lie_around_the_centre_and_are_allowed(number, centre, ratio, expected):
    assert suite.around(number, centre, 3, ratio) == pytest.approx(expected)


def test_values_that_there_are_not_enough_of():
    with pytest.raises(InputError, match=r"^2: only 1 values around it are a whole number from 1 to 2, 3 are to be"):
        suite.around(Hyperparameter(2, 1, 2, "", integer=True), 2, 3, 10)


def test_a_budget_takes_settings_only_when_runs_are_shortest():
    course = suite.courses()["permuted_mnist"]
    whole = suite.Suite(("a", "b"), {"permuted_mnist": course.tasks}, 9, (10, 11, 12), tuple(range(5)))
    rates = {"permuted_mnist": suite.Rate(1.0, 100, 10.0)}
    (full,) = suite.hours(whole, rates).values()
    assert full == pytest.approx(2 * (32 * course.tasks * 100 * suite.OVER_BACKPROP + 20) / 3600)
    assert suite.fitted(whole, rates, full + 1e-9) == whole
    half = suite.fitted(whole, rates, full / 2)
    assert half.settings == 9 and half.tasks["permuted_mnist"] == pytest.approx(course.tasks / 2, abs=1)
    least = full * course.least / course.tasks
    fewer = suite.fitted(whole, rates, least / 2)
    assert fewer.settings == 3 and sum(suite.hours(fewer, rates).values()) <= least / 2
    with pytest.raises(InputError, match=r"^--budget: "):
        suite.fitted(whole, rates, full / 1000)
    assert sum(suite.hours(whole, rates, 4).values()) == pytest.approx(full / 4)
