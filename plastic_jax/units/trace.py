"""`trace_units`: the unit graph of any model, found by following its jaxpr."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.paths import leaf_names, named_leaves
from plastic_jax.units import jaxprs, labels
from plastic_jax.units.check import check_graph
from plastic_jax.units.elementwise_functions import ElementwiseFunctions
from plastic_jax.units.features import evaluate
from plastic_jax.units.graph import UnitGraph
from plastic_jax.units.groups import Found, find
from plastic_jax.units.rules import LOOPS, RULES
from plastic_jax.units.story import Entries, Frame, Leaf, Story, Value
from plastic_jax.units.walk import Walk


def trace_units(
    apply: Callable[..., Any], params: Any, *inputs: Any, variables: Any = None, check: bool = True, means: bool = False
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
        ValueError: the check failed (a mistake of this library; `check=False` and `UnitGraph.replace` go around it).

    Differs from the published code, which takes layers in the order in which they are registered: there units of a
    block with a shortcut are treated as if the next layer were their only reader.
    """
    _require_learned(params)
    args = (params, *inputs) if variables is None else (params, variables, *inputs)
    leaves: list[Leaf | None] = _leaves("params", params)
    if variables is not None:
        leaves += _leaves("variables", variables)
    seen: dict[Any, Found] = {}

    def look(args: tuple[Any, ...]) -> tuple[jaxprs.ClosedJaxpr, Any, Found]:
        closed, output = jaxprs.trace(apply, *args)
        program = jaxprs.fingerprint(closed)
        if program not in seen:
            shapes = [jaxprs.shape(v) for v in closed.jaxpr.invars]
            known = [*leaves, *[None] * (len(shapes) - len(leaves))]
            story = follow(closed, known, _new_variables(output, variables))
            functions = ElementwiseFunctions(closed, [leaf and leaf[1] for leaf in known])
            sizes = {leaf: shape for leaf, shape in zip(known, shapes, strict=True) if leaf}
            seen[program] = find(story, sizes, functions)
        return closed, output, seen[program]

    def forward(*args: Any, means: bool = means) -> tuple[Any, dict[str, Any]]:
        closed, output, found = look(args)
        names = [group.name for group in found.groups]
        axes = [form.get(group.name, group.feature_axes) for group in found.groups]
        outputs, features = evaluate(closed, jax.tree.leaves(args), found.taps, axes, means)
        return jax.tree.unflatten(jax.tree.structure(output), outputs), dict(zip(names, features, strict=True))

    _, _, found = look(args)
    form = {group.name: group.feature_axes for group in found.groups}
    graph = UnitGraph(found.groups, forward, found.left_out, len(args) - 1)
    if check:
        values = functools.partial(forward, means=False)
        check_graph(dataclasses.replace(graph, forward=values), args, len(inputs), found.alone, found.running)
    return graph


CONSTANT: Leaf = ("constant", "")
"""Leaves that are not real or complex numbers: masks, counters, keys."""


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


def _new_variables(output: Any, variables: Any) -> frozenset[int]:
    """Numbers of the outputs that are new values of variables: they have the name and the shape of one."""
    if variables is None:
        return frozenset()
    known = dict(zip(leaf_names(variables), map(np.shape, jax.tree.leaves(variables)), strict=True))
    outputs = named_leaves(output)
    names = [name.split("/") for name, _ in outputs]
    tails = [{"/".join(name[i:]) for i in range(len(name))} for name in names]
    return frozenset(
        number
        for number, (tail, (_, leaf)) in enumerate(zip(tails, outputs, strict=True))
        if any(known[name] == leaf.shape for name in tail & known.keys())
    )


def follow(closed: jaxprs.ClosedJaxpr, inputs: Sequence[Leaf | None], running: Collection[int]) -> Story:
    """The story of a program.

    Args:
        closed: the program.
        inputs: per input, the leaf that it is; `CONSTANT` for what never changes, `None` for what the model is shown.
        running: numbers of the outputs that are new values of variables.

    Raises:
        NotImplementedError: an operation on units or parameters that has no rule; names it and its line.
    """
    shapes = [jaxprs.shape(v) for v in closed.jaxpr.invars]
    values = []
    for leaf, shape in zip(inputs, shapes, strict=True):
        whole = Entries(tuple(labels.along(axis, len(shape), n) for axis, n in enumerate(shape)))
        values.append(Value(shape, depends=leaf is None, entries={} if leaf in (None, CONSTANT) else {leaf: whole}))
    known = {leaf: shape for leaf, shape in zip(inputs, shapes, strict=True) if leaf is not None}
    walk = Walk(known, RULES, LOOPS)
    for number, value in enumerate(walk.run(closed, values, Frame())):
        if value.running or (number in running and value.statistic):
            walk.story.running.add(number)
        else:
            walk.leak(value, "is part of the output")
    return walk.story
