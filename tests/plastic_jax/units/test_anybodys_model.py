"""What `trace_units` finds in models as people write them: every contraction is a group, left out, or the output."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

from plastic_jax import trace_units
from plastic_jax.units import rules
from plastic_jax.units.rules import register_rule

relu = jax.nn.relu


def normal(*shape):
    return np.random.default_rng(sum(shape) + len(shape)).normal(size=shape).astype(np.float32)


X = normal(6, 3)
P = {"a": normal(3, 4), "b": normal(4, 5), "c": normal(5, 4), "d": normal(4, 2)}
TABLE = {"e": normal(7, 3), "w": normal(3, 4), "v": normal(4, 3)}
CRITICS = {"a": normal(2, 3, 4), "b": normal(2, 4, 1)}
NOISY = {"a": normal(3, 4), "mu": normal(4, 2), "sigma": normal(4, 2)}


def names(graph):
    return {group.name: group.function_preserving for group in graph.groups}, [group.name for group in graph.left_out]


def normed(p, stats, x):
    """Batch norm of one example among those that `vmap` maps."""
    h = x @ p["a"]
    mean = jax.lax.pmean(h, "batch")
    var = jax.lax.pmean((h - mean) ** 2, "batch")
    new = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
    return relu((h - mean) / jnp.sqrt(var + 1e-5)) @ p["b"], new


def noisy(p, x, key):
    return relu(x @ p["a"]) @ (p["mu"] + p["sigma"] * jax.random.normal(key, p["mu"].shape))


def unrolled(p, xs, h):
    for x in xs:
        h = jnp.tanh(x @ p["a"] + h @ p["h"])
    return h @ p["d"]


RNN = {"a": normal(3, 4), "h": normal(4, 4), "d": normal(4, 2)}
FOUND = {
    # model, params, inputs, {group: function preserving}, left out
    "embedding that is also the output layer": (
        lambda p, t: relu(relu(p["e"][t] @ p["w"]) @ p["v"]) @ p["e"].T,
        TABLE,
        (np.array([1, 2, 6]),),
        {"w": True},
        ["v", "e"],
    ),
    "deep autoencoder with tied weights": (
        lambda p, x: relu(relu(relu(x @ p["a"]) @ p["b"]) @ p["b"].T) @ p["a"].T,
        P,
        (X,),
        {},
        ["a", "b[0]", "b[1]"],
    ),
    "one weight for two layers": (
        lambda p, x: relu(relu(x @ p["w"]) @ p["w"]) @ p["v"],
        {"w": normal(3, 3), "v": normal(3, 2)},
        (X,),
        {"w": False},
        [],
    ),
    "weights that are part of the output": (
        lambda p, x: (relu(x @ p["a"]) @ p["d"], jnp.sum(p["a"] ** 2)),
        P,
        (X,),
        {"a": False},
        [],
    ),
    "a few of the units by top_k": (
        lambda p, x: relu(jax.lax.top_k(relu(x @ p["a"]) @ p["b"], 4)[0] @ p["d"]) @ p["d"].T,
        P,
        (X,),
        {"a": True},
        ["d", "b"],
    ),
    "ensemble": (
        lambda p, x: jax.vmap(lambda p, x: relu(x @ p["a"]) @ p["b"], (0, None))(p, x),
        CRITICS,
        (X,),
        {"a[0]": True, "a[1]": True},
        [],
    ),
    "noise of a key that is an input": (noisy, NOISY, (X, jax.random.key(0)), {"a": True}, []),
    "noise of a raw key": (noisy, NOISY, (X, jax.random.PRNGKey(0)), {"a": True}, []),
    "generator": (
        lambda p, key: relu(jax.random.normal(key, (5, 3)) @ p["a"]) @ p["d"],
        P,
        (jax.random.key(0),),
        {"a": True},
        [],
    ),
    "scatter": (
        lambda p, x: jnp.zeros((3, 6, 5)).at[1].set(relu(relu(x @ p["a"]) @ p["b"]))[1] @ p["c"],
        P,
        (X,),
        {"a": True, "b": True},
        [],
    ),
    "sums over edges": (
        lambda p, x: relu(jax.ops.segment_sum(relu(x @ p["a"]), jnp.array([0, 0, 1, 1, 2, 2]), 3) @ p["b"]) @ p["c"],
        P,
        (X,),
        {"a": True, "b": True},
        [],
    ),
    "weights by cumsum": (
        lambda p, x: relu(relu(relu(x @ p["a"]) @ jnp.cumsum(p["b"], 0)) @ p["c"]) @ p["d"],
        P,
        (X,),
        {"c": True},
        ["b", "a"],
    ),
    "dropout on a linear layer": (
        lambda p, x, key: relu(jnp.where(jax.random.bernoulli(key, 0.5, (6, 4)), x @ p["a"], 0) @ p["b"]) @ p["c"],
        P,
        (X, jax.random.key(0)),
        {"b": True},
        ["a"],
    ),
    "network unrolled from 0": (unrolled, RNN, (normal(3, 2, 3), None), {"a": True}, []),
    "network unrolled from a state that is given": (unrolled, RNN, (normal(3, 2, 3), normal(2, 4)), {"a": False}, []),
}


@pytest.mark.parametrize("name", FOUND)
def test_every_contraction_is_a_group_or_left_out_with_a_reason(name):
    """Those that are promised to be silent pass the check, which replaces them with the machine that methods use."""
    model, params, inputs, groups, left_out = FOUND[name]
    if inputs[-1] is None:
        apply = lambda p, xs: model(p, xs, jnp.zeros((2, 4)))  # noqa: E731
        inputs = inputs[:-1]
    else:
        apply = model
    graph = trace_units(apply, params, *inputs)
    assert names(graph) == (groups, left_out)
    assert all(group.note for group in graph.left_out)
    assert all(group.note for group in graph.groups if not group.function_preserving)


def test_batch_norm_over_a_mapped_axis_has_the_units_statistics():
    apply = lambda p, s, x: jax.vmap(normed, (None, None, 0), (0, None), axis_name="batch")(p, s, x)  # noqa: E731
    stats = {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}
    (group,) = trace_units(apply, {"a": P["a"], "b": P["b"]}, X, variables=stats).groups
    assert group.function_preserving
    assert [(s.path, s.role) for s in group.variables] == [("mean", "mean"), ("var", "var")]


def test_layer_that_is_evaluated_for_nothing_gives_no_features():
    def apply(p, x):
        relu(-x[:1] @ p["a"]) @ p["d"]
        return relu(x @ p["a"]) @ p["d"]

    np.testing.assert_allclose(trace_units(apply, P, X).apply(P, X)[1]["a"], relu(X @ P["a"]), rtol=1e-6)


@jax.tree_util.register_pytree_node_class
class Distribution:
    """Takes arrays only, as distributions do."""

    def __init__(self, mean):
        self.mean = mean + 0.0

    def tree_flatten(self):
        return (self.mean,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_outputs_are_what_jit_takes():
    model = lambda p, x: (Distribution(relu(x @ p["a"]) @ p["d"]), True, 0.0, jax.lax.full((), 3), None)  # noqa: E731
    (found, flag, number, whole, nothing), _ = trace_units(model, P, X).apply(P, X)
    np.testing.assert_allclose(found.mean, relu(X @ P["a"]) @ P["d"], rtol=1e-5)
    assert (bool(flag), float(number), int(whole), nothing) == (True, 0.0, 3, None)
    assert all(isinstance(leaf, jax.Array) for leaf in (flag, number, whole))


def test_keyword_arguments_and_what_is_no_array():
    def apply(p, x, activation, *, train, scale):
        h = relu(x @ p["a"]) if activation == "relu" else jnp.tanh(x @ p["a"])
        return (h * scale if train else h) @ p["d"]

    graph = trace_units(apply, P, X, "relu", train=True, scale=jnp.float32(2.0))
    features = graph.apply(P, X, "relu", train=True, scale=jnp.float32(3.0))[1]["a"]
    np.testing.assert_allclose(features, 3 * relu(X @ P["a"]), rtol=1e-6)
    np.testing.assert_allclose(
        graph.apply(P, X, "tanh", train=False, scale=0.0)[1]["a"], np.tanh(X @ P["a"]), rtol=1e-5, atol=1e-6
    )


def model_of_the_module(p, x):
    return relu(x @ p["a"]) @ p["d"]


def test_graphs_can_be_pickled_those_of_local_models_without_them():
    graph = pickle.loads(pickle.dumps(trace_units(model_of_the_module, P, X)))
    np.testing.assert_allclose(graph.apply(P, X)[0], model_of_the_module(P, X), rtol=1e-5)
    local = trace_units(lambda p, x: model_of_the_module(p, x), P, X)
    again = pickle.loads(pickle.dumps(local))
    assert again.groups == local.groups
    with pytest.raises(ValueError, match="pickled without its model"):
        again.apply(P, X)


def test_the_check_runs_no_callbacks(capfd):
    def apply(p, x):
        jax.debug.print("seen")
        return relu(x @ p["a"]) @ p["d"]

    graph = trace_units(apply, P, X)
    jax.effects_barrier()
    assert "seen" not in capfd.readouterr().out
    jax.block_until_ready(jax.jit(graph.apply)(P, X))
    jax.effects_barrier()
    assert capfd.readouterr().out == "seen\n"


def test_what_the_check_refutes_is_left_out_and_the_rest_stays(monkeypatch):
    refuted = {"b": "in the check, replacing silent units changed the output"}
    monkeypatch.setattr("plastic_jax.units.trace.check_graph", lambda *_: refuted)
    with pytest.warns(UserWarning, match="group 'b' is left out: in the check"):
        graph = trace_units(lambda p, x: relu(relu(x @ p["a"]) @ p["b"]) @ p["c"], P, X)
    assert names(graph) == ({"a": True}, ["b"])
    assert list(graph.apply(P, X)[1]) == ["a"]


def test_rule_from_outside_says_what_an_operation_does(monkeypatch):
    monkeypatch.setattr(rules, "_EQUIVALENTS", {})
    fused = Primitive("fused_tanh")
    fused.def_impl(lambda x, *, scale: scale * jnp.tanh(x))
    fused.def_abstract_eval(lambda x, *, scale: x)
    apply = lambda p, x: relu(fused.bind(x @ p["a"], scale=2.0) @ p["b"]) @ p["c"]  # noqa: E731
    assert names(trace_units(apply, P, X, check=False)) == ({"b": True}, ["a"])
    register_rule(fused, lambda x, *, scale: scale * jnp.tanh(x))
    assert names(trace_units(apply, P, X, check=False)) == ({"a": True, "b": True}, [])
    register_rule("fused_tanh", lambda x, *, scale: x[0])
    with pytest.raises(ValueError, match=r"the rule for 'fused_tanh' gives \[\(4,\)\], the operation \[\(6, 4\)\]"):
        trace_units(apply, P, X, check=False)


def test_printed_table_has_at_most_120_columns():
    params = {f"a_rather_long_name_of_a_block_{i}": {"projection": normal(3, 3), "bias": normal(3)} for i in range(3)}

    def apply(p, x):
        for layer in p.values():
            x = relu(x @ layer["projection"] + layer["bias"])
        return x

    lines = str(trace_units(apply, params, X, check=False)).splitlines()
    assert max(map(len, lines)) <= 120
    assert "".join(line[:27].strip() for line in lines[1:]).count("a_rather_long_name_of_a_blo") >= 1
