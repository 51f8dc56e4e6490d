"""Utility-based perturbed gradient descent: useful weights are held, useless ones are moved and perturbed."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import typed_key
from plastic_jax.inner import frozen_leaves, with_extra_args
from plastic_jax.matrices import read_kernels
from plastic_jax.optimizers.adam import adam, share_seen
from plastic_jax.paths import get_leaf, keep_leaves, leaf_key, named_leaves, normal_like
from plastic_jax.replacement.propagation import outgoing_gradient
from plastic_jax.replacement.reset import check_units
from plastic_jax.replacement.statistics import group_dtype
from plastic_jax.signature import Range, method
from plastic_jax.units.graph import UnitGraph

Noise = Callable[[jax.Array, jax.Array, optax.Params], optax.Updates]
Scope = Literal["global", "local"]


class Gate(NamedTuple):
    """How far the weights of a parameter may move.

    Attributes:
        open: 1 - S, broadcasts to the parameter.
        own: bool, broadcasts to the parameter: which of its weights have a gate at all.
    """

    open: jax.Array
    own: jax.Array | bool


class UPGDState(NamedTuple):
    """State of UPGD on weights.

    Attributes:
        inner: the inner optimizer's state.
        key: uint32, data of a random key, never changed; step `t` uses `fold_in(key, t)`.
        count: int32 scalar, steps taken; saturates.
        utility: float, a tree like the parameters: running average of -g w, not corrected for its start at 0.
    """

    inner: optax.OptState
    key: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    utility: Any


class FeatureUPGDState(NamedTuple):
    """State of UPGD on units.

    Attributes:
        inner: the inner optimizer's state.
        key: uint32, data of a random key, never changed; step `t` uses `fold_in(key, t)`.
        count: int32 scalar, steps taken; saturates.
        utility: float `[width]` by group name: running average of -h dL/dh, not corrected for its start at 0.
    """

    inner: optax.OptState
    key: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    utility: dict[str, jax.Array]

    per_unit = ("utility",)  # what a replaced unit starts with at 0


@method()
def upgd(
    inner: optax.GradientTransformation,
    *,
    step_size: Annotated[float | jax.Array, Range(0)],
    noise: Annotated[float | jax.Array, Range(0)] = 1e-3,
    decay_rate: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.999,
    weight_decay: Annotated[float | jax.Array, Range(0)] = 1e-3,
    scope: Scope = "global",
    protecting: bool = True,
    doubled: bool = False,
    corrected_maximum: bool = False,
    key: jax.Array,
    draw: Noise | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Moves each weight by inner's step and noise in so far as it is useless; what is useful stays.

        u <- decay_rate * u + (1 - decay_rate) * (-g w),   a = u / (1 - decay_rate^t)
        global: S = sigmoid(a / M), M the largest u of all weights;   local: S = sigmoid(a / ||a||)
        protecting:   w <- w + (1 - S) * (d - step_size * noise * N(0, 1)) - step_size * weight_decay * w
        else:         w <- w + d - (1 - S) * step_size * noise * N(0, 1)   - step_size * weight_decay * w

    with inner's step d for the gradient g; for plain SGD d = -step_size * g. The local norm is over the weights of one
    output of a kernel, and over all of any other parameter. -g w is, to first order, how much the loss would grow
    without the weight. A weight of utility 0 has S = 1/2.

    Example:
        >>> params = {"kernel": jnp.array([1.0, -1.0])}
        >>> tx = upgd(optax.sgd(1.0), step_size=1.0, noise=0.0, weight_decay=0.0, decay_rate=0.0, key=jax.random.key(0))
        >>> updates, _ = tx.update({"kernel": jnp.array([-1.0, -1.0])}, tx.init(params), params)
        >>> [round(float(u), 2) for u in updates["kernel"]]  # the useful weight and the harmful one; the gradient is -1
        [0.27, 0.73]

    Args:
        inner: the optimizer that does the learning.
        step_size: that of `inner`; the noise and the decay are multiplied by it.
        noise: standard deviation of the noise in the gradient, at least 0.
        decay_rate: of the running average of utilities, in [0, 1).
        weight_decay: decoupled decay, which no utility holds up, at least 0.
        scope: what a utility is compared with.
        protecting: whether useful weights are held against the gradient too, and not against the noise alone.
        doubled: whether the gated part counts twice, so that a weight of utility 0 has inner's own step.
        corrected_maximum: whether M is corrected for the average's start at 0 as well, so that the best weight has
            S = sigmoid(1) at every step; the published code corrects a alone, so that it has sigmoid(1 / (1 -
            decay_rate^t)) and is held completely at first.
        key: random key.
        draw: (key of the step, step, params) -> a tree like the parameters, in place of N(0, 1).
            A static argument for `optax.inject_hyperparams`.

    `update` needs `params`. Where no utility is positive, utilities are divided by |M|, which keeps their order and
    their signs; 0 / 0 is 0.

    Raises:
        ValueError: a number is outside its range, or a name is unknown.

    References:
        Elsayed and Mahmood, "Addressing loss of plasticity and catastrophic forgetting in continual learning", ICLR
        2024. The defaults of the numbers are those of the published README, whose class is `doubled`; those of the
        experiments are not.
    """
    name, typed = "upgd", typed_key("upgd", key)

    def start(weights: optax.Params) -> Any:
        return jax.tree.map(lambda w: jnp.zeros(jnp.shape(w), _precise(w)), weights)

    def utilities(weights: optax.Params, gradients: optax.Updates) -> Any:
        return jax.tree.map(lambda w, g: -(g * w), weights, gradients)

    def openness(utility: Any, seen: jax.Array, weights: optax.Params) -> dict[str, Gate]:
        most = _largest(jax.tree.leaves(utility)) / (seen if corrected_maximum else 1)
        corrected = {path: u / seen for path, u in named_leaves(utility)}
        axes = {k.name: k.axes for k in read_kernels("upgd", corrected)} if scope == "local" else {}
        whole = {p: most if scope == "global" else _norm(a, axes.get(p)) for p, a in corrected.items()}
        return {p: Gate(_open(a, whole[p]), True) for p, a in corrected.items()}

    return _gated(
        name, inner, typed, UPGDState, start, utilities, openness, decay_rate,
        step_size=step_size, noise=noise, weight_decay=weight_decay, protecting=protecting, doubled=doubled, draw=draw,
    )  # fmt: skip


