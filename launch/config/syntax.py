"""What people write in flags: names with settings, values, ranges, seeds."""

import ast
import keyword
import math
import re
from typing import Any, NamedTuple

from launch.errors import InputError

MOST_SEEDS = 1_000_000
MOST_VALUES = 10_000
_WORDS = "|".join(word for word in keyword.kwlist if word not in ("True", "False", "None"))
_RESERVED = re.compile(rf"(?<==)\s*\b({_WORDS})\b(?=\s*[,)])")
"""Values that are words of Python, such as `scope=global`, which are strings here as all bare words are."""


class Call(NamedTuple):
    """`name(key=value, ...)`."""

    name: str
    settings: dict[str, Any]


class Entry(NamedTuple):
    """`[label=]name(key=value, ...)`: a method under a label."""

    label: str
    call: Call


def parse_call(flag: str, text: str) -> Call:
    """`mlp(widths=(100,100),activation=tanh)` as a name and its settings; a bare word is a string.

    Raises:
        InputError: the text is not of this form.
    """
    text = text.strip()
    name, bracket, rest = text.partition("(")
    if not bracket:
        return Call(name.strip(), {})
    rest = _RESERVED.sub(r"'\1'", rest)
    try:
        node = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise ValueError
        names = [k.arg for k in node.keywords]
        if None in names or len(set(names)) < len(names):
            raise ValueError
        return Call(name.strip(), {str(k.arg): _literal(k.value) for k in node.keywords})
    except (SyntaxError, TypeError, ValueError):
        raise InputError(f"{flag}: '{text}' is not of the form name(setting=value,...)") from None


def with_settings(text: str, **settings: Any) -> str:
    """`name(setting=value,...)` with further settings; those that are `None` are left out."""
    given = ",".join(f"{name}={value!r}" for name, value in settings.items() if value is not None)
    if not given:
        return text
    text = text.strip()
    if not text.endswith(")"):
        return f"{text}({given})"
    inside = text[:-1].rstrip(", ")
    return f"{inside}{'' if inside.endswith('(') else ','}{given})"


def without(text: str, setting: str) -> str:
    """`name(setting=value,...)` without one of its settings."""
    call = parse_call("", text)
    kept = ",".join(f"{name}={value!r}" for name, value in call.settings.items() if name != setting)
    return f"{call.name}({kept})" if kept else call.name


def parse_value(text: str) -> Any:
    """A number, tuple, True, False or None as Python writes it, anything else as the string it is."""
    try:
        return _literal(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError):
        return text.strip()


def value_text(value: Any) -> str:
    """A setting's value as text, the same before and after JSON, which has lists for tuples."""
    return str(list(value) if isinstance(value, tuple) else value)


def parse_methods(text: str) -> list[Entry]:
    """`backprop,fast=continual_backprop(replacement_rate=1e-3)`."""
    entries = []
    for part in split(text):
        label, body = _labelled(part)
        if "->" in body:
            raise InputError(f"--methods: '{part}': a run goes on with another method by --branch_from=DIR/LABEL@STEP")
        call = parse_call("--methods", body)
        entries.append(Entry(label or call.name.rpartition(":")[2], call))
    if not entries:
        raise InputError("--methods: empty; name at least one (python -m launch.train --list shows them)")
    for entry in entries:
        if not entry.label.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise InputError(f"--methods: label '{entry.label}' may hold letters, digits, '_', '-' and '.' only")
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"--methods: label '{label}' appears twice; write other=... before one of them")
    return entries


def _labelled(part: str) -> tuple[str, str]:
    """Label, empty where none is given, and call."""
    head, equals, rest = part.partition("=")
    return (head.strip(), rest) if equals and "(" not in head else ("", part)


def with_endings(methods: str, ending: str) -> str:
    """Methods as `parse_methods` reads them, their labels made longer by an ending."""
    parts = zip(parse_methods(methods), split(methods), strict=True)
    return ",".join(f"{entry.label}{ending}={_labelled(part)[1].strip()}" for entry, part in parts)


