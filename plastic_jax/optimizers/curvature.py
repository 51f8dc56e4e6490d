"""What optimizers that learn step sizes need beside the gradient: the curvature of every weight, or products with it.

The curvature is that of local targets: a unit with pre-activation z = sum_i w_i x_i is moved by the gradient d = dL/dz
as a linear unit is by the squared error scale / 2 (z - target)^2 of its own target, z - d / scale. The curvature of
that error in weight i is scale E[x_i^2]. The products are those of the Gauss-Newton matrix of the loss, and thus exact.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plastic_jax.matrices import read_kernels, wide
from plastic_jax.paths import leaf_names, named_leaves, set_leaves
from plastic_jax.units import jaxprs

_MOVES = {
    "broadcast_in_dim", "convert_element_type", "copy", "dynamic_slice", "expand_dims", "gather", "pad", "reshape",
    "rev", "slice", "squeeze", "transpose",
}  # fmt: skip
"""What only moves the values of its first operand, and, of `_JOINS`, of all."""
_JOINS = {"concatenate", "stack"}
_SUMS = {"add", "add_any", "sub"}


class _Value(NamedTuple):
    """A value of the program.

    Attributes:
        value: itself.
        view: where it is linear in parameters, what it is of them when all factors are squared; else `None`.
        names: these parameters.
        product: whether it has a factor, so that it is a unit's pre-activation where it is multiplied no more.
    """

    value: Any
    view: Any = None
    names: frozenset[str] = frozenset()
    product: bool = False


def local_curvature(apply: Callable[..., Any], params: Any, *inputs: Any, scale: float | jax.Array = 1.0) -> Any:
    """The curvature of every parameter by local targets: `scale` times the mean square of what it is multiplied with.

        of w in  z = sum_i w_i x_i + b:   scale * E[x_i^2],   of b:  scale

    E is the mean over the examples, the first axis of the first input; where a weight is used at several positions (a
    convolution), their squares are added. Products, sums and contractions of a parameter with a value are found in the
    program of `apply`, so that any model is read as it is. A parameter that is in none of them (the logarithm of a
    standard deviation) counts as a bias.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
        >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}
        >>> found = local_curvature(lambda p, x: x @ p["kernel"] + p["bias"], params, x)
        >>> found["kernel"][:, 0].tolist(), found["bias"].tolist()
        ([5.0, 2.0], [1.0])

    Args:
        apply: `apply(params, *inputs)`, the model.
        params: its parameters.
        inputs: pytrees of arrays whose first axis numbers the examples.
        scale: the loss's second derivative in an output: 1 for half the squared error and for the cross entropy,
            2 / outputs for the mean of the squared error over batch and outputs.

    Returns:
        A tree like the parameters, float32 at least.

    Raises:
        NotImplementedError: a parameter is used inside a loop or a branch.
    """
    examples = jnp.shape(jax.tree.leaves(inputs)[0])[0]
    traced = jaxprs.trace(lambda params: apply(params, *inputs), params).program
    leaves, treedef = jax.tree.flatten(params)
    names, used = leaf_names(params), set()

    def total(views: list[jax.Array]) -> jax.Array:
        args = [_Value(leaf, view, frozenset({n})) for leaf, view, n in zip(leaves, views, names, strict=True)]
        outputs, squares = _add_up(traced, args, used)
        return sum((_sum(each, used) for each in outputs if each.product), squares)

    squares = jax.grad(total)([wide(leaf) for leaf in leaves])
    found = [
        jnp.broadcast_to(scale * (s / examples if name in used else 1), s.shape).astype(s.dtype)
        for name, s in zip(names, squares, strict=True)
    ]
    return jax.tree.unflatten(treedef, found)


def gauss_newton(apply: Callable[[Any], Any], loss: Callable[[Any], jax.Array], params: Any) -> Callable[[Any], Any]:
    """The product of the Gauss-Newton matrix of `loss(apply(params))` with a direction, as a function of it.

        G v = J' L J v,   J the derivative of the outputs in the parameters, L the loss's Hessian in the outputs

    Where the loss is convex in the outputs, G has no negative eigenvalues; of a linear model it is the Hessian. It
    costs two backward passes or so. `smd` is given it as `hvp`.

    Example:
        >>> product = gauss_newton(lambda w: w[0] * w[1], lambda z: 0.5 * (z - 5.0) ** 2, jnp.array([2.0, 3.0]))
        >>> product(jnp.array([1.0, 0.0])).tolist()  # J = [3, 2]
        [9.0, 6.0]

    Args:
        apply: the model's outputs as a function of its parameters.
        loss: 0-d, a function of the outputs.
        params: where both are taken.

    Returns:
        `product(direction)`, for a tree like the parameters; of a tree that lacks leaves (under a mask) these count as
        0, and the product lacks them too.
    """

    outputs, pull = jax.vjp(apply, params)
    # Reverse mode twice: models with custom backward passes (`as_products`) have no forward mode.
    _, push = jax.vjp(lambda cotangent: pull(cotangent)[0], jax.tree.map(jnp.zeros_like, outputs))

    def product(direction: Any) -> Any:
        names, given = leaf_names(params), dict(named_leaves(direction))
        leaves = [
            jnp.asarray(given[name], leaf.dtype) if name in given else jnp.zeros_like(leaf)
            for name, leaf in zip(names, jax.tree.leaves(params), strict=True)
        ]
        (moved,) = push(jax.tree.unflatten(jax.tree.structure(params), leaves))
        bent = jax.jvp(jax.grad(loss), (outputs,), (moved,))[1]
        found = dict(named_leaves(pull(bent)[0]))
        return jax.tree.unflatten(jax.tree.structure(direction), [found[name] for name in given])

    return product


def _add_up(program: jaxprs.ClosedJaxpr, args: Sequence[_Value], used: set[str]) -> tuple[list[_Value], jax.Array]:
    """A program's outputs, and the sum of its linear units with inputs squared, whose gradient is the curvature."""
    jaxpr = program.jaxpr
    env: dict[Any, _Value] = {v: _Value(c) for v, c in zip(jaxpr.constvars, program.consts, strict=True)}
    env |= dict(zip(jaxpr.invars, args, strict=True))
    total = jnp.zeros([])

    for eqn in jaxpr.eqns:
        given = [_Value(v.val) if isinstance(v, jaxprs.Literal) else env[v] for v in eqn.invars]
        kind, linear = eqn.primitive.name, [n for n, each in enumerate(given) if each.view is not None]
        names = frozenset().union(*(given[n].names for n in linear))
        body = jaxprs.body(eqn)
        if linear and body is not None:
            outputs, more = _add_up(body, given, used)
            total = total + more
            env.update(zip(eqn.outvars, outputs, strict=True))
            continue
        if linear and jaxprs.inner(eqn):
            raise NotImplementedError(
                f"local_curvature: '{min(names)}' is used inside '{kind}' ({jaxprs.line_of(eqn)}), which is not read"
            )
        made = [_Value(value) for value in _evaluated(jaxpr, eqn, [each.value for each in given])]
        if (linear == [0] and kind in _MOVES) or (linear == list(range(len(given))) and kind in _JOINS):
            (view,) = _evaluated(jaxpr, eqn, [each.value if each.view is None else each.view for each in given])
            made = [_Value(made[0].value, view, names, any(each.product for each in given))]
        elif len(linear) == 1 and kind in ("mul", *jaxprs.CONTRACTIONS):
            squared = [jnp.square(wide(jnp.asarray(each.value))) if each.view is None else each.view for each in given]
            (view,) = _evaluated(jaxpr, eqn, squared)
            product = _Value(made[0].value, view, names, True)
            if kind == "mul":
                made = [product]
            else:
                total = total + _sum(product, used)
        else:
            for n in linear:
                if given[n].product or kind in _SUMS:
                    shape = jaxprs.shape(eqn.outvars[0])
                    total = total + _sum(given[n], used, shape if kind in _SUMS else None)
                    if not isinstance(v := eqn.invars[n], jaxprs.Literal) and given[n].product:
                        env[v] = _Value(given[n].value)  # counted once
        env.update(zip(eqn.outvars, made, strict=True))
    return [_Value(v.val) if isinstance(v, jaxprs.Literal) else env[v] for v in jaxpr.outvars], total


