"""The unit graph: hidden units, the parameters that enter them and the parameters that leave them."""

import dataclasses
import difflib
import fnmatch
import itertools
import math
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from plastic_jax.paths import get_leaf, set_leaves
from plastic_jax.units import passes
from plastic_jax.units.activation import RELU, Activation, named
from plastic_jax.units.labels import blocks

Role = Literal["kernel", "bias", "scale", "shift", "mean", "var"]


@dataclasses.dataclass(frozen=True)
class Slice:
    """The part of one parameter that belongs to each unit of a group.

    With `view = leaf[window].reshape(view_shape)`, unit `i` owns `view` at index `i` of axis `unit_dims[0]`, for each
    of its copies at another index of `copy_dims`. All other axes are the unit's own fan. Of several `unit_dims` or
    `copy_dims` the last runs fastest: with unit axes of sizes 3 and 4, unit 5 is at index (1, 1).

    Attributes:
        path: the parameter's name, as `plastic_jax.paths.path_name` writes it: `"Dense_0/kernel"`.
        view_shape: the shape in which the units lie on axes of their own.
        unit_dims: the axes of the view that number the units; mostly one.
        role: what the parameter is; decides what a fresh unit gets (kernel: a draw, scale and var: 1, else 0).
        copy_dims: the axes of the view that number the copies of a unit: the positions of a flattened channel in the
            kernel that reads it, the gates of a recurrent cell in the kernel that makes it.
        window: per axis of the leaf `(start, stop)`, the part of the leaf that is viewed; `None`: all of it.
        bias: for an outgoing kernel, the name of the bias added to what it feeds; `None` where there is none.
    """

    path: str
    view_shape: tuple[int, ...]
    unit_dims: tuple[int, ...]
    role: Role
    copy_dims: tuple[int, ...] = ()
    window: tuple[tuple[int, int], ...] | None = None
    bias: str | None = None

    @property
    def name(self) -> str:
        """The path, with the window where there is one: `"Dense_0/kernel[0:8,4:8]"`."""
        if self.window is None:
            return self.path
        return f"{self.path}[{','.join(f'{start}:{stop}' for start, stop in self.window)}]"

    @property
    def width(self) -> int:
        """Number of units."""
        return math.prod(self.view_shape[d] for d in self.unit_dims)

    @property
    def copies(self) -> int:
        """Number of copies of each unit."""
        return math.prod(self.view_shape[d] for d in self.copy_dims)

    @property
    def fan(self) -> int:
        """Number of entries that belong to one copy of one unit."""
        return math.prod(self.view_shape) // (self.width * self.copies)

    @property
    def fan_dims(self) -> tuple[int, ...]:
        """The axes of the view that are a unit's own."""
        return tuple(d for d in range(len(self.view_shape)) if d not in (*self.unit_dims, *self.copy_dims))

    def view(self, leaf: jax.Array) -> jax.Array:
        """The part of the leaf, in `view_shape`."""
        if self.window is not None:
            leaf = leaf[tuple(slice(start, stop) for start, stop in self.window)]
        return leaf.reshape(self.view_shape)

    def spread(self, values: jax.Array, shape: tuple[int, ...], dims: Sequence[int] | None = None) -> jax.Array:
        """Values of units at the entries of the leaf that belong to them: an array that broadcasts to the leaf.

        Args:
            values: `[width]`, `[width, copies]`, or, with `dims`, one value per index of these axes of the view.
            shape: the leaf's shape.
            dims: the axes of the view that `values` runs over, the last fastest.

        Returns:
            An array that has an axis of size 1 wherever the values are the same along a leaf's axis; 0 (false)
            outside the window. So a choice between two leaves on it is elementwise, and no leaf is reshaped.
        """
        if dims is None:
            dims = self.unit_dims if values.ndim == 1 else (*self.unit_dims, *self.copy_dims)
        order = sorted(range(len(dims)), key=lambda i: dims[i])
        values = values.reshape([self.view_shape[d] for d in dims]).transpose(order)
        values = values.reshape([n if d in dims else 1 for d, n in enumerate(self.view_shape)])
        part = shape if self.window is None else tuple(stop - start for start, stop in self.window)
        full, folded = list(values.shape), list(part)
        for ours, theirs in blocks(self.view_shape, part):
            if all(n == 1 for n in values.shape[ours]):
                folded[theirs] = [1] * len(part[theirs])
            else:
                full[ours] = self.view_shape[ours]
        values = jnp.broadcast_to(values, full).reshape(folded)
        return values if self.window is None else _padded(values, self.window, shape)


