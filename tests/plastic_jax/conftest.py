"""Replays the recorded traces of the published code: one place for all tests that learn a recorded problem."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, trace_units

DATA = pathlib.Path(__file__).parents[1] / "data"
COMMITTED = {"conv": "image_traces.npz", "mlp": "mlp_traces.npz", "ppo": "ppo_traces.npz", "resnet": "image_traces.npz"}
GOLDEN = pathlib.Path(__file__).parents[2].parent / "shared" / "golden"


@dataclasses.dataclass(frozen=True)
class Trace:
    """A recording: its arrays by the names of `tests/data/README.md`; `full` if it is not cut short."""

    name: str
    full: bool
    arrays: dict[str, np.ndarray]

    def __getitem__(self, key):
        return self.arrays[key]

    @property
    def config(self):
        return json.loads(str(self["config"]))

    def table(self, name) -> Any:
        """Random numbers of a table as parameters of an `MLP`, `[steps, ...]`: parameter j of all, in the order W0, b0,
        W1, b1, ... and flattened in C order, has number (size * step + j) mod len(table)."""
        names = [f"{kind}{i}" for i in range(sum(key.startswith("init/W") for key in self.arrays)) for kind in "Wb"]
        shapes = [self[f"init/{each}"].shape for each in names]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        steps, table = len(self["x"]), self[name].astype(np.float64)
        drawn = np.split(table[np.arange(steps * ends[-1]) % len(table)].reshape(steps, -1), ends[:-1], axis=1)
        leaves = {f"drawn/{n}": d.reshape(steps, *s) for n, d, s in zip(names, drawn, shapes, strict=True)}
        return Trace(self.name, self.full, leaves).tree("drawn")

    def tree(self, prefix, dtype=None) -> Any:
        """`prefix/W0`, `prefix/b0`, ... as the parameters of an `MLP`; leading axes are kept."""
        layers = sum(key.startswith(f"{prefix}/W") for key in self.arrays)
        return {
            f"Dense_{i}": {
                "kernel": np.asarray(np.swapaxes(self[f"{prefix}/W{i}"], -1, -2), dtype),
                "bias": np.asarray(self[f"{prefix}/b{i}"], dtype),
            }
            for i in range(layers)
        }


@dataclasses.dataclass(frozen=True)
class Replayed:
    """Our own run: `losses` [steps], final parameters and state, and `seen` [steps, ...] of every step."""

    losses: np.ndarray
    params: Any
    state: Any
    seen: Any


def recording(name, full):
    """The file that has the recording `name`, or its committed part, and what its keys begin with there."""
    if full:
        path = GOLDEN / f"{name}.npz"
        return (path if path.exists() else GOLDEN / "methods" / f"{name}.npz"), ""
    group = COMMITTED.get(name.split("_")[0])
    return (DATA / group, f"{name}/") if group else (DATA / "methods" / f"{name}.npz", "")


def load_trace(name, full=False):
    """The recording `name`: its committed part, or all of it where the full recordings are at hand."""
    path, prefix = recording(name, full)
    if not path.exists():
        pytest.skip(f"RECORDING NOT REPLAYED: not found: {path}")
    with np.load(path) as file:
        return Trace(name, full, {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)})


def nothing(*_):
    return ()


def replay_trace(trace, make_tx, *, precision="f64", extra=None, see=nothing, arguments=None):
    """Learns a recorded problem.

    `make_tx(config, units, extra)` gives the transformation, inside the compiled step; `extra` is what that step has
    of a pytree of `[steps, ...]` arrays. `see(state)` is kept of every step; `arguments(extra)` are more extra
    arguments of `update`. Compiled once for a `make_tx`, `see` and `arguments`.
    """
    with jax.enable_x64(precision == "f64"):
        dtype = jnp.float64 if precision == "f64" else jnp.float32
        params = jax.tree.map(jnp.asarray, trace.tree("init", dtype))
        y = trace["y"] if trace.config["loss"] == "nll" else trace["y"].astype(dtype)
        widths = tuple(len(b["bias"]) for b in params.values())
        step, init = _program(str(trace["config"]), trace["x"].shape[-1], widths, make_tx, see, arguments or nothing)
        extra = jax.tree.map(lambda a: np.asarray(a, dtype), extra)
        state = init(params, jax.tree.map(lambda a: a[0], extra))
        losses, seen = [], []
        for t, x in enumerate(trace["x"].astype(dtype)):
            params, state, loss, now = step(params, state, x, y[t], jax.tree.map(lambda a, t=t: a[t], extra))
            losses.append(loss)
            seen.append(now)
        stacked = jax.tree.map(lambda *rows: np.stack([np.asarray(row) for row in rows]), *seen)
        return Replayed(np.asarray(losses), params, state, stacked)


@functools.cache
def _program(config, inputs, widths, make_tx, see, arguments):
    config = json.loads(config)
    network = MLP(widths=widths[:-1], outputs=widths[-1], activation=config.get("activation", "relu"))

    def objective(params, units, x, y):
        output, features = units.apply(params, x)
        if config["loss"] == "mse":
            return jnp.mean((output - y) ** 2), features
        return optax.softmax_cross_entropy_with_integer_labels(output, y).mean(), features

    x = jax.ShapeDtypeStruct((1, inputs), jnp.float32)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x)["params"], x)
    units = trace_units(lambda params, x: network.apply({"params": params}, x), shapes, x)

    def step(params, state, x, y, extra):
        (loss, features), gradient = jax.value_and_grad(objective, has_aux=True)(params, units, x, y)
        tx = make_tx(config, units, extra)
        more = {"features": features} | dict(arguments(extra))
        updates, state = tx.update(gradient, state, params, **more)
        return optax.apply_updates(params, updates), state, loss, see(state)

    init = jax.jit(lambda params, extra: make_tx(config, units, extra).init(params))
    return jax.jit(step), init


def assert_tree_close(actual, expected, **tolerance):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, **({"rtol": 1e-9, "atol": 1e-12} | tolerance)), actual, expected
    )


@pytest.fixture(scope="session")
def replay():
    """`replay(name, make_tx)` learns a recorded problem: its committed beginning and, where it is at hand, all of it.

    In float64 losses must agree to 1e-9, and at the end of the whole the parameters too; in float32 the losses of the
    whole to 1e-5 of the largest. Other arguments are those of `replay_trace`, but `extra` is a function of the trace.
    Gives `(trace, replayed)` of the longest in float64.
    """

    def check(name, make_tx, *, extra=lambda trace: None, **options):
        longest = None
        lengths = [full for full in (False, True) if recording(name, full)[0].exists()] or [True]
        for full in lengths:
            trace = load_trace(name, full)
            longest = trace, replay_trace(trace, make_tx, extra=extra(trace), **options)
            np.testing.assert_allclose(longest[1].losses, trace["f64/loss"], rtol=1e-9)
        if full:
            assert_tree_close(longest[1].params, trace.tree("f64/final"))
            single = replay_trace(trace, make_tx, precision="f32", extra=extra(trace), **options)
            recorded = trace["f32/loss"]
            np.testing.assert_allclose(single.losses, recorded, rtol=0, atol=1e-5 * recorded.max())
        return longest

    return check


@pytest.fixture(scope="session")
def traces():
    """The functions above, for tests that look at more than the losses."""
    return load_trace, replay_trace, assert_tree_close


def assert_summaries_close(trace, prefix, arrays, *, rtol=1e-9, atol=1e-12):
    """Arrays by their recorded names are what the recording says of them: the sums of the values and of their sizes,
    and 64 of the values; or all of the values, of a small array."""
    for name, array in arrays.items():
        key, flat = f"{prefix}/{name}", np.asarray(array, np.float64).ravel()
        if key in trace.arrays:
            np.testing.assert_allclose(array, trace[key], rtol, atol, err_msg=key)
            continue
        size = np.abs(flat).sum()
        np.testing.assert_allclose([flat.sum(), size], trace[f"{key}/sum_abssum"], atol=rtol * size + atol, err_msg=key)
        at = np.linspace(0, flat.size - 1, min(64, flat.size)).astype(np.int64)
        np.testing.assert_allclose(flat[at], trace[f"{key}/samples"], rtol, atol, err_msg=key)


@pytest.fixture(scope="session")
def summaries():
    return assert_summaries_close
