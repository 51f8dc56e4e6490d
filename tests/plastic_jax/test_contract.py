"""What every method of the library promises as an optax transformation. A new method is one more entry in METHODS."""

import dataclasses
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from plastic_jax import MLP, Utility, methods, trace_units
from plastic_jax.methods.boundary_resets import (
    reset_head_at_boundary,
    reset_network_at_boundary,
    reset_optimizer_at_boundary,
)
from plastic_jax.methods.continual_backprop import CONTINUAL_BACKPROP_STATIC_ARGS, continual_backprop
from plastic_jax.methods.cpr import CPR_STATIC_ARGS, cpr
from plastic_jax.methods.dash import dash
from plastic_jax.methods.fire import fire, fire_at_boundary
from plastic_jax.methods.hare_and_tortoise import hare_and_tortoise
from plastic_jax.methods.l2_init import l2_init, l2_init_after_first_update
from plastic_jax.methods.normalize_and_project import normalize_and_project
from plastic_jax.methods.parseval import parseval
from plastic_jax.methods.redo import REDO_STATIC_ARGS, redo
from plastic_jax.methods.regrama import REGRAMA_STATIC_ARGS, regrama
from plastic_jax.methods.shrink_and_perturb import (
    published_shrink_and_perturb,
    shrink_and_perturb,
    shrink_and_perturb_at_boundary,
)
from plastic_jax.methods.snr import SNR_STATIC_ARGS, snr
from plastic_jax.methods.sparse import SPARSE_STATIC_ARGS, sparse
from plastic_jax.methods.spectral import spectral
from plastic_jax.methods.swr import swr
from plastic_jax.methods.upgd import feature_upgd, upgd
from plastic_jax.methods.weight_clipping import weight_clipping
from plastic_jax.methods.weight_decay import weight_decay
from plastic_jax.optimizers.adam import adam
from plastic_jax.signature import static_args
from tests.marks import slow_unless

NETWORK = MLP(widths=(4, 3), outputs=2)
X = jax.random.normal(jax.random.key(0), (5, 6))
Y = jax.random.normal(jax.random.key(1), (5, 2))
PARAMS: Any = NETWORK.init(jax.random.key(2), X)["params"]
UNITS = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), PARAMS, X)
KEY = jax.random.key(3)
_VALUES = UNITS.apply(PARAMS, X)[1]
FEATURES: Any = {"features": _VALUES, "feature_gradients": jax.tree.map(jnp.sin, _VALUES)}


def fresh(key):
    return NETWORK.init(key, X)["params"]


def inner(h):
    return optax.sgd(h["step_size"], momentum=0.9)


def everything(stats):
    """A measure that looks at all there is."""
    return stats.worth + jnp.abs(stats.outgoing_gradient) + stats.lifetime_absolute + stats.mean_absolute_centred


EVERYTHING = Utility(everything, needs=("worth", "outgoing_gradient", "lifetime_absolute"))


@dataclasses.dataclass(frozen=True)
class Method:
    """How to build it from numbers and a key, numbers with which it acts, and those with which it does not.

    `inject` is the factory, its arguments and its static ones.
    """

    build: Callable[[dict[str, Any], jax.Array], optax.GradientTransformation]
    numbers: dict[str, float]
    off: dict[str, float] | None
    inject: tuple[Callable[..., Any], Callable[[jax.Array], dict[str, Any]], tuple[str, ...]]


