"""Step sizes in an optimizer's state: which leaves they are, and what the step sizes of a new weight are.

A state that holds step sizes is a named tuple whose class says which fields they are, in the attribute `step_sizes`:

    class IDBDState(NamedTuple):
        beta: optax.Updates
        trace: optax.Updates

        step_sizes = (("beta", "log"),)  # not annotated: an attribute of the class, not a field

Each entry is a field's name and its scale: `"linear"`, the field holds step sizes, or `"log"`, their natural
logarithms. A field is a tree like the parameters with a step size for every weight (or fewer, for blocks of weights).
Everything that looks at step sizes finds them so, in any chain of transformations: `read_step_sizes` for diagnostics,
and `plastic_jax.replacement.inner_state`, which gives those of a new weight what `of_new_weights` asks for.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.inner import with_extra_args
from plastic_jax.matrices import wide
from plastic_jax.signature import Range, method

Scale = Literal["linear", "log"]


class InheritedStepSizes(NamedTuple):
    """State of an optimizer of which a new weight inherits the step size of the weight that it replaces."""

    inner: optax.OptState


class RaisedStepSizes(NamedTuple):
    """State of an optimizer of which a new weight's step size is `factor` (0-d float) times the first one."""

    inner: optax.OptState
    factor: jax.Array


@method()
def of_new_weights(
    inner: optax.GradientTransformation,
    new_step_size: Literal["reset", "inherited", "raised"] = "reset",
    raised_by: Annotated[float | jax.Array, Range(0)] = 10.0,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, and what the step sizes of a new weight are, inside any method that makes units or weights new.

    A unit born with a step size that has collapsed is born frozen. A method that resets the inner optimizer's state of
    a new weight sets its step size to the first one, `inner.init`'s, and all other statistics too. `"inherited"` keeps
    the step size that the weight before it had learned; `"raised"` takes `raised_by` times the first one.

    Example:
        >>> from plastic_jax import idbd
        >>> from plastic_jax.replacement.reset import reset_inner_state
        >>> tx = of_new_weights(idbd(0.1), "raised", 3.0)
        >>> params = {"kernel": jnp.ones((1, 2))}
        >>> new = {"kernel": jnp.array([[False, True]])}
        >>> state = reset_inner_state(tx, tx.init(params), params, new)
        >>> [round(a, 3) for a in read_step_sizes(state)[0]["kernel"][0].tolist()]
        [0.1, 0.3]

    Args:
        inner: the optimizer that learns step sizes.
        new_step_size: what the step size of a new weight is: `"reset"` to the first one, `"inherited"` or `"raised"`.
        raised_by: the factor of `"raised"`.

    Raises:
        ValueError: a word of another name, a negative number, or (in `init`) `inner` has no step sizes in its state.
    """
    if new_step_size == "reset":
        return optax.with_extra_args_support(inner)
    inner = with_extra_args(inner)

    def wrapped(state: optax.OptState) -> optax.OptState:
        if new_step_size == "inherited":
            return InheritedStepSizes(state)
        return RaisedStepSizes(state, wide(jnp.asarray(raised_by)))

    def init(params: optax.Params) -> optax.OptState:
        state = inner.init(params)
        if jax.tree.leaves(params) and not read_step_sizes(state):
            raise ValueError(
                f"of_new_weights: new_step_size='{new_step_size}' needs an optimizer that learns step sizes (idbd, k1, "
                "autostep, smd); this one keeps none in its state"
            )
        return wrapped(state)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        return updates, wrapped(inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def read_step_sizes(state: Any) -> list[Any]:
    """The trees of step sizes in an optimizer's state, in its order, as numbers; empty where it has none."""
    found: list[Any] = []

    def read(scale: Scale, leaf: jax.Array) -> jax.Array:
        return jnp.exp(leaf) if scale == "log" else leaf

    for node in filter(_has_step_sizes, jax.tree.leaves(state, is_leaf=_has_step_sizes)):
        for name, scale in node.step_sizes:
            found.append(jax.tree.map(lambda leaf, scale=scale: read(scale, leaf), getattr(node, name)))
    return found


def fresh_step_sizes(fresh: Any, old: Any) -> Any:
    """The state that `init` gives, with the step sizes of new weights as `of_new_weights` has them, and `old` keeps."""

    def choose(new: Any, before: Any) -> Any:
        if isinstance(new, InheritedStepSizes):
            return new._replace(inner=_mapped(lambda scale, first, last: last, new.inner, before.inner))
        if isinstance(new, RaisedStepSizes):
            raised = _mapped(lambda scale, first, last: _times(scale, first, new.factor), new.inner, before.inner)
            return new._replace(inner=raised)
        return new

    return jax.tree.map(choose, fresh, old, is_leaf=lambda node: isinstance(node, InheritedStepSizes | RaisedStepSizes))


def _times(scale: Scale, first: jax.Array, factor: jax.Array) -> jax.Array:
    return (first + jnp.log(factor) if scale == "log" else first * factor).astype(first.dtype)


def _has_step_sizes(node: Any) -> bool:
    return isinstance(getattr(node, "step_sizes", None), tuple) and hasattr(node, "_fields")


def _mapped(function: Callable[[Scale, jax.Array, jax.Array], jax.Array], fresh: Any, old: Any) -> Any:
    """The fresh state with `function(scale, first, last)` in place of its step sizes."""

    def edit(new: Any, before: Any) -> Any:
        if not _has_step_sizes(new):
            return new
        trees = {name: (getattr(new, name), getattr(before, name)) for name, _ in new.step_sizes}
        scales = dict(new.step_sizes)
        return new._replace(**{n: jax.tree.map(partial(function, scales[n]), *both) for n, both in trees.items()})

    return jax.tree.map(edit, fresh, old, is_leaf=_has_step_sizes)
