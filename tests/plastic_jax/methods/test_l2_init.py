"""L2 Init: closed forms, and the published code's recordings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.methods.l2_init import l2_init, l2_init_after_first_update
from plastic_jax.optimizers.adam import adam

PARAMS = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def test_without_a_gradient_the_distance_to_the_start_shrinks_geometrically():
    """Of plain SGD: w - w_0 <- (1 - step_size * strength) (w - w_0)."""
    tx = l2_init(optax.sgd(0.5), strength=0.4)
    state, params = tx.init(PARAMS), jax.tree.map(lambda w: w + 3.0, PARAMS)
    for _ in range(5):
        updates, state = tx.update(ZEROS, state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda w, w0: np.testing.assert_allclose(w - w0, 3 * 0.8**5, rtol=1e-5), params, PARAMS)


def test_resampled_centres_are_those_of_the_key_and_the_step():
    fresh = lambda key: jax.tree.map(lambda w: jax.random.normal(key, w.shape), PARAMS)  # noqa: E731
    tx = l2_init(optax.sgd(1.0), strength=1.0, resample=True, init=fresh, key=jax.random.key(3))
    state, params, seen = tx.init(PARAMS), PARAMS, []
    for step in range(2):
        expected = fresh(jax.random.fold_in(jax.random.wrap_key_data(state.key), step))
        updates, state = tx.update(ZEROS, state, params)
        params = optax.apply_updates(params, updates)  # strength 1 and step size 1 lead to the centre itself
        jax.tree.map(lambda w, c: np.testing.assert_allclose(w, c, atol=1e-6), params, expected)
        seen.append(params["bias"])
    assert seen[0] != seen[1]
    assert state.initial is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, r"l2_init: strength=-1.0 is not in \[0"),
        ({"resample": True}, "resample needs init and key"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        l2_init(optax.sgd(0.1), **arguments)
    with pytest.raises(ValueError, match="l2_init: update needs `params`"):
        tx = l2_init(optax.sgd(0.1))
        tx.update(ZEROS, tx.init(PARAMS))


def test_sgd_replays_the_published_code(replay):
    replay("l2init_a", lambda config, units, extra: l2_init(optax.sgd(config["lr"]), strength=config["l2_weight"]))


def centres(trace):
    """The weights that the recording pulls to at each step, out of its table of normal numbers."""
    scales, drawn = trace.config["resample_scale"], trace.table("noise_table")
    scaled = {"kernel": scales[::2], "bias": scales[1::2]}
    return {layer: {k: scaled[k][i] * a for k, a in leaves.items()} for i, (layer, leaves) in enumerate(drawn.items())}


def test_adam_with_resampling_replays_the_published_code(replay):
    def make_tx(config, units, centre):
        inner = adam(config["lr"], *config["betas"], config["eps"])
        return l2_init(
            inner, strength=config["l2_weight"], resample=True, init=lambda key: centre, key=jax.random.key(0)
        )

    replay("l2init_resample_a", make_tx, extra=centres)


def test_ranks_pull_the_law_of_a_layer_and_leave_a_permutation_of_it_alone():
    initial = {"kernel": jnp.array([[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [30.0, 40.0]]]), "bias": jnp.zeros((2, 2))}
    tx = l2_init(optax.sgd(1.0), strength=0.5, match="rank")
    zeros, state = jax.tree.map(jnp.zeros_like, initial), tx.init(initial)
    shuffled = initial | {"kernel": initial["kernel"][:, ::-1, ::-1]}
    updates, _ = tx.update(zeros, state, shuffled)
    np.testing.assert_array_equal(updates["kernel"], 0.0)
    moved = initial | {"kernel": initial["kernel"].at[0, 0, 0].set(5.0)}  # the largest of its layer now
    updates, _ = tx.update(zeros, state, moved)
    np.testing.assert_allclose(updates["kernel"][0], [[-0.5, -0.5], [-0.5, -0.5]])
    np.testing.assert_array_equal(updates["kernel"][1], 0.0)


def test_ranks_replay_the_published_wasserstein_regulariser(replay):
    def make_tx(config, units, extra):
        base = config["base_optimizer"]
        inner = optax.sgd(base["lr"], base["momentum"])
        return l2_init(inner, strength=2 * config["regen"], match="rank", mean=True)

    replay("wasserstein_a", make_tx)


def test_the_other_method_of_that_name_replays_its_published_code(replay):
    def make_tx(config, units, extra):
        lr = config["lr"]
        return l2_init_after_first_update(optax.sgd(lr), strength=config["weight_decay"], step_size=lr)

    trace, ours = replay("l2init_wc_a", make_tx)
    if trace.full:
        recorded = trace.tree("f64/opt/init_weights")
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12), ours.state.initial, recorded)
