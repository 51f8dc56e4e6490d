"""`trace_units`: the unit graph of any model, found by following its jaxpr."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.paths import leaf_names
from plastic_jax.units import jaxprs, labels
from plastic_jax.units.check import check_graph
from plastic_jax.units.elementwise_functions import ElementwiseFunctions
from plastic_jax.units.features import evaluate
from plastic_jax.units.graph import UnitGraph, UnitGroup
from plastic_jax.units.groups import Found, find
from plastic_jax.units.rules import LOOPS, RULES, equivalent
from plastic_jax.units.story import Entries, Frame, Leaf, Story, Value
from plastic_jax.units.walk import Walk
from plastic_jax.warning import warn_user

CONSTANT: Leaf = ("constant", "")
"""Leaves that are not real or complex numbers: masks, counters, keys."""


def trace_units(
    apply: Callable[..., Any],
    params: Any,
    *inputs: Any,
    variables: Any = None,
    check: bool = True,
    means: bool = False,
    **options: Any,
) -> UnitGraph:
    """The hidden units of a model, with every slice of every parameter that enters or leaves them.

    A feature is the value that the next contraction with a parameter reads, if it depends on an earlier one and has
    passed a nonlinearity: after activation, pooling, normalisation, dropout, flattening. A network applied twice gives
    the values of both uses, a recurrent cell those of every step. Its units are the channels of the contractions that
    made it. Channels that are added or multiplied, or that share a weight, are one unit: the
    gates of a recurrent cell, the two halves of a gated layer, the positions of a channel.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(1)])
        >>> x = jnp.ones((4, 3))
        >>> params = model.init(jax.random.key(0), x)
        >>> units = trace_units(model.apply, params, x)
        >>> [(group.name, group.width) for group in units.groups]
        [('params/layers_0', 8)]

    Args:
        apply: the model, `apply(params, *inputs)`, or `apply(params, variables, *inputs)` where variables are given.
            It may return any pytree. Flax linen, Flax nnx (`nnx.split` and `nnx.merge`), Equinox and plain functions
            all have this form.
        params: the parameters, or their shapes.
        inputs: example inputs, or their shapes; every batch size will do.
        variables: what is not learned, above all running statistics (batch normalisation); they are found when the
            model reads them (evaluation) or returns new ones (training).
        options: keyword arguments of `apply`, as `train=True` or `rngs={"dropout": key}`. What is no array (`True`,
            a number, a string) is taken as it is; `UnitGraph.apply` takes them too.
        check: whether to verify the graph with numbers: with zero outgoing weights a unit's incoming weights change
            nothing, with zero incoming weights its value is constant, and the first test fails if the first readers are
            spared. Abstract parameters or inputs skip it.
        means: whether `apply` and `grad` give `FeatureMeans` in place of features: means of every unit, taken inside of
            scans and remat, so that the values of a stack of layers are never held together. For methods that look at
            E h and E |h| alone: ReDo, and continual backprop unless its utility looks at E |h - f|.

    Returns:
        The graph. Its `apply` takes the arguments of `apply` and gives `(output, features)`, the output and its
        gradients the same bit for bit. Units that cannot be replaced one by one (residual streams, tied weights) are in
        `left_out`, with the reason as `note`.

    Raises:
        NotImplementedError: an operation on hidden units that has no rule; names it and the line of the model.
        ValueError: `params` holds what is not learned.

    Differs from the published code, which takes layers in the order in which they are registered: there units of a
    block with a shortcut are treated as if the next layer were their only reader.
    """
    _require_learned(params)
    forward = Forward(apply, params, variables, means)
    args = (params, *inputs) if variables is None else (params, variables, *inputs)
    _, _, found = forward.look(args, options)
    graph = UnitGraph(found.groups, forward, found.left_out, len(args) - 1)
    if check:
        values = dataclasses.replace(graph, forward=functools.partial(forward, means=False))
        for name, why in check_graph(values, args, len(inputs), options, found.alone, found.running).items():
            warn_user(f"trace_units: group '{name}' is left out: {why}; please report the model")
            graph = forward.drop(graph, name, why)
    return graph


class Forward:
    """A traced model: `forward(params, *inputs, **options) -> (output, features)`.

    It is traced anew for every structure and shape of the arguments. It can be pickled if the model's `apply` can.
    """

    def __init__(self, apply: Callable[..., Any], params: Any, variables: Any, means: bool) -> None:
        self.apply, self.means = apply, means
        self.leaves = [*_leaves("params", params), *_leaves("variables", variables)]
        shapes = map(np.shape, jax.tree.leaves(variables))
        self.variables = dict(zip(leaf_names(variables), shapes, strict=True))
        self.seen: dict[Any, Found] = {}
        self.axes: dict[str, tuple[int, ...]] = {}
        self.dropped: frozenset[str] = frozenset()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"seen": {}}

    def __call__(
        self, *args: Any, means: bool | None = None, perturbations: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        traced, arrays, found = self.look(args, options)
        names = [group.name for group in found.groups]
        axes = [self.axes.get(group.name, group.feature_axes) for group in found.groups]
        added = None if perturbations is None else [perturbations.get(name) for name in names]
        means = self.means if means is None else means
        outputs, features = evaluate(traced.program, arrays, found.taps, axes, means, added)
        outputs = [o if isinstance(o, jax.Array) else jnp.asarray(o) for o in outputs]
        return jax.tree.unflatten(traced.structure, outputs), {
            name: feature for name, feature in zip(names, features, strict=True) if name not in self.dropped
        }

    def drop(self, graph: UnitGraph, name: str, why: str) -> UnitGraph:
        """The graph without a group, which is left out."""
        self.dropped |= {name}
        gone = UnitGroup(name, graph.group(name).width, 1, (), (), function_preserving=False, note=why)
        groups = tuple(group for group in graph.groups if group.name != name)
        return dataclasses.replace(graph, groups=groups, left_out=(*graph.left_out, gone))

    def look(self, args: Sequence[Any], options: Mapping[str, Any]) -> tuple[jaxprs.Traced, list[Any], Found]:
        """The model's program for these arguments, the arrays among them, and the units that were found in it."""
        leaves, treedef = jax.tree.flatten((args, options))
        first_option = len(leaves) - len(jax.tree.leaves(options))
        fixed = {
            i: leaf
            for i, leaf in enumerate(leaves)
            if i >= len(self.leaves) and _is_fixed(leaf, isinstance(leaf, int | float) and i >= first_option)
        }
        arrays = [leaf for i, leaf in enumerate(leaves) if i not in fixed]

        def model(*arrays: Any) -> Any:
            given = iter(arrays)
            whole = [fixed[i] if i in fixed else next(given) for i in range(len(leaves))]
            args, options = jax.tree.unflatten(treedef, whole)
            return self.apply(*args, **options)

        traced = jaxprs.trace(model, *arrays)
        key = jaxprs.fingerprint(traced.program), repr(fixed)
        if key not in self.seen:
            self.seen[key] = self._found(traced)
            self.axes = self.axes or {group.name: group.feature_axes for group in self.seen[key].groups}
        return traced, arrays, self.seen[key]

    def _found(self, traced: jaxprs.Traced) -> Found:
        shapes = [jaxprs.shape(v) for v in traced.program.jaxpr.invars]
        known = [*self.leaves, *[None] * (len(shapes) - len(self.leaves))]
        running = _new_variables(traced, self.variables)
        story = follow(traced.program, known, running)
        functions = ElementwiseFunctions(traced.program, [leaf and leaf[1] for leaf in known])
        return find(story, {leaf: shape for leaf, shape in zip(known, shapes, strict=True) if leaf}, functions)


