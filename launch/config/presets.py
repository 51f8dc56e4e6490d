"""Presets: for a task, the settings in which methods, the task and its learner differ from their defaults.

`presets/TASK.toml` has a table for each preset:

    [published]
    base = "corrected"                      # begin with another preset: NAME, or TASK.NAME
    task = { environments = 1 }             # settings of --task
    learner = { time_limit = "terminal" }   # settings of --learner

    [published.methods]
    all = { optimizer = "adam" }            # every method that has the setting; numbers of PPO too
    redo = { threshold = 0.1 }              # one method; it comes before `all`

`corrected` is what every other preset begins with unless it says `base`; `published` turns on what the published code
does otherwise.
"""

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch.config.hyperparameters import PPO_NUMBERS
from launch.config.methods import METHODS, MethodSpec
from launch.errors import InputError, unknown

CORRECTED, PUBLISHED = "corrected", "published"
ALIASES = {"sound": CORRECTED}
EVERY_METHOD = "all"
FOLDER = Path(__file__).parent / "presets"

Settings = Mapping[str, Any]


class Preset(NamedTuple):
    """Settings by method (or `all`), of the task, and of its learner."""

    methods: Mapping[str, Settings]
    task: Settings
    learner: Settings

    def of(self, method: MethodSpec) -> dict[str, Any]:
        """What it makes of a method's settings."""
        everywhere = self.methods.get(EVERY_METHOD, {})
        common = {name: value for name, value in everywhere.items() if name in method.settings}
        inside = self.of(METHODS[method.inner]) if method.chooses_inner and method.inner else {}
        return common | inside | dict(self.methods.get(method.name, {}))


@functools.cache
def presets_of(task: str) -> dict[str, Preset]:
    """The presets of a task by name; `corrected` and `published` are always among them.

    Raises:
        InputError: its file is not as described above, or names a method or value that there is not.
    """
    path = FOLDER / f"{task}.toml"
    tables: dict[str, Any] = {CORRECTED: {}, PUBLISHED: {}}
    if path.is_file():
        try:
            tables |= tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path}: is not TOML: {error}") from None
    found: dict[str, Preset] = {}
    for name, table in tables.items():
        found[name] = _preset(f"{path}: {name}", task, name, table, found)
    return found


def _preset(where: str, task: str, name: str, table: Any, before: Mapping[str, Preset]) -> Preset:
    _check(where, table, ("base", *Preset._fields))
    base = _base(where, table.get("base", "" if name == CORRECTED else CORRECTED), task, before)
    methods = {n: dict(settings) for n, settings in base.methods.items()}
    for method, settings in table.get("methods", {}).items():
        _check_settings(f"{where}.methods", method, settings)
        methods[method] = methods.get(method, {}) | settings
    parts = {
        part: {**getattr(base, part), **_check(f"{where}.{part}", table.get(part, {}))} for part in ("task", "learner")
    }
    return Preset(methods, **parts)


def _base(where: str, text: Any, task: str, before: Mapping[str, Preset]) -> Preset:
    """The preset to begin with."""
    other, dot, name = str(text).rpartition(".")
    there = presets_of(other) if dot and other != task else before
    if text and name not in there:
        raise unknown(f"{where}.base", str(text), there)
    return there[name] if text else Preset({}, {}, {})


def _check(where: str, table: Any, allowed: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise InputError(f"{where}: '{table}' is not a table")
    for name in table if allowed else ():
        if name not in allowed:
            raise unknown(where, name, allowed)
    return table


def _check_settings(where: str, method: str, settings: Any) -> None:
    """The method exists, its settings too, and their values are allowed."""
    if method not in (*METHODS, EVERY_METHOD):
        raise unknown(where, method, (*METHODS, EVERY_METHOD))
    specs = [METHODS[method]] if method != EVERY_METHOD else list(METHODS.values())
    for name, value in _check(f"{where}.{method}", settings).items():
        having = [spec for spec in specs if name in spec.settings]
        if name in PPO_NUMBERS:  # which the learner gives every method
            PPO_NUMBERS[name].checked(f"{where}.{method}.{name}", value)
        elif not having:
            raise unknown(f"{where}.{method}", name, {name for spec in specs for name in spec.settings})
        for spec in having:
            spec.settings[name].checked(f"{where}.{method}.{name}", value)
