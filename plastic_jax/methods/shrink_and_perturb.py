"""Shrink and perturb around any optimizer, in three forms: normalised, published, at task boundaries.

Several parameterisations go by this name and their numbers cannot be exchanged, hence three named functions.
In each, what happens depends on the caller's key and the step alone, not on what was drawn before. The step is the
extra argument `clock` of `update` (0-d int32, 0 at the first update) or, where none is given, the state's own count.
Between perturbations no random number is drawn, under `vmap` too.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.around import Due, after_step, at_boundary, periodic
from plastic_jax.checks import check_like, typed_key
from plastic_jax.methods.weight_decay import weight_decay as add_weight_decay
from plastic_jax.paths import leaf_key, normal_like
from plastic_jax.signature import Range, method

Noise = Callable[[jax.Array, jax.Array, optax.Params], optax.Updates]


class ShrinkAndPerturbState(NamedTuple):
    """The inner state, and what the next perturbation depends on.

    Attributes:
        inner: state of the inner optimizer.
        key: uint32, data of a random key; never changes.
        count: 0-d int32, updates so far; saturates.
        centre: `[leaves]` float, what each leaf is shrunk towards (order of `jax.tree.leaves`); `None` if always 0.
        initial_std: `[leaves]` float, spread of each leaf at initialisation; `None` where the form does not use it.
    """

    inner: optax.OptState
    key: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    centre: jax.Array | None = None
    initial_std: jax.Array | None = None


@method()
def shrink_and_perturb(
    inner: optax.GradientTransformation,
    *,
    shrink: Annotated[float | jax.Array, Range(0, 1)] = 1e-6,
    noise: Annotated[float | jax.Array, Range(0)] = 1e-4,
    key: jax.Array,
    initial_std: Any = None,
    every: Annotated[int, Range(1)] = 1,
) -> optax.GradientTransformationExtraArgs:
    """After every `every`-th step, shrinks all weights and adds noise in proportion to the initial spread of each leaf.

    w <- c + (1 - shrink) * (w - c) + noise * s * N(0, 1)         (w: after inner's step; s, c: one number per leaf)

    s is the standard deviation of the leaf's values when `init` is called, and c is 0, except for a leaf whose initial
    values are all the same: that leaf has s = 0 and c is the value. So biases that start at 0 shrink towards 0 without
    noise and normalisation scales stay around 1, as in a fresh network. Left to itself a leaf's spread settles at
    s * noise / sqrt(2 * shrink - shrink^2); noise = sqrt(2 * shrink - shrink^2) keeps the initial spread.
    A leaf of few weights gives a rough s; `initial_std` replaces it by the initializer's own.

    Example:
        >>> params = {"kernel": jnp.array([1.0, -1.0]), "bias": jnp.array([0.5])}
        >>> tx = shrink_and_perturb(optax.sgd(0.1), shrink=0.1, noise=0.0, key=jax.random.key(0))
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"]
        Array([ 0.9, -0.9], dtype=float32)

    Args:
        shrink: share of each weight that is taken away, in [0, 1].
        noise: spread of the noise in units of s, >= 0.
        key: random key.
        initial_std: a tree like the parameters with one number per leaf, used as s.
        every: number of steps from one perturbation to the next, >= 1. No random number is drawn in between.

    Raises:
        ValueError: a number outside its interval; `initial_std` that is not a tree like the parameters.

    References:
        After Ash and Adams, NeurIPS 2020, and Dohare et al., Nature 632, 2024, Methods; the normalisation is ours.
    """
    key = typed_key("shrink_and_perturb", key)

    def start(params: optax.Params, inner_state: optax.OptState) -> ShrinkAndPerturbState:
        centre, std = _centre_and_std(params)
        given = std if initial_std is None else _stacked(initial_std, params)
        return _init(inner_state, key)._replace(centre=centre, initial_std=given)

    def perturb(updates: optax.Updates, params: optax.Params, state: Any, now: jax.Array, key: jax.Array) -> Any:
        centre: Any = state.centre
        std: Any = state.initial_std

        def leaf(i: int, u: jax.Array, p: jax.Array, n: jax.Array) -> jax.Array:
            return (u - shrink * (p + u - centre[i]) + noise * std[i] * n).astype(u.dtype)

        leaves, treedef = jax.tree.flatten(updates)
        normal = normal_like(key, params)
        edited = map(leaf, range(len(leaves)), leaves, treedef.flatten_up_to(params), treedef.flatten_up_to(normal))
        return jax.tree.unflatten(treedef, list(edited))

    return _after_each_step("shrink_and_perturb", inner, key, start, perturb, periodic(every))


@method()
def published_shrink_and_perturb(
    inner: optax.GradientTransformation,
    *,
    weight_decay: Annotated[float | jax.Array, Range(0)] = 1e-4,
    noise_std: Annotated[float | jax.Array, Range(0)] = 1e-5,
    key: jax.Array,
    noise_every: Annotated[int, Range(1)] = 1,
    noise: Noise | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Coupled weight decay, then after every step the same normal noise on all weights, as the published code has it.

    g <- g + weight_decay * w, inner's step, w <- w + noise_std * N(0, 1)         (biases and the output layer included)

    The noise knows neither the step size nor the layer. For plain SGD the shrink factor of a step is
    1 - step_size * weight_decay.

    `noise_every` = k adds sqrt(k) * noise_std * N(0, 1) after every k-th step and draws nothing in between: at batch
    size 1 drawing a number for every weight costs more than learning. It differs from the published code in that the
    noise arrives in bursts; its distribution over many steps is the same up to relative O(k * step_size).

    Args:
        weight_decay: rate of the coupled decay, >= 0.
        noise_std: standard deviation of one step's noise, >= 0; with a Python 0 nothing is drawn.
        key: random key.
        noise_every: number of steps from one draw to the next, >= 1.
        noise: (key of the step, step, params) -> a tree like the parameters, in place of N(0, 1).
            A static argument for `optax.inject_hyperparams`.

    Raises:
        ValueError: a number outside its interval.

    References:
        Dohare et al., Nature 632, 2024, Methods (shrink and perturb) and published code.
    """
    decayed, key = add_weight_decay(inner, weight_decay), typed_key("shrink_and_perturb", key)
    draw = noise or (lambda key, now, params: normal_like(key, params))
    std = noise_std * noise_every**0.5

    def perturb(updates: optax.Updates, params: optax.Params, state: Any, now: jax.Array, key: jax.Array) -> Any:
        drawn = draw(key, now, params)
        return jax.tree.map(lambda u, n: (u + std * n).astype(u.dtype), updates, drawn)

    quiet = isinstance(noise_std, int | float) and noise_std == 0
    due = (lambda now, extra: False) if quiet else periodic(noise_every)
    start = lambda params, inner_state: _init(inner_state, key)  # noqa: E731
    return _after_each_step("published_shrink_and_perturb", decayed, key, start, perturb, due)


@method("boundary")
def shrink_and_perturb_at_boundary(
    inner: optax.GradientTransformation,
    *,
    shrink: Annotated[float | jax.Array, Range(0, 1)] = 0.4,
    perturb: Annotated[float | jax.Array, Range(0)] = 0.1,
    init: Callable[[jax.Array], optax.Params],
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """At the first step of a new task, mixes the network with a fresh one: w <- shrink * w + perturb * w_fresh.

    `update` needs the extra argument `boundary` (0-d bool), so this method sees task boundaries. The mixing follows
    inner's step, whose gradient is already one of the new task. The first step of all (step 0) is left alone: there is
    nothing to make fresh yet. Inner's state is kept.

    Args:
        shrink: factor of the present weights, in [0, 1]; 0.4 in the paper.
        perturb: factor of the fresh ones, >= 0; 0.1 in the paper.
        init: key -> the parameters of a fresh network, a tree like the parameters.
            A static argument for `optax.inject_hyperparams`.
        key: random key.

    Raises:
        ValueError: a number outside its interval; `boundary` not given; `init` gives another tree.

    References:
        Ash and Adams, "On warm-starting neural network training", NeurIPS 2020, section 4.
    """
    name = "shrink_and_perturb_at_boundary"
    key = typed_key(name, key)

    def mix(updates: optax.Updates, params: optax.Params, state: Any, now: jax.Array, key: jax.Array) -> Any:
        fresh = init(key)
        check_like("init", fresh, params)
        return jax.tree.map(
            lambda u, p, f: (shrink * (p + u) + perturb * f - p).astype(u.dtype), updates, params, fresh
        )

    start = lambda params, inner_state: _init(inner_state, key)  # noqa: E731
    return _after_each_step(name, inner, key, start, mix, at_boundary(name))


def _after_each_step(
    method: str, inner: optax.GradientTransformation, key: jax.Array, init: Callable, perturb: Callable, due: Due
) -> optax.GradientTransformationExtraArgs:
    """Inner, followed by `perturb(updates, params, state, key of the step, step)` in the steps in which it is due."""
    impl = jax.random.key_impl(key)

    def edit(updates: optax.Updates, params: optax.Params, state: Any, now: jax.Array) -> optax.Updates:
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=impl), now)
        return perturb(updates, params, state, now, step_key)

    return after_step(method, inner, init, edit, due)