METHODS = {
    "continual_backprop": Method(
        lambda h, key: continual_backprop(
            inner(h),
            UNITS,
            replacement_rate=h["rate"],
            maturity_threshold=h["age"],
            decay_rate=h["decay"],
            key=key,
        ),
        {"rate": 0.3, "age": 1, "decay": 0.9},
        {"rate": 0.0},
        (
            continual_backprop,
            lambda key: {
                "inner": optax.sgd(0.1),
                "units": UNITS,
                "replacement_rate": 0.3,
                "maturity_threshold": 1,
                "key": key,
            },
            CONTINUAL_BACKPROP_STATIC_ARGS,
        ),
    ),
    "continual_backprop_that_looks_at_everything": Method(
        lambda h, key: continual_backprop(
            inner(h),
            UNITS,
            replacement_rate=h["rate"],
            maturity_threshold=h["age"],
            utility=EVERYTHING,
            count="bernoulli",
            count_units="all",
            max_replacements=2,
            transfer_bias=True,
            key=key,
        ),
        {"rate": 0.5, "age": 1},
        {"rate": 0.0},
        (
            continual_backprop,
            lambda key: {
                "inner": optax.sgd(0.1),
                "units": UNITS,
                "replacement_rate": 0.3,
                "maturity_threshold": 1,
                "utility": "first_order",
                "key": key,
            },
            CONTINUAL_BACKPROP_STATIC_ARGS,
        ),
    ),
    "redo": Method(
        lambda h, key: redo(
            inner(h), UNITS, threshold=h["threshold"], period=h["period"], decay_rate=h["decay"], key=key
        ),
        {"threshold": 0.9, "period": 2, "decay": 0.5},
        {"threshold": 0.9, "period": 1000},
        (
            redo,
            lambda key: {"inner": optax.sgd(0.1), "units": UNITS, "threshold": 0.9, "period": 1, "key": key},
            REDO_STATIC_ARGS,
        ),
    ),
    "regrama": Method(
        lambda h, key: regrama(inner(h), UNITS, threshold=h["threshold"], period=h["period"], key=key),
        {"threshold": 0.9, "period": 2},
        {"threshold": 0.9, "period": 1000},
        (
            regrama,
            lambda key: {"inner": optax.sgd(0.1), "units": UNITS, "threshold": 0.9, "period": 1, "key": key},
            REGRAMA_STATIC_ARGS,
        ),
    ),
    "snr": Method(
        lambda h, key: snr(
            inner(h), UNITS, initial_limit=h["limit"], percentile=h["share"], period=3, longest_silence=4, key=key
        ),
        {"limit": 1.0, "share": 0.5},
        {"limit": 100.0},
        (
            snr,
            lambda key: {"inner": optax.sgd(0.1), "units": UNITS, "initial_limit": 1.0, "key": key},
            SNR_STATIC_ARGS,
        ),
    ),
    "cpr": Method(
        lambda h, key: cpr(inner(h), UNITS, replacement_rate=h["rate"], period=h["period"], key=key),
        {"rate": 0.3, "period": 2},
        {"rate": 0.0, "period": 1},
        (
            cpr,
            lambda key: {"inner": optax.sgd(0.1), "units": UNITS, "replacement_rate": 0.3, "period": 1, "key": key},
            CPR_STATIC_ARGS,
        ),
    ),
    "weight_decay": Method(
        lambda h, key: weight_decay(inner(h), h["rate"]),
        {"rate": 0.1},
        {"rate": 0.0},
        (weight_decay, lambda key: {"inner": optax.sgd(0.1), "weight_decay": 0.1}, static_args(weight_decay)),
    ),
    "weight_decay_decoupled": Method(
        lambda h, key: weight_decay(inner(h), h["rate"], coupled=False, step_size=h["step_size"]),
        {"rate": 0.1},
        {"rate": 0.0},
        (
            weight_decay,
            lambda key: {"inner": optax.sgd(0.1), "weight_decay": 0.1, "coupled": False, "step_size": 0.1},
            ("coupled",),
        ),
    ),
    "l2_init": Method(
        lambda h, key: l2_init(inner(h), strength=h["strength"]),
        {"strength": 0.1},
        {"strength": 0.0},
        (l2_init, lambda key: {"inner": optax.sgd(0.1), "strength": 0.1}, static_args(l2_init)),
    ),
    "l2_init_resampled": Method(
        lambda h, key: l2_init(inner(h), strength=h["strength"], resample=True, init=fresh, key=key),
        {"strength": 0.1},
        {"strength": 0.0},
        (
            l2_init,
            lambda key: {"inner": optax.sgd(0.1), "strength": 0.1, "resample": True, "init": fresh, "key": key},
            static_args(l2_init),
        ),
    ),
    "l2_init_by_rank": Method(
        lambda h, key: l2_init(inner(h), strength=h["strength"], match="rank", mean=True),
        {"strength": 0.1},
        {"strength": 0.0},
        (l2_init, lambda key: {"inner": optax.sgd(0.1), "strength": 0.1, "match": "rank"}, static_args(l2_init)),
    ),
    "l2_init_after_first_update": Method(
        lambda h, key: l2_init_after_first_update(inner(h), strength=h["strength"], step_size=h["step_size"]),
        {"strength": 0.1},
        {"strength": 0.0},
        (
            l2_init_after_first_update,
            lambda key: {"inner": optax.sgd(0.1), "strength": 0.1, "step_size": 0.1},
            static_args(l2_init_after_first_update),
        ),
    ),
    "spectral": Method(
        lambda h, key: spectral(inner(h), strength=h["strength"], exponent=h["exponent"]),
        {"strength": 0.1, "exponent": 2.0},
        {"strength": 0.0},
        (spectral, lambda key: {"inner": optax.sgd(0.1), "strength": 0.1}, static_args(spectral)),
    ),
    "parseval": Method(
        lambda h, key: parseval(inner(h), UNITS, strength=h["strength"], target=h["target"]),
        {"strength": 1e-3, "target": 2.0},
        {"strength": 0.0},
        (
            parseval,
            lambda key: {"inner": optax.sgd(0.1), "units": UNITS, "strength": 1e-3},
            static_args(parseval),
        ),
    ),
    "weight_clipping": Method(
        lambda h, key: weight_clipping(inner(h), bound=h["bound"]),
        {"bound": 0.8},
        {"bound": 1e6},
        (weight_clipping, lambda key: {"inner": optax.sgd(0.1), "bound": 0.8}, static_args(weight_clipping)),
    ),
    "normalize_and_project": Method(
        lambda h, key: normalize_and_project(inner(h), radius=h["radius"], period=h["period"]),
        {"radius": 1.1, "period": 2},
        {"period": 1000},
        (
            normalize_and_project,
            lambda key: {"inner": optax.sgd(0.1), "radius": 1.1, "period": 1},
            static_args(normalize_and_project),
        ),
    ),
    "fire": Method(
        lambda h, key: fire(inner(h), period=h["period"]),
        {"period": 2},
        {"period": 1000},
        (fire, lambda key: {"inner": optax.sgd(0.1), "period": 1}, static_args(fire)),
    ),
    "fire_at_boundary": Method(
        lambda h, key: fire_at_boundary(inner(h)),
        {},
        None,
        (fire_at_boundary, lambda key: {"inner": optax.sgd(0.1)}, static_args(fire_at_boundary)),
    ),
    "shrink_and_perturb": Method(
        lambda h, key: shrink_and_perturb(inner(h), shrink=h["shrink"], noise=h["noise"], key=key),
        {"shrink": 0.01, "noise": 0.1},
        {"shrink": 0.0, "noise": 0.0},
        (
            shrink_and_perturb,
            lambda key: {"inner": optax.sgd(0.1), "shrink": 0.01, "noise": 0.1, "key": key},
            static_args(shrink_and_perturb),
        ),
    ),
    "published_shrink_and_perturb": Method(
        lambda h, key: published_shrink_and_perturb(inner(h), weight_decay=h["rate"], noise_std=h["noise"], key=key),
        {"rate": 0.01, "noise": 0.1},
        {"rate": 0.0, "noise": 0.0},
        (
            published_shrink_and_perturb,
            lambda key: {"inner": optax.sgd(0.1), "weight_decay": 0.01, "noise_std": 0.1, "key": key},
            static_args(published_shrink_and_perturb),
        ),
    ),
    "shrink_and_perturb_at_boundary": Method(
        lambda h, key: shrink_and_perturb_at_boundary(
            inner(h), shrink=h["keep"], perturb=h["fresh"], init=fresh, key=key
        ),
        {"keep": 0.4, "fresh": 0.1},
        None,  # shrink=1 is off up to rounding, at a boundary
        (
            shrink_and_perturb_at_boundary,
            lambda key: {"inner": optax.sgd(0.1), "shrink": 0.4, "perturb": 0.1, "init": fresh, "key": key},
            static_args(shrink_and_perturb_at_boundary),
        ),
    ),
    "reset_optimizer_at_boundary": Method(
        lambda h, key: reset_optimizer_at_boundary(inner(h)),
        {},
        None,
        (reset_optimizer_at_boundary, lambda key: {"inner": optax.sgd(0.1, momentum=0.9)}, ()),
    ),
    "reset_network_at_boundary": Method(
        lambda h, key: reset_network_at_boundary(inner(h), init=fresh, key=key),
        {},
        None,
        (
            reset_network_at_boundary,
            lambda key: {"inner": optax.sgd(0.1), "init": fresh, "key": key},
            static_args(reset_network_at_boundary),
        ),
    ),
    "reset_head_at_boundary": Method(
        lambda h, key: reset_head_at_boundary(inner(h), head="Dense_2", init=fresh, key=key),
        {},
        None,
        (
            reset_head_at_boundary,
            lambda key: {"inner": optax.sgd(0.1), "head": "Dense_2", "init": fresh, "key": key},
            static_args(reset_head_at_boundary),
        ),
    ),
    "swr": Method(
        lambda h, key: swr(
            inner(h), factor=h["factor"], period=h["period"], decay_rate=h["decay"], init=fresh, key=key
        ),
        {"factor": 0.5, "period": 2, "decay": 0.5},
        {"factor": 0.0},
        (
            swr,
            lambda key: {"inner": optax.sgd(0.1), "factor": 0.5, "period": 1, "init": fresh, "key": key},
            static_args(swr),
        ),
    ),
    "sparse": Method(
        lambda h, key: sparse(
            inner(h),
            density=h["density"],
            exchange_rate=h["rate"],
            exchange_period=h["period"],
            connection_maturity=h["age"],
            key=key,
        ),
        {"density": 0.5, "rate": 0.3, "period": 2, "age": 1},
        {"density": 1.0, "rate": 0.0},
        (
            sparse,
            lambda key: {
                "inner": optax.sgd(0.1),
                "density": 0.5,
                "exchange_rate": 0.3,
                "exchange_period": 1,
                "key": key,
            },
            SPARSE_STATIC_ARGS,
        ),
    ),
    "upgd": Method(
        lambda h, key: upgd(
            inner(h), step_size=h["step_size"], noise=h["noise"], decay_rate=h["decay"], weight_decay=0.1, key=key
        ),
        {"noise": 0.5, "decay": 0.9},
        None,  # a weight of utility 0 has half of inner's step, whatever the numbers
        (
            upgd,
            lambda key: {"inner": optax.sgd(0.1), "step_size": 0.1, "noise": 0.5, "key": key},
            static_args(upgd),
        ),
    ),
    "feature_upgd": Method(
        lambda h, key: feature_upgd(
            inner(h), UNITS, step_size=h["step_size"], noise=h["noise"], decay_rate=h["decay"], scope="local", key=key
        ),
        {"noise": 0.5, "decay": 0.9},
        None,
        (
            feature_upgd,
            lambda key: {"inner": optax.sgd(0.1), "units": UNITS, "step_size": 0.1, "noise": 0.5, "key": key},
            static_args(feature_upgd),
        ),
    ),
    "hare_and_tortoise": Method(
        lambda h, key: hare_and_tortoise(
            inner(h), decay_rate=h["decay"], period=h["period"], offset=h["offset"], aliased=True
        ),
        {"decay": 0.5, "period": 3, "offset": 1},
        {"period": 1000, "offset": 0},
        (
            hare_and_tortoise,
            lambda key: {"inner": optax.sgd(0.1), "decay_rate": 0.5, "period": 1},
            static_args(hare_and_tortoise),
        ),
    ),
    "dash": Method(
        lambda h, key: dash(inner(h), rate=h["rate"], minimum=h["minimum"], batches=h["batches"]),
        {"rate": 0.3, "minimum": 0.3, "batches": 2},
        None,  # it has no number without which a boundary is no boundary
        (dash, lambda key: {"inner": optax.sgd(0.1), "rate": 0.3, "batches": 1}, static_args(dash)),
    ),
    "adam": Method(
        lambda h, key: adam(h["step_size"], h["b1"]),
        {"b1": 0.8},
        None,
        (adam, lambda key: {"step_size": 0.1, "b1": 0.8}, ("bias_correction",)),
    ),
}
STEPS = 6