def _is_fixed(leaf: Any, is_option: bool) -> bool:
    """Whether an argument is no array, but decides what is traced."""
    is_number = isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)
    return is_option or not (is_number or hasattr(leaf, "dtype"))


def _require_learned(params: Any) -> None:
    """ValueError where all of Flax's collections came in place of the parameters among them."""
    if isinstance(params, Mapping) and {"params", "batch_stats"} <= set(params):
        raise ValueError(
            "trace_units: params holds the collection 'batch_stats', which is not learned; give it apart: "
            "trace_units(apply, v['params'], x, variables=v['batch_stats']) with apply(params, batch_stats, x)"
        )


def _leaves(kind: str, tree: Any) -> list[Leaf | None]:
    numbers = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in jax.tree.leaves(tree)]
    return [(kind, name) if number else CONSTANT for name, number in zip(leaf_names(tree), numbers, strict=True)]


def _new_variables(traced: jaxprs.Traced, known: Mapping[str, tuple[int, ...]]) -> frozenset[int]:
    """Numbers of the outputs that are new values of variables: they have the name and the shape of one."""
    parts = [name.split("/") for name in traced.names]
    tails = [{"/".join(name[i:]) for i in range(len(name))} for name in parts]
    shapes = [aval.shape for aval in traced.program.out_avals]
    return frozenset(
        number
        for number, (tail, shape) in enumerate(zip(tails, shapes, strict=True))
        if any(known[name] == shape for name in tail & known.keys())
    )


def follow(program: jaxprs.ClosedJaxpr, inputs: Sequence[Leaf | None], running: Collection[int]) -> Story:
    """The story of a program.

    Args:
        program: the program.
        inputs: per input, the leaf that it is; `CONSTANT` for what never changes, `None` for what the model is shown.
        running: numbers of the outputs that are new values of variables.
    """
    values = []
    for leaf, variable in zip(inputs, program.jaxpr.invars, strict=True):
        shape, is_key = jaxprs.shape(variable), jnp.issubdtype(variable.aval.dtype, jax.dtypes.prng_key)
        whole = Entries(tuple(labels.along(axis, len(shape), n) for axis, n in enumerate(shape)))
        entries = {} if leaf in (None, CONSTANT) else {leaf: whole}
        values.append(Value(shape, depends=leaf is None and not is_key, entries=entries, noise=is_key))
    known = {leaf: jaxprs.shape(v) for leaf, v in zip(inputs, program.jaxpr.invars, strict=True) if leaf is not None}
    walk = Walk(known, RULES, LOOPS, equivalent)
    for number, value in enumerate(walk.run(program, values, Frame())):
        walk.story.exposed |= value.entries.keys()
        if value.running or (number in running and value.statistic):
            walk.story.running.add(number)
        else:
            walk.leak(value, "is part of the output")
    return walk.story
