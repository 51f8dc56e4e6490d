"""The text of `--list` and `--explain`: what there is, and what every setting means. Nothing heavy is imported."""

import inspect
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from launch.config.hyperparameters import Hyperparameter, Option
from launch.config.methods import METHODS, NETWORK_OPTIONS, MethodSpec, find_method
from launch.config.optimizers import OPTIMIZERS, OptimizerSpec
from launch.config.presets import CORRECTED, PUBLISHED
from launch.config.registry import LEARNERS, NETWORKS, TASKS, TaskSpec
from launch.config.signatures import read_fields
from launch.config.syntax import Call, parse_value
from launch.errors import unknown

_OF_NETWORKS = f"a method may have its own {' and '.join(NETWORK_OPTIONS)}: backprop(norm=layer_norm)"
_OF_OPTIMIZERS = "every method has one: continual_backprop(optimizer=adam)"
_OF_INPUTS = "every method may have normalise_inputs=True: continual_backprop(normalise_inputs=True)"


def everything() -> str:
    """Tasks, methods, optimizers and networks, a line each."""
    lines = ["tasks (--task); --explain=NAME shows the settings"]
    lines += [f"  {s.name}{_aliases(s.aliases)}: {s.described}; network {s.network}" for s in TASKS.values()]
    lines += [f"methods (--methods); --explain=NAME shows the settings; {_OF_INPUTS}"]
    lines += [f"  {s.name}: {s.described}{' (task-aware)' if s.task_aware else ''}" for s in METHODS.values()]
    lines += [f"optimizers; {_OF_OPTIMIZERS}", *[f"  {s.name}: {s.described}" for s in OPTIMIZERS.values()]]
    lines += [f"networks (--network); {_OF_NETWORKS}", *[f"  {name}" for name in NETWORKS]]
    having = {name: [s.name for s in TASKS.values() if name in s.presets] for name in _preset_names(TASKS.values())}
    told = [n if n in (CORRECTED, PUBLISHED) else f"{n} ({', '.join(tasks)})" for n, tasks in having.items()]
    return "\n".join([*lines, f"presets (--preset): {', '.join(told)}"])


def explain(name: str) -> str:
    """Every setting of a method, of a task or of an optimizer.

    Raises:
        InputError: none of them has that name.
    """
    tasks = {alias: spec for spec in TASKS.values() for alias in (spec.name, *spec.aliases)}
    methods = [alias for spec in METHODS.values() for alias in (spec.name, *spec.aliases)]
    if name in OPTIMIZERS:
        return optimizer(OPTIMIZERS[name])
    if ":" not in name and name not in (*methods, *tasks):
        raise unknown("--explain", name, [*methods, *tasks, *OPTIMIZERS])
    return task(tasks[name]) if name in tasks else method(find_method(Call(name, {})))


def method(spec: MethodSpec) -> str:
    """Every setting of a method: what is allowed, the default, what it means, and what presets make of it."""
    lines = [f"{spec.name}: {spec.described}"]
    lines += [f"source: {spec.references}"] if spec.references else []
    lines += ["task-aware: it sees task boundaries"] if spec.task_aware else []
    for name, setting in spec.settings.items():
        lines += [*_setting(name, setting), *_presets(spec, name, setting)]
    return "\n".join(lines)


def optimizer(spec: OptimizerSpec) -> str:
    """The settings that a method has beside its own with this inner optimizer."""
    lines = [f"{spec.name}: {spec.described}"]
    lines += [f"source: {spec.signature.source}"] if spec.signature is not None and spec.signature.source else []
    lines += [f"settings of methods with optimizer={spec.name}, beside their own:"] * bool(spec.settings)
    return "\n".join(lines + [line for name, setting in spec.settings.items() for line in _setting(name, setting)])


def task(spec: TaskSpec) -> str:
    """A task's settings, its learner's and the numbers that the learner gives every method, with their defaults."""
    lines = [f"{spec.name}{_aliases(spec.aliases)}: {spec.described}; network {spec.network}"]
    changed = {name: preset.task for name, preset in spec.presets.items()}
    lines += _fields(f"--task='{spec.name}(setting=value)'", spec.code, spec.settings, changed)
    if spec.learner:
        changed = {name: preset.learner for name, preset in spec.presets.items()}
        lines += _fields(f"--learner='{spec.learner}(setting=value)'", LEARNERS[spec.learner], {}, changed)
        lines += ["numbers that every method has here, --set NAME=VALUE:"]
        lines += [line for name, number in spec.hyperparameters.items() for line in _setting(name, number)]
    return "\n".join([*lines, f"presets (--preset): {', '.join(_preset_names([spec]))}"])


def _setting(name: str, setting: Hyperparameter | Option) -> list[str]:
    if isinstance(setting, Hyperparameter):
        head = f"  {name} ({setting.allowed}, default {setting.default:g})"
    else:
        head = f"  {name} ({setting.values}; default {setting.default})"
    return [head, *([f"    {setting.meaning}"] if setting.meaning else [])]


def _fields(head: str, code: str, settings: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings of a dataclass, what its docstring says of them, and those that presets make other."""
    fields = read_fields(code)
    lines = [head, *textwrap.indent(inspect.cleandoc(fields.docstring), "  ").splitlines(), ""]
    if fields.inherited:
        told = [f"{name}: {fields.meanings[name]}." for name in fields.inherited]
        wrap = {"width": 120, "initial_indent": " " * 6, "subsequent_indent": " " * 10}
        lines += ["  Inherited:", *(line for text in told for line in textwrap.wrap(text, **wrap)), ""]
    lines += ["  Defaults:"]
    defaults = {name: parse_value(text) for name, text in fields.defaults.items()}
    lines += [f"    {name}={value!r}" for name, value in {**defaults, **settings}.items()]
    for preset, values in presets.items():
        if values:
            lines += [f"  --preset={preset}: {', '.join(f'{name}={value!r}' for name, value in values.items())}"]
    return lines


def _preset_names(specs: Iterable[TaskSpec]) -> list[str]:
    return list(dict.fromkeys(name for spec in specs for name in spec.presets))


def _presets(method: MethodSpec, name: str, setting: Hyperparameter | Option) -> list[str]:
    """What presets make of a setting, with their tasks, a line for all presets that do the same."""
    lines: dict[str, list[str]] = {}
    for preset in _preset_names(TASKS.values()):
        tasks: dict[Any, list[str]] = {}
        for spec in TASKS.values():
            given = spec.presets.get(preset, spec.presets[CORRECTED]).of(method)
            tasks.setdefault(given.get(name, setting.default), []).append(spec.name)
        plain = tasks.pop(setting.default, [])
        parts = [f"{value} ({', '.join(names)})" for value, names in tasks.items()]
        parts += [f"{'elsewhere ' * bool(parts)}{setting.default}"] if plain else []
        lines.setdefault("; ".join(parts), []).append(preset)
    if len(lines) == 1:
        return [f"    every preset: {text}" for text in lines]
    return [f"    --preset={'|'.join(names)}: {text}" for text, names in lines.items()]


def _aliases(names: tuple[str, ...]) -> str:
    return f" (or {', '.join(names)})" if names else ""
