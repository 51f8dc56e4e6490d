"""Presets are data, checked when they are read."""

import pytest

from launch.config import presets
from launch.config.methods import METHODS
from launch.config.presets import presets_of
from launch.errors import InputError


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    presets_of.cache_clear()
    yield lambda text, name="own": (tmp_path / f"{name}.toml").write_text(text)
    presets_of.cache_clear()


def test_a_method_comes_before_all_and_a_preset_before_its_base(written):
    written(
        """
        [corrected.methods]
        all = { step_size = 0.5, threshold = 0.2 }
        redo = { threshold = 0.3, period = 7 }
        [published.methods]
        redo = { period = 8 }
        [wide]
        base = "published"
        task = { environments = 3 }
        [bare]
        base = "other.corrected"
        """
    )
    written("[corrected.methods]\nl2 = { weight_decay = 0.5 }\n", "other")
    found = presets_of("own")
    assert found["corrected"].of(METHODS["redo"]) == {"step_size": 0.5, "threshold": 0.3, "period": 7}
    assert found["wide"].of(METHODS["redo"]) == {"step_size": 0.5, "threshold": 0.3, "period": 8}
    assert found["wide"].of(METHODS["backprop"]) == {"step_size": 0.5}  # it has no threshold
    assert (found["wide"].task, found["published"].task) == ({"environments": 3}, {})
    assert found["bare"].methods == {"l2": {"weight_decay": 0.5}}


def test_a_task_without_a_file_has_both_presets_and_nothing_in_them(written):
    assert {name: preset.methods for name, preset in presets_of("none").items()} == {"corrected": {}, "published": {}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[corrected", "is not TOML"),
        ("corrected = 3", "corrected: '3' is not a table"),
        ("[corrected]\nmethod = {}", "unknown 'method' (did you mean 'methods'?)"),
        ("[corrected.methods]\nredoo = {}", "unknown 'redoo' (did you mean 'redo'?)"),
        ("[corrected.methods]\nredo = 1", "redo: '1' is not a table"),
        ("[corrected.methods]\nredo = { perod = 1 }", "unknown 'perod' (did you mean 'period'?)"),
        ("[corrected.methods]\nredo = { period = 0 }", "redo.period: 0 is not a whole number from 1"),
        ("[corrected.methods]\nredo = { initializer = 'me' }", "redo.initializer: unknown 'me'"),
        ("[corrected.methods]\nall = { momentum = 2 }", "all.momentum: 2 is not a number from 0 to below 1"),
        ("[published]\nbase = 'corect'", "base: unknown 'corect' (did you mean 'corrected'?)"),
        ("[published]\ntask = 4", "task: '4' is not a table"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_place(written, text, words):
    written(text)
    with pytest.raises(InputError) as error:
        presets_of("own")
    assert str(error.value).startswith(str(presets.FOLDER / "own.toml"))
    assert words in str(error.value) and "\n" not in str(error.value)