def test_every_method_of_the_library_is_among_them():
    modules = [importlib.import_module(f"{methods.__name__}.{m.name}") for m in pkgutil.iter_modules(methods.__path__)]
    found = [value for module in modules for value in vars(module).values()]
    marked = {value.__name__ for value in found if inspect.isfunction(value) and hasattr(value, "needs")}
    assert marked == {method.inject[0].__name__ for method in METHODS.values()} - {"adam"}


EAGER = ("continual_backprop", "redo", "l2_init", "spectral", "shrink_and_perturb", "swr", "hare_and_tortoise")
"""One of each kind: `make test` steps these without a compiler, `make test-slow` all."""


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def numbers(method, **change):
    return {"step_size": 0.1} | method.numbers | change


def one_step(tx, params, state, clock, **extra):
    learned = UNITS.value_and_grad(lambda output: jnp.mean((output - Y) ** 2), feature_gradients=True)
    (value, features), (gradient, own) = learned(params, X.astype(params["Dense_0"]["kernel"].dtype))
    update: Any = optax.with_extra_args_support(tx).update
    clock = jnp.asarray(clock, jnp.int32)
    updates, state = update(
        gradient,
        state,
        params,
        features=features,
        feature_gradients=own,
        boundary=clock == 3,
        loss=value,
        clock=clock,
        **extra,
    )
    return optax.apply_updates(params, updates), state