@method()
def feature_upgd(
    inner: optax.GradientTransformation,
    units: UnitGraph,
    *,
    step_size: Annotated[float | jax.Array, Range(0)],
    noise: Annotated[float | jax.Array, Range(0)] = 1e-3,
    decay_rate: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.999,
    weight_decay: Annotated[float | jax.Array, Range(0)] = 1e-3,
    scope: Scope = "global",
    protecting: bool = True,
    doubled: bool = False,
    corrected_maximum: bool = False,
    key: jax.Array,
    draw: Noise | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""UPGD with the utility of hidden units: a unit's incoming weights are moved in so far as the unit is useless.

        u <- decay_rate * u + (1 - decay_rate) * (-sum_batch h dL/dh)

    and gates, noise and decay as in `upgd`, of all that makes a unit: incoming kernels, bias, scale and shift. All
    other parameters, those of the output layer among them, have inner's step and the decay, without noise.
    -h dL/dh is taken as -sum w g over the unit's outgoing kernels, which is the same where nothing else reads it.

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph of the model.
        step_size: that of `inner`; the noise and the decay are multiplied by it.
        noise: standard deviation of the noise in the gradient, at least 0.
        decay_rate: of the running average of utilities, in [0, 1).
        weight_decay: decoupled decay, which no utility holds up, at least 0.
        scope: what a utility is compared with: the largest of all groups, or the norm of its own group's.
        protecting: whether useful units are held against the gradient too, and not against the noise alone.
        doubled: whether the gated part counts twice, so that a unit of utility 0 has inner's own step.
        corrected_maximum: as in `upgd`.
        key: random key.
        draw: as in `upgd`.

    `update` needs `params`.

    Raises:
        ValueError: a number is outside its range, a name is unknown, or the graph does not fit the parameters.

    References:
        Elsayed and Mahmood, "Addressing loss of plasticity and catastrophic forgetting in continual learning", ICLR
        2024, feature-wise UPGD.
    """
    name, typed = "feature_upgd", typed_key("feature_upgd", key)

    def start(weights: optax.Params) -> dict[str, jax.Array]:
        check_units(units, weights, name)
        return {g.name: jnp.zeros(g.width, group_dtype(g, weights)) for g in units.groups}

    def utilities(weights: optax.Params, gradients: optax.Updates) -> dict[str, jax.Array]:
        return {g.name: -outgoing_gradient(g, weights, gradients)[:, 0] for g in units.groups}

    def openness(utility: Any, seen: jax.Array, weights: optax.Params) -> dict[str, Gate]:
        most = _largest(list(utility.values())) / (seen if corrected_maximum else 1)
        gates: dict[str, Gate] = {}
        for g in units.groups:
            a = utility[g.name] / seen
            gate = _open(a, most if scope == "global" else _norm(a, None))
            for s in g.incoming:
                shape = jnp.shape(get_leaf(weights, s.path))
                others, own = gates.get(s.path, Gate(jnp.ones([]), False)), s.spread(jnp.ones(g.width, bool), shape)
                gates[s.path] = Gate(jnp.where(own, s.spread(gate, shape), others.open), own | others.own)
        return gates

    return _gated(
        name, inner, typed, FeatureUPGDState, start, utilities, openness, decay_rate,
        step_size=step_size, noise=noise, weight_decay=weight_decay, protecting=protecting, doubled=doubled, draw=draw,
    )  # fmt: skip


def _gated(
    name: str,
    inner: optax.GradientTransformation,
    key: jax.Array,
    make_state: Callable[..., Any],
    start: Callable[[optax.Params], Any],
    utilities: Callable[[optax.Params, optax.Updates], Any],
    openness: Callable[[Any, jax.Array, optax.Params], Mapping[str, Gate]],
    decay_rate: Any,
    *,
    step_size: Any,
    noise: Any,
    weight_decay: Any,
    protecting: bool,
    doubled: bool,
    draw: Noise | None,
) -> optax.GradientTransformationExtraArgs:
    """Inner, whose updates and noise pass through the gates that `openness(utility, share seen, params)` gives.

    A weight without a gate has inner's update and the decay. Frozen parameters are left alone.
    """
    inner = with_extra_args(inner)
    frozen, impl = frozen_leaves(inner), jax.random.key_impl(key)
    sample = draw or (lambda key, now, params: normal_like(key, params))

    def init(params: optax.Params) -> Any:
        own_key = jax.random.key_data(leaf_key(key, name))
        return make_state(inner.init(params), own_key, jnp.zeros([], jnp.int32), start(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(f"{name}: update needs `params`; call update(grads, state, params)")
        utility = jax.tree.map(
            lambda u, now: (decay_rate * u + (1 - decay_rate) * now).astype(u.dtype),
            state.utility,
            utilities(params, updates),
        )
        count: Any = optax.safe_increment(state.count)
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(utility))
        gates = openness(utility, share_seen(decay_rate, count, dtype), params)
        still = frozen(params, extra)
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=impl), state.count)
        drawn = sample(step_key, state.count, params)

        def move(path: str, step: jax.Array, weight: jax.Array, normal: jax.Array) -> jax.Array:
            if path in gates:
                gate, shaken = gates[path], -step_size * noise * normal
                moved = gate.open * (step + shaken) if protecting else step + gate.open * shaken
                step = jnp.where(gate.own, 2 * moved if doubled else moved, step)
            return (step - step_size * weight_decay * weight).astype(weight.dtype)

        leaves, treedef = jax.tree.flatten(updates)
        rest = [treedef.flatten_up_to(tree) for tree in (params, drawn)]
        paths = [path for path, _ in named_leaves(params)]
        moved = jax.tree.unflatten(treedef, map(move, paths, leaves, *rest))
        return keep_leaves(moved, updates, still), make_state(inner_state, state.key, count, utility)

    return optax.GradientTransformationExtraArgs(init, update)


def ada_upgd(
    step_size: float | jax.Array,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float = 1e-5,
    *,
    key: jax.Array,
    **settings: Any,
) -> optax.GradientTransformationExtraArgs:
    """AdaUPGD: `upgd` around Adam, doubled; the moments are those of the gradient itself.

    Example:
        >>> tx = ada_upgd(1e-3, key=jax.random.key(0))

    Args:
        step_size: Adam's.
        b1, b2: decay rates of Adam's moments.
        eps: keeps Adam's denominator from 0.
        key: random key.
        **settings: those of `upgd`.

    References:
        Published code of Elsayed and Mahmood, ICLR 2024: `AdaptiveUPGD`.
    """
    settings = {"doubled": True} | settings
    return upgd(adam(step_size, b1, b2, eps), step_size=step_size, key=key, **settings)


def _open(utility: jax.Array, whole: jax.Array) -> jax.Array:
    """1 - sigmoid(utility / |whole|), with 0 / 0 = 0."""
    nothing = (utility == 0) & (whole == 0)
    return jax.nn.sigmoid(jnp.where(nothing, 0, -utility / jnp.where(nothing, 1, jnp.abs(whole))))


def _largest(utilities: list[jax.Array]) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(u) for u in utilities]))


def _norm(utility: jax.Array, letters: str | None) -> jax.Array:
    """The norm over the weights of one output of a kernel with these axes, or of all; summed axes have size 1."""
    axes = None if letters is None else tuple(i for i, letter in enumerate(letters) if letter in "ti")
    return jnp.sqrt(jnp.sum(utility**2, axis=axes, keepdims=True))


def _precise(weight: jax.Array) -> Any:
    return jnp.promote_types(jnp.result_type(weight), jnp.float32)
