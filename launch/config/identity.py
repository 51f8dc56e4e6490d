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
    "Task": {"abruptness": 1.0},
    "RelabelledMNIST": {"pictures": False},
    "BraxEnvironment": {"cycle": None},
}
"""Fields that came later, by class or a class that it is made from, with the values at which they are not written: so
earlier runs keep their text."""
ADDED_CHOICES = {"age_correction": True}
"""Choices of methods that came later, likewise."""


def fields_of(value: Any) -> list[str]:
    """The names of a dataclass's fields, without those that came later and are as before."""
    added = {name: now for of in type(value).__mro__ for name, now in ADDED.get(of.__name__, {}).items()}
    known = [field.name for field in dataclasses.fields(value) if field.init]
    return [name for name in known if name not in added or getattr(value, name) != added[name]]


def text_of(value: Any) -> str:
    """A value as text without addresses: functions by module and name, dataclasses and modules by their fields."""
    if isinstance(value, functools.partial):
        named = [f"{name}={text_of(each)}" for name, each in value.keywords.items()]
        return f"partial({', '.join([text_of(value.func), *map(text_of, value.args), *named])})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [name for name in fields_of(value) if name not in ("parent", "name")]
        return f"{type(value).__name__}({', '.join(f'{name}={text_of(getattr(value, name))}' for name in fields)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(text_of, value))}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(map(text_of, value))}]"
    if callable(value):
        return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)
