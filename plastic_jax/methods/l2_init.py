"""L2 Init: weights are pulled to where they began instead of to zero."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.around import add_pull
from plastic_jax.checks import typed_key
from plastic_jax.inner import frozen_leaves, with_extra_args
from plastic_jax.matrices import read_kernels
from plastic_jax.methods.weight_decay import weight_decay
from plastic_jax.paths import keep_leaves, leaf_key, named_leaves
from plastic_jax.signature import Range, method

_NAME = "l2_init"


class L2InitState(NamedTuple):
    """State of L2 Init.

    Attributes:
        inner: the inner optimizer's state.
        initial: the parameters at `init`, of `l2_init_after_first_update` those after the first update; `None` with
            `resample`.
        key: uint32, data of a random key, never changed; `None` without `resample`.
        count: int32 scalar, steps taken; saturates.
    """

    inner: optax.OptState
    initial: Any
    key: jax.Array | None
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


@method()
def l2_init(
    inner: optax.GradientTransformation,
    *,
    strength: Annotated[float | jax.Array, Range(0)] = 1e-3,
    match: Literal["position", "rank"] = "position",
    mean: bool = False,
    resample: bool = False,
    init: Callable[[jax.Array], optax.Params] | None = None,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Pulls every weight to its initial value: L2 regularisation whose centre is the network before training.

    g <- g + strength * (w - w_0), before the inner optimizer

    which is the gradient of `strength / 2 * ||w - w_0||^2`; biases and normalisation parameters are included. A unit
    that has fallen silent is pulled back to weights with which it was not. With `match="rank"` the n-th smallest weight
    of a layer is pulled to the n-th smallest initial one, so that the law of a layer's weights is kept and not the
    weights: the squared Wasserstein distance, `strength / 2 * ||sort(w) - sort(w_0)||^2`.

    Example:
        >>> params = {"kernel": jnp.array([1.0, -2.0])}
        >>> tx = l2_init(optax.sgd(0.1), strength=0.5)
        >>> state = tx.init(params)  # where the weights are pulled to
        >>> moved = {"kernel": jnp.array([3.0, -2.0])}
        >>> updates, state = tx.update({"kernel": jnp.zeros(2)}, state, moved)
        >>> optax.apply_updates(moved, updates)["kernel"]
        Array([ 2.9, -2. ], dtype=float32)

    Args:
        inner: the optimizer that does the learning.
        strength: how strong the pull is, at least 0.
        match: which initial weight a weight is pulled to: that of its "position", or that of its "rank" in its leaf (in
            each layer of a leaf that stacks layers, see `plastic_jax.matrices`).
        mean: take the mean over the weights of a leaf in place of the sum.
        resample: pull to newly drawn initial weights at every step instead, which keeps the law of the weights rather
            than the weights.
        init: key -> the parameters of a fresh network; needed with `resample`.
        key: random key; needed with `resample`.

    `update` needs `params`.

    Raises:
        ValueError: `strength` is negative, or `resample` has no `init` or `key`.

    References:
        Kumar, Marklund and Van Roy, "Maintaining plasticity in continual learning via regenerative regularization",
        CoLLAs 2024; match="rank": Lewandowski et al., "Directions of curvature as an explanation for loss of
        plasticity", 2023.

    Differs from the published code, which leaves the parameters of normalisation layers out.
    """
    fresh = _fresh(init, key) if resample else None

    def start(params: optax.Params, inner_state: optax.OptState) -> L2InitState:
        own_key = jax.random.key_data(leaf_key(typed_key(_NAME, key), _NAME)) if resample else None
        # Copies, since the parameters may be donated with the state.
        initial = None if resample else jax.tree.map(jnp.copy, params)
        return L2InitState(inner_state, initial, own_key, jnp.zeros([], jnp.int32))

    def pull(params: optax.Params, state: Any) -> tuple[dict[str, jax.Array], Any]:
        centre = dict(named_leaves(state.initial if fresh is None else fresh(state.key, state.count)))
        stacks = _stacks(params) if match == "rank" else {}
        pulls = {}
        for name, w in named_leaves(params):
            w0 = _matched(w, centre[name], stacks.get(name, 1)) if match == "rank" else centre[name]
            pulls[name] = strength / (w.size if mean else 1) * (w - w0)
        return pulls, state._replace(count=optax.safe_increment(state.count))

    return add_pull(_NAME, inner, start, pull)


@method()
def l2_init_after_first_update(
    inner: optax.GradientTransformation,
    *,
    strength: Annotated[float | jax.Array, Range(0)] = 1e-3,
    step_size: Annotated[float | jax.Array, Range(0)],
) -> optax.GradientTransformationExtraArgs:
    """Coupled weight decay, then a step towards the weights after the first update: another method called L2 Init.

    g <- g + strength * w, inner's step, w <- w + step_size * strength * w_1

    w_1 are the weights after inner's first step. With plain SGD it is `l2_init` with w_1 for w_0. With Adam the decay
    goes through the moments and the pull does not, so that the two do not cancel at w_1.

    Args:
        inner: the optimizer that does the learning.
        strength: how strong decay and pull are, at least 0.
        step_size: the step size of `inner`.

    `update` needs `params`.

    Raises:
        ValueError: a number is negative.

    References:
        The baseline of Elsayed et al., "Weight clipping for deep continual and reinforcement learning", RLC 2024, as
        in its released code.
    """
    name = "l2_init_after_first_update"
    decayed = with_extra_args(weight_decay(inner, strength))
    frozen = frozen_leaves(decayed)

    def start(params: optax.Params) -> Any:
        return L2InitState(decayed.init(params), jax.tree.map(jnp.copy, params), None, jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(f"{name}: update needs `params`; call update(grads, state, params)")
        still = frozen(params, extra)
        updates, inner_state = decayed.update(updates, state.inner, params, **extra)
        first = optax.tree.where(state.count == 0, optax.apply_updates(params, updates), state.initial)
        pulled = jax.tree.map(lambda u, w: (u + step_size * strength * w).astype(u.dtype), updates, first)
        count = optax.safe_increment(state.count)
        return keep_leaves(pulled, updates, still), state._replace(inner=inner_state, initial=first, count=count)

    return optax.GradientTransformationExtraArgs(start, update)


def _stacks(params: optax.Params) -> dict[str, int]:
    """How many layers a leaf stacks, of those that are known to stack some."""
    return {name: k.stack for k in read_kernels(_NAME, params) for name in (k.name, k.bias) if name}


def _matched(weights: jax.Array, initial: jax.Array, stack: int) -> jax.Array:
    """For every weight the initial one of the same rank in its layer."""
    rank = jnp.argsort(jnp.argsort(weights.reshape(stack, -1)))
    return jnp.take_along_axis(jnp.sort(initial.reshape(stack, -1)), rank, -1).reshape(weights.shape)


def _fresh(init: Any, key: Any) -> Callable[[jax.Array, jax.Array], optax.Params]:
    """A function of key data and step: a fresh network's parameters."""
    if init is None or key is None:
        raise ValueError(f"{_NAME}: resample needs init and key")
    impl = jax.random.key_impl(typed_key(_NAME, key))
    return lambda data, step: init(jax.random.fold_in(jax.random.wrap_key_data(data, impl=impl), step))
