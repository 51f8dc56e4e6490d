"""Parameters read as matrices: which axes of a kernel are inputs, outputs, taps of a window, or layers of a stack.

A letter says what an axis of a leaf is: `s` numbers layers (or members) that are stacked, `t` is an axis of a
convolution's window, `i` an input, `o` an output. A dense kernel of Flax is `"io"`, a convolution `"ttio"`, attention's
`"ioo"` (inputs, heads, dimensions) and `"iio"`, a dense layer under `nn.scan` `"sio"`, a layer of Equinox `"oi"`.

A leaf is read by its name (`kernel` has Flax's order of axes, `weight` that of Equinox and PyTorch), the number of its
axes, the shape of the bias beside it, and the unit graph where there is one. Where that leaves more than one reading,
the leaf is left alone and a warning says so; `axes={"*/qkv": "sio"}` decides it by hand.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from plastic_jax.paths import named_leaves
from plastic_jax.units.graph import Slice, UnitGraph
from plastic_jax.units.labels import blocks
from plastic_jax.warning import warn_user

Layers = Literal["all", "hidden"]
"""Which kernels a method acts on: every one, or those that make hidden units."""

_FLAX = {2: ("io",), 3: ("tio", "sio", "ioo", "iio"), 4: ("ttio", "stio", "sioo", "siio"), 5: ("tttio", "sttio")}
_TORCH = {2: ("oi",), 3: ("oit", "soi"), 4: ("oitt", "soit"), 5: ("oittt", "soitt")}
_NO_KERNEL = ("bias", "scale", "embedding")
_WIDEST_WINDOW = 11


class UnreadWarning(UserWarning):
    """Parameters that may be kernels are left alone, as it is not known which of their axes are inputs."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A parameter that is a matrix, or several.

    Attributes:
        name: the parameter's name, as `plastic_jax.paths.path_name` writes it.
        shape: its shape.
        axes: a letter for every axis.
        bias: the name of the bias that is added to its outputs; `None` where there is none.
    """

    name: str
    shape: tuple[int, ...]
    axes: str
    bias: str | None = None

    def size(self, letters: str) -> int:
        """Number of entries along the axes that have one of these letters."""
        return math.prod(n for n, letter in zip(self.shape, self.axes, strict=True) if letter in letters)

    @property
    def fan_in(self) -> int:
        """Number of weights that make one output: inputs times taps."""
        return self.size("ti")

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.size("o")

    @property
    def stack(self) -> int:
        """Number of layers in the leaf."""
        return self.size("s")

    @property
    def taps(self) -> int:
        """Number of positions of a convolution's window."""
        return self.size("t")

    def matrices(self, leaf: jax.Array, by_tap: bool = False) -> jax.Array:
        """The leaf as `[layers, fan_in, outputs]`; with `by_tap` as `[layers * taps, inputs, outputs]`."""
        number = self.stack * self.taps if by_tap else self.stack
        return leaf.transpose(self._order).reshape(number, -1, self.outputs)

    def leaf(self, matrices: jax.Array) -> jax.Array:
        """The inverse of `matrices`."""
        order = self._order
        back = sorted(range(len(order)), key=lambda axis: order[axis])
        return matrices.reshape([self.shape[axis] for axis in order]).transpose(back)

    @property
    def _order(self) -> list[int]:
        return sorted(range(len(self.axes)), key=lambda axis: "stio".index(self.axes[axis]))


