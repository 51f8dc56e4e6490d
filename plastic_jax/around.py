"""What methods do around an inner optimizer: a pull joins the gradient before it, an edit of the weights follows it.

`add_pull` and `after_step` build a transformation from a function; `periodic` and `at_boundary` say in which steps an
edit is due. The state is a `NamedTuple` with the field `inner`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import check_params
from plastic_jax.inner import frozen_leaves, with_extra_args
from plastic_jax.lanes import any_lane
from plastic_jax.paths import keep_leaves, named_leaves, set_leaves

Due = Callable[[Any, dict[str, Any]], Any]
"""(step, extra arguments of `update`) -> whether an edit is due: `True`, `False`, or a 0-d array."""


def add_pull(
    method: str,
    inner: optax.GradientTransformation,
    init: Callable[[Any, Any], Any],
    pull: Callable[[Any, Any], tuple[dict[str, jax.Array], Any]],
) -> optax.GradientTransformationExtraArgs:
    """The inner optimizer, given `g + p` for the gradient `g`; `p` is the gradient of a loss of the weights alone.

    Args:
        method: whose name stands in errors.
        inner: the optimizer that does the learning.
        init: (parameters, inner state) -> state.
        pull: (parameters, state) -> (`p` by name of the parameter, of those that are pulled; the new state).
    """
    inner = with_extra_args(inner)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        check_params(method, params)
        pulls, state = pull(params, state)
        gradients = dict(named_leaves(updates))
        # A traced strength is strongly typed: without the cast, float32 would widen the bfloat16 state of inner.
        pulled = {name: (gradients[name] + p).astype(gradients[name].dtype) for name, p in pulls.items()}
        updates, inner_state = inner.update(set_leaves(updates, pulled), state.inner, params, **extra)
        return updates, state._replace(inner=inner_state)

    return optax.GradientTransformationExtraArgs(lambda params: init(params, inner.init(params)), update)


def after_step(
    method: str,
    inner: optax.GradientTransformation,
    init: Callable[[Any, Any], Any],
    edit: Callable[[Any, Any, Any, Any], Any],
    due: Due | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The inner optimizer, followed by an edit of its updates in the steps in which that is due.

    The step is the extra argument `clock` of `update` (0-d int32, 0 at first) or, where none is given, the state's own
    `count`, which a state has that needs it. Parameters that the inner optimizer freezes are left alone.

    Args:
        method: whose name stands in errors.
        inner: the optimizer that does the learning.
        init: (parameters, inner state) -> state.
        edit: (updates, parameters, state, step) -> updates.
        due: when; `None` is always.
    """
    inner = with_extra_args(inner)
    frozen = frozen_leaves(inner)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        check_params(method, params)
        counted = "count" in state._fields  # every tuple has a method of that name
        clock = extra.get("clock")
        now = jnp.asarray(clock) if clock is not None else state.count if counted else None
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        is_due = True if due is None else due(now, extra)
        still = frozen(params, extra)

        def edited(updates: optax.Updates) -> optax.Updates:
            return keep_leaves(edit(updates, params, state, now), updates, still)

        if is_due is True:
            updates = edited(updates)
        elif is_due is not False:
            updates = jax.lax.cond(
                any_lane(is_due), lambda u: optax.tree.where(is_due, edited(u), u), lambda u: u, updates
            )
        counts = {"count": optax.safe_increment(state.count)} if counted else {}
        return updates, state._replace(inner=inner_state, **counts)

    return optax.GradientTransformationExtraArgs(lambda params: init(params, inner.init(params)), update)


def projection(project: Callable[[Any, Any], dict[str, jax.Array]]) -> Callable[[Any, Any, Any, Any], Any]:
    """The edit of `after_step` that makes `project(weights after the step, state)` of weights, by parameter's name.

    Where a weight stays as it is, its update is the inner optimizer's bit for bit.
    """

    def edit(updates: optax.Updates, params: optax.Params, state: Any, now: Any) -> optax.Updates:
        weights = optax.apply_updates(params, updates)
        before, after, old = dict(named_leaves(weights)), project(weights, state), dict(named_leaves(params))
        steps = {name: leaf for name, leaf in named_leaves(updates) if name in after}
        changed = {
            name: jnp.where(after[name] == before[name], step, (after[name] - old[name]).astype(step.dtype))
            for name, step in steps.items()
        }
        return set_leaves(updates, changed)

    return edit


def periodic(period: Any) -> Due:
    """Due after every `period`-th step; a Python 1 is always."""
    return lambda now, extra: True if isinstance(period, int) and period == 1 else (now + 1) % period == 0


def at_boundary(method: str) -> Due:
    """Due after the first step of a new task, whose gradient is already one of that task; never in step 0.

    ValueError (when `update` is called) without the extra argument `boundary`.
    """

    def due(now: Any, extra: dict[str, Any]) -> Any:
        if extra.get("boundary") is None:
            raise ValueError(f"{method}: update needs the extra argument boundary, got none")
        return jnp.logical_and(extra["boundary"], now > 0)

    return due
