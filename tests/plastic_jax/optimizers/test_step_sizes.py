"""Step sizes in a state are found in any chain; those of new weights are reset, inherited or raised."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, autostep, continual_backprop, idbd, k1, l2_init, swr, trace_units
from plastic_jax.optimizers.step_sizes import of_new_weights, read_step_sizes
from plastic_jax.replacement.inner_state import reset_inner_state

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
NEW: Any = {"kernel": jnp.zeros((2, 3), bool).at[:, 1].set(True), "bias": jnp.zeros(3, bool).at[1].set(True)}
LEARNERS: Any = {"idbd": idbd, "k1": k1, "autostep": autostep}
CHAINS: Any = {
    "alone": lambda tx: tx,
    "in a chain": lambda tx: optax.chain(optax.clip(1.0), tx),
    "inside a method": lambda tx: l2_init(tx, strength=0.1),
    "injected": lambda tx: optax.inject_hyperparams(lambda g: optax.chain(tx, optax.scale(g)))(g=0.5),
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
}


def moved(state):
    """The state after a life: every number in it is another."""
    return jax.tree.map(lambda leaf: leaf - 1 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(("new", "expected"), [("reset", 0.1), ("raised", 0.3), ("inherited", None)])
def test_a_new_weight_has_the_step_size_asked_for_and_no_other_changes(chain, name, new, expected):
    tx = CHAINS[chain](of_new_weights(LEARNERS[name](0.1), new, 3.0))
    old = tx.init(PARAMS)
    inside = lambda node: getattr(node, "step_sizes", None) is not None  # noqa: E731
    old = jax.tree.map(lambda node: moved(node) if inside(node) else node, old, is_leaf=inside)
    now = reset_inner_state(tx, old, PARAMS, NEW)
    (before,), (after,) = read_step_sizes(old), read_step_sizes(now)
    wanted = before if expected is None else jax.tree.map(lambda b: jnp.full_like(b, expected), before)
    for key, mask in NEW.items():
        if not isinstance(after[key], optax.MaskedNode):
            np.testing.assert_allclose(after[key], jnp.where(mask, wanted[key], before[key]), rtol=1e-6)
    (states,) = (n for n in jax.tree.leaves(now, is_leaf=inside) if inside(n))
    for field in set(states._fields) - {states.step_sizes[0][0]}:  # all that is no step size starts at 0
        np.testing.assert_array_equal(getattr(states, field)["kernel"][:, 1], 0.0)
        np.testing.assert_array_equal(getattr(states, field)["kernel"][:, 0], -1.0)


def test_without_step_sizes_it_is_refused_and_reset_is_the_optimizer_itself():
    with pytest.raises(
        ValueError, match=r"of_new_weights: new_step_size='raised' needs an optimizer that learns step sizes"
    ):
        of_new_weights(optax.adam(0.1), "raised").init(PARAMS)
    with pytest.raises(ValueError, match=r"of_new_weights: new_step_size='doubled'; allowed: reset, inherited, raised"):
        of_new_weights(idbd(0.1), "doubled")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"of_new_weights: raised_by=-1.0 is not in"):
        of_new_weights(idbd(0.1), "raised", -1.0)
    plain = optax.adam(0.1)
    assert jax.tree.structure(of_new_weights(plain).init(PARAMS)) == jax.tree.structure(plain.init(PARAMS))
    assert read_step_sizes(plain.init(PARAMS)) == []


@pytest.mark.parametrize("method", ["continual_backprop", "swr"])
def test_units_and_weights_that_a_method_makes_new_have_it(method):
    network, x = MLP(widths=(5,), outputs=2), jnp.ones((3, 4))
    params: Any = jax.jit(network.init)(jax.random.key(0), x)["params"]
    units = trace_units(lambda params, x: network.apply({"params": params}, x), params, x)
    inner = of_new_weights(idbd(0.1, 0.0), "raised", jnp.float32(4.0))
    if method == "swr":
        tx = swr(inner, period=1, factor=0.2, utility="random", init=lambda key: params, key=jax.random.key(1))
    else:
        tx = continual_backprop(inner, units, replacement_rate=0.2, maturity_threshold=0, key=jax.random.key(1))
    zeros = jax.tree.map(jnp.zeros_like, params)
    more = {"features": units.apply(params, x)[1], "curvature": jax.tree.map(jnp.ones_like, params)}

    def step():
        return tx.update(zeros, tx.init(params), params, **more)[1]

    (sizes,) = read_step_sizes(jax.jit(step)())
    seen = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(sizes)])
    raised = np.isclose(seen, 0.4, rtol=1e-5)
    assert 0 < raised.sum() < len(seen)
    np.testing.assert_allclose(seen[~raised], 0.1, rtol=1e-5)
    if method == "continual_backprop":  # one unit: 4 weights and a bias come in, 2 weights go out
        assert raised.sum() == 4 + 1 + 2