def _init(inner_state: optax.OptState, key: jax.Array) -> ShrinkAndPerturbState:
    # No buffer twice in the state, and a key of its own: the state may be donated, the caller's key must survive that.
    own_key = jax.random.key_data(leaf_key(key, "shrink_and_perturb"))
    return ShrinkAndPerturbState(inner_state, own_key, jnp.zeros((), jnp.int32))


def _centre_and_std(params: optax.Params) -> tuple[jax.Array, jax.Array]:
    """Of every leaf: its value and 0 if all its elements are the same, else 0 and their standard deviation."""
    leaves = jax.tree.leaves(params)
    constant = jnp.array([jnp.ptp(leaf) == 0 for leaf in leaves], bool)
    mean = jnp.array([leaf.mean() for leaf in leaves])
    std = jnp.array([leaf.std() for leaf in leaves])
    return jnp.where(constant, mean, 0), jnp.where(constant, 0, std)


def _stacked(initial_std: Any, params: optax.Params) -> jax.Array:
    if not jax.tree.leaves(params):  # what optax.tree.map_params asks for
        return jnp.zeros(0)
    check_like("initial_std", initial_std, params)
    shapes = [jnp.shape(std) for std in jax.tree.leaves(initial_std)]
    if any(shapes):
        raise ValueError(f"initial_std must hold one number per leaf, got the shapes {shapes}")
    return jnp.array(jax.tree.leaves(initial_std))