def read_kernels(
    method: str,
    params: Any,
    units: UnitGraph | None = None,
    *,
    layers: Layers = "all",
    exclude: str = "nothing",
    axes: Mapping[str, str] | None = None,
    warn: bool = False,
) -> tuple[Kernel, ...]:
    """The kernels among the parameters, in the order of the leaves.

    Args:
        method: whose name stands in errors.
        params: the parameters, or their shapes.
        units: the unit graph; it tells inputs from outputs, and which kernels make hidden units.
        layers: with "hidden", kernels that make no hidden unit are left out.
        exclude: pattern of names that are left out.
        axes: letters by pattern of names, for leaves that cannot be read otherwise, or that would be read differently.
        warn: whether to warn of leaves that cannot be read.

    Raises:
        ValueError: `layers="hidden"` without `units`; a pattern that no name matches; letters that do not fit a leaf.
    """
    if layers == "hidden" and units is None:
        raise ValueError(
            f"{method}: layers='hidden' needs units, a unit graph (trace_units); layers='all' takes every kernel"
        )
    shapes = {name: tuple(jnp.shape(leaf)) for name, leaf in named_leaves(params)}
    if not shapes:  # what optax.tree.map_params asks for
        return ()
    _check_patterns(method, shapes, exclude, axes or {})
    slices = _slices(units, shapes)
    hidden = {s.path for g in units.groups for s in g.incoming_kernels} if units is not None else set()
    biases = {
        incoming.path: s.path
        for g in (units.groups if units is not None else ())
        for incoming in g.incoming_kernels
        for s in g.incoming
        if s.role == "bias" and len(g.incoming_kernels) == 1
    }
    found, unread = [], []
    for name, shape in shapes.items():
        if fnmatch.fnmatchcase(name, exclude) or (layers == "hidden" and name not in hidden):
            continue
        beside = name.rpartition("/")[0] + "/bias" if "/" in name else "bias"
        bias = beside if beside in shapes and beside != name else None
        by_hand = [letters for pattern, letters in (axes or {}).items() if fnmatch.fnmatchcase(name, pattern)]
        readings = by_hand or _readings(name, shape, shapes.get(bias or ""), slices.get(name, []))
        if len(readings) == 1 or by_hand:
            bias = biases.get(name, bias)
            fits = (
                bias in shapes
                and not fnmatch.fnmatchcase(bias, exclude)
                and math.prod(shapes[bias]) == Kernel(name, shape, readings[0]).size("so")
            )
            found.append(Kernel(name, shape, readings[0], bias if fits else None))
        elif len(shape) > 1 and shape != shapes.get(bias or "") and name.rpartition("/")[2] not in _NO_KERNEL:
            unread.append(f"{name} {shape}")
    if unread and warn:
        warn_user(
            f"{method}: left alone, as it is not known which of their axes are inputs: {', '.join(unread)}; "
            f'axes={{"{unread[0].split(" ")[0]}": "..."}} says it with a letter for every axis: '
            "s stacked layers, t taps, i inputs, o outputs",
            UnreadWarning,
        )
    return tuple(found)


def map_kernels(
    function: Callable[[jax.Array], jax.Array], params: Any, kernels: Sequence[Kernel]
) -> dict[str, jax.Array]:
    """`function` of every kernel's matrices `[layers, fan_in, outputs]`, float32 at least; by name, as leaves again."""
    leaves = dict(named_leaves(params))
    return {k.name: k.leaf(function(wide(k.matrices(leaves[k.name])))).astype(leaves[k.name].dtype) for k in kernels}


def normalisations(params: Any, exclude: str = "nothing") -> list[tuple[str, str | None]]:
    """Names of the learned scale and, where there is one, shift of every normalisation layer.

    A scale is called `scale`, or `weight` and has the shape of the `bias` beside it.
    """
    shapes = {name: jnp.shape(leaf) for name, leaf in named_leaves(params)}
    found = []
    for name, shape in shapes.items():
        module, slash, last = name.rpartition("/")
        shift = f"{module}{slash}bias"
        if (last == "scale" or (last == "weight" and shapes.get(shift) == shape)) and not fnmatch.fnmatchcase(
            name, exclude
        ):
            found.append((name, shift if shapes.get(shift) == shape else None))
    return found


