"""Convolutions and max-pools as slices and matrix products, which CPUs run many times faster inside a compiled loop."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from plastic_jax.units import jaxprs

_CONVOLUTION = "conv_general_dilated"
_POOL = "reduce_window_max"
_NHWC, _HWIO = (0, 3, 1, 2), (3, 2, 0, 1)

_CACHE = 2**20
"""Bytes of patches that are made at once, so that they are still in the cache when the product reads them."""

_NARROW = 32
"""Output channels up to which two neighbouring outputs are computed as one row of a product.

A product with so few columns is bound by memory: half as many, longer rows cost less than the zeros that are added.
"""

_FEW = 8
"""Input channels below which patches are kept, not made again block by block: cutting them out costs most then."""


def as_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with its convolutions computed as matrix products.

    XLA's own convolution runs about 20 times too slowly inside `lax.scan` on CPUs. Here every two-dimensional
    convolution without groups or dilation (`NHWC`, `HWIO`) becomes slices and matrix products, and every max-pool whose
    windows neither overlap nor are padded becomes a maximum of slices. Every other equation is evaluated as it
    stands, and so are convolutions inside custom derivative rules, branches and `while` loops.

    Values and gradients are those of the function up to rounding; where several values of a window are the largest,
    the gradient goes to the first, as it does in `lax`. The result may be differentiated (in reverse mode only where
    there are convolutions), compiled, mapped and scanned.

    Args:
        function: takes and gives pytrees of arrays.

    Returns:
        `function'` with `function'(*args) = function(*args)`. Arguments must be arrays (or pytrees of them): whatever
        decides the course of the function must be bound before.
    """

    def products(*args: Any) -> Any:
        traced = jaxprs.trace(function, *args)
        return jax.tree.unflatten(traced.structure, _run(traced.program, jax.tree.leaves(args)))

    return products


def _holds(closed: jaxprs.ClosedJaxpr) -> bool:
    """Whether anything within is to be replaced."""
    return any(_is_replaced(eqn) for eqn in closed.jaxpr.eqns)


def _is_replaced(eqn: jaxprs.JaxprEqn) -> bool:
    name = eqn.primitive.name
    if name == _CONVOLUTION:
        return _known_convolution(eqn)
    if name == _POOL:
        return _known_pool(eqn)
    inner = jaxprs.scan_parts(eqn)[0] if name == "scan" else None if "custom" in name else jaxprs.body(eqn)
    return inner is not None and _holds(inner)


def _known_convolution(eqn: jaxprs.JaxprEqn) -> bool:
    p = eqn.params
    layout = p["dimension_numbers"]
    values: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    return (
        (layout.lhs_spec, layout.rhs_spec, layout.out_spec) == (_NHWC, _HWIO, _NHWC)
        and p["feature_group_count"] == p["batch_group_count"] == 1
        and all(d == 1 for d in (*p["lhs_dilation"], *p["rhs_dilation"]))
        and all(jnp.issubdtype(v.dtype, jnp.floating) and v.size for v in values)
    )


def _known_pool(eqn: jaxprs.JaxprEqn) -> bool:
    p = eqn.params
    window = p["window_dimensions"]
    return (
        len(window) == 4
        and window[0] == window[3] == 1
        and window == p["window_strides"]
        and all(pad == (0, 0) for pad in p["padding"])
        and all(d == 1 for d in (*p["base_dilation"], *p["window_dilation"]))
    )


def _run(closed: jaxprs.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """The program's outputs; the equations between two that are replaced are evaluated as they stand."""
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))
    last = {v: n for n, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, jaxprs.Literal)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, jaxprs.Literal)}
    stops = [n for n, eqn in enumerate(jaxpr.eqns) if _is_replaced(eqn)]
    for start, stop in zip([-1, *stops], [*stops, len(jaxpr.eqns)], strict=True):
        part = jaxpr.eqns[start + 1 : stop]
        if part:
            jaxprs.run(jaxpr, part, env, {v for e in part for v in e.outvars if last.get(v, -1) >= stop})
        if stop < len(jaxpr.eqns):
            eqn = jaxpr.eqns[stop]
            env.update(zip(eqn.outvars, _replace(eqn, [_read(env, atom) for atom in eqn.invars]), strict=True))
    return [_read(env, atom) for atom in jaxpr.outvars]


