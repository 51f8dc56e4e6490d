"""Texts for things that are the same in every process, and differ where the things do."""

import dataclasses
import functools
from typing import Any

ADDED = {
    "MLP": {"norm": "none"},
    "LeCunMLP": {"norm": "none"},
    "ActorCritic": {"norm": "none", "discrete": False, "memory": "none"},
    "ConvNet": {"activation": "relu", "norm": "none"},
    "ResNet": {"activation": "relu", "norm": "batch_norm"},
}
"""Fields that came later, by class, with the values at which they are not written: so earlier runs keep their text."""


def text_of(value: Any) -> str:
    """A value as text without addresses: functions by module and name, dataclasses and modules by their fields."""
    if isinstance(value, functools.partial):
        named = [f"{name}={text_of(each)}" for name, each in value.keywords.items()]
        return f"partial({', '.join([text_of(value.func), *map(text_of, value.args), *named])})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        added = ADDED.get(type(value).__name__, {})
        known = [f.name for f in dataclasses.fields(value) if f.init and f.name not in ("parent", "name")]
        fields = [name for name in known if name not in added or getattr(value, name) != added[name]]
        return f"{type(value).__name__}({', '.join(f'{name}={text_of(getattr(value, name))}' for name in fields)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(text_of, value))}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(map(text_of, value))}]"
    if callable(value):
        return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)