def length(vectors: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """The 2-norm over axes, which are kept with size 1; its gradient is 0 where the norm is."""
    squared = jnp.sum(vectors**2, axis, keepdims=True)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def wide(array: jax.Array) -> jax.Array:
    """The array in float32 at least: bfloat16 has too few digits for norms and products."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _check_patterns(method: str, shapes: Mapping[str, Any], exclude: str, axes: Mapping[str, str]) -> None:
    patterns = {"axes": list(axes), "exclude": [] if exclude == "nothing" else [exclude]}
    for argument, given in patterns.items():
        for pattern in given:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in shapes):
                raise ValueError(
                    f"{method}: {argument}: no parameter matches '{pattern}'; there are: {', '.join(shapes)}"
                )
    for pattern, letters in axes.items():
        if not set(letters) <= set("stio") or not {"i", "o"} <= set(letters):
            raise ValueError(f"{method}: axes: '{letters}' for '{pattern}'; letters are s, t, i, o, with an i and an o")
        for name, shape in shapes.items():
            if fnmatch.fnmatchcase(name, pattern) and len(shape) != len(letters):
                raise ValueError(f"{method}: axes: '{letters}' for '{pattern}' does not fit {name} of shape {shape}")


def _readings(name: str, shape: tuple[int, ...], bias: tuple[int, ...] | None, slices: Any) -> list[str]:
    """The letters that a leaf may have."""
    module, _, last = name.lower().rpartition("/")
    rank, convolution = len(shape), "conv" in module
    if last in _NO_KERNEL or (last == "weight" and "embed" in module):
        return []
    forms = _FLAX.get(rank, ()) if last != "weight" else ()
    forms += _TORCH.get(rank, ()) if last != "kernel" else ()
    if last not in ("kernel", "weight") and not slices:
        return []
    if bias is not None:
        fitting = [form for form in forms if _fits(form, shape, bias)]
        if last in ("kernel", "weight") or fitting:
            forms = tuple(fitting)
    of_graph = [form for form in forms if all(_agrees(form, shape, *known) for known in slices)]
    forms = tuple(of_graph) or forms
    if last == "kernel" and len(forms) > 1:
        # Heads and dimensions that are read together look like a window: told apart by name, and by a square window.
        square = rank == 4 and bias is None and shape[0] == shape[1] <= _WIDEST_WINDOW
        if rank == 4 and bias is None and (convolution or square):
            return ["ttio"]
        forms = tuple(form for form in forms if ("t" in form) == convolution) or forms
    return list(forms)


def _fits(form: str, shape: tuple[int, ...], bias: tuple[int, ...]) -> bool:
    """Whether a bias of that shape is one number for every output of every layer."""
    wanted = tuple(n for letter in "so" for n, axis in zip(shape, form, strict=True) if axis == letter)
    return bias in (wanted, (*wanted, *[1] * form.count("t")))


def _slices(units: UnitGraph | None, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Any]]:
    """By parameter, of every slice that is one: the letter of its units' axes, these axes, and those of a stack."""
    found: dict[str, list[Any]] = {}
    for group in units.groups if units is not None else ():
        for letter, slices in (("o", group.incoming_kernels), ("i", group.outgoing_kernels)):
            for s in slices:
                known = _known(s, shapes[s.path]) if s.path in shapes else None
                if known is not None:
                    found.setdefault(s.path, []).append((letter, *known))
    return found


def _known(s: Slice, shape: tuple[int, ...]) -> tuple[set[int], set[int]] | None:
    """The axes of the leaf that number units, and those of which the slice has one entry; `None` if they are mixed."""
    part = shape if s.window is None else tuple(stop - start for start, stop in s.window)
    own: set[int] = set()
    for view, leaf in blocks(s.view_shape, part):
        dims = [d for d in range(*view.indices(len(s.view_shape))) if s.view_shape[d] > 1]
        kinds = {d in (*s.unit_dims, *s.copy_dims) for d in dims}
        if len(kinds) > 1:
            return None
        if kinds == {True}:
            own |= set(range(*leaf.indices(len(part))))
    return own, {axis for axis, (n, all_of_it) in enumerate(zip(part, shape, strict=True)) if n == 1 < all_of_it} - own


def _agrees(form: str, shape: tuple[int, ...], letter: str, own: set[int], single: set[int]) -> bool:
    """Whether these letters say of the units' axes, and of the stack's, what the unit graph says."""
    large = [axis for axis, n in enumerate(shape) if n > 1]
    return {axis for axis in large if form[axis] == letter} == {axis for axis in large if axis in own} and all(
        (form[axis] == "s") == (axis in single) for axis in large
    )
