"""The unit graph: hidden units, the parameters that enter them and the parameters that leave them."""

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any, Literal

import jax

Role = Literal["kernel", "bias", "scale", "shift", "mean", "var"]


@dataclasses.dataclass(frozen=True)
class Slice:
    """The part of one parameter that belongs to each unit of a group.

    With `view = leaf.reshape(view_shape)`, unit `i` owns `view` at index `i` of axis `unit_dims[0]`; further
    `unit_dims` index the copies of the unit (the positions of a flattened channel).

    Attributes:
        path: the parameter's name, as `plastic_jax.paths.path_name` writes it: `"Dense_0/kernel"`.
        view_shape: the shape in which the units lie on axes of their own.
        unit_dims: the axes of the view that index the unit and its copies.
        role: what the parameter is; decides what a fresh unit gets (kernel: a draw, scale and var: 1, else 0).
        bias: for an outgoing kernel, the name of the bias added to what it feeds; `None` where there is none.
    """

    path: str
    view_shape: tuple[int, ...]
    unit_dims: tuple[int, ...]
    role: Role
    bias: str | None = None

    @property
    def fan(self) -> int:
        """Number of entries of the view that belong to one unit (one copy of it)."""
        return math.prod(self.view_shape) // math.prod(self.view_shape[d] for d in self.unit_dims)


@dataclasses.dataclass(frozen=True)
class UnitGroup:
    """Units of equal kind: one hidden layer.

    Attributes:
        name: the module that produces the units, `"Dense_0"`.
        width: number of units.
        copies: positions at which the next layer reads each unit with weights of its own (1 for a dense layer).
        incoming: what makes the unit's value.
        outgoing: what reads the unit's value.
        variables: the unit's running statistics (batch normalisation).
        feature_axes: the axes of the feature array that index the unit and its copies; all others are averaged.
        activation: name of the nonlinearity, which sets the gain of a redraw.
        function_preserving: whether a unit whose outgoing weights are zero has no influence on the output.
    """

    name: str
    width: int
    copies: int
    incoming: tuple[Slice, ...]
    outgoing: tuple[Slice, ...]
    variables: tuple[Slice, ...] = ()
    feature_axes: tuple[int, ...] = (-1,)
    activation: str = "relu"
    function_preserving: bool = True


@dataclasses.dataclass(frozen=True)
class UnitGraph:
    """All replaceable hidden units of a model, in topological order, and a way to see their values.

    Attributes:
        groups: one entry per hidden layer.
        forward: `forward(params, *inputs) -> (output, features)`, features by group name.
    """

    groups: tuple[UnitGroup, ...]
    forward: Callable[..., tuple[Any, dict[str, jax.Array]]]

    def apply(self, params: Any, *inputs: Any) -> tuple[Any, dict[str, jax.Array]]:
        """The model's output and the value of every group's units, from one evaluation."""
        return self.forward(params, *inputs)

    def replace(self, name: str, **fields: Any) -> "UnitGraph":
        """The graph with fields of group `name` set by hand.

        Raises:
            ValueError: no group has that name, or a group has no such field.
        """
        names = [group.name for group in self.groups]
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise ValueError(f"UnitGraph.replace: no group '{name}'{hint}; groups: {', '.join(names)}")
        known = {field.name for field in dataclasses.fields(UnitGroup)}
        for field in fields:
            if field not in known:
                raise ValueError(f"UnitGraph.replace: no field '{field}'; fields: {', '.join(sorted(known))}")
        groups = tuple(dataclasses.replace(g, **fields) if g.name == name else g for g in self.groups)
        return dataclasses.replace(self, groups=groups)

    def __str__(self) -> str:
        head = ("group", "width", "copies", "incoming", "outgoing", "function preserving")
        rows = [
            (
                g.name,
                str(g.width),
                str(g.copies),
                ", ".join(s.path for s in g.incoming),
                ", ".join(s.path for s in g.outgoing),
                "yes" if g.function_preserving else "no",
            )
            for g in self.groups
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
        )