def _sum(unit: _Value, used: set[str], shape: tuple[int, ...] | None = None) -> jax.Array:
    used.update(unit.names)
    return jnp.sum(unit.view if shape is None else jnp.broadcast_to(unit.view, shape))


def _evaluated(jaxpr: jaxprs.Jaxpr, eqn: jaxprs.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    if "preferred_element_type" in eqn.params:  # that of the model, which may be narrower than squares need
        eqn = eqn.replace(params=eqn.params | {"preferred_element_type": None})
    env = {v: value for v, value in zip(eqn.invars, values, strict=True) if not isinstance(v, jaxprs.Literal)}
    jaxprs.run(jaxpr, [eqn], env, set(eqn.outvars))
    return [env.get(v) for v in eqn.outvars]


def read_curvature(method: str, updates: Any, extra: Mapping[str, Any]) -> Any:
    """The extra argument `curvature`, a tree like the gradients; of a part of the parameters (a mask), that part.

    Raises:
        ValueError: it is not given, or lacks a parameter or its shape.
    """
    given = extra.get("curvature")
    if given is None:
        raise ValueError(
            f"{method}: update needs the extra argument curvature, a tree like the parameters: local_curvature gives "
            "it, and so do the learners with curvature=True"
        )
    known, wanted = dict(named_leaves(given)), dict(named_leaves(updates))
    for name, leaf in wanted.items():
        if name not in known or jnp.shape(known[name]) != jnp.shape(leaf):
            got = jnp.shape(known[name]) if name in known else "nothing"
            raise ValueError(f"{method}: curvature of '{name}' must have its shape {jnp.shape(leaf)}, got {got}")
    return jax.tree.unflatten(jax.tree.structure(updates), [wide(known[name]) for name in wanted])


def sum_by_unit(method: str, tree: Any) -> Any:
    """Of a tree like the parameters, for every weight the sum over all weights of its unit: a column of a kernel and
    the entry of the bias beside it (`plastic_jax.matrices`); of a parameter that is neither, the entry itself."""
    leaves = dict(named_leaves(tree))
    sums = dict(leaves)
    for kernel in read_kernels(method, tree):
        columns = jnp.sum(kernel.matrices(leaves[kernel.name]), axis=1, keepdims=True)
        if kernel.bias is not None:
            columns = columns + leaves[kernel.bias].reshape(kernel.stack, 1, kernel.outputs)
            sums[kernel.bias] = columns.reshape(leaves[kernel.bias].shape)
        whole = jnp.broadcast_to(columns, (kernel.stack, kernel.fan_in, kernel.outputs))
        sums[kernel.name] = kernel.leaf(whole)
    return set_leaves(tree, sums)