def _padded(values: jax.Array, window: tuple[tuple[int, int], ...], shape: tuple[int, ...]) -> jax.Array:
    """`values`, which broadcasts to the window, as an array that broadcasts to `shape`, 0 outside the window."""
    cut = [(start, stop) != (0, n) for (start, stop), n in zip(window, shape, strict=True)]
    sizes = [b - a if c else n for (a, b), c, n in zip(window, cut, values.shape, strict=True)]
    edges = [(a, n - b) if c else (0, 0) for (a, b), c, n in zip(window, cut, shape, strict=True)]
    return jnp.pad(jnp.broadcast_to(values, sizes), edges)


@dataclasses.dataclass(frozen=True)
class UnitGroup:
    """Units of equal kind: one hidden layer.

    Attributes:
        name: the module that produces the units, `"Dense_0"`.
        width: number of units.
        copies: positions at which the next layer reads each unit with weights of its own (1 for a dense layer).
        incoming: what makes the unit's value.
        outgoing: what reads the unit's value.
        variables: the unit's running statistics, slices of the pytree of variables (batch normalisation).
        feature_axes: the axes of the feature array that index the unit and its copies; all others are averaged.
        activation: the function from pre-activation to feature; its gain is that of a redraw.
        function_preserving: whether a unit has no influence on the output while its outgoing weights are 0.
        note: where it has, why: `"identity skip into Conv_2"`.
    """

    name: str
    width: int
    copies: int
    incoming: tuple[Slice, ...]
    outgoing: tuple[Slice, ...]
    variables: tuple[Slice, ...] = ()
    feature_axes: tuple[int, ...] = (-1,)
    activation: Activation = RELU
    function_preserving: bool = True
    note: str = ""

    @property
    def incoming_kernels(self) -> tuple[Slice, ...]:
        """What makes the unit's value, without biases, scales and shifts."""
        return tuple(s for s in self.incoming if s.role == "kernel")

    @property
    def outgoing_kernels(self) -> tuple[Slice, ...]:
        """What reads the unit's value."""
        return tuple(s for s in self.outgoing if s.role == "kernel")