def parse_seeds(text: str | int) -> tuple[int, ...]:
    """`30` is seeds 0 to 29, `100:130` seeds 100 to 129."""
    first, colon, last = str(text).partition(":")
    if not (_is_whole(first) and (not colon or _is_whole(last))):
        raise InputError(f"--seeds: '{text}' is not N or A:B with whole numbers")
    low, high = (int(float(first)), int(float(last))) if colon else (0, int(float(first)))
    if low < 0 or high <= low or high > 2**31:
        raise InputError(f"--seeds: '{text}' names no seed; N must be positive, A:B needs 0 <= A < B")
    if high - low > MOST_SEEDS:
        raise InputError(f"--seeds: '{text}' names {high - low} seeds; at most {MOST_SEEDS} are allowed")
    return tuple(range(low, high))


class Every(NamedTuple):
    """How often: in steps or in seconds; never where both are `None`."""

    steps: int | None = None
    seconds: float | None = None


_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def parse_every(flag: str, text: str) -> Every:
    """`200000` steps, `30s`, `10min`, `2h`, or `never`."""
    text = text.strip()
    if text == "never":
        return Every()
    unit = next((unit for unit in _SECONDS if text.endswith(unit)), "")
    try:
        number = float(text.removesuffix(unit))
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf) or (not unit and number != int(number)):
        raise InputError(
            f"{flag}: '{text}' is neither a number of steps (200000) nor a time (30s, 10min, 2h) nor never"
        )
    return Every(seconds=number * _SECONDS[unit]) if unit else Every(steps=int(number))


def parse_keep(flag: str, text: str | int) -> int | None:
    """A number from 0 on, or `all` as `None`."""
    text = str(text).strip()
    if text == "all":
        return None
    if not text.isdecimal():
        raise InputError(f"{flag}: '{text}' is neither a whole number from 0 on nor all")
    return int(text)


def parse_step(flag: str, text: str) -> int:
    """A step, a whole number from 1 on, as `500000` or `5e5`."""
    if not _is_whole(text) or float(text) < 1:
        raise InputError(f"{flag}: '{text}' is not a step, a whole number from 1 on")
    return int(float(text))


def parse_setting(flag: str, text: str) -> tuple[str, str, str]:
    """`[OWNER.]NAME=VALUE` as (owner or "", name, value)."""
    head, equals, value = text.partition("=")
    if not equals or not head.strip() or not value.strip():
        raise InputError(f"{flag}: '{text}' is not of the form NAME=VALUE")
    owner, _, name = head.strip().rpartition(".")
    return owner, name, value.strip()


def parse_sweep_values(flag: str, text: str) -> list[float]:
    """`0.1,0.01` or `1e-6:1e-2:log5` or `0:1:lin3` as numbers."""
    parts = text.split(":")
    try:
        if len(parts) == 3 and parts[2][:3] in ("log", "lin"):
            low, high, n = float(parts[0]), float(parts[1]), int(parts[2][3:])
            values = _spread(flag, text, low, high, n, parts[2].startswith("log"))
        else:
            values = [float(v) for v in text.split(",")]
    except ValueError:
        raise InputError(f"{flag}: '{text}' is not v1,v2,... or low:high:logN or low:high:linN with numbers") from None
    if len(set(values)) < len(values):
        raise InputError(f"{flag}: '{text}' names a value twice")
    return values


def split(text: str) -> list[str]:
    """The parts between commas that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _spread(flag: str, text: str, low: float, high: float, n: int, logarithmic: bool) -> list[float]:
    if not 2 <= n <= MOST_VALUES or not low < high or (logarithmic and low <= 0):
        raise InputError(f"{flag}: '{text}' needs low < high, 2 to {MOST_VALUES} values, and low > 0 for log")
    shares = [i / (n - 1) for i in range(n)]
    if logarithmic:
        return [float(f"{math.exp(math.log(low) + s * math.log(high / low)):.6g}") for s in shares]
    return [float(f"{low + s * (high - low):.6g}") for s in shares]


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _is_whole(text: str) -> bool:
    try:
        return float(text) == int(float(text))
    except (ValueError, OverflowError):
        return False
