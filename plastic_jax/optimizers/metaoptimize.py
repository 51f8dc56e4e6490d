"""MetaOptimize: any optimizer whose step sizes are learned by another one, for a network, its layers or its weights."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.matrices import wide
from plastic_jax.optimizers.adam import AdamState, adam, correction
from plastic_jax.paths import leaf_names
from plastic_jax.signature import Range, method


class MetaOptimizeState(NamedTuple):
    """State of the base optimizer, of its step sizes, and of the optimizer that learns these.

    Attributes:
        base: the base optimizer's state: moments, or `()`.
        trace: `h`, how the weights depend on the logarithm of their step size, negated; a tree like the parameters,
            float32 at least.
        log_step_size: natural logarithms of the step sizes, a tree like the parameters, float32 at least: with
            blocks="weight" of their shapes, else 0-d each, the same number in all parameters of a block.
        meta: the meta optimizer's state.
    """

    base: Any
    trace: optax.Updates
    log_step_size: optax.Updates
    meta: optax.OptState

    step_sizes = (("log_step_size", "log"),)


@method()
def metaoptimize(
    step_size: Annotated[float | jax.Array, Range(0)],
    b1: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.9,
    b2: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.999,
    *,
    base: Literal["sgd", "adam", "lion"] = "adam",
    meta_optimizer: Literal["sgd", "adam", "lion", "published_lion"] = "lion",
    blocks: Literal["network", "layer", "weight"] | Callable[[str], Any] = "network",
    meta_step_size: Annotated[float | jax.Array, Range(0)] = 0.001,
    trace_discount: Annotated[float | jax.Array, Range(0, 1)] = 0.9999,
    decoupled_decay: Annotated[float | jax.Array, Range(0)] = 0.0,
    meta_b1: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.9,
    meta_b2: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.99,
    eps: Annotated[float | jax.Array, Range(0)] = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """MetaOptimize: step sizes that a second optimizer learns from the correlation of each gradient with earlier steps.

        a = exp(beta),   z = sum over a block of h g
        w <- w - a (k w + d),   h <- trace_discount (1 - a k) h + a s,   beta <- beta + meta_step_size * meta(z)

    with the gradient g and k = `decoupled_decay`. d is the base optimizer's direction, s that of the gradient alone:
    d = s = g (sgd), d = m / (sqrt(v) + eps) and s = g / (sqrt(v) + eps) with Adam's corrected moments (adam), or
    d = s = sign(b1 m + (1 - b1) g), m <- b2 m + (1 - b2) g (lion). -h follows dw / d beta without the Hessian. `meta`
    is z itself (sgd), Adam's direction, or Lion's, whose sign makes every step of beta `meta_step_size` long.

    Example:
        >>> params = jnp.array([1.0])
        >>> tx = metaoptimize(0.1, base="sgd", meta_optimizer="sgd", meta_step_size=1.0)
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.array([2.0]), state, params)
        >>> round(float(state.log_step_size - jnp.log(0.1)), 3)  # h = 0.1 * 2, z = 0.2 * 2
        0.4

    Args:
        step_size: the first step size of every block; later values, as of a schedule, change only those of new weights.
        b1, b2: decay rates of the base optimizer's moments, in [0, 1); base=sgd has none.
        base: the optimizer that moves the weights.
        meta_optimizer: the optimizer that moves the logarithms of step sizes; `published_lion` as the published code
            has it, whose sign is taken of the momentum after it has taken in z.
        blocks: what has a step size of its own: the network, each layer (the parameters that differ in the last part of
            their names only), or each weight; or a function from a parameter's name to its block.
        meta_step_size: step size of the logarithms.
        trace_discount: how much of a step's effect is counted one step later, in [0, 1].
        decoupled_decay: weight decay of the base optimizer, times the step size (AdamW's).
        meta_b1, meta_b2: decay rates of the meta optimizer's moments, as those of `optax.lion` or `optax.adam`.
        eps: keeps Adam's denominators from 0.

    A method that makes units new resets the step sizes of their weights with blocks="weight"; a layer's or the
    network's stays. Nothing bounds a step size: with Lion, `meta_step_size` 0.01 lets it grow by a factor of 2.7 in 100
    steps.

    Raises:
        ValueError: a number outside its range, a word of another name, or `update` without `params`.

    References:
        Sharifnassab, Salehkaleybar and Sutton, "MetaOptimize: a framework for optimizing step sizes and other
        meta-parameters", ICML 2025.
    """
    meta = optax.chain(_meta(meta_optimizer, meta_b1, meta_b2), optax.scale(meta_step_size))
    moments = {"adam": adam(1.0, b1, b2, eps), "lion": optax.scale_by_lion(b1, b2), "sgd": optax.identity()}[base]

    def init(params: optax.Params) -> MetaOptimizeState:
        def first(p: jax.Array) -> jax.Array:
            p = wide(jnp.asarray(p))
            return jnp.full(p.shape if blocks == "weight" else (), jnp.log(jnp.asarray(step_size, p.dtype)), p.dtype)

        betas = jax.tree.map(first, params)
        trace = jax.tree.map(lambda p: jnp.zeros_like(wide(jnp.asarray(p))), params)
        return MetaOptimizeState(moments.init(params), trace, betas, meta.init(betas))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, MetaOptimizeState]:
        del extra
        if params is None:
            raise ValueError("metaoptimize: update needs `params`; call update(grads, state, params)")
        directions, kept = moments.update(updates, state.base, params)
        kept = jax.tree.map(lambda new, old: new.astype(old.dtype), kept, state.base)
        alone = directions
        if base == "adam":
            directions, alone = jax.tree.map(jnp.negative, directions), _normalized(updates, kept, b2, eps)

        def step(g: jax.Array, w: jax.Array, d: jax.Array, beta: jax.Array) -> jax.Array:
            return (-jnp.exp(beta) * (decoupled_decay * wide(w) + wide(d))).astype(g.dtype)

        def follow(h: jax.Array, s: jax.Array, beta: jax.Array) -> jax.Array:
            a = jnp.exp(beta)
            return (trace_discount * (1 - a * decoupled_decay) * h + a * wide(s)).astype(h.dtype)

        agreement = _by_block(jax.tree.map(lambda h, g: h * wide(g), state.trace, updates), blocks)
        trace = jax.tree.map(follow, state.trace, alone, state.log_step_size)
        updates = jax.tree.map(step, updates, params, directions, state.log_step_size)
        moves, meta_state = meta.update(agreement, state.meta, state.log_step_size)
        betas = jax.tree.map(lambda b, m: (b + m).astype(b.dtype), state.log_step_size, moves)
        return updates, MetaOptimizeState(kept, trace, betas, meta_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _by_block(products: Any, blocks: str | Callable[[str], Any]) -> Any:
    """In every parameter the sum of the products over its block; of blocks of weights the products themselves."""
    if blocks == "weight":
        return products
    leaves, treedef = jax.tree.flatten(products)
    names = {"network": lambda name: None, "layer": lambda name: name.rpartition("/")[0]}
    block_of = names[blocks] if isinstance(blocks, str) else blocks
    owners, sums = [block_of(name) for name in leaf_names(products)], {}
    for owner, leaf in zip(owners, leaves, strict=True):
        sums[owner] = sums.get(owner, 0) + jnp.sum(leaf)
    return jax.tree.unflatten(treedef, [sums[o].astype(leaf.dtype) for o, leaf in zip(owners, leaves, strict=True)])


def _normalized(gradients: Any, state: AdamState, b2: Any, eps: Any) -> Any:
    """Gradients over the roots of Adam's corrected second moments."""

    def one(g: jax.Array, rows: jax.Array, columns: jax.Array, nu: jax.Array) -> jax.Array:
        nu = wide(nu)
        return wide(g) / (jnp.sqrt(nu * correction(b2, rows, columns, nu.dtype)) + eps)

    return jax.tree.map(one, gradients, state.rows, state.columns, state.nu)


def _meta(name: str, b1: Any, b2: Any) -> optax.GradientTransformation:
    """The direction in which an optimizer moves log step sizes that are to grow by their gradient."""
    if name == "published_lion":
        return _published_lion(b1, b2)
    return {"sgd": optax.identity, "adam": optax.scale_by_adam, "lion": optax.scale_by_lion}[name](
        *(() if name == "sgd" else (b1, b2))
    )


def _published_lion(b1: Any, b2: Any) -> optax.GradientTransformation:
    """Lion, but the sign is taken of the momentum after it has taken in the gradient."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        momentum = jax.tree.map(lambda m, z: (b2 * m + (1 - b2) * z).astype(m.dtype), state, updates)
        return jax.tree.map(lambda m, z: jnp.sign(b1 * m + (1 - b1) * z), momentum, updates), momentum

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)