def scanned(method, h, key) -> Any:
    tx = method.build(h, key)
    carry = (PARAMS, tx.init(PARAMS))
    return jax.lax.scan(lambda c, clock: (one_step(tx, *c, clock), None), carry, jnp.arange(STEPS))[0]


def plain(tree):
    """Keys as their data, so that trees can be compared as numbers."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def assert_close(a, b, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), plain(a), plain(b))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_state_keeps_structure_shapes_and_types_with_arguments_it_does_not_know(method, dtype):
    params = optax.tree.cast(PARAMS, dtype)

    def run(h):
        tx = method.build(h, KEY)
        state = tx.init(params)
        return (params, state), one_step(tx, params, state, 0, surprise=1.0)

    h = jax.tree.map(jnp.asarray, numbers(method))
    before, after = jax.eval_shape(run, h)
    assert types(before) == types(after)


def test_lanes_scan_and_python_loop_agree(method):
    """vmap = loop over lanes with keys and numbers of their own, scan = loop over steps, one compilation for all."""
    lanes = [(numbers(method), KEY), (numbers(method, step_size=0.05), jax.random.key(8))]
    h, keys = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    mapped = jax.jit(jax.vmap(lambda h, key: scanned(method, h, key)))(h, keys)
    step = jax.jit(lambda h, key, params, state, clock: one_step(method.build(h, key), params, state, clock))
    for lane, (h, key) in enumerate(lanes):
        h = jax.tree.map(jnp.asarray, h)
        params, state = PARAMS, method.build(h, key).init(PARAMS)
        for clock in range(STEPS):
            params, state = step(h, key, params, state, jnp.int32(clock))
        assert_close(jax.tree.map(lambda leaf, lane=lane: leaf[lane], mapped), (params, state))
    assert step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("method", slow_unless(lambda name: name in EAGER, METHODS), indirect=True)
def test_compiled_is_eager(method):
    tx = method.build(numbers(method), KEY)
    state, gradient = tx.init(PARAMS), jax.tree.map(jnp.cos, PARAMS)
    extra = FEATURES | {"boundary": jnp.array(True), "clock": jnp.int32(3)}
    compiled = jax.jit(lambda gradient, extra: tx.update(gradient, state, PARAMS, **extra))(gradient, extra)
    with jax.disable_jit():  # else every branch is compiled as well, and every function of jax.numpy for itself
        eager = tx.update(gradient, state, PARAMS, **extra)
    assert_close(compiled, eager)


def test_switched_off_it_is_inner_bit_for_bit(method):
    if method.off is None:
        pytest.skip("it has no numbers with which it does nothing")
    h = jax.tree.map(jnp.asarray, numbers(method, **method.off))
    gradient = jax.tree.map(jnp.cos, PARAMS)
    extra = FEATURES | {"boundary": jnp.array(True), "clock": jnp.int32(3)}

    @jax.jit
    def ours(h, gradient):
        tx: Any = method.build(h, KEY)
        updates, state = tx.update(gradient, tx.init(PARAMS), PARAMS, **extra)
        return updates, getattr(state, "inner", state)

    assert_equal(ours(h, gradient), jax.jit(inner(h).update)(gradient, inner(h).init(PARAMS)))


def test_works_with_injected_numbers_and_its_state_may_be_given_away(method):
    factory, arguments, static = method.inject
    direct = factory(**arguments(jax.random.key(3)))
    # optax keeps injected arguments in its state as they are: a key of its own, so that it may be given away too.
    injected = optax.inject_hyperparams(factory, static_args=static)(**arguments(jax.random.key(3)))
    forms = (direct, injected)

    def step(params, states):
        return [one_step(tx, params, state, 3) for tx, state in zip(forms, states, strict=True)]

    states = [tx.init(PARAMS) for tx in forms]
    (alone, state), (with_injected, injected_state) = jax.jit(step, donate_argnums=1)(PARAMS, states)
    assert_close(alone, with_injected)
    assert_close(state, injected_state.inner_state)
    direct.init(PARAMS)  # what the caller gave is still there


def test_works_inside_of_optax_wrappers(method):
    """Two steps in a chain, behind a mask, gathering two gradients a step, and with a gradient that is not finite."""
    tx = method.build(numbers(method), KEY)
    gather = optax.MultiSteps(tx, 2)
    forms: dict[str, Any] = {
        "plain": tx,
        "chain": optax.chain(optax.identity(), tx),
        "mask": optax.masked(tx, lambda tree: {name: name != "other" for name in tree}),
        "gather": optax.GradientTransformationExtraArgs(gather.init, gather.update),
        "finite": optax.apply_if_finite(tx, 3),
    }
    if "init" in method.inject[1](KEY):
        del forms["mask"]  # it draws a whole network, which has no gaps
    gradient = jax.tree.map(jnp.cos, PARAMS)
    nothing, twice, bad = (jax.tree.map(lambda g, by=by: g * by, gradient) for by in (0, 2, jnp.nan))
    # Each form's gradients; those that must change nothing yet come first.
    given = {"gather": [nothing, twice] * 2, "finite": [bad, gradient] * 2}

    def step(carry, gradients, clocks):
        after = {}
        for name, form in forms.items():
            params, state = carry[name]
            grads = gradients[name] | ({"other": jnp.full(3, 7.0)} if name == "mask" else {})
            extra = FEATURES | {"boundary": jnp.array(True), "clock": clocks[name]}
            updates, state = optax.with_extra_args_support(form).update(grads, state, params, **extra)
            after[name] = optax.apply_updates(params, updates), state
        return after

    def begin():
        params = {name: PARAMS | ({"other": jnp.ones(3)} if name == "mask" else {}) for name in forms}
        return {name: (params[name], form.init(params[name])) for name, form in forms.items()}

    def arguments(call):
        gradients = {name: given.get(name, [gradient] * 4)[call] for name in forms}
        return gradients, {name: jnp.int32(call // 2 if name in given else call) for name in forms}

    carry = jax.jit(begin)()
    compiled = jax.jit(step)
    carries = [carry := compiled(carry, *arguments(call)) for call in range(4)]
    done = {name: carries[3 if name in given else 1][name] for name in forms}
    params, state = done.pop("plain")
    inside = {
        "chain": lambda s: s[1],
        "mask": lambda s: s.inner_state,
        "gather": lambda s: s.inner_opt_state,
        "finite": lambda s: s.inner_state,
    }
    for name, (others, other_state) in done.items():
        if name == "mask":
            np.testing.assert_array_equal(others.pop("other"), 1 + 2 * 7.0)  # its own gradient, untouched
        assert_close(others, params)
        ours = jax.tree.leaves(plain(inside[name](other_state)))
        assert_close(ours, jax.tree.leaves(plain(state)))


def test_state_comes_back_from_disk_as_it_was(method, tmp_path):
    """With orbax, flax's msgpack, pickle and equinox."""
    tx = method.build(numbers(method), KEY)
    _, state = jax.jit(lambda params: one_step(tx, params, tx.init(params), 0))(PARAMS)
    check_saving(state, tmp_path)


