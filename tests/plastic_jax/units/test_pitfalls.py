"""Models that are easily misread: what the graph says is silent must be silent, unit by unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax.paths import get_leaf, set_leaves
from plastic_jax.units import trace_units

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def mixed(params, other, group, slices, unit):
    for s in slices:
        leaf = get_leaf(params, s.path)
        mask = np.asarray(s.spread(jnp.arange(group.width) == unit, leaf.shape))
        params = set_leaves(params, {s.path: np.where(mask, get_leaf(other, s.path), leaf)})
    return params


def influence(graph, output, params):
    """The greatest change of the output when a silent unit of an isolated group gets other incoming weights."""
    zeros, other = jax.tree.map(np.zeros_like, params), jax.tree.map(lambda p: normal(*np.shape(p)), params)
    worst = 0.0
    for group in graph.groups:
        for unit in range(group.width) if group.function_preserving else ():
            silent = mixed(params, zeros, group, group.outgoing, unit)
            changed = mixed(silent, other, group, group.incoming, unit)
            worst = max(worst, float(np.abs(output(silent) - output(changed)).max()))
    return worst


def grouped(graph):
    return {group.name: group.width for group in graph.groups}


X = normal(6, 3)
HEAD = {"a": normal(3, 4), "b": normal(4, 2)}


def tanh(x):
    return jnp.tanh(x)


PITFALLS = {
    "cond_on_a_unit": lambda p, x: jax.lax.cond(
        tanh(x @ p["a"])[0, 0] > 0, lambda h: h @ p["b"], lambda h: 2 * (h @ p["b"]), tanh(x @ p["a"])
    ),
    "lookup_by_a_unit": lambda p, x: tanh(x @ p["a"]) @ p["b"] + p["b"][(tanh(x @ p["a"]) > 0).astype(int)].sum(1),
    "outer_product": lambda p, x: (
        (lambda h: (h[:, :, None] * h[:, None, :]).reshape(-1, 16))(tanh(x @ p["a"])) @ jnp.tile(p["b"], (4, 1))
    ),
    "delay_line": lambda p, x: jax.lax.scan(
        lambda buffer, h: (jnp.concatenate([buffer[4:], h @ p["a"]]), tanh(buffer) @ jnp.tile(p["b"], (3, 1))),
        jnp.zeros(12),
        x,
    )[1],
    "while_that_looks_at_units": lambda p, x: (
        jax.lax.while_loop(lambda h: h.sum() > 100.0, lambda h: h * 0.5, tanh(x @ p["a"])) @ p["b"]
    ),
    "symmetric_reader": lambda p, x: tanh(x @ p["a"]) @ (p["b"] @ p["b"].T + (p["b"] @ p["b"].T).T),
}


@pytest.mark.parametrize("name", PITFALLS)
def test_what_is_called_silent_is_silent(name):
    apply = PITFALLS[name]
    graph = trace_units(apply, HEAD, X, check=False)
    outputs = jax.jit(apply)
    assert influence(graph, lambda p: np.asarray(outputs(p, X)), HEAD) < 1e-5


def test_bias_of_two_layers_belongs_to_neither():
    params = HEAD | {"c": normal(4), "d": normal(3, 4), "e": normal(4, 2)}
    apply = lambda p, x: tanh(x @ p["a"] + p["c"]) @ p["b"] + tanh(x @ p["d"] + p["c"]) @ p["e"]  # noqa: E731
    graph = trace_units(apply, params, X)
    assert grouped(graph) == {"a": 4, "d": 4}
    assert all([s.path for s in group.incoming] == [group.name] for group in graph.groups)
    assert influence(graph, lambda p: np.asarray(apply(p, X)), params) < 1e-5


def test_ensembles_by_vmap_have_units_of_their_own():
    """A mapped convolution comes out of a reshape that moves axes."""
    params = {"a": normal(2, 3, 3, 1, 4), "b": normal(2, 64, 2)}

    def net(p, x):
        h = jax.nn.relu(
            jax.lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
        return h.reshape(len(x), -1) @ p["b"]

    x = normal(3, 4, 4, 1)
    apply = jax.vmap(net, in_axes=(0, None))
    graph = trace_units(apply, params, x)
    assert sum(grouped(graph).values()) == 8
    assert influence(graph, lambda p: np.asarray(apply(p, x)), params) < 1e-5


def test_readers_that_are_not_learned_are_no_outgoing_weights_but_are_told():
    params, frozen = {"a": normal(3, 4), "b": normal(4, 2)}, {"b": normal(4, 2), "mask": np.ones((3, 4), np.float32)}

    def apply(p, v, x):
        h = tanh(x @ (p["a"] * v["mask"]))
        return h @ p["b"] + h @ v["b"]

    (group,) = trace_units(apply, params, X, variables=frozen).groups
    assert not group.function_preserving
    assert "variables" in group.note
    assert group.variables == ()


def test_hidden_state_kept_in_variables_is_an_output():
    params = {"a": normal(3, 4), "h": normal(4, 4), "b": normal(4, 2)}

    def apply(p, v, x):
        h = tanh(x @ p["a"] + v["h"] @ p["h"])
        return h @ p["b"], {"h": h}

    (group,) = trace_units(apply, params, X, variables={"h": normal(6, 4)}).groups
    assert (group.function_preserving, group.note) == (False, "is part of the output")


def test_features_follow_a_program_that_has_changed():
    """Weak types and the structure of the inputs change the equations, not the shapes."""
    params = {"a": normal(3, 4), "c": jnp.full((4,), 0.1), "b": normal(4, 2)}

    def apply(p, x):
        x = x["twice"] + x["twice"] if "twice" in x else x["once"]
        return tanh(x @ p["a"] + p["c"]) @ p["b"]

    graph = trace_units(apply, params, {"once": X})
    strong = params | {"c": jnp.asarray(np.full(4, 0.1, np.float32))}
    for p, x, given in ((strong, {"once": X}, X), (params, {"twice": X}, 2 * X)):
        np.testing.assert_allclose(graph.apply(p, x)[1]["a"], tanh(given @ p["a"] + p["c"]), rtol=1e-5)


@pytest.mark.parametrize(
    "read",
    [lambda h, p: h @ p["b"] / 2 + p["c"], lambda h, p: h @ p["b"] - p["c"], lambda h, p: tanh(h @ p["b"]) + p["c"]],
)
def test_bias_that_is_not_simply_added_is_not_given_for_the_transfer(read):
    params = HEAD | {"c": normal(2)}
    (group,) = trace_units(lambda p, x: read(tanh(x @ p["a"]), p), params, X).groups
    assert group.outgoing[0].bias is None
    (plain,) = trace_units(lambda p, x: tanh(x @ p["a"]) @ p["b"] + p["c"], params, X).groups
    assert plain.outgoing[0].bias == "c"


CHECKED = {
    "one_example": (lambda p, x: tanh(x @ p["a"]) @ p["b"], HEAD, X[0]),
    "fixed_reshape": (lambda p, x: (tanh(x @ p["a"]) @ p["b"]).reshape(3, 4), HEAD, X),
    "graph_network": (lambda p, x: tanh((x @ x.T) @ x @ p["a"]) @ p["b"], HEAD, X),
    "scalar_bias": (lambda p, x: tanh(x @ p["a"] + p["s"]) @ p["b"], HEAD | {"s": np.float32(0.3)}, X),
    "mean_over_units": (lambda p, x: tanh(x @ p["a"] + (x @ p["a"]).mean(-1, keepdims=True)) @ p["b"], HEAD, X),
    "low_rank": (
        lambda p, x: tanh(x @ (p["a"] + p["u"] @ p["v"])) @ p["b"],
        HEAD | {"u": normal(3, 2), "v": normal(2, 4)},
        X,
    ),
    "width_one": (lambda p, x: tanh(x @ p["w"]) @ p["o"], {"w": normal(3, 1), "o": normal(1, 2)}, X),
    "gate_of_one_unit": (
        lambda p, x: (lambda h: jax.nn.sigmoid(h[:, :1]) * (h @ p["b"]))(tanh(x @ p["a"])),
        HEAD,
        X,
    ),
    "unused_reader": (
        lambda p, x: (lambda h: jnp.where(False, h @ p["c"], h @ p["b"]))(tanh(x @ p["a"])),
        HEAD | {"c": normal(4, 2)},
        X,
    ),
    "python_float": (lambda p, x: tanh(x @ p["a"]) @ p["b"] * p["t"], HEAD | {"t": 0.5}, X),
}


@pytest.mark.parametrize("name", CHECKED)
def test_check_passes_where_the_graph_is_right(name):
    apply, params, x = CHECKED[name]
    graph = trace_units(apply, params, x)
    assert sum(grouped(graph).values()) == (1 if name == "width_one" else 4)
    for group in graph.groups:
        assert all(s.width == group.width for s in (*group.incoming, *group.outgoing))
    output = jax.jit(apply)
    assert influence(graph, lambda p: np.asarray(output(p, x)), params) < 1e-5
