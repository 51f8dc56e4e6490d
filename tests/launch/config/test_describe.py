"""What `--list`, `--explain` and `--dry_run` say."""

import dataclasses
import re

import jax
import pytest

from launch.config import describe
from launch.config.experiment import Experiment, resolve
from launch.config.hyperparameters import Hyperparameter
from launch.config.methods import METHODS
from launch.config.optimizers import OPTIMIZERS
from launch.config.presets import CORRECTED, PUBLISHED
from launch.config.registry import NETWORKS, PPO_NUMBERS, TASKS, find_task
from launch.config.syntax import Call
from launch.engine.dry_run import dry_run
from launch.errors import InputError

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(event) if "backend_compile" in event else None
)


def test_the_list_names_everything_there_is():
    lines = describe.everything().splitlines()
    for name in [*TASKS, *METHODS, *OPTIMIZERS, *NETWORKS]:
        assert any(line.strip().split(":")[0].split(" ")[0] == name for line in lines), name
    assert any("bit_flipping" in line for line in lines)
    assert all(preset in lines[-1] for preset in (CORRECTED, PUBLISHED))


@pytest.mark.parametrize("name", METHODS)
def test_explain_gives_meaning_default_values_of_presets_and_range_of_every_setting(name):
    spec = METHODS[name]
    text = describe.method(spec)
    assert spec.described in text
    assert spec.references in text
    parts = text.split("\n  ")
    for setting, each in spec.settings.items():
        at = next(i for i, part in enumerate(parts) if part.startswith(f"{setting} ("))
        assert (each.allowed if isinstance(each, Hyperparameter) else each.values) in parts[at]
        default = f"{each.default:g}" if isinstance(each, Hyperparameter) else each.default
        assert f"default {default})" in parts[at]
        assert parts[at + 1].strip() == each.meaning
        assert re.match(r"every preset: |--preset=corrected", parts[at + 2].strip())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_explain_knows_every_optimizer_and_its_own_settings(name):
    spec, text = OPTIMIZERS[name], describe.explain(name)
    assert spec.described in text
    for setting, each in spec.settings.items():
        assert f"  {setting} (" in text and each.meaning in text


def test_explain_shows_where_the_published_value_is_another():
    text = describe.explain("continual_backprop")
    published = TASKS["slowly_changing_regression"].presets["published"].methods["continual_backprop"]
    lines = text[text.index("  maturity_threshold") :].splitlines()
    assert f"{published['maturity_threshold']} (slowly_changing_regression)" in lines[3]
    presets, tasks = lines[2].strip().split(": ")
    assert presets == "--preset=corrected|short|published_wide|accelerator"
    assert tasks.startswith("1000 (incremental_cifar100, warm_start, ant_model, minatar)")
    assert lines[2].endswith("elsewhere 100")


def test_explain_takes_other_names_and_knows_every_task():
    assert describe.explain("standard") == describe.explain("backprop")
    assert describe.explain("bit_flipping") == describe.explain("slowly_changing_regression")
    for name, spec in TASKS.items():
        text = describe.explain(name)
        assert text.startswith(name)
        for field in dataclasses.fields(find_task(Call(name, {}))[1]):
            assert f"\n    {field.name}=" in text
        for preset in spec.presets:
            assert preset in text.splitlines()[-1]


def test_explain_of_an_environment_tells_its_learners_settings_and_numbers():
    text = describe.explain("slippery_ant")
    assert "change='friction'" in text
    assert "--preset=published: environments=1" in text
    assert "--preset=published_wide: time_limit='terminal'" in text
    for name, number in PPO_NUMBERS.items():
        assert f"  {name} ({number.allowed}, default {number.default:g})" in text


def test_explain_says_from_where_on_whole_numbers_are_allowed():
    assert "  max_replacements (a positive whole number; default 1)" in describe.explain("continual_backprop")
    assert "  max_replacements (a positive whole number, or None; default None)" in describe.explain("redo")
    assert "  log_size (a whole number from 0 on; default 0)" in describe.explain("redo")
    assert "  leave_out (text; default nothing)" in describe.explain("continual_backprop")


@pytest.mark.parametrize(("name", "meant"), [("bakprop", "backprop"), ("slipery_ant", "slippery_ant")])
def test_explain_of_an_unknown_name_names_the_flag(name, meant):
    with pytest.raises(InputError, match=rf"^--explain: unknown '{name}' \(did you mean '{meant}'\?\)"):
        describe.explain(name)


def said(methods, steps=2000, **fields):
    task = "slowly_changing_regression(change_every=200)"
    return dry_run(resolve(Experiment(task, methods, (0, 1, 2), steps=steps, bin=400, **fields))).splitlines()


def test_a_dry_run_counts_lanes_bytes_and_compilations_and_compiles_nothing():
    COMPILED.clear()
    head, line, total = said("backprop")
    assert COMPILED == []
    assert head == "slowly_changing_regression: 2000 steps, 10 tasks, bins of 400; data 0 B"
    # Stream: a key, the 20-100-1 target, 15 slow bits, 32 targets, 32 words; learner: 111 parameters, two keys, a
    # counter; and whether it has diverged.
    floats = (20 * 100 + 100 + 100 + 1) + 15 + 32 + 32 + 111 + 1
    lane = 8 + 4 * floats + 2 * 8 + 1
    assert f"backprop: 3 lanes in 1 x 3, 111 parameters, {3 * lane / 1000:.3g} kB of state, 1 compilation " in line
    assert "of at most 200 steps" in line
    assert total.startswith("3 lanes, ")


@pytest.mark.parametrize(
    ("methods", "steps", "compilations"),
    [("backprop", 150, 1), ("backprop", 1000, 1), ("backprop", 1050, 2)],
)
def test_a_dry_run_counts_one_compilation_per_length_of_a_chunk(methods, steps, compilations):
    assert f" {compilations} compilation" in said(methods, steps)[1]


def test_a_dry_run_counts_every_lane_of_a_sweep():
    lines = said("backprop,l2", sweep=("step_size=0.1,0.2", "weight_decay=0,1"), lanes_per_batch=5)
    assert "backprop: 6 lanes in 2 x 3" in lines[1]
    assert "l2: 12 lanes in 3 x 4" in lines[2]
    assert lines[3].startswith("18 lanes, ")