@pytest.mark.parametrize("method", [continual_backprop, redo])
def test_groups_whose_names_have_slashes_are_saved_too(method, tmp_path):
    params = {"params": PARAMS}
    units = trace_units(NETWORK.apply, params, X)
    more = {"replacement_rate": 0.1} if method is continual_backprop else {}
    state = method(optax.adam(0.1), units, key=KEY, log_size=3, **more).init(params)
    assert set(state.age) == {"params/Dense_0", "params/Dense_1"}
    check_saving(state, tmp_path)


def check_saving(state, tmp_path):
    assert all(isinstance(leaf, jax.Array) and leaf.dtype.kind in "fiub" for leaf in jax.tree.leaves(state))

    def check(restored):
        restored = jax.tree.map(jnp.asarray, restored)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert types(restored) == types(jax.tree.map(jnp.asarray, state))
        assert_equal(restored, state)

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        check(checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state)))
    check(serialization.from_bytes(state, serialization.to_bytes(state)))
    check(pickle.loads(pickle.dumps(state)))
    equinox = pytest.importorskip("equinox")
    equinox.tree_serialise_leaves(tmp_path / "state.eqx", state)
    check(equinox.tree_deserialise_leaves(tmp_path / "state.eqx", state))


def test_raw_keys_are_taken(method):
    """`jax.random.PRNGKey` gives the numbers of `jax.random.key`."""
    typed, raw = (method.build(numbers(method), make(3)) for make in (jax.random.key, jax.random.PRNGKey))
    assert_equal(typed.init(PARAMS), raw.init(PARAMS))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_any_kind_of_typed_key_will_do(method, impl):
    key = jax.random.key(0, impl=impl)
    tx = method.build(numbers(method), key)
    state = jax.eval_shape(lambda: one_step(tx, PARAMS, tx.init(PARAMS), 3)[1])
    if getattr(state, "key", None) is not None:
        assert state.key.shape == jax.random.key_data(key).shape
