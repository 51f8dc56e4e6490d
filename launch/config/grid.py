"""Grid files: what a sweep is asked for, in TOML or JSON, under the names that the flags of `launch.train` have.

    task = "slowly_changing_regression"
    methods = ["backprop", "l2"]
    seeds = "100:120"
    steps = 1_000_000

    [sweep]
    "backprop.step_size" = "1e-4:1:log9"
    "l2.weight_decay" = [1e-4, 1e-3, 1e-2]

`[[grid]]` tables are parts of one sweep, a set of methods each: a key in a part takes the place of the file's.
"""

import contextlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.config.experiment import Experiment, by_task, resolve
from launch.config.syntax import parse_methods, parse_seeds, parse_setting, parse_sweep_values, with_settings
from launch.errors import InputError, nearest, unknown

PARTS = "grid"
SHOWN = 60  # characters of a wrong value


def read_grid(path: Path | str, data_dir: str | None = None) -> list[Experiment]:
    """The checked experiments of a grid file: one per `[[grid]]` table in their order, one where there is none.

    A part whose sweep has values of a setting of the task is as many as there are values (`by_task`).

    No two of them have a label in common, so that they can share a run folder. `data_dir` joins the task's settings.

    Raises:
        InputError: one line with the file, the part, the key, the value got, what is allowed and the nearest match.
    """
    path = Path(path)
    table = _load(path)
    with _naming(f"{path}: "):
        if not table:
            raise InputError("holds no key; task and methods are needed")
        parts = _parts(table[PARTS]) if PARTS in table else [{}]
        common = _fields({name: value for name, value in table.items() if name != PARTS}, (*KEYS, PARTS))
    found: list[Experiment] = []
    for number, part in enumerate(parts, 1):
        with _naming(f"{path}: {PARTS} {number}: " if PARTS in table else f"{path}: "):
            found += _experiments(_over(common, _fields(part, tuple(KEYS))), data_dir)
            _check_labels(found)
    return found


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
    """Errors begin with `place`, stand on one line, and speak of keys where those of commands speak of flags."""
    try:
        yield
    except InputError as error:
        raise InputError(place + _FLAG.sub(r"\1", " ".join(str(error).split()))) from None


def _load(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a grid file")
    if path.suffix not in LOADERS:
        raise InputError(f"{path}: a grid file ends in {' or '.join(LOADERS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such grid file{nearest(path.name, beside)}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not text.strip():
        raise InputError(f"{path}: is empty; task and methods are needed")
    try:
        table = LOADERS[path.suffix](text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not {path.suffix[1:].upper()}: {' '.join(str(error).split())}") from None
    if not isinstance(table, dict):
        raise InputError(f"{path}: holds {_shown(table)}, not keys with values")
    return table


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"key '{name}' appears twice")
    return dict(pairs)


def _parts(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        raise InputError(f"{PARTS}: {_shown(value)} is not one or more tables; begin each with [[{PARTS}]]")
    return value


def _fields(table: Mapping[str, Any], allowed: tuple[str, ...]) -> dict[str, Any]:
    for name in table:
        if name not in allowed:
            raise unknown("key", name, allowed)
    return {name: KEYS[name](name, value) for name, value in table.items()}


def _over(common: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    length = {"steps", "tasks"}  # two ways to say one thing
    gone = length if length & part.keys() else set()
    return {name: value for name, value in common.items() if name not in gone} | part


def _experiments(fields: dict[str, Any], data_dir: str | None) -> list[Experiment]:
    for name in ("task", "methods"):
        if name not in fields:
            raise InputError(f"{name}: missing")
    found = by_task(Experiment(**fields | {"task": with_settings(fields["task"], data_dir=data_dir)}))
    for experiment in found:
        resolve(experiment)
    return found


def _check_labels(found: list[Experiment]) -> None:
    owners: dict[str, int] = {}
    for number, experiment in enumerate(found, 1):
        for label in (entry.label for entry in parse_methods(experiment.methods)):
            if label in owners:
                raise InputError(f"methods: label '{label}' is that of {PARTS} {owners[label]} too; write other=...")
            owners[label] = number


# What each key may hold ---------------------------------------------------------------------------------------------


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key}: {_shown(value)} is not a text")
    return value


def _whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        instead = f"; write {int(value)}" if isinstance(value, float) and value >= 1 and value.is_integer() else ""
        raise InputError(f"{key}: {_shown(value)} is not a positive whole number{instead}")
    return value


def _methods(key: str, value: Any) -> str:
    items: list[Any] = value if isinstance(value, list) and value else [value]
    for item in items:
        if not isinstance(item, str):
            raise InputError(f"{key}: {_shown(item)} is not a text or a list of texts, as in ['backprop', 'a=l2']")
        parse_methods(item)
    return ",".join(items)


def _seeds(key: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"{key}: {_shown(value)} is not N or 'A:B'")
    return parse_seeds(value)


def _set(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return _different(key, [_assignment(key, item) for item in value])
    if not isinstance(value, dict):
        raise InputError(f"{key}: {_shown(value)} is not a table or a list of 'NAME=VALUE'")
    return _different(key, [f"{name}={_setting(f'{key}.{name}', item)}" for name, item in _flat(key, value)])


def _assignment(key: str, item: Any) -> str:
    if not isinstance(item, str):
        raise InputError(f"{key}: {_shown(item)} is not of the form 'NAME=VALUE'")
    parse_setting(key, item)
    return item


def _setting(key: str, value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if _is_number(value) or isinstance(value, bool):
        return repr(value)
    raise InputError(f"{key}: {_shown(value)} is not a number, a text, true or false")


def _sweep(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, dict):
        raise InputError(f"{key}: {_shown(value)} is not a table of 'METHOD.NUMBER' = [values]")
    return _different(key, [f"{name}={_values(f'{key}.{name}', item)}" for name, item in _flat(key, value)])


def _values(key: str, value: Any) -> str:
    numbers = isinstance(value, list) and value and all(_is_number(each) for each in value)
    if not numbers and not isinstance(value, str):
        raise InputError(f"{key}: {_shown(value)} is not a list of numbers or 'low:high:logN' or 'low:high:linN'")
    text = value if isinstance(value, str) else ",".join(repr(each) for each in value)
    parse_sweep_values(key, text)
    return text


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _flat(key: str, table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names joined by dots, since `l2.weight_decay` without quotes is a table in a table."""
    for name, value in table.items():
        if not name.strip() or "=" in name:
            raise InputError(f"{key}: '{name}' is not the name of a setting")
        if isinstance(value, dict):
            yield from ((f"{name}.{rest}", each) for rest, each in _flat(key, value))
        else:
            yield name, value


def _different(key: str, texts: list[str]) -> tuple[str, ...]:
    names = [text.partition("=")[0].strip() for text in texts]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{key}: '{name}' appears twice")
    return tuple(texts)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a very large number"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


KEYS: dict[str, Callable[[str, Any], Any]] = {
    "task": _text,
    "methods": _methods,
    "seeds": _seeds,
    "steps": _whole,
    "tasks": _whole,
    "preset": _text,
    "set": _set,
    "sweep": _sweep,
    "network": _text,
    "learner": _text,
    "bin": _whole,
    "lanes_per_batch": _whole,
    "chunk": _whole,
    "branch_from": _text,
}
LOADERS: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": _json}
_FLAG = re.compile(rf"--({'|'.join(KEYS)})\b")
