"""SwiftTD: true online TD(lambda) with a step size for every weight, and a bound on what a step changes."""

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.matrices import wide
from plastic_jax.signature import Range, method


class Traces(NamedTuple):
    """What SwiftTD keeps of every weight; each a tree like the parameters, float32 at least.

    Attributes:
        beta: logarithm of the step size.
        z: eligibility trace.
        z_step: what the last features added to it before they were corrected, the published z^delta.
        z_bar: eligibility trace of the derivative by beta.
        p: trace of the prediction's derivative by beta.
        h: derivative of the weight by beta, of the last step.
        h_old: that of the step before.
        h_next: that of the step to come.
        last: the step size that the last features were given.
        eligible: bool, whether the weight learns from the next error.
    """

    beta: Any
    z: Any
    z_step: Any
    z_bar: Any
    p: Any
    h: Any
    h_old: Any
    h_next: Any
    last: Any
    eligible: Any


class SwiftTDState(NamedTuple):
    """State of SwiftTD.

    Attributes:
        traces: what is kept of every weight.
        value: 0-d, the last prediction.
        change: 0-d, how far the last step moved the prediction, the published v^delta.
    """

    traces: Traces
    value: jax.Array
    change: jax.Array


@method()
def swift_td(
    step_size: Annotated[float | jax.Array, Range(0, below=True)] = 1e-2,
    *,
    discount: Annotated[float | jax.Array, Range(0, 1)] = 0.99,
    td_lambda: Annotated[float | jax.Array, Range(0, 1)] = 0.95,
    meta_step_size: Annotated[float | jax.Array, Range(0)] = 1e-3,
    largest_rate: Annotated[float | jax.Array, Range(0, below=True)] = 0.1,
    shrink: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.999,
    least_trace: Annotated[float | jax.Array, Range(0)] = 1e-5,
    features: Literal["sparse", "dense"] = "sparse",
) -> optax.GradientTransformationExtraArgs:
    """SwiftTD: temporal-difference learning of a linear prediction, whose step sizes are learned and bounded.

    With the features f of a step, the prediction v = w f and the reward that came with them, the error is
    d = r + discount v - v_last. Every weight moves along its eligibility trace z (true online TD(lambda)), and the
    logarithm beta of its step size along what the prediction owes to it (a trace p of the derivative, as in IDBD):

        w    <- w + d z - z_step v_change
        beta <- min(log largest_rate, beta + meta_step_size / exp(beta) (d - v_change) p)

    A step learns at the rate tau = sum exp(beta) f^2, the share of the error that it would take away. Where that is
    above `largest_rate`, the step is scaled down to it, the step sizes of the active features shrink,
    beta <- beta + log(shrink) f^2, and what was known of their derivatives is forgotten.

    `update` is given the features as gradients (the gradient of a linear prediction), the parameters, and the extra
    argument `reward`, 0-d; its updates are those of the error of this step. With `reset=True` (0-d) an episode ends:
    the features do not count, nothing follows them, and traces begin anew.

    Example:
        >>> tx, w = swift_td(0.1, discount=0.0, largest_rate=1.0, features="dense"), jnp.zeros(2)
        >>> state = tx.init(w)
        >>> for f, r in [([1.0, 0.0], 0.0), ([0.0, 1.0], 1.0)]:  # the reward comes after the first feature
        ...     updates, state = tx.update(jnp.array(f), state, w, reward=r)
        ...     w = w + updates
        >>> [round(x, 3) for x in w.tolist()]
        [0.1, 0.0]

    Args:
        step_size: the first step size of every weight.
        discount: of the reward one step later.
        td_lambda: the published lambda; traces decay by the discount times it.
        meta_step_size: step size of beta; 0 keeps step sizes.
        largest_rate: the published eta: largest rate at which a step learns, and largest step size.
        shrink: the published decay of step sizes where a step would learn faster.
        least_trace: with sparse features, a trace not above this share of the step size it was given is dropped.
        features: `"sparse"`: a feature of 0 is inactive, its weight learns until its trace is dropped (a negative
            trace at once). `"dense"`: all are active, and derivatives are forgotten after the step and not before it.

    Raises:
        ValueError: a number outside its range; `update` without parameters or `reward`.

    References:
        Javed, Sharifnassab and Sutton, "SwiftTD: a fast and robust algorithm for temporal difference learning", RLC
        2024. Order of operations of the released code, `khurramjaved96/SwiftTD` at `22dca8c`; its lower bound of step
        sizes has no effect there, and is left out.
    """

    def init(params: optax.Params) -> SwiftTDState:
        leaves, treedef = jax.tree.flatten(jax.tree.map(lambda p: wide(jnp.asarray(p)), params))
        traces = _trees(treedef, [begun(jnp.full_like(p, jnp.log(step_size))) for p in leaves])
        dtype = jnp.result_type(jnp.float32, *leaves)
        return SwiftTDState(traces, jnp.zeros([], dtype), jnp.zeros([], dtype))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, SwiftTDState]:
        if params is None or extra.get("reward") is None:
            raise ValueError("swift_td: update needs the parameters and the extra argument reward")
        ended = jnp.asarray(False if extra.get("reset") is None else extra["reset"])
        gradients, treedef = jax.tree.flatten(updates)
        f = [jnp.where(ended, 0, wide(g)) for g in gradients]
        value = _dot(f, [wide(jnp.asarray(w)) for w in jax.tree.leaves(params)])
        error = extra["reward"] + discount * value - state.value
        before = [Traces(*of) for of in zip(*map(jax.tree.leaves, state.traces), strict=True)]
        moved, counted, kept = zip(*[learn(t, error, state.change) for t in before], strict=True)
        rate = _dot([jnp.exp(t.beta) for t in kept], [jnp.square(x) for x in f])
        overlap = _dot([t.z for t in kept], f)
        kept = [see(t, x, rate, overlap) for t, x in zip(kept, f, strict=True)]
        kept = [_either(ended, begun(t.beta), t) for t in kept]
        last = [jnp.where(ended, 0, x).astype(state.value.dtype) for x in (value, _dot(counted, f))]
        updates = treedef.unflatten([dw.astype(g.dtype) for dw, g in zip(moved, gradients, strict=True)])
        return updates, SwiftTDState(_trees(treedef, kept), *last)

    def begun(beta: jax.Array) -> Traces:
        """The traces of a weight's episode in which nothing has been seen."""
        nothing = {name: jnp.zeros_like(beta) for name in Traces._fields}  # buffers of their own may be given away
        return Traces(**nothing | {"beta": beta, "eligible": jnp.full(beta.shape, features == "dense")})

    def learn(t: Traces, error: jax.Array, change: jax.Array) -> tuple[jax.Array, jax.Array, Traces]:
        """The weights' updates by the error of a step, those that count as its change, and the traces after it."""
        dw = error * t.z - t.z_step * change
        beta = t.beta + meta_step_size / jnp.exp(t.beta) * (error - change) * t.p
        h = t.h_next + error * t.z_bar - t.z_step * change
        z, p, z_bar = (trace * discount * td_lambda for trace in (t.z, t.p, t.z_bar))
        learned = t._replace(
            beta=jnp.minimum(beta, jnp.log(largest_rate)),
            z=z,
            z_step=jnp.zeros_like(z),
            z_bar=z_bar,
            p=p,
            h=h,
            h_old=t.h,
            h_next=h,
        )
        dw, t = jnp.where(t.eligible, dw, 0), _either(t.eligible, learned, t)
        if features == "dense":
            return dw, dw, t
        gone = t.eligible & (t.z <= t.last * least_trace)
        return dw, jnp.where(gone, 0, dw), _none_of(t, gone, "z", "p", "z_bar", "eligible")

    def see(t: Traces, f: jax.Array, rate: jax.Array, overlap: jax.Array) -> Traces:
        """The traces once the features have been seen."""
        over = rate > largest_rate
        last = jnp.exp(t.beta) * jnp.where(over, largest_rate / jnp.where(over, rate, 1), 1)
        old = _none_of(t, over, "h", "h_old", "z_bar") if features == "sparse" else t
        z_step = last * f
        z = old.z + z_step * (1 - overlap)
        seen = old._replace(
            beta=old.beta + jnp.where(over, jnp.log(shrink) * f**2, 0),
            z=z,
            z_step=z_step,
            z_bar=old.z_bar + z_step * (1 - overlap - old.z_bar * f),
            p=old.p + old.h_old * f,
            h_next=old.h - old.h_old * f * (z - z_step) - old.h * z_step * f,
            last=last,
            eligible=jnp.ones(f.shape, bool),
        )
        if features == "dense":
            return _none_of(seen, over, "h", "h_old", "h_next", "z_bar")
        return _either(f != 0, seen, t)

    return optax.GradientTransformationExtraArgs(init, update)


def _either(condition: jax.Array, one: Traces, other: Traces) -> Traces:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _none_of(t: Traces, condition: jax.Array, *names: str) -> Traces:
    """The traces, of which those of these names are 0 where the condition holds."""
    return t._replace(**{name: jnp.where(condition, jnp.zeros_like(of := getattr(t, name)), of) for name in names})


def _trees(treedef: Any, of_leaves: list[Traces]) -> Traces:
    """From the traces of every leaf, those of all leaves as trees."""
    return Traces(*[treedef.unflatten(leaves) for leaves in zip(*of_leaves, strict=True)])


def _dot(a: Any, b: Any) -> jax.Array:
    return sum((jnp.sum(x * y) for x, y in zip(a, b, strict=True)), start=jnp.zeros([]))
