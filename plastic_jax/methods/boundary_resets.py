"""Resets at task boundaries: of the optimizer's state, of the output layer, of the whole network."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.around import at_boundary
from plastic_jax.checks import check_like, check_params, typed_key
from plastic_jax.inner import frozen_leaves, with_extra_args
from plastic_jax.lanes import any_lane
from plastic_jax.paths import keep_leaves, leaf_key, leaf_names
from plastic_jax.replacement.inner_state import reset_inner_state
from plastic_jax.signature import method


class BoundaryResetState(NamedTuple):
    """State of a reset at task boundaries.

    Attributes:
        inner: the inner optimizer's state.
        key: uint32, data of a random key, never changed; `None` where nothing is drawn.
        count: int32 scalar, steps taken; saturates.
    """

    inner: optax.OptState
    key: jax.Array | None
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


@method("boundary")
def reset_optimizer_at_boundary(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """At the first step of a new task, before its gradient is used, gives the optimizer the state of its beginning.

    The weights stay. Moments and counts of a task that is over neither set the first steps of the next one nor
    their sizes.

    Example:
        >>> tx = reset_optimizer_at_boundary(optax.trace(0.9))  # sums up gradients
        >>> params, gradient = jnp.zeros(1), jnp.ones(1)
        >>> state = tx.init(params)
        >>> for boundary in (False, False, True):
        ...     updates, state = tx.update(gradient, state, params, boundary=jnp.array(boundary))
        ...     print(updates)
        [1.]
        [1.9]
        [1.]

    Args:
        inner: the optimizer that does the learning.

    `update` needs `params` and the extra argument `boundary` (0-d bool).

    Raises:
        ValueError: `params` or `boundary` is not given.

    References:
        Asadi, Fakoor and Sabach, "Resetting the optimizer in deep RL: an empirical study", NeurIPS 2023.
    """
    name, inner = "reset_optimizer_at_boundary", with_extra_args(inner)
    begins = at_boundary(name)

    def start(params: optax.Params) -> Any:
        return BoundaryResetState(inner.init(params), None, jnp.zeros([], jnp.int32))

    def update(updates: optax.Updates, state: Any, params: Any = None, **extra: Any) -> tuple[optax.Updates, Any]:
        check_params(name, params)
        due = begins(state.count, extra)
        inner_state = _where(due, lambda: inner.init(params), state.inner)
        updates, inner_state = inner.update(updates, inner_state, params, **extra)
        return updates, state._replace(inner=inner_state, count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(start, update)


@method("boundary")
def reset_network_at_boundary(
    inner: optax.GradientTransformation,
    *,
    reset_state: bool = True,
    init: Callable[[jax.Array], optax.Params],
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """At the first step of a new task, replaces all weights by those of a fresh network.

    w <- w_fresh, up to rounding

    The gradient of that step is one of the old network and is not used: the fresh one learns from the second step on.
    The learners' fresh network (`SupervisedLearner(restart=True)`) begins one step earlier, before the first
    prediction. Step 0 is left alone, and so are weights that inner freezes.

    Args:
        inner: the optimizer that does the learning.
        reset_state: whether inner's state begins anew as well.
        init: key -> the parameters of a fresh network, a tree like the parameters.
        key: random key.

    `update` needs `params` and the extra argument `boundary` (0-d bool).

    Raises:
        ValueError: `params` or `boundary` is not given, or `init` gives another tree.
    """
    return _reset_weights("reset_network_at_boundary", inner, None, reset_state, init, key)


@method("boundary")
def reset_head_at_boundary(
    inner: optax.GradientTransformation,
    *,
    head: str,
    reset_state: bool = True,
    init: Callable[[jax.Array], optax.Params],
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """At the first step of a new task, replaces the weights of the output layer by those of a fresh network.

    v <- v_fresh, up to rounding; all other weights go on by inner's step

    The gradient of that step is one of the old output layer. The learners' head reset
    (`SupervisedLearner(fresh_head=True)`) comes before it is taken. Step 0 is left alone.

    Args:
        inner: the optimizer that does the learning.
        head: name of the output layer, such as `"Dense_2"`: all parameters of that name, or that begin with it and `/`.
        reset_state: whether inner's statistics of these weights begin anew as well; False is the published head reset.
        init: key -> the parameters of a fresh network, a tree like the parameters.
        key: random key.

    `update` needs `params` and the extra argument `boundary` (0-d bool).

    Raises:
        ValueError: `params` or `boundary` is not given, no parameter has that name, or `init` gives another tree.
    """
    return _reset_weights("reset_head_at_boundary", inner, head, reset_state, init, key)


def _reset_weights(
    name: str,
    inner: optax.GradientTransformation,
    head: str | None,
    reset_state: bool,
    init: Callable[[jax.Array], optax.Params],
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """Inner, and at boundaries fresh weights for the parameters of `head`; `None`: for all."""
    inner, key = with_extra_args(inner), typed_key(name, key)
    frozen, impl = frozen_leaves(inner), jax.random.key_impl(key)
    begins = at_boundary(name)

    def start(params: optax.Params) -> Any:
        own_key = jax.random.key_data(leaf_key(key, name))
        return BoundaryResetState(inner.init(params), own_key, jnp.zeros([], jnp.int32))

    def update(updates: optax.Updates, state: Any, params: Any = None, **extra: Any) -> tuple[optax.Updates, Any]:
        check_params(name, params)
        due = begins(state.count, extra)
        kept = frozen(params, extra) | _others(name, head, params)
        updates, inner_state = inner.update(updates, state.inner, params, **extra)

        def begun() -> tuple[optax.Updates, Any]:
            step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=impl), state.count)
            fresh = init(step_key)
            check_like(f"{name}: init", fresh, params)
            fresh_updates = jax.tree.map(lambda u, p, f: (f - p).astype(u.dtype), updates, params, fresh)
            new = keep_leaves(fresh_updates, updates, kept)
            if not reset_state:
                return new, inner_state
            after = optax.apply_updates(params, new)
            if head is None:
                return new, inner.init(after)
            every = jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params)
            masks = keep_leaves(every, jax.tree.map(jnp.logical_not, every), kept)
            return new, reset_inner_state(inner, inner_state, after, masks)

        updates, inner_state = _where(due, begun, (updates, inner_state))
        return updates, state._replace(inner=inner_state, count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(start, update)


def _where(due: jax.Array, make: Callable[[], Any], tree: Any) -> Any:
    """`make()` where `due`, else `tree`; nothing is made where no lane is due."""

    def made() -> Any:
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), make(), tree)

    return jax.lax.cond(any_lane(due), made, lambda: tree)


def _others(name: str, head: str | None, params: optax.Params) -> frozenset[str]:
    """The parameters that do not belong to the output layer."""
    names: Collection[str] = leaf_names(params)
    if head is None or not names:  # no parameters are what `optax.tree.map_params` asks for
        return frozenset()
    found = frozenset(each for each in names if each != head and not each.startswith(f"{head}/"))
    if len(found) == len(names):
        raise ValueError(f"{name}: head={head!r} names no parameter; there are: {', '.join(names)}")
    return found
