"""What functions and dataclasses of the library say of themselves, read from their source without importing it.

A list or an explanation is printed in a fraction of the seconds that importing JAX takes. What is read is the signature
of a method as `plastic_jax.signature` describes it, the fields of a dataclass, and docstrings. Code is named
`package.module:name`, as in flags.
"""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from launch.config.hyperparameters import Hyperparameter, Option
from launch.errors import InputError

GIVEN = ("inner", "units", "key", "init", "step_size", "axis_name")
"""Parameters that are no settings, since whoever trains gives them."""


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a method says of itself.

    Attributes:
        summary: the first line of its docstring.
        source: what stands under `References:`.
        settings: hyperparameters and options by name, in their order.
        parameters: the names of all its parameters.
        required: the names of those without a default.
        needs: the extra arguments that its `update` cannot do without.
    """

    summary: str
    source: str
    settings: Mapping[str, Hyperparameter | Option]
    parameters: tuple[str, ...]
    required: tuple[str, ...]
    needs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Fields:
    """A dataclass's docstring, its fields with their defaults as the source has them, and what they mean.

    Attributes:
        docstring: its own.
        defaults: by name, those of the classes that it is made from among them.
        meanings: likewise, what stands under `Attributes:`.
        inherited: the names of the fields of which the docstring says nothing, but that of another class does.
    """

    docstring: str
    defaults: Mapping[str, str]
    meanings: Mapping[str, str]
    inherited: tuple[str, ...]


@functools.cache
def read_signature(code: str) -> Signature:
    """The signature of a method.

    Raises:
        InputError: there is no such function, or a parameter of it has no default and is not in `GIVEN`.
    """
    module, node = _definition(code)
    assert isinstance(node, ast.FunctionDef)
    docstring = ast.get_docstring(node) or ""
    sections, settings = _sections(docstring), {}
    meanings = _entries(sections.get("Args", ""))
    for argument, default in _arguments(node):
        setting = _setting(module, argument, default, meanings.get(argument.arg, ""))
        if default is None and argument.arg not in GIVEN:
            raise InputError(
                f"{code}: {argument.arg} has no default, and is none of what a learner gives: {', '.join(GIVEN)}"
            )
        if setting is not None:
            settings[argument.arg] = setting
    marks = [call for call in node.decorator_list if isinstance(call, ast.Call) and _name(call.func) == "method"]
    needs = [_literal(module, word) for mark in marks for word in mark.args]
    parameters = tuple(argument.arg for argument, _ in _arguments(node))
    required = tuple(argument.arg for argument, default in _arguments(node) if default is None)
    return Signature(_first_line(docstring), " ".join(sections.get("References", "").split()), settings, parameters,
                     required, tuple(needs))  # fmt: skip


class FromFactory:
    """An entry of a registry that has a factory, `package.module:name` or empty, and reads it for what it does not say.

    Attributes:
        factory: the function that makes it.
        summary: one line; where it is empty, the first of the factory's docstring.
    """

    factory: str
    summary: str

    @property
    def signature(self) -> Signature | None:
        """What the factory says of itself."""
        return read_signature(self.factory) if self.factory else None

    @property
    def described(self) -> str:
        """The summary."""
        return self.summary or ("" if self.signature is None else self.signature.summary)


@functools.cache
def read_fields(code: str) -> Fields:
    """The docstring and the fields of a dataclass, those of the classes that it is made from first."""
    module, node = _definition(code)
    assert isinstance(node, ast.ClassDef)
    defaults: dict[str, str] = {}
    meanings: dict[str, str] = {}
    for base in node.bases:
        found = _find(module, base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found[1], ast.ClassDef):
            inherited = read_fields(f"{found[0]}:{found[1].name}")
            defaults, meanings = defaults | inherited.defaults, meanings | inherited.meanings
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value is not None:
            defaults[field.target.id] = ast.unparse(field.value)
    docstring = ast.get_docstring(node) or ""
    own = _entries(_sections(docstring).get("Attributes", ""))
    others = tuple(name for name in defaults if name in meanings and name not in own)
    return Fields(docstring, defaults, meanings | own, others)


def summary_of(code: str) -> str:
    """The first line of a docstring, without its full stop."""
    return _first_line(ast.get_docstring(_definition(code)[1]) or "")


def imported(flag: str, code: str) -> Any:
    """What `package.module:name` names.

    Raises:
        InputError: it cannot be imported.
    """
    module, _, attribute = code.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{flag}: cannot import '{code}' ({error}); write package.module:name") from None


# Source files -------------------------------------------------------------------------------------------------------


def _path(module: str) -> Path | None:
    """The file of a module. Only the outermost package is looked up, since that runs no code."""
    first, *rest = module.split(".")
    spec = importlib.util.find_spec(first)
    if spec is None:
        return None
    if not rest and spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.origin else None
    for place in spec.submodule_search_locations or ():
        for path in (Path(place, *rest).with_suffix(".py") if rest else None, Path(place, *rest, "__init__.py")):
            if path is not None and path.is_file():
                return path
    return None


@functools.cache
def _tree(module: str) -> ast.Module:
    path = _path(module)
    if path is None:
        raise InputError(f"{module}: its source cannot be found")
    return ast.parse(path.read_text(encoding="utf-8"))


def _definition(code: str) -> tuple[str, ast.FunctionDef | ast.ClassDef]:
    module, _, name = code.partition(":")
    found = _find(module, name)
    if found is None or not isinstance(found[1], ast.FunctionDef | ast.ClassDef):
        raise InputError(f"{code}: is neither a function nor a class at the top of a source file")
    return found  # pyright: ignore[reportReturnType]


def _find(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """Where a name is defined at the top of a module, followed through imports: the module, and the statement."""
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name) if _is_ours(node.module, module) else None
    return None


def _is_ours(module: str, asking: str) -> bool:
    return module.split(".")[0] in (asking.split(".")[0], "plastic_jax", "tasks")


# Parameters ---------------------------------------------------------------------------------------------------------


def _arguments(node: ast.FunctionDef) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Parameters with their defaults, `None` where there is none."""
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    missing = [None] * (len(positional) - len(args.defaults))
    yield from zip(positional, [*missing, *args.defaults], strict=True)
    yield from zip(args.kwonlyargs, args.kw_defaults, strict=True)


