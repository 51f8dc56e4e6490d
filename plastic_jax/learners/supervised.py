"""Learning from labelled examples, online or in mini-batches."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from plastic_jax import metrics
from plastic_jax.statistics import feature_matrix
from plastic_jax.units.graph import UnitGraph

_LARGE = 8192
"""Values in a parameter from which a copy costs more than to wait for the backward pass."""


class SupervisedState(NamedTuple):
    """State of one learner.

    Attributes:
        params: the network's parameters.
        optimizer: the transformation's state.
        params_key: typed key of the initial weights; restart `r` draws from `fold_in(params_key, r)`.
        method_key: typed key of the method's own draws.
        restarts: int32 scalar, how often a new task has begun.
    """

    params: Any
    optimizer: Any
    params_key: jax.Array
    method_key: jax.Array
    restarts: jax.Array


@dataclasses.dataclass(frozen=True)
class SupervisedLearner:
    """A network, a loss and a method.

    Attributes:
        network: a Flax module from inputs `[batch, *input_shape]` to `[batch, outputs]`.
        input_shape: shape of one input.
        loss: `"squared_error"`, mean over batch and outputs of `(y - target)^2`, or `"cross_entropy"`, mean over the
            batch of `-log softmax(y)[label]`.
        transformation: `(hyper, key) -> optax transformation`; called inside the compiled step, so that every number in
            `hyper` may be traced.
        units: the unit graph, for methods and diagnostics that look at hidden units; `None` without.
        restart: begin every task with a new network and a new optimizer state (the fresh-network control).
        head: name of the output layer, set to zero where the batch says `reset_head`; `None` leaves it alone.
        ordered: let the update of large kernels wait for the backward pass: the same numbers, and faster on the CPU for
            methods whose updates do not need all of the pass anyway.
    """

    network: nn.Module
    input_shape: tuple[int, ...]
    loss: Literal["squared_error", "cross_entropy"]
    transformation: Callable[[Mapping[str, Any], jax.Array], optax.GradientTransformationExtraArgs]
    units: UnitGraph | None = None
    restart: bool = False
    head: str | None = None
    ordered: bool = False

    def init(self, params_key: jax.Array, method_key: jax.Array, hyper: Mapping[str, Any]) -> SupervisedState:
        """The state before step 0; `params_key` alone decides the initial weights."""
        restarts = jnp.zeros([], jnp.int32)
        params = self._fresh(params_key, restarts)
        optimizer = self.transformation(hyper, method_key).init(params)
        return SupervisedState(params, optimizer, params_key, method_key, restarts)

    def step(
        self, state: SupervisedState, hyper: Mapping[str, Any], batch: Any, clock: jax.Array
    ) -> tuple[SupervisedState, dict[str, jax.Array]]:
        """One update; the metrics are those of the predictions before it.

        `batch` has `x`, `y`, `boundary`, `reset_head` and `class_mask`; `clock` is the unbatched int32 step number.
        Metrics are means over the batch: `squared_error`, or `loss` (nats) and `online_accuracy`.
        """
        transformation = self.transformation(hyper, state.method_key)
        if self.restart:
            state = jax.lax.cond(batch.boundary, lambda: self._restarted(state, transformation), lambda: state)
        if self.head is not None:
            state = jax.lax.cond(batch.reset_head, lambda: self._headless(state), lambda: state)

        def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            output, features = self._forward(params, batch.x)
            return self._loss(output, batch.y, batch.class_mask), (output, features)

        (loss, (output, features)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, optimizer = transformation.update(
            grads, state.optimizer, state.params, features=features, boundary=batch.boundary, loss=loss, clock=clock
        )
        params = optax.apply_updates(_after(grads, state.params) if self.ordered else state.params, updates)
        state = state._replace(params=params, optimizer=optimizer)
        if self.loss == "squared_error":
            return state, {"squared_error": loss}
        return state, {"loss": loss, "online_accuracy": jnp.mean(_predicted(output, batch.class_mask) == batch.y)}

    def evaluate(self, state: SupervisedState, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sum and number over held-out examples: squared errors, or correct answers; labels below 0 do not count."""
        output, _ = self._forward(state.params, x)
        if self.loss == "squared_error":
            return jnp.sum(jnp.square(output - y)), jnp.asarray(y.size, jnp.float32)
        counted = y >= 0
        correct = (jnp.argmax(output, axis=-1) == y) & counted
        return jnp.sum(correct, dtype=jnp.float32), jnp.sum(counted, dtype=jnp.float32)

    def probe(self, state: SupervisedState, x: jax.Array) -> dict[str, jax.Array]:
        """What is seen inside: the weights' mean magnitude, and over all hidden units what they do on the inputs `x`.

        Ranks are summed over layers and divided by the number of units.
        """
        seen = {"mean_weight_magnitude": metrics.mean_weight_magnitude(state.params)}
        if self.units is None or not self.units.groups:
            return seen
        _, features = self.units.apply(state.params, x)
        matrices = [feature_matrix(g, features[g.name]) for g in self.units.groups]
        total = sum(g.width for g in self.units.groups)

        spectra = [metrics.singular_values(m) for m in matrices]
        dead = [metrics.dead_units(m) * m.shape[1] for m in matrices]
        dormant = [metrics.dormant_units(m) * m.shape[1] for m in matrices]
        effective = [metrics.effective_rank_of(s) for s in spectra]
        stable = [metrics.stable_rank_of(s) for s in spectra]
        sums = {"dead_units": dead, "dormant_units": dormant, "effective_rank": effective, "stable_rank": stable}
        return seen | {name: jnp.sum(jnp.stack(values)) / total for name, values in sums.items()}

    def _forward(self, params: Any, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        if self.units is None:
            output = self.network.apply({"params": params}, x)
            return output, {}  # pyright: ignore[reportReturnType]
        return self.units.apply(params, x)

    def _loss(self, output: jax.Array, y: jax.Array, class_mask: jax.Array | None) -> jax.Array:
        if self.loss == "squared_error":
            return jnp.mean(jnp.square(output - y))
        if class_mask is not None:
            output = jnp.where(class_mask, output, -jnp.inf)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output, y))

    def _fresh(self, key: jax.Array, restarts: jax.Array) -> Any:
        blank = jnp.zeros((1, *self.input_shape))
        return self.network.init(jax.random.fold_in(key, restarts), blank)["params"]

    def _restarted(self, state: SupervisedState, transformation: optax.GradientTransformation) -> SupervisedState:
        params = self._fresh(state.params_key, state.restarts)
        return state._replace(params=params, optimizer=transformation.init(params), restarts=state.restarts + 1)

    def _headless(self, state: SupervisedState) -> SupervisedState:
        return state._replace(params={**state.params, self.head: jax.tree.map(jnp.zeros_like, state.params[self.head])})


def _predicted(output: jax.Array, class_mask: jax.Array | None) -> jax.Array:
    return jnp.argmax(output if class_mask is None else jnp.where(class_mask, output, -jnp.inf), axis=-1)


def _after(grads: Any, params: Any) -> Any:
    """`params` as they are, but not before the backward pass has read them."""
    # Without this dependency XLA on the CPU copies whole kernels at every step, to update one and go on reading it.
    # No number is greater than infinity, so that nothing is ever replaced; the bias gradients need all of the pass.
    never = sum(jnp.sum(g) for g in jax.tree.leaves(grads) if g.ndim < 2) > jnp.inf
    return jax.tree.map(lambda p: jnp.where(never, 0.0, p) if p.size >= _LARGE else p, params)
