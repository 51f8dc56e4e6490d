"""Can this network still learn? How fast its clones fit new random targets, beside fresh networks."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plastic_jax.paths import leaf_key

Targets = Literal["normal", "labels", "network"]
_TARGETS = ("normal", "labels", "network")
_FREQUENCY = 1e5


class Gap(NamedTuple):
    """Mean difference over targets, this network minus fresh ones; all but the mean are NaN for a single target.

    Attributes:
        mean: above 0 where this network learns slower.
        low: lower end of the 95 % interval, for this very network.
        high: its upper end.
        chance: a fresh network in this one's place would have a gap between `-chance` and `chance` in at least 95 % of
            cases, as fresh networks differ too: a gap within these bounds is no sign of lost plasticity.
    """

    mean: float
    low: float
    high: float
    chance: float


@dataclasses.dataclass(frozen=True)
class Trainability:
    """The result of `trainability`; `print` gives one line.

    Attributes:
        loss: float64 `[clones, steps]`, the loss of this network's clones before each update.
        fresh_loss: float64 `[clones, steps]`, that of fresh networks on the same targets.
    """

    loss: np.ndarray
    fresh_loss: np.ndarray

    @property
    def area(self) -> Gap:
        """The gap in the mean loss over all steps."""
        return _paired(self.loss.mean(axis=1), self.fresh_loss.mean(axis=1))

    @property
    def final(self) -> Gap:
        """The gap in the mean loss over the last tenth of the steps."""
        last = max(1, self.loss.shape[1] // 10)
        return _paired(self.loss[:, -last:].mean(axis=1), self.fresh_loss[:, -last:].mean(axis=1))

    def __str__(self) -> str:
        clones, steps = self.loss.shape
        last = max(1, steps // 10)
        ours, fresh = self.loss, self.fresh_loss
        text = (
            f"trainability on {clones} random targets, {steps} steps: mean loss {ours.mean():.4g}, fresh network "
            f"{fresh.mean():.4g}, gap {_text(self.area)}; at the end {ours[:, -last:].mean():.4g}, fresh "
            f"{fresh[:, -last:].mean():.4g}, gap {_text(self.final)} (95 %, paired by target)"
        )
        for name, curves in (("clones", ours), ("fresh networks", fresh)):
            diverged = int(np.sum(~np.isfinite(curves).all(axis=1)))
            text += f"; {diverged} of {clones} {name} diverged" if diverged else ""
        return text


def trainability(
    apply: Callable[..., jax.Array],
    params: Any,
    init: Callable[[jax.Array], Any],
    inputs: Any,
    *,
    key: jax.Array,
    targets: Targets | Callable[[jax.Array, jax.Array], jax.Array] = "normal",
    clones: int = 8,
    steps: int = 500,
    optimizer: optax.GradientTransformation | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    batch_size: int | None = None,
    variables: Any = None,
) -> Trainability:
    r"""How fast clones of a network fit new random targets, beside freshly initialised networks.

    With targets `y_c` drawn anew for every clone `c`, the loss `l(theta, y)`, the optimizer `O` with a fresh state, and
    `theta_c` fresh weights,

        A(theta, y) = 1/T sum_t l(O^t(theta), y),      gap = mean_c [A(theta, y_c) - A(theta_c, y_c)]

    and the same of the loss at the end. The differences are paired by target. The interval is Student's, `mean +- t s /
    sqrt(C)` for `C` clones; it is for this very network. Fresh networks differ among themselves: one of them in its
    place would have a gap within `chance = t s sqrt(1 + 1 / C)` (rather too wide, since `s` also holds what chance does
    to two fits of one target). All learn in one compiled program, side by side: memory for `2 C` networks and
    optimizer states is needed.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from plastic_jax import MLP, trainability
        >>> network = MLP(widths=(64,), outputs=1)
        >>> x = jax.random.normal(jax.random.key(0), (32, 8))
        >>> init = lambda key: network.init(key, x)["params"]
        >>> apply = lambda params, x: network.apply({"params": params}, x)
        >>> dead = jax.tree.map(jnp.zeros_like, init(jax.random.key(1)))
        >>> tx = optax.adam(0.01)
        >>> result = trainability(apply, dead, init, x, key=jax.random.key(2), clones=4, steps=100, optimizer=tx)
        >>> result.area.low > 0
        True

    Args:
        apply: the model, `apply(params, *inputs)`, or `apply(params, variables, *inputs)`; one array of outputs
            `[examples, ...]`.
        params: the weights in question.
        init: `init(key) -> params` of a fresh network.
        inputs: the input, or a tuple or list of all inputs; examples on the leading axis.
        key: typed key of targets, fresh networks and mini-batches.
        targets: `"normal"`: standard normal numbers about the network's mean output; `"labels"`: a class for every
            example, uniform over the last axis of the output; `"network"`: `sin(1e5 f(x; theta'))` of another fresh
            network about the network's mean output; or a function `(key, outputs) -> targets` of the outputs'
            `[examples, ...]` array.
        clones: number of targets, and of fresh networks.
        steps: updates on each.
        optimizer: what fits them; Adam with step size 1e-3 where none is given.
        loss: `loss(outputs, targets)`, 0-d; by default the cross-entropy for labels and else the mean squared error.
        batch_size: examples per update, drawn with replacement; all of them where it is `None`.
        variables: what else the model needs; they stay as they are.

    Returns:
        The learning curves of both, and the gap between them.

    Raises:
        ValueError: a number is not positive, a name is unknown, the model has too few outputs for labels, or `init`
            gives other parameters than `params`.

    References:
        Lyle et al., "Understanding plasticity in neural networks", ICML 2023 (plasticity as the ease of fitting random
        targets, `"network"` after its high-frequency targets); Abbas et al., "Loss of plasticity in continual deep
        reinforcement learning", CoLLAs 2023 (learning curves beside those of a fresh network).
    """
    for name, value in (("clones", clones), ("steps", steps), ("batch_size", 1 if batch_size is None else batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"trainability: {name}={value!r} is not a positive integer")
    if not callable(targets) and targets not in _TARGETS:
        allowed = ", ".join((*_TARGETS, "or a function (key, outputs) -> targets"))
        raise ValueError(f"trainability: targets='{targets}'; allowed: {allowed}")
    _check_init(params, init, key)
    inputs = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    examples = jax.tree.leaves(inputs)[0].shape[0]
    tx = optax.adam(1e-3) if optimizer is None else optimizer
    measure = loss or (_cross_entropy if targets == "labels" else _squared_error)
    fixed = () if variables is None else (variables,)

    def fit(
        params: Any, inputs: Any, fixed: Any, weights: Any, target_key: jax.Array, batch_key: jax.Array
    ) -> jax.Array:
        outputs = apply(weights, *fixed, *inputs)
        if callable(targets):
            y = targets(target_key, outputs)
        else:
            y = _random_targets(targets, target_key, outputs, lambda k: apply(init(k), *fixed, *inputs))

        def step(carry: tuple[Any, Any], t: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            weights, state = carry
            batch = (inputs, y)
            if batch_size is not None:
                rows = jax.random.randint(jax.random.fold_in(batch_key, t), (batch_size,), 0, examples)
                batch = jax.tree.map(lambda a: a[rows], batch)
            value, grads = jax.value_and_grad(lambda w: measure(apply(w, *fixed, *batch[0]), batch[1]))(weights)
            updates, state = tx.update(grads, state, weights)
            return (optax.apply_updates(weights, updates), state), value

        return jax.lax.scan(step, (weights, tx.init(weights)), jnp.arange(steps))[1]

    def both(params: Any, inputs: Any, fixed: Any, key: jax.Array) -> jax.Array:
        keys = {name: jax.random.split(leaf_key(key, name), clones) for name in ("fresh", "target", "batch")}
        fresh = jax.vmap(init)(keys["fresh"])
        weights = jax.tree.map(lambda p, f: jnp.stack([jnp.broadcast_to(p, f.shape).astype(f.dtype), f]), params, fresh)
        one = lambda w, t, b: fit(params, inputs, fixed, w, t, b)  # noqa: E731
        return jax.vmap(jax.vmap(one), (0, None, None))(weights, keys["target"], keys["batch"])

    curves = np.asarray(jax.jit(both)(params, inputs, fixed, key), np.float64)
    return Trainability(curves[0], curves[1])


def _random_targets(
    kind: str, key: jax.Array, outputs: jax.Array, fresh_outputs: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    if kind == "labels":
        classes = outputs.shape[-1] if outputs.ndim > 1 else 1
        if classes < 2:
            raise ValueError(f"trainability: targets='labels' needs at least 2 outputs; the model has {classes}")
        return jax.random.randint(key, outputs.shape[:-1], 0, outputs.shape[-1])
    # About the network's own mean, since to move all outputs at once is easy, and no question of plasticity.
    centre = jnp.mean(outputs, axis=0, keepdims=True)
    if kind == "normal":
        return centre + jax.random.normal(key, outputs.shape, outputs.dtype)
    return centre + jnp.sin(_FREQUENCY * fresh_outputs(key))


def _squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(outputs - targets))


def _cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, targets))


def _check_init(params: Any, init: Callable[[jax.Array], Any], key: jax.Array) -> None:
    wanted, given = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, jax.eval_shape(init, key))
    )
    for path in wanted | given:
        if wanted.get(path) != given.get(path):
            raise ValueError(
                f"trainability: init gives {given.get(path, 'nothing')} at {path}, params has "
                f"{wanted.get(path, 'nothing')}; both must be of one shape"
            )


def _paired(ours: np.ndarray, fresh: np.ndarray) -> Gap:
    difference = ours - fresh
    n, mean = len(difference), float(np.mean(difference))
    if n < 2 or not math.isfinite(mean):
        return Gap(mean, math.nan, math.nan, math.nan)
    spread = _student(n - 1) * float(np.std(difference, ddof=1))
    half = spread / math.sqrt(n)
    return Gap(mean, mean - half, mean + half, spread * math.sqrt(1 + 1 / n))


def _student(degrees: int) -> float:
    """The 97.5 % point of Student's distribution: P(|T| > t) = I_{d / (d + t^2)}(d / 2, 1 / 2) = 0.05, by bisection."""
    low, high = 1.9, 13.0
    for _ in range(40):
        t = (low + high) / 2
        tail = float(jax.scipy.special.betainc(degrees / 2, 0.5, degrees / (degrees + t * t)))
        low, high = (t, high) if tail > 0.05 else (low, t)
    return (low + high) / 2


def _text(gap: Gap) -> str:
    if not math.isfinite(gap.low):
        return f"{gap.mean:.3g}"
    return f"{gap.mean:.3g} [{gap.low:.3g}, {gap.high:.3g}], by chance within {gap.chance:.2g}"