def _setting(module: str, argument: ast.arg, default: ast.expr | None, meaning: str) -> Hyperparameter | Option | None:
    """The setting that a parameter is; `None` for one that is given by whoever trains."""
    if argument.annotation is None or argument.arg in GIVEN:
        return None
    kind, ranges = _annotated(module, argument.annotation)
    parts = _alternatives(kind)
    names = {_name(part) for part in parts}
    words = [word for part in parts for word in _words(module, part)]
    if not (ranges or words or names <= {"float", "Array"} or names in ({"bool"}, {"str"})):
        return None
    value = None if default is None else _literal(module, default)
    low, high, below = ranges[0] if ranges else (-math.inf, math.inf, False)
    if names & {"float", "Array"}:
        return Hyperparameter(value, low, high, meaning, "int" in names, below)
    if ranges:
        return Option(value, meaning, (), int, int(low), high, "None" in names)
    return Option(value, meaning, (True, False), bool) if names == {"bool"} else Option(value, meaning, tuple(words))


def _annotated(module: str, annotation: ast.expr) -> tuple[ast.expr, list[tuple[float, float, bool]]]:
    """The type of an annotation, and the ranges beside it."""
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated"):
        return annotation, []
    kind, *marks = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    return kind, [_literal(module, mark) for mark in marks if ast.unparse(mark).startswith("Range(")]


def _name(node: ast.expr) -> str:
    """`Array` of `jax.Array`."""
    return ast.unparse(node).rpartition(".")[2]


def _alternatives(kind: ast.expr) -> list[ast.expr]:
    """`a | b | c` as its parts."""
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        return [*_alternatives(kind.left), *_alternatives(kind.right)]
    return [kind]


def _words(module: str, kind: ast.expr) -> list[Any]:
    """The words of a `Literal`, or of a name that stands for one."""
    if isinstance(kind, ast.Name):
        found = _find(module, kind.id)
        return _words(found[0], found[1].value) if found is not None and isinstance(found[1], ast.Assign) else []
    if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Literal":
        return [
            _literal(module, word) for word in (kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice])
        ]
    return []


def _range(low: float = 0.0, high: float = math.inf, below: bool = False) -> tuple[float, float, bool]:
    """`plastic_jax.signature.Range`, which cannot be had without JAX."""
    return low, high, below


def _literal(module: str, node: ast.expr) -> Any:
    """What an expression of numbers, texts and constants of its module is."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - {"Range", "math"}
    found = {name: _find(module, name) for name in names}
    constants = {
        n: _literal(where[0], where[1].value) for n, where in found.items() if where and _is_constant(where[1])
    }
    code = compile(ast.Expression(node), "<signature>", "eval")
    try:
        return eval(code, {"__builtins__": {}, "Range": _range, "math": math, **constants})
    except Exception as error:  # noqa: BLE001 -- whatever the text raises
        raise InputError(f"{module}: '{ast.unparse(node)}' is not a literal in the signature ({error})") from None


def _is_constant(statement: ast.stmt) -> TypeGuard[ast.Assign]:
    return isinstance(statement, ast.Assign)


# Docstrings ---------------------------------------------------------------------------------------------------------


def _first_line(docstring: str) -> str:
    return docstring.partition("\n")[0].removesuffix(".")


def _sections(docstring: str) -> dict[str, str]:
    """The indented texts under lines such as `Args:`."""
    parts = re.split(r"^([A-Z]\w+):\n(?=    )", docstring, flags=re.MULTILINE)
    return {
        name: inspect.cleandoc(re.split(r"^(?=\S)", text, maxsplit=1, flags=re.MULTILINE)[0])
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def _entries(section: str) -> dict[str, str]:
    """`name: text` entries, continued on indented lines, as texts of one line."""
    found = re.split(r"^(\w+(?:, \w+)*): ", section, flags=re.MULTILINE)
    texts = zip(found[1::2], (" ".join(text.split()).removesuffix(".") for text in found[2::2]), strict=True)
    return {name: text for names, text in texts for name in names.split(", ")}
