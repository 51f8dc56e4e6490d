"""MetaOptimize: closed forms, and the published code's recording."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.optimizers.metaoptimize import metaoptimize

PARAMS = {"a": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])}, "b": {"kernel": jnp.array([[3.0]])}}
GRADS = {"a": {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([-1.0])}, "b": {"kernel": jnp.array([[-3.0]])}}


def test_it_replays_the_published_code(replay):
    def make_tx(config, units, extra):
        return metaoptimize(
            config["alpha0"],
            config["b1"],
            config["b2"],
            meta_optimizer="published_lion",
            meta_step_size=config["meta_stepsize"],
            trace_discount=config["gamma"],
            decoupled_decay=config["weight_decay"],
            meta_b1=config["meta_c1"],
            meta_b2=config["meta_b1"],
            eps=config["eps"],
        )

    trace, ours = replay("metaoptimize_a", make_tx, see=lambda state: state.log_step_size["Dense_0"]["bias"])
    np.testing.assert_allclose(ours.seen, trace["f64/beta"][:, 0], rtol=1e-9)
    if trace.full:
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-12),
            ours.state.trace,
            trace.tree("f64/opt/h"),
        )


BLOCKS = {
    "network": [["kernel a", "bias a", "kernel b"]],
    "layer": [["kernel a", "bias a"], ["kernel b"]],
    (lambda name: name == "a/bias"): [["kernel a", "kernel b"], ["bias a"]],
}


@pytest.mark.parametrize("blocks", BLOCKS, ids=["network", "layer", "own"])
def test_a_block_shares_what_its_weights_agree_on(blocks):
    """After a step h = a g, so that the same gradient again raises beta by meta * a * |g|^2 of its block."""
    tx = metaoptimize(0.1, base="sgd", meta_optimizer="sgd", blocks=blocks, meta_step_size=0.5)
    state = tx.init(PARAMS)
    for _ in range(2):
        updates, state = tx.update(GRADS, state, PARAMS)
    squares = {"kernel a": 5.0, "bias a": 1.0, "kernel b": 9.0}
    betas = {f"{leaf} {layer}": b for layer, own in state.log_step_size.items() for leaf, b in own.items()}
    for block in BLOCKS[blocks]:
        expected = math.log(0.1) + 0.5 * 0.1 * sum(squares[name] for name in block)
        for name in block:
            np.testing.assert_allclose(betas[name], expected, rtol=1e-6)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1 * GRADS["a"]["kernel"], rtol=1e-6)


def test_weights_have_step_sizes_of_their_own():
    tx = metaoptimize(0.1, base="sgd", meta_optimizer="sgd", blocks="weight", meta_step_size=0.5)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    turned = jax.tree.map(lambda g: g * jnp.array([1.0, -1.0])[: g.shape[-1]], GRADS)
    _, state = tx.update(turned, state, PARAMS)
    moved = state.log_step_size["a"]["kernel"] - jnp.log(0.1)
    np.testing.assert_allclose(moved, [[0.05, -0.2]], rtol=1e-5)


def test_a_meta_step_size_of_zero_is_the_base_optimizer():
    """Adam's and Lion's of optax, with decoupled decay."""
    theirs = {"adam": optax.adamw(0.1, weight_decay=0.2), "lion": optax.lion(0.1, 0.9, 0.999, weight_decay=0.2)}
    for base, other in theirs.items():
        ours = metaoptimize(0.1, base=base, meta_step_size=0.0, decoupled_decay=0.2)
        states = ours.init(PARAMS), other.init(PARAMS)
        for factor in (1.0, -0.5):
            grads = jax.tree.map(lambda g, factor=factor: g * factor, GRADS)
            (mine, first), (expected, second) = (
                ours.update(grads, states[0], PARAMS),
                other.update(grads, states[1], PARAMS),
            )
            states = first, second
            jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4), mine, expected)


def test_the_meta_optimizers_are_those_of_optax():
    """From the second step on z is not 0; Lion's sign of it moves beta by the meta step size, Adam's less at first."""
    for name, moves in {
        "lion": [0.0, 0.01, -0.01],
        "published_lion": [0.0, 0.01, -0.01],
        "adam": [0.0, 0.00742, -0.00313],
    }.items():
        tx = metaoptimize(0.1, base="sgd", meta_optimizer=name, meta_step_size=0.01)
        state, last = tx.init(PARAMS), math.log(0.1)
        for factor, expected in zip((1.0, 1.0, -1.0), moves, strict=True):
            _, state = tx.update(jax.tree.map(lambda g, factor=factor: g * factor, GRADS), state, PARAMS)
            now = float(state.log_step_size["b"]["kernel"])
            np.testing.assert_allclose(now - last, expected, atol=2e-5, err_msg=name)
            last = now


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="metaoptimize: base='sdg'; allowed: sgd, adam, lion"):
        metaoptimize(0.1, base="sdg")
    with pytest.raises(ValueError, match="metaoptimize: update needs `params`"):
        metaoptimize(0.1).update(GRADS, metaoptimize(0.1).init(PARAMS))
