"""Learning from labelled examples, online or in mini-batches."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from plastic_jax.axes import mean_over, with_axis
from plastic_jax.diagnostics import metrics
from plastic_jax.diagnostics.step_sizes import step_size_metrics
from plastic_jax.learners.moments import Moments, no_moments, normalised, taken_in
from plastic_jax.optimizers.curvature import gauss_newton, local_curvature
from plastic_jax.replacement.reset import just_replaced
from plastic_jax.replacement.statistics import feature_matrix
from plastic_jax.units.graph import UnitGraph
from plastic_jax.units.trace import trace_units

_BIT = math.log(2)
"""Nats in a bit."""
_LARGE = 8192
"""Values in a parameter from which a copy costs more than to wait for the backward pass."""


class Best(NamedTuple):
    """The best network of a task so far.

    Attributes:
        params: its parameters.
        variables: its other collections.
        score: 0-d float32, what it was chosen by; -1 before there is any.
    """

    params: Any
    variables: Any
    score: jax.Array


class SupervisedState(NamedTuple):
    """State of one learner.

    Attributes:
        params: the network's parameters.
        variables: the network's other collections by name (`batch_stats` of batch normalisation); `{}` without.
        optimizer: the transformation's state.
        params_key: typed key of the initial weights; restart `r` draws from `fold_in(params_key, r)`.
        method_key: typed key of the method's own draws.
        restarts: int32 scalar, how often a new task has begun.
        best: the best network of the task so far; `None` where the learner does not select.
        inputs: moments of each input, `[*input_shape]`; `None` where they are not normalised.
    """

    params: Any
    variables: Any
    optimizer: Any
    params_key: jax.Array
    method_key: jax.Array
    restarts: jax.Array
    best: Best | None = None
    inputs: Moments | None = None


@dataclasses.dataclass(frozen=True)
class SupervisedLearner:
    """A network, a loss and a method.

    Where the network has an argument `train`, `step` calls it with `train=True`, `evaluate` and `probe` with `False`.
    It may have collections besides its parameters, such as the running statistics of batch normalisation: `step` keeps
    what it makes of them. The statistics of a unit that was replaced start afresh (`UnitGraph.reset_variables`).

    On several devices `step` runs under a mapped axis (`jax.shard_map`, `jax.pmap`) with the same state, numbers and
    clock on each, and of the batch an equal part of `x` and `y` each. Gradients, loss, metrics and variables are
    averaged over the axis, so that the state stays the same on each. Two parts have to be told of the axis themselves:
    a method that looks at features (`continual_backprop(axis_name=...)`, `redo(axis_name=...)`), without which every
    device replaces other units, and a network that normalises by batch (`BatchNorm(axis_name=...)`, or
    `flax.linen.BatchNorm`), without which every device normalises by its own part. `evaluate` and `probe` answer for
    what they are shown, and need no axis.

    A problem may scale step sizes on a schedule of its own (`Batch.step_scale`), and ask for a new output layer
    (`Batch.reset_head`).

    Attributes:
        network: a Flax module from inputs `[batch, *input_shape]` to `[batch, outputs]`; with cross entropy any number
            of axes may stand before `outputs`, such as the positions of a sequence, each with a label.
        input_shape: shape of one input.
        loss: `"squared_error"`, mean over batch and outputs of `(y - target)^2`, or `"cross_entropy"`, mean over all
            labels of `-log softmax(y)[label]`.
        transformation: `(hyper, key) -> optax transformation`; called inside the compiled step, so that every number in
            `hyper` may be traced.
        units: the unit graph, for methods and diagnostics that look at hidden units, see `network_units`; `None`
            without. Its `apply` takes `(params, x)`, or `(params, variables, x)` if the network has variables, and
            gives the new variables beside the output then.
        restart: begin every task with a new network and a new optimizer state (the fresh-network control).
        restart_all: whether a restart also begins the running statistics and the optimizer's state; the published code
            leaves both as they are in class-incremental CIFAR-100.
        head: name of the output layer; `None` leaves it alone. Its weights are set to zero where the batch says
            `reset_head`; the optimizer's state stays, as published.
        fresh_head: draw the output layer anew at every task change, by the network's own initializer.
        normalise_inputs: by their running mean and deviation, clipped to 10 deviations: the inputs of a step are taken
            in, then normalised; those of evaluations and probes are normalised only. `hyper["input_decay"]` says how
            fast earlier inputs are forgotten (`moments.taken_in`).
        selects: whether a task ends with the best network it has had (`keep_best`).
        dropout: train with `network(x, dropout_rate=hyper["dropout_rate"])` and a random stream `dropout`.
        transform: wraps the network's function before it is evaluated or differentiated, as
            `plastic_jax.networks.convolutions.as_products`, which is faster on CPUs; the identity by default.
        probe_in_training: whether `probe` looks at the network in training, with the statistics of what it is shown,
            as the published code does for class-incremental CIFAR-100.
        ordered: let the update of large kernels wait for the backward pass: the same numbers, and faster on the CPU for
            methods whose updates do not need all of the pass anyway.
        axis_name: name of the mapped axis over which `step` averages; `None`: a single device.
        feature_gradients: give the method the gradients in the features too, from the same backward pass (`regrama`).
        input_type: type of the inputs; integers are tokens, which have no moments to be normalised by.
        curvature: give the optimizer the curvature of every weight by local targets (`idbd`).
        hvp: give the optimizer the product of the loss's Gauss-Newton matrix with any direction (`smd`).

    Raises:
        ValueError: the network has a field `axis_name` of another value; gradients in features without `units`; tokens
            are to be normalised; `curvature` or `hvp` with an `axis_name`, over which they are not averaged.
    """

    network: nn.Module
    input_shape: tuple[int, ...]
    loss: Literal["squared_error", "cross_entropy"]
    transformation: Callable[[Mapping[str, Any], jax.Array], optax.GradientTransformationExtraArgs]
    units: UnitGraph | None = None
    restart: bool = False
    restart_all: bool = True
    head: str | None = None
    fresh_head: bool = False
    normalise_inputs: bool = False
    selects: bool = False
    dropout: bool = False
    transform: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda apply: apply
    probe_in_training: bool = False
    ordered: bool = False
    axis_name: str | None = None
    feature_gradients: bool = False
    input_type: Any = jnp.float32
    curvature: bool = False
    hvp: bool = False

    def __post_init__(self) -> None:
        if self.axis_name is not None and (self.curvature or self.hvp):
            raise ValueError("SupervisedLearner: curvature and hvp need the whole batch on one device, axis_name=None")
        if self.feature_gradients and (self.units is None or self.dropout):
            raise ValueError("SupervisedLearner: feature_gradients needs units, those of network_units, and no dropout")
        if self.normalise_inputs and not jnp.issubdtype(self.input_type, jnp.floating):
            raise ValueError("SupervisedLearner: normalise_inputs needs numbers as inputs, these are tokens")
        theirs = getattr(self.network, "axis_name", self.axis_name)
        if theirs != self.axis_name:
            name = type(self.network).__name__
            raise ValueError(f"SupervisedLearner: axis_name={self.axis_name!r}, but {name} has axis_name={theirs!r}")

    def init(self, params_key: jax.Array, method_key: jax.Array, hyper: Mapping[str, Any]) -> SupervisedState:
        """The state before step 0; `params_key` alone decides the initial weights."""
        restarts = jnp.zeros([], jnp.int32)
        params, variables = self._fresh(params_key, restarts)
        optimizer = self.transformation(hyper, method_key).init(params)
        best = Best(params, variables, jnp.full([], -1.0)) if self.selects else None
        inputs = self._no_inputs()
        return SupervisedState(params, variables, optimizer, params_key, method_key, restarts, best, inputs)

    def step(
        self, state: SupervisedState, hyper: Mapping[str, Any], batch: Any, clock: jax.Array
    ) -> tuple[SupervisedState, dict[str, jax.Array]]:
        """One update; the metrics are those of the predictions before it.

        `batch` has `x`, `y`, `boundary`, `reset_head`, `class_mask` (`None`, `[outputs]`, or a row for every example)
        and `step_scale`; `clock` is the unbatched int32 step number.
        Metrics are means over the batch: `squared_error`, or `loss` (nats) and `online_accuracy`. Under a mapped axis
        they are means over the whole batch; all but `x` and `y` is the same on every device.
        """
        if batch.step_scale is not None:
            hyper = {**hyper, "step_size": hyper["step_size"] * batch.step_scale}
        transformation = self.transformation(hyper, state.method_key)
        state = self._begun(state, batch, transformation)
        if state.inputs is not None:
            inputs = taken_in(state.inputs, batch.x, hyper["input_decay"], self.axis_name)
            state = state._replace(inputs=inputs)
        forward, x = self._training(state, hyper, clock), normalised(state.inputs, batch.x)

        def objective(params: Any, *perturbations: Any) -> tuple[jax.Array, tuple[jax.Array, Any, Any]]:
            output, variables, features = forward(params, state.variables, x, *perturbations)
            loss = self._loss(output, batch.y, batch.class_mask)
            # shard_map may know that parameters are the same on every device, and then adds up their gradients by
            # itself. The mean of the loss makes that sum the mean; the mean of the gradients serves all other cases.
            return mean_over(loss, self.axis_name), (output, variables, features)

        shown = (state.variables, x) if state.variables else (x,)
        zeros = self.units.perturbations(state.params, *shown) if self.feature_gradients and self.units else None
        (loss, (output, variables, features)), grads, more = gradients(objective, state.params, zeros)
        grads, variables = mean_over((grads, variables), self.axis_name)
        given = {"features": features, "boundary": batch.boundary, "loss": loss, "clock": clock, **more}
        given |= curvatures(
            self,
            lambda params: forward(params, state.variables, x)[0],
            lambda output: self._loss(output, batch.y, batch.class_mask),
            state.params,
            x,
            (2 if self.loss == "squared_error" else 1) / math.prod(batch.y.shape[1:]),
        )
        updates, optimizer = transformation.update(grads, state.optimizer, state.params, **given)
        params = optax.apply_updates(_after(grads, state.params) if self.ordered else state.params, updates)
        if variables and self.units is not None:
            variables = self.units.reset_variables(just_replaced(optimizer), variables)
        state = state._replace(params=params, variables=variables, optimizer=optimizer)
        if self.loss == "squared_error":
            return state, {"squared_error": loss}
        accuracy = jnp.mean(_predicted(output, batch.class_mask) == batch.y)
        return state, {"loss": loss, "online_accuracy": mean_over(accuracy, self.axis_name)}

    def evaluate(
        self,
        state: SupervisedState,
        x: jax.Array,
        targets: Mapping[str, jax.Array],
        class_mask: Any = None,
        measure: Literal["accuracy", "bits"] = "accuracy",
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Per name, sum and number over held-out examples: squared errors, or correct answers with labels from 0 on.

        Args:
            state: the learner.
            x: inputs, `[n, *input_shape]`.
            targets: by name, `[n, outputs]`, or labels `[n]`, so that parts of the examples have a number of their own.
            class_mask: `[outputs]` bool, the classes to choose from; `None` for all.
            measure: with cross entropy, correct answers or `-log2 softmax(y)[label]`.
        """
        output = self.outputs(state, x)
        if self.loss == "squared_error":
            return {n: (jnp.sum(jnp.square(output - y)), jnp.asarray(y.size, jnp.float32)) for n, y in targets.items()}
        if measure == "bits":
            values = {n: _cross_entropy(output, jnp.maximum(y, 0), class_mask) / _BIT for n, y in targets.items()}
        else:
            answers = _predicted(output, class_mask)
            values = {name: answers == y for name, y in targets.items()}
        return {
            name: (jnp.sum(jnp.where(y >= 0, values[name], 0), dtype=jnp.float32), jnp.sum(y >= 0, dtype=jnp.float32))
            for name, y in targets.items()
        }

    def trial(
        self, state: SupervisedState, batch: Callable[[jax.Array], tuple[jax.Array, jax.Array]], updates: Any
    ) -> tuple[jax.Array, jax.Array]:
        """How fast a clone of the network learns labels, by Adam with step size 1e-3 whatever the method is.

        Args:
            state: the learner; it stays as it is.
            batch: number of the update -> inputs and labels.
            updates: how many; may be traced.

        Returns:
            Sum over the updates of the mean bits (`-log2 softmax(y)[label]`) before each, and their number.
        """
        tx = optax.adam(1e-3)

        def update(i: jax.Array, carry: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
            params, optimizer, total = carry
            x, y = batch(i)
            x = normalised(state.inputs, x)
            loss = lambda params: self._loss(self._forward(params, state.variables, x)[0], y, None)  # noqa: E731
            value, grads = jax.value_and_grad(loss)(params)
            changes, optimizer = tx.update(grads, optimizer, params)
            return optax.apply_updates(params, changes), optimizer, total + value / _BIT

        start = (state.params, tx.init(state.params), jnp.zeros([], jnp.float32))
        total = jax.lax.fori_loop(0, updates, update, start)[2]
        return total, jnp.asarray(updates, jnp.float32)

    def outputs(self, state: SupervisedState, x: jax.Array) -> jax.Array:
        """What the network says of inputs `[n, *input_shape]` in evaluation, `[n, outputs]`."""
        x = normalised(state.inputs, x)
        if self._has_modes(state):
            return self.transform(_evaluated(self.network))(state.params, state.variables, x)
        return self._forward(state.params, {}, x)[0]

    def keep_best(self, state: SupervisedState, score: jax.Array, ends_task: jax.Array) -> SupervisedState:
        """Remember the network if its `score` is higher than any in this task; at the task's end, go back to the best.

        Parameters and running statistics go back, the optimizer's state does not, as published for class-incremental
        CIFAR-100. Of equal scores the first counts.
        """
        assert state.best is not None, "the learner selects"
        current = Best(state.params, state.variables, score)
        best = jax.tree.map(lambda new, old: jnp.where(score > state.best.score, new, old), current, state.best)  # pyright: ignore
        params, variables = jax.tree.map(
            lambda kept, now: jnp.where(ends_task, kept, now), best[:2], (state.params, state.variables)
        )
        best = best._replace(score=jnp.where(ends_task, -1.0, best.score))
        return state._replace(params=params, variables=variables, best=best)

    def probe(
        self, state: SupervisedState, x: jax.Array, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """What is seen inside: the weights' mean magnitude, and over all hidden units what they do on the inputs `x`.

        Ranks are those of layers whose units have one value per example (dense layers, and what is pooled over all
        positions), summed over such layers and divided by the number of their units. Of an optimizer that learns step
        sizes, what `step_size_metrics` says of them too, beside the first one where `hyper` has it.
        """
        seen = {"mean_weight_magnitude": metrics.mean_weight_magnitude(state.params)}
        seen |= step_size_metrics(state.optimizer, self.units, (hyper or {}).get("step_size"))
        if self.units is None or not self.units.groups:
            return seen
        features = self._features(self.units, state, normalised(state.inputs, x))
        matrices = {g.name: feature_matrix(g, features[g.name]) for g in self.units.groups}
        dead = [metrics.dead_units(m) * m.shape[1] for m in matrices.values()]
        dormant = [metrics.dormant_units(m) * m.shape[1] for m in matrices.values()]
        total = sum(m.shape[1] for m in matrices.values())
        seen |= {"dead_units": _total(dead) / total, "dormant_units": _total(dormant) / total}
        ranked = [m for m in matrices.values() if len(m) == len(x)]
        if not ranked:
            return seen
        spectra, total = [metrics.singular_values(m) for m in ranked], sum(m.shape[1] for m in ranked)
        effective = [metrics.effective_rank_of(s) for s in spectra]
        stable = [metrics.stable_rank_of(s) for s in spectra]
        return seen | {"effective_rank": _total(effective) / total, "stable_rank": _total(stable) / total}

    def _training(self, state: SupervisedState, hyper: Mapping[str, Any], clock: jax.Array) -> Callable[..., Any]:
        """`(params, variables, x) -> (output, variables, features)` as the learner trains."""
        if not self.dropout:
            return self._forward
        key = jax.random.fold_in(state.method_key, clock)
        if self.axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))
        how = {"rngs": {"dropout": key}, "dropout_rate": hyper["dropout_rate"]}

        def forward(params: Any, variables: Any, x: jax.Array) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
            output, variables = self.transform(_trained(self.network, **how))(params, variables, x)
            return output, variables, {}

        return forward

    def _forward(
        self, params: Any, variables: Any, x: jax.Array, perturbations: Any = None
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """Output, variables and features in training."""
        if self.units is None:
            output, variables = self.transform(_trained(self.network))(params, variables, x)
            return output, variables, {}
        units = self.units
        apply = self.transform(lambda more, *args: units.apply(*args, **more))
        more = {} if perturbations is None else {"perturbations": perturbations}
        if not variables:
            output, features = apply(more, params, x)
            return output, variables, features
        (output, variables), features = apply(more, params, variables, x)
        return output, variables, features

    def _has_modes(self, state: SupervisedState) -> bool:
        """Whether training and evaluation are different functions."""
        return bool(state.variables or _mode(self.network, train=False))

    def _features(self, units: UnitGraph, state: SupervisedState, x: jax.Array) -> dict[str, jax.Array]:
        """The units' values that `probe` looks at."""
        if self.probe_in_training or not self._has_modes(state):
            return self._forward(state.params, state.variables, x)[2]
        evaluated = _evaluated(self.network)
        seen = trace_units(evaluated, state.params, x, variables=state.variables, check=False)
        return self.transform(seen.apply)(state.params, state.variables, x)[1]

    def _loss(self, output: jax.Array, y: jax.Array, class_mask: jax.Array | None) -> jax.Array:
        if self.loss == "squared_error":
            return jnp.mean(jnp.square(output - y))
        return jnp.mean(_cross_entropy(output, y, class_mask))

    def _fresh(self, key: jax.Array, restarts: jax.Array) -> tuple[Any, Any]:
        return _initial(self.network, jax.random.fold_in(key, restarts), self._no_input())

    def _no_input(self) -> jax.Array:
        return jnp.zeros((1, *self.input_shape), self.input_type)

    def _begun(self, state: SupervisedState, batch: Any, transformation: optax.GradientTransformation) -> Any:
        """The state in which the step learns: what begins afresh with a task is fresh."""
        if self.restart:
            state = jax.lax.cond(batch.boundary, lambda: self._restarted(state, transformation), lambda: state)
        if self.head is None:
            return state
        if self.fresh_head:
            state = jax.lax.cond(batch.boundary, lambda: self._with_fresh_head(state), lambda: state)
        return jax.lax.cond(batch.reset_head, lambda: self._with_head(state, jnp.zeros_like), lambda: state)

    def _restarted(self, state: SupervisedState, transformation: optax.GradientTransformation) -> SupervisedState:
        params, variables = self._fresh(state.params_key, state.restarts)
        state = state._replace(params=params, restarts=state.restarts + 1)
        if not self.restart_all:
            return state
        return state._replace(variables=variables, optimizer=transformation.init(params), inputs=self._no_inputs())

    def _no_inputs(self) -> Moments | None:
        return no_moments(self.input_shape) if self.normalise_inputs else None

    def _with_head(self, state: SupervisedState, make: Callable[[jax.Array], jax.Array]) -> SupervisedState:
        return state._replace(params={**state.params, self.head: jax.tree.map(make, state.params[self.head])})

    def _with_fresh_head(self, state: SupervisedState) -> SupervisedState:
        # Restart 0 has the initial weights, which are the head's first.
        params, _ = self._fresh(state.params_key, state.restarts)
        return state._replace(params={**state.params, self.head: params[self.head]}, restarts=state.restarts + 1)


def gradients(objective: Callable[..., Any], params: Any, zeros: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The objective's value with what else it gives, its gradient, and `feature_gradients` where there are `zeros`.

    The objective takes the parameters and, where there are any, `UnitGraph.perturbations`.
    """
    if zeros is None:
        return *jax.value_and_grad(objective, has_aux=True)(params), {}
    value, (grads, own) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, zeros)
    return value, grads, {"feature_gradients": own}


def curvatures(
    learner: Any, apply: Callable[[Any], Any], loss: Callable[[Any], jax.Array], params: Any, x: jax.Array, scale: Any
) -> dict[str, Any]:
    """The extra arguments `curvature`, by local targets of that scale, and `hvp`, where the learner gives them."""
    given: dict[str, Any] = {}
    if learner.curvature:
        given["curvature"] = local_curvature(lambda params, x: apply(params), params, x, scale=scale)
    if learner.hvp:
        given["hvp"] = gauss_newton(apply, loss, params)
    return given


def network_units(
    network: nn.Module, input_shape: tuple[int, ...], axis_name: str | None = None, input_type: Any = jnp.float32
) -> UnitGraph:
    """The hidden units of a network as `SupervisedLearner` calls it, found from shapes alone.

    Args:
        network: a Flax module from inputs `[batch, *input_shape]`.
        input_shape: shape of one input.
        axis_name: the mapped axis that the network averages over; it need not be mapped here.
        input_type: type of the inputs.

    Raises:
        NotImplementedError: an operation on hidden units that has no rule.
    """
    x = jax.ShapeDtypeStruct((1, *input_shape), input_type)
    params, variables = jax.eval_shape(lambda x: _initial(network, jax.random.key(0), x), x)
    trained = with_axis(_trained(network), axis_name)
    if not variables:
        return trace_units(lambda params, x: trained(params, {}, x)[0], params, x)
    return trace_units(trained, params, x, variables=variables)


def _initial(network: nn.Module, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    """Parameters, and the other collections by name."""
    collections = network.init(key, x, **_mode(network, train=False))
    return collections["params"], {name: tree for name, tree in collections.items() if name != "params"}


def _trained(network: nn.Module, **how: Any) -> Callable[[Any, Any, jax.Array], tuple[Any, Any]]:
    """The network in training: `(params, variables, x) -> (output, variables)`."""

    def apply(params: Any, variables: Any, x: jax.Array) -> tuple[Any, Any]:
        mode = _mode(network, train=True) | how
        if not variables:
            return network.apply({"params": params}, x, **mode), variables
        return network.apply({"params": params, **variables}, x, mutable=list(variables), **mode)  # pyright: ignore[reportReturnType]

    return apply


def _evaluated(network: nn.Module) -> Callable[[Any, Any, jax.Array], Any]:
    """The network in evaluation: `(params, variables, x) -> output`."""
    mode = _mode(network, train=False)
    return lambda params, variables, x: network.apply({"params": params, **variables}, x, **mode)


def _mode(network: nn.Module, train: bool) -> dict[str, Any]:
    """The argument that says whether the network is trained, where it has one."""
    return {"train": train} if "train" in inspect.signature(type(network).__call__).parameters else {}


def _total(values: list[jax.Array]) -> jax.Array:
    return jnp.sum(jnp.stack(values))


def _cross_entropy(output: jax.Array, y: jax.Array, class_mask: jax.Array | None) -> jax.Array:
    """`-log softmax(output)[y]` in nats, of the shape of `y`."""
    if class_mask is not None:
        output = jnp.where(class_mask, output, -jnp.inf)
    return optax.softmax_cross_entropy_with_integer_labels(output, y)


def _predicted(output: jax.Array, class_mask: jax.Array | None) -> jax.Array:
    return jnp.argmax(output if class_mask is None else jnp.where(class_mask, output, -jnp.inf), axis=-1)


def _after(grads: Any, params: Any) -> Any:
    """`params` as they are, but not before the backward pass has read them."""
    # Without this dependency XLA on the CPU copies whole kernels at every step, to update one and go on reading it.
    # No number is greater than infinity, so that nothing is ever replaced; the bias gradients need all of the pass.
    never = sum(jnp.sum(g) for g in jax.tree.leaves(grads) if g.ndim < 2) > jnp.inf
    return jax.tree.map(lambda p: jnp.where(never, 0.0, p) if p.size >= _LARGE else p, params)