def _read(env: dict[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, jaxprs.Literal) else env[atom]


def _replace(eqn: jaxprs.JaxprEqn, values: list[Any]) -> list[Any]:
    p = eqn.params
    if eqn.primitive.name == _CONVOLUTION:
        x, kernel = values
        return [_convolution(x, kernel, p)]
    if eqn.primitive.name == _POOL:
        return [_pool(values[0], p["window_dimensions"][1:3])]
    if eqn.primitive.name == "scan":
        return _scan(eqn, values)
    inner = jaxprs.body(eqn)
    assert inner is not None
    return jaxprs.rerun(eqn, lambda *args: _run(inner, args), values)


def _scan(eqn: jaxprs.JaxprEqn, values: list[Any]) -> list[Any]:
    p = eqn.params
    body, n, m = jaxprs.scan_parts(eqn)

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = _run(body, [*values[:n], *carry, *x])
        return outputs[:m], outputs[m:]

    carry, ys = jax.lax.scan(
        step, values[n : n + m], values[n + m :], length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    return [*carry, *ys]


def _pool(x: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Maximum over windows that lie side by side; what is left over at the far edges is not read."""
    a, b = window
    batch, height, width, channels = x.shape
    h, w = height // a, width // b
    windows = x[:, : h * a, : w * b].reshape(batch, h, a, w, b, channels)
    largest, *others = (windows[:, :, i, :, j] for i, j in itertools.product(range(a), range(b)))
    for other in others:
        # Written out so that the first of equals is chosen, and NaN above all.
        largest = jnp.where((other > largest) | (other != other), other, largest)
    return largest


@dataclasses.dataclass(frozen=True)
class _Form:
    """How a convolution is computed.

    Attributes:
        strides: of the convolution.
        padding: `(low, high)` for height and width.
        precision: of the products.
        dtype: of the output.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    precision: Any
    dtype: Any


def _convolution(x: jax.Array, kernel: jax.Array, p: dict[str, Any]) -> jax.Array:
    dtype = p["preferred_element_type"] or jnp.result_type(x, kernel)
    (top, bottom), (left, right) = p["padding"]
    form = _Form(tuple(p["window_strides"]), ((top, bottom), (left, right)), p["precision"], jnp.dtype(dtype))
    return _convolve(x, kernel, form)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    return _by_blocks(lambda x: _product(x, kernel, form), _block(x, kernel, form), x)


def _forward(x: jax.Array, kernel: jax.Array, form: _Form) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, form), (x, kernel)


def _backward(form: _Form, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _input_gradient(x, kernel, form, g), _kernel_gradient(x, kernel, form, g)


_convolve.defvjp(_forward, _backward)


def _input_gradient(x: jax.Array, kernel: jax.Array, form: _Form, g: jax.Array) -> jax.Array:
    if form.strides == (1, 1) and g.shape[1:3] == x.shape[1:3]:
        # As many outputs as inputs: the transpose is the convolution with the turned kernel, which adds up nothing.
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        back = dataclasses.replace(form, padding=tuple((high, low) for low, high in form.padding), dtype=x.dtype)
        return _convolve(g.astype(jnp.result_type(g, kernel)), turned, back)

    def transposed(g: jax.Array) -> jax.Array:
        like = jax.ShapeDtypeStruct((g.shape[0], *x.shape[1:]), x.dtype)
        return jax.linear_transpose(lambda x: _product(x, kernel, form), like)(g)[0]

    return _by_blocks(transposed, _block(x, kernel, form), g)


def _kernel_gradient(x: jax.Array, kernel: jax.Array, form: _Form, g: jax.Array) -> jax.Array:
    together = _together(x, kernel, form)

    def gradient(x: jax.Array, g: jax.Array) -> jax.Array:
        patches = _patches(x, kernel.shape[:2], form, together)
        patches = patches.reshape(-1, patches.shape[-1])
        # In this order of the factors the product is up to twice as fast as in the other.
        return jax.lax.dot_general(
            g.reshape(patches.shape[0], -1),
            patches,
            (((0,), (0,)), ((), ())),
            precision=form.precision,
            preferred_element_type=jnp.promote_types(g.dtype, jnp.float32),
        )

    n, size = x.shape[0], _block(x, kernel, form)
    if size == n:
        total = gradient(x, g)
    else:
        blocks = [a.reshape(n // size, size, *a.shape[1:]) for a in (x, g)]
        like = jax.eval_shape(gradient, *(a[0] for a in blocks))
        # Zeros made of the pictures' are known to differ between devices, as what is added to them is.
        zero = jnp.zeros(like.shape, like.dtype) + jnp.zeros_like(x[0, 0, 0, 0], like.dtype)
        total, _ = jax.lax.scan(lambda total, block: (total + gradient(*block), None), zero, blocks)
    return _unspread(total.T, kernel.shape, form.strides[1], together).astype(kernel.dtype)


def _together(x: jax.Array, kernel: jax.Array, form: _Form) -> int:
    """How many neighbouring columns of the output are one row of the product."""
    width = _positions(x, kernel.shape[:2], form)[1]
    return 2 if kernel.shape[1] > 1 and kernel.shape[3] <= _NARROW and width % 2 == 0 else 1


def _block(x: jax.Array, kernel: jax.Array, form: _Form) -> int:
    """How many pictures are computed at once: a divisor of their number."""
    n = x.shape[0]
    if kernel.shape[:2] == (1, 1) or x.shape[3] < _FEW:
        return n
    together = _together(x, kernel, form)
    height, width = _positions(x, kernel.shape[:2], form)
    span = (together - 1) * form.strides[1] + kernel.shape[1]
    picture = height * (width // together) * kernel.shape[0] * span * x.shape[3] * x.dtype.itemsize
    wanted = max(_CACHE, 2 * kernel.size * kernel.dtype.itemsize) / picture
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: abs(math.log(d / wanted)))


def _by_blocks(function: Callable[[jax.Array], jax.Array], size: int, x: jax.Array) -> jax.Array:
    n = x.shape[0]
    if size == n:
        return function(x)
    y = jax.lax.map(function, x.reshape(n // size, size, *x.shape[1:]))
    return y.reshape(n, *y.shape[2:])


def _positions(x: jax.Array, size: Sequence[int], form: _Form) -> tuple[int, int]:
    """Height and width of the output."""
    sides = zip(x.shape[1:3], size, form.strides, form.padding, strict=True)
    height, width = ((n + sum(pad) - k) // s + 1 for n, k, s, pad in sides)
    return height, width


def _product(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    together = _together(x, kernel, form)
    y = jax.lax.dot_general(
        _patches(x, kernel.shape[:2], form, together),
        _spread(kernel, form.strides[1], together),
        (((3,), (0,)), ((), ())),
        precision=form.precision,
        preferred_element_type=form.dtype,
    )
    return y.reshape(*y.shape[:2], -1, kernel.shape[3])


def _spread(kernel: jax.Array, stride: int, together: int) -> jax.Array:
    """The matrix `[rows * span * channels, together * outputs]`: the kernel at `together` places in a row, else 0."""
    outputs = kernel.shape[3]
    far = (together - 1) * stride
    zero = jnp.zeros([], kernel.dtype)
    rest = (0, 0, 0)
    places = [jax.lax.pad(kernel, zero, [rest, (i * stride, far - i * stride, 0), rest, rest]) for i in range(together)]
    return jnp.stack(places, axis=3).reshape(-1, together * outputs)


def _unspread(matrix: jax.Array, shape: Sequence[int], stride: int, together: int) -> jax.Array:
    """The transpose of `_spread`: what falls on the kernel's places, added up."""
    rows, columns, channels, outputs = shape
    parts = matrix.reshape(rows, -1, channels, together, outputs)
    return sum(
        (parts[:, i * stride : i * stride + columns, :, i] for i in range(1, together)), parts[:, :columns, :, 0]
    )


def _patches(x: jax.Array, size: Sequence[int], form: _Form, together: int) -> jax.Array:
    """What is read by `together` outputs in a row: `[batch, height, width / together, rows * span * channels]`."""
    rest = (0, 0, 0)
    pads = [(low, high, 0) for low, high in form.padding]
    height, width = _positions(x, size, form)
    padded = jax.lax.pad(x, jnp.zeros([], x.dtype), [rest, *pads, rest])
    batch, _, _, channels = padded.shape
    down, across = form.strides
    span, step, places = (together - 1) * across + size[1], together * across, width // together
    if together == 1:
        columns = [
            jax.lax.slice_in_dim(padded, j, j + (places - 1) * step + 1, stride=step, axis=2) for j in range(span)
        ]
    else:
        # The columns that neighbours read lie side by side in memory: copied as one.
        flat = padded.reshape(batch, -1, padded.shape[2] * channels)
        runs = [flat[:, :, m * step * channels : (m * step + span) * channels] for m in range(places)]
        columns = [jnp.stack(runs, axis=2)]
    parts = [
        jax.lax.slice_in_dim(column, i, i + (height - 1) * down + 1, stride=down, axis=1)
        for i in range(size[0])
        for column in columns
    ]
    return jnp.concatenate(parts, axis=-1)
