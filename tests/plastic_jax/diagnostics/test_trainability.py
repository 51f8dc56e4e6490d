"""Trainability: what has lost it scores worse than fresh, what is fresh does not, and the pairing is real."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP
from plastic_jax.diagnostics.trainability import Trainability, _student, trainability
from plastic_jax.paths import leaf_key

NETWORK = MLP(widths=(16, 16), outputs=3)
X = jax.random.normal(jax.random.key(0), (32, 4))


def apply(params, x):
    return NETWORK.apply({"params": params}, x)


def init(key):
    return NETWORK.init(key, X)["params"]


def measured(params, **options):
    options = {"key": jax.random.key(7), "clones": 6, "steps": 100, "optimizer": optax.adam(1e-2)} | options
    return trainability(apply, params, init, X, **options)


def dead(share):
    params = init(jax.random.key(1))
    alive = jnp.arange(16) >= 16 * share
    return {**params, "Dense_0": {**params["Dense_0"], "bias": jnp.where(alive, 0.0, -50.0)}}


@pytest.mark.parametrize("targets", ["normal", "labels"])
def test_dead_units_make_it_worse_than_fresh_and_more_of_them_worse_still(targets):
    most, half = (measured(dead(share), targets=targets) for share in (0.9, 0.5))
    assert most.area.low > 0 and most.final.low > 0 and most.area.mean > most.area.chance
    assert most.area.mean > half.area.mean
    assert "gap" in str(most) and "\n" not in str(most)


def test_fresh_against_fresh_is_within_chance_and_covers_zero():
    """A single fresh network may learn better or worse than the mean of them; over several of them the gap is 0."""
    results = [measured(init(jax.random.key(seed)), key=jax.random.key(50 + seed)) for seed in range(8)]
    means = np.array([result.area.mean for result in results])
    half = _student(7) * means.std(ddof=1) / math.sqrt(8)
    assert abs(means.mean()) < half
    assert sum(abs(result.area.mean) < result.area.chance for result in results) >= 7
    assert results[0].loss.shape == results[0].fresh_loss.shape == (6, 100)
    assert (results[0].loss[:, -1] < 0.5 * results[0].loss[:, 0]).all()


def test_saturated_weights_make_it_worse():
    params = jax.tree.map(lambda p: 30 * p if p.ndim == 2 else p, init(jax.random.key(1)))
    tanh = MLP(widths=(16, 16), outputs=3, activation="tanh")
    result = trainability(
        lambda p, x: jnp.tanh(tanh.apply({"params": p}, x)), params, lambda k: tanh.init(k, X)["params"], X,
        key=jax.random.key(0), targets="network", clones=6, steps=100, optimizer=optax.adam(1e-2),
    )  # fmt: skip
    assert result.area.low > 0


def test_the_curves_are_those_of_a_plain_loop():
    """Both networks of a pair learn the same targets from the same mini-batches; own targets, loss and variables."""
    seen = []

    def targets(key, outputs):
        return jax.random.normal(key, outputs.shape)  # not about the outputs, so that both networks have the same

    def scaled(params, scale, x):
        return scale * apply(params, x)

    params, key, tx = init(jax.random.key(1)), jax.random.key(7), optax.sgd(0.1)
    result = trainability(
        scaled, params, init, X, key=key, targets=targets, clones=2, steps=3, optimizer=tx, batch_size=5,
        loss=lambda y, t: jnp.mean(jnp.abs(y - t)), variables=2.0,
    )  # fmt: skip
    objective = jax.jit(jax.value_and_grad(lambda w, x, y: jnp.mean(jnp.abs(scaled(w, 2.0, x) - y))))
    keys = {name: jax.random.split(leaf_key(key, name), 2) for name in ("fresh", "target", "batch")}
    for c in range(2):
        y = targets(keys["target"][c], scaled(params, 2.0, X))
        for weights, curve in ((params, result.loss[c]), (init(keys["fresh"][c]), result.fresh_loss[c])):
            for t in range(3):
                rows = jax.random.randint(jax.random.fold_in(keys["batch"][c], t), (5,), 0, 32)
                value, grads = objective(weights, X[rows], y[rows])
                assert curve[t] == pytest.approx(float(value), rel=1e-5)
                weights = jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads)
            seen.append(curve)
    assert len({tuple(curve) for curve in seen}) == 4


def test_the_interval_is_students_of_the_paired_differences():
    for degrees, point in ((1, 12.706), (4, 2.776), (11, 2.201), (1000, 1.962)):
        assert _student(degrees) == pytest.approx(point, abs=6e-4)
    base = np.array([1.0, 5.0, 9.0])[:, None] * np.ones(20)
    gap = Trainability(base + np.array([[0.1], [0.2], [0.3]]), base).area
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert gap == pytest.approx((0.2, 0.2 - half, 0.2 + half, 4.30265 * 0.1 * math.sqrt(4 / 3)), rel=1e-4)
    assert math.isnan(Trainability(base[:1], base[:1]).area.low)


def test_a_clone_that_diverges_is_told_and_not_dropped():
    curves = np.ones((2, 10))
    curves[0, 5] = np.nan
    result = Trainability(curves, np.ones((2, 10)))
    assert "1 of 2 clones diverged" in str(result) and math.isnan(result.area.mean)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clones": 0}, "clones=0 is not a positive integer"),
        ({"steps": 1.5}, "steps=1.5 is not a positive integer"),
        ({"batch_size": -1}, "batch_size=-1 is not a positive integer"),
        ({"targets": "label"}, "targets='label'; allowed: normal, labels, network, or a function"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ValueError, match=rf"^trainability: {words}"):
        measured(init(jax.random.key(0)), **options)


@pytest.mark.parametrize("shape", [(32, 1), (32,)])
def test_labels_of_one_class_are_refused(shape):
    def one(weights, x):
        return (x @ weights).reshape(shape)

    with pytest.raises(ValueError, match=r"^trainability: targets='labels' needs at least 2 outputs; the model has 1"):
        trainability(one, jnp.ones(4), lambda key: jnp.ones(4), X, key=jax.random.key(0), targets="labels", clones=2)


def test_another_networks_init_is_refused():
    other = MLP(widths=(16, 8), outputs=3)
    with pytest.raises(ValueError, match=r"^trainability: init gives \(8,\) at .*Dense_1.*bias.*, params has \(16,\)"):
        trainability(apply, init(jax.random.key(0)), lambda k: other.init(k, X)["params"], X, key=jax.random.key(0))
