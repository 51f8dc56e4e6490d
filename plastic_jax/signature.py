"""How a method states its hyperparameters: types, ranges and defaults in its signature, meanings in its docstring.

A method is a function `(inner, ..., *, hyperparameters) -> optax transformation` under `@method(...)`. It is the only
place that says what its hyperparameters are: calls are checked against it, and the launcher reads it.

| annotation of a parameter | what it is |
|---|---|
| `Annotated[float \\| jax.Array, Range(0, 1)]` | a number, which may be traced |
| `Annotated[int \\| jax.Array, Range(1)]` | a whole number, which may be traced |
| `Annotated[int, Range(1)]`, `bool`, `str`, `Literal["a", "b"]` | an option: it decides what is compiled |

Every hyperparameter has a default and a line under `Args:`. Parameters of these names are given by whoever trains:
`inner` (the inner optimizer), `units` (the unit graph), `key`, `init` (key -> parameters of a fresh network),
`step_size` (that of `inner`) and `axis_name`.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import jax

from plastic_jax.checks import check_integer, check_number

GIVEN = ("inner", "units", "key", "init", "step_size", "axis_name")
"""Parameters that are no hyperparameters."""
EXTRA_ARGUMENTS = ("features", "boundary", "feature_gradients", "curvature", "hvp")
"""What `update` may need beside gradients, state and parameters.

The learners give all of it; where told to, `feature_gradients` (the loss's gradient in every value of every unit),
`curvature` (of every weight, `plastic_jax.local_curvature`) and `hvp`, a function from a direction, a tree like the
parameters, to the product of the loss's curvature matrix with it."""

Factory = TypeVar("Factory", bound=Callable[..., Any])


class Range(NamedTuple):
    """The numbers from `low` to `high`; with `below` without `high` itself."""

    low: float = 0.0
    high: float = math.inf
    below: bool = False


def method(*needs: str) -> Callable[[Factory], Factory]:
    """Marks the factory of a method, and checks every call against the ranges in its signature.

    Args:
        needs: the extra arguments that the transformation's `update` cannot do without, of `EXTRA_ARGUMENTS`; they are
            kept as the factory's attribute `needs`.

    Raises:
        ValueError: (when called) a number is outside its range, or a word is not one of its literals.
    """
    if not set(needs) <= set(EXTRA_ARGUMENTS):
        raise ValueError(f"method: needs={needs}; allowed: {', '.join(EXTRA_ARGUMENTS)}")

    def marked(factory: Factory) -> Factory:
        signature = inspect.signature(factory, eval_str=True)

        @functools.wraps(factory)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                _check(factory.__name__, name, value, signature.parameters[name].annotation)
            return factory(*args, **kwargs)

        checked.needs = needs  # pyright: ignore[reportAttributeAccessIssue]
        return checked  # pyright: ignore[reportReturnType]

    return marked


def static_args(factory: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of a method that are no numbers: the `static_args` of `optax.inject_hyperparams`."""
    parameters = inspect.signature(factory, eval_str=True).parameters
    return tuple(name for name, p in parameters.items() if name != "inner" and not _may_be_traced(p.annotation))


def _may_be_traced(hint: Any) -> bool:
    return get_origin(hint) is Annotated and jax.Array in get_args(get_args(hint)[0])


def _check(factory: str, name: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        ranges = [mark for mark in marks if isinstance(mark, Range)]
        for low, high, below in ranges:
            if value is None and type(None) in get_args(kind):
                continue
            whole = kind is int or int in get_args(kind)
            if whole and jax.Array not in get_args(kind):
                check_integer(factory, name, value, int(low))
            check_number(factory, name, value, low, high, below=below, integer=whole)
        hint = kind
    words = [word for each in (hint, *get_args(hint)) if get_origin(each) is Literal for word in get_args(each)]
    if words and isinstance(value, str) and value not in words:
        raise ValueError(f"{factory}: {name}='{value}'; allowed: {', '.join(map(str, words))}")