@dataclasses.dataclass(frozen=True)
class UnitGraph:
    """All replaceable hidden units of a model, in topological order, and a way to see their values.

    Attributes:
        groups: one entry per hidden layer.
        forward: `forward(params, *inputs, **options) -> (output, features)`, features by group name.
        left_out: layers whose units cannot be replaced one by one; `note` says why.
        arguments: how many positional arguments `forward` takes after `params`; `None` where any number.
        differentiate: what `grad` and `value_and_grad` differentiate with, as `jax.value_and_grad` with `has_aux`, in
            the first argument or with `argnums=(0, 1)` in the first two.
        zeros: what `perturbations` calls; `None`: it asks `forward` for shapes.
    """

    groups: tuple[UnitGroup, ...]
    forward: Callable[..., tuple[Any, dict[str, jax.Array]]]
    left_out: tuple[UnitGroup, ...] = ()
    arguments: int | None = None
    differentiate: Callable[..., Any] = jax.value_and_grad
    zeros: Callable[..., dict[str, jax.Array]] | None = None

    def apply(self, params: Any, *inputs: Any, **options: Any) -> tuple[Any, dict[str, jax.Array]]:
        """The model's output and the value of every group's units, from one evaluation.

        `options` are keyword arguments of the model. One more, `perturbations`, is added to the units' values where
        they are made; its gradient at 0 is that in the features, see `perturbations`.
        """
        return self.forward(params, *inputs, **options)

    def perturbations(self, params: Any, *inputs: Any, **options: Any) -> dict[str, jax.Array]:
        """Zeros of the features' shapes: arguments of `apply` whose gradients are those in the features.

            zeros = units.perturbations(params, x)
            loss = lambda params, p: jnp.mean((units.apply(params, x, perturbations=p)[0] - y) ** 2)
            grads, feature_gradients = jax.grad(loss, argnums=(0, 1))(params, zeros)

        The gradient is that in every value of a unit: of every example, at every position, in every step of a scan, and
        of every use of a network that is used several times. Where they are zeros and no gradient is taken, XLA removes
        them. With `means` these are arrays all the same.
        """
        if self.zeros is not None:
            return self.zeros(params, *inputs, **options)

        def shapes(**more: Any) -> dict[str, Any]:
            return jax.eval_shape(lambda *args: self.forward(*args, **more, **options)[1], params, *inputs)

        features = shapes()
        if any(isinstance(feature, passes.FeatureMeans) for feature in features.values()):
            features = shapes(means=False)
        return passes.zeros_like(features, inputs)

    def value_and_grad(
        self, loss: Callable[..., Any], has_aux: bool = False, feature_gradients: bool = False
    ) -> Callable[..., Any]:
        """The loss, its gradient in the parameters, and the features, from one forward and one backward pass.

        Features come where `jax.value_and_grad` has auxiliary output; arguments beyond the model's go to the loss:

            (value, features), grads = units.value_and_grad(loss)(params, x, y)    # loss(output, y)

        Args:
            loss: `loss(output, *more)`, a scalar; with `has_aux` a pair `(scalar, aux)`, where `aux` may be a part of
                the output: running statistics, a new recurrent state.
            has_aux: whether the loss gives such a pair; `(features, aux)` then stands in place of `features`.
            feature_gradients: whether `(grads, feature_gradients)` stands in place of `grads`: the gradient in every
                value of every unit too, by group name, of the features' shapes (see `perturbations`), from the same
                backward pass.

        Returns:
            `f(params, *inputs, *more, **options)`, with the inputs as in `apply`: the variables first where the model
            was traced with `variables`; `options` are keyword arguments of the model.

        Raises:
            TypeError: when called with fewer arguments than the model takes.
        """
        zeros = self.perturbations if feature_gradients else None
        return passes.value_and_grad(self.apply, self.arguments, loss, has_aux, self.differentiate, zeros)

    def grad(
        self, loss: Callable[..., Any], has_aux: bool = False, feature_gradients: bool = False
    ) -> Callable[..., Any]:
        """The gradient and the features: `grads, features = units.grad(loss)(params, x, y)`; see `value_and_grad`.

        With `has_aux`: `grads, (features, aux)`; with `feature_gradients` a pair in place of `grads`.
        """
        both = self.value_and_grad(loss, has_aux, feature_gradients)

        def gradient(params: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
            (_, more), grads = both(params, *args, **options)
            return grads, more

        return gradient

    def combine(self, *features: Mapping[str, Any]) -> dict[str, Any]:
        """The features of several passes of a step as those of one pass, in which every value counts the same.

        Of a network that sees two batches in a step (the states of the actor and of the critic, imagined and real
        states), the mean of a unit is then that over both. Passes that must not count, such as a target network's, are
        left out; units of separate networks have graphs of their own.
        """

        def one(group: UnitGroup) -> Any:
            if isinstance(features[0][group.name], passes.FeatureMeans):
                return passes.averaged([f[group.name] for f in features])
            return passes.joined([(f[group.name], group.feature_axes) for f in features], group.feature_axes)

        return {group.name: one(group) for group in self.groups}

    def reset_variables(self, replaced: Mapping[str, jax.Array], variables: Any) -> Any:
        """The variables with fresh running statistics for the units that were replaced: mean 0, variance 1.

        Call it after the optimizer's update, with the statistics that the step's forward pass has left. In the state
        of `continual_backprop` a unit was replaced at this step if its age is 0:
        `variables = units.reset_variables({n: age == 0 for n, age in state.age.items()}, variables)`.

        Args:
            replaced: bool `[width]` by group name; groups that are not named keep their statistics.
            variables: the pytree that the groups' `variables` name leaves of.

        Raises:
            ValueError: no group has that name.
        """
        edited: dict[str, jax.Array] = {}
        for name, mask in replaced.items():
            for s in self.group(name).variables:
                leaf = edited[s.path] if s.path in edited else get_leaf(variables, s.path)
                fresh = jnp.asarray(1 if s.role == "var" else 0, leaf.dtype)
                edited[s.path] = jnp.where(s.spread(mask, leaf.shape), fresh, leaf)
        return set_leaves(variables, edited)

    def __getstate__(self) -> dict[str, Any]:
        try:
            pickle.dumps(self.forward)
        except (pickle.PicklingError, AttributeError, TypeError):  # a model that is no function of a module
            return self.__dict__ | {"forward": _without_model}
        return self.__dict__

    def __deepcopy__(self, memo: Any) -> "UnitGraph":
        return self

    def group(self, name: str) -> UnitGroup:
        """The group of that name.

        Raises:
            ValueError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        names = [group.name for group in self.groups]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise ValueError(f"UnitGraph: no group '{name}'{hint}; groups: {', '.join(names)}")

    def replace(self, name: str, **fields: Any) -> "UnitGraph":
        """The graph with fields of group `name` set by hand; an activation may be given by its name.

        Raises:
            ValueError: no group has that name, a group has no such field, or no activation has that name.
        """
        self.group(name)
        known = {field.name for field in dataclasses.fields(UnitGroup)}
        for field in fields:
            if field not in known:
                raise ValueError(f"UnitGraph.replace: no field '{field}'; fields: {', '.join(sorted(known))}")
        if isinstance(given := fields.get("activation"), str):
            fields["activation"] = named(given)
        groups = tuple(dataclasses.replace(g, **fields) if g.name == name else g for g in self.groups)
        return dataclasses.replace(self, groups=groups)

    def isolated(self) -> "UnitGraph":
        """The graph with the groups whose new units are silent; the others are left out.

        Their features stay among those that `apply` gives.
        """
        kept = tuple(g for g in self.groups if g.function_preserving)
        loud = tuple(g for g in self.groups if not g.function_preserving)
        return dataclasses.replace(self, groups=kept, left_out=(*self.left_out, *loud))

    def without(self, pattern: str) -> "UnitGraph":
        """The graph as if parameters and variables whose names match `pattern` (`"*shortcut*"`) made and read no units.

        The published code treats residual networks so: of a block's unit only the next convolution counts as reader.
        Groups that lose a slice are no longer `function_preserving`.

        Raises:
            ValueError: no slice has such a name, or a group would be left without incoming or outgoing slices.
        """
        keep = lambda slices: tuple(s for s in slices if not fnmatch.fnmatchcase(s.path, pattern))  # noqa: E731
        groups = tuple(
            dataclasses.replace(
                g,
                incoming=keep(g.incoming),
                outgoing=keep(g.outgoing),
                variables=keep(g.variables),
                function_preserving=False,
                note="; ".join(filter(None, (g.note, f"'{pattern}' left out by hand"))),
            )
            if any(fnmatch.fnmatchcase(s.path, pattern) for s in (*g.incoming, *g.outgoing))
            else g
            for g in self.groups
        )
        if groups == self.groups:
            raise ValueError(f"UnitGraph.without: no parameter around the units matches '{pattern}'")
        bare = [g.name for g in groups if not g.incoming or not g.outgoing]
        if bare:
            raise ValueError(f"UnitGraph.without: '{pattern}' would leave nothing around the units of {bare[0]}")
        return dataclasses.replace(self, groups=groups)

    def summary(self) -> list[dict[str, Any]]:
        """The graph as data: one dictionary per layer, those left out at the end with `replaceable` false."""
        return [
            {
                "name": g.name,
                "width": g.width,
                "copies": g.copies,
                "activation": g.activation.name,
                "incoming": [s.name for s in g.incoming],
                "outgoing": [s.name for s in g.outgoing],
                "variables": [s.name for s in g.variables],
                "replaceable": g in self.groups,
                "function_preserving": g.function_preserving,
                "note": g.note,
            }
            for g in (*self.groups, *self.left_out)
        ]

    def __str__(self) -> str:
        """A table by layer; `replaceable` says whether a new unit is silent at first, and if not, why."""
        rows = [["layer", "units", "incoming", "outgoing", "replaceable"]]
        for row in self.summary():
            name, units = row["name"], str(row["width"])
            if row["replaceable"]:
                why = (
                    "yes" if row["function_preserving"] else f"new units are not silent: {row['note'] or 'set by hand'}"
                )
                rows.append([name, units, _folded(row["incoming"]), _folded(row["outgoing"]), why])
            else:
                rows.append([name, units, f"no: {row['note']}"])
        return "\n".join(_table(rows, _COLUMNS))


_COLUMNS = 120


def _table(rows: Sequence[Sequence[str]], columns: int) -> list[str]:
    """Lines of at most so many columns; the last cell of a row that has fewer cells runs over those that it lacks."""
    n, gap = len(rows[0]), 2
    widths = [max(len(row[i]) for row in rows if len(row) == n) for i in range(n)]
    for i in range(2):
        widths[i] = max(len(row[i]) for row in rows)
    while sum(widths) + gap * (n - 1) > columns and max(widths) > len(max(rows[0], key=len)):
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in rows:
        own = [*widths[: len(row) - 1], columns - sum(widths[: len(row) - 1]) - gap * (len(row) - 1)]
        cells = [_wrapped(cell, width) for cell, width in zip(row, own, strict=True)]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            line = "".join(part.ljust(width + gap) for part, width in zip(parts, own, strict=True))
            lines.append(line.rstrip())
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width`, broken after a space, a slash or a comma where there is one."""
    lines = [""]
    for part in re.findall(r"[^ /,]*[ /,]?", text):
        while part:
            if len(lines[-1]) + len(part.rstrip()) > width and lines[-1]:
                lines.append("")
            lines[-1] += part[:width]
            part = part[width:]
    return [line.rstrip() for line in lines]


def _without_model(params: Any, *inputs: Any, **options: Any) -> Any:
    raise ValueError(
        "UnitGraph.apply: the graph was pickled without its model, as only functions of a module can be; trace it again"
    )


def _folded(names: Sequence[str]) -> str:
    """Names with those of one module together: `Conv_0/{kernel,bias}`."""
    modules: dict[str, list[str]] = {}
    for name in names:
        module, _, leaf = name.rpartition("/")
        modules.setdefault(module, []).append(leaf)
    folded = [(m, leaves[0] if len(leaves) == 1 else f"{{{','.join(leaves)}}}") for m, leaves in modules.items()]
    return " ".join(f"{module}/{leaves}" if module else leaves for module, leaves in folded)
