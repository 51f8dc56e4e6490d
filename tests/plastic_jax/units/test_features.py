"""Features cover every use of a unit: networks applied several times, cells unrolled or scanned over time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import redo, trace_units
from plastic_jax.replacement.statistics import feature_matrix


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed + sum(shape)), shape)


P = {
    "in": normal(3, 4),
    "again": normal(4, 4, seed=1),
    "start": normal(3, 4, seed=2),
    "out": normal(4, 1),
    "gates": normal(3, 16),
    "gates_again": normal(4, 16, seed=1),
    "between": normal(4, 5),
    "back": normal(5, 4),
}
XS = normal(5, 2, 3)
H0 = jnp.zeros((2, 4))


def cell(p, h, x):
    return jnp.tanh(x @ p["in"] + h @ p["again"])


def states(p, xs, h=H0):
    """The states after every step."""
    found = []
    for x in xs:
        h = cell(p, h, x)
        found.append(h)
    return found


def lstm(p, state, x):
    c, h = state
    i, f, g, o = jnp.split(x @ p["gates"] + h @ p["gates_again"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def lstm_states(p, xs):
    state, found = (H0, H0), []
    for x in xs:
        state = lstm(p, state, x)
        found.append(state[1])
    return found


def net(p, x):
    return jax.nn.relu(x @ p["in"]) @ p["out"]


def twice(p, x, y):
    return net(p, x), net(p, y)


def unrolled(p, xs):
    return states(p, xs)[-1] @ p["out"]


def all_steps_read(p, xs):
    return jnp.stack(states(p, xs)) @ p["out"]


def scanned(p, xs):
    return jax.lax.scan(lambda h, x: (cell(p, h, x), None), H0, xs)[0] @ p["out"]


def last_of_scanned(p, xs):
    return jax.lax.scan(lambda h, x: (cell(p, h, x),) * 2, H0, xs)[1][-1] @ p["out"]


def begun_by_an_encoder(p, xs):
    h = jnp.tanh(xs[0] @ p["start"])
    return jax.lax.scan(lambda h, x: (cell(p, h, x), None), h, xs)[0] @ p["out"]


def unrolled_lstm(p, xs):
    return lstm_states(p, xs)[-1] @ p["out"]


def scanned_lstm(p, xs):
    return jax.lax.scan(lambda s, x: (lstm(p, s, x), None), (H0, H0), xs)[0][1] @ p["out"]


def masked(p, xs):
    def step(h, x):
        return jnp.where(x[:, :1] > 0, cell(p, h, x), h), None

    return jax.lax.scan(step, H0, xs)[0] @ p["out"]


def masked_states(p, xs):
    h, found = H0, []
    for x in xs:
        h = jnp.where(x[:, :1] > 0, cell(p, h, x), h)
        found.append(h)
    return found


def two_parts(p, x):
    h = jax.nn.relu(x @ p["in"])
    return h[0] @ p["out"], h[1:] @ p["between"]


def relu(p, x):
    return jax.nn.relu(x @ p["in"])


ENCODED = jnp.tanh(XS[0] @ P["start"])
CASES = {
    "network applied twice": (twice, (XS[0], -XS[1]), [relu(P, XS[0]), relu(P, -XS[1])]),
    "on batches of different sizes": (twice, (XS[0], XS[1:]), [relu(P, XS[0]), relu(P, XS[1:])]),
    "unrolled cell": (unrolled, (XS,), states(P, XS)),
    "unrolled cell of which all steps are read": (all_steps_read, (XS,), states(P, XS)),
    "scanned cell": (scanned, (XS,), states(P, XS)),
    "scanned cell of which the last output is read": (last_of_scanned, (XS,), states(P, XS)),
    "cell begun by an encoder": (begun_by_an_encoder, (XS,), [ENCODED, *states(P, XS, ENCODED)]),
    "unrolled LSTM": (unrolled_lstm, (XS,), lstm_states(P, XS)),
    "scanned LSTM": (scanned_lstm, (XS,), lstm_states(P, XS)),
    "scanned cell that skips padding": (masked, (XS,), masked_states(P, XS)),
    "two parts read by two heads": (two_parts, (XS,), [relu(P, XS)]),
}


@pytest.mark.parametrize("name", CASES)
def test_features_are_the_values_of_all_uses_each_once(name):
    model, inputs, expected = CASES[name]
    units = trace_units(model, P, *inputs)
    (group,) = units.groups
    found = np.asarray(feature_matrix(group, units.apply(P, *inputs)[1][group.name]))
    wanted = np.concatenate([np.asarray(value).reshape(-1, 4) for value in expected])
    np.testing.assert_allclose(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)], rtol=1e-5, atol=1e-6)


def test_layer_inside_a_cell_that_sees_the_carry_has_the_features_of_all_steps():
    def step(p, h, x):
        z = jax.nn.relu(h @ p["between"] + 1)
        return jnp.tanh(z @ p["back"] + x @ p["in"]), z

    def model(p, xs):
        return jax.lax.scan(lambda h, x: (step(p, h, x)[0], None), H0, xs)[0] @ p["out"]

    h, hs, zs = H0, [], []
    for x in XS:
        h, z = step(P, h, x)
        hs.append(h)
        zs.append(z)
    units = trace_units(model, P, XS)
    features = units.apply(P, XS)[1]
    by_width = {group.width: features[group.name] for group in units.groups}
    np.testing.assert_allclose(by_width[4], jnp.stack(hs), rtol=1e-6)
    np.testing.assert_allclose(by_width[5], jnp.stack(zs), rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_features_of_an_unrolled_cell_follow_the_number_of_steps(steps):
    units = trace_units(unrolled, P, XS[:4])
    (group,) = units.groups
    xs = jnp.concatenate([XS, XS])[:steps]
    found = feature_matrix(group, units.apply(P, xs)[1][group.name])
    np.testing.assert_allclose(found, jnp.concatenate(states(P, xs)), rtol=1e-6)


@pytest.mark.parametrize("traced, applied", [(1, 2), (2, 1), (2, 2)])
def test_units_stay_on_their_axes_when_the_number_of_uses_changes(traced, applied):
    """Channels first: the axes of one use are not those of several."""
    p = {"in": normal(4, 3, 1, 1), "out": normal(2, 4, 1, 1)}

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")

    def model(p, *pictures):
        return [conv(jax.nn.relu(conv(x, p["in"])), p["out"]) for x in pictures]

    pictures = normal(2, 3, 5, 5), normal(2, 3, 4, 4)
    units = trace_units(model, p, *pictures[:traced])
    (group,) = units.groups
    found = feature_matrix(group, units.apply(p, *pictures[:applied])[1][group.name])
    hidden = [jnp.moveaxis(jax.nn.relu(conv(x, p["in"])), 1, -1).reshape(-1, 4) for x in pictures[:applied]]
    np.testing.assert_allclose(found, jnp.concatenate(hidden), rtol=1e-5, atol=1e-6)


def test_use_inside_a_loop_of_unknown_length_does_not_hinder_one_outside():
    def model(p, x):
        positive = net(p, x) ** 2
        y = jax.lax.while_loop(lambda y: jnp.sum(y) < 0, lambda y: y + net(p, x) ** 2, -positive)
        return y, net(p, 2 * x)

    units = trace_units(model, P, XS[0], check=False)
    (feature,) = units.apply(P, XS[0])[1].values()
    assert feature.shape[-1] == 4


def test_unit_that_is_busy_in_its_second_use_is_not_dormant():
    p = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 1))}
    x = -jnp.ones((2, 3))
    key = jax.random.key(0)
    replaced = []
    for model, inputs in ((net, (x,)), (twice, (x, -x))):
        units = trace_units(model, p, *inputs)
        tx = redo(optax.sgd(0.0), units, threshold=0.5, period=1, key=key)
        state = tx.init(p)
        _, state = tx.update(jax.tree.map(jnp.zeros_like, p), state, p, features=units.apply(p, *inputs)[1])
        replaced.append(sum(int(n) for n in state.replaced.values()))
    assert replaced == [4, 0]
