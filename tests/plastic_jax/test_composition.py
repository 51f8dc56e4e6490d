"""Methods around methods: any two of the library compose, or one line says why not.

In `make test` every method is around two others and inside of two; in `make test-slow` all pairs are tried.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.marks import slow_unless
from tests.plastic_jax.test_contract import KEY, METHODS, PARAMS, STEPS, one_step, types

NAMES = [name for name in METHODS if name != "adam"]  # which wraps nothing
PAIRS = [(outer, inner) for outer in NAMES for inner in NAMES]
REFUSED: set[tuple[str, str]] = set()
"""Pairs (outer, inner) that are refused."""


def around(outer, inner):
    """The method `outer` with numbers with which it acts, around the transformation `inner`."""
    factory, arguments, _ = METHODS[outer].inject
    return factory(**arguments(KEY) | {"inner": inner})


def is_quick(outer, inner):
    return (NAMES.index(inner) - NAMES.index(outer)) % len(NAMES) in (1, 4)


@pytest.mark.parametrize(("outer", "inner"), slow_unless(is_quick, PAIRS))
def test_a_method_around_another_keeps_all_types(outer, inner):
    """A step leaves the types of parameters and state as they are, so that all steps are one program."""
    tx = around(outer, around(inner, optax.sgd(0.1, momentum=0.9)))

    def run(params):
        state = tx.init(params)
        return (params, state), one_step(tx, params, state, 3)

    if (outer, inner) in REFUSED:
        with pytest.raises(ValueError, match=outer) as refused:
            jax.eval_shape(run, PARAMS)
        assert "\n" not in str(refused.value)
    else:
        before, after = jax.eval_shape(run, PARAMS)
        assert types(before) == types(after)


@pytest.mark.parametrize(
    "names",
    [
        ("continual_backprop", "l2_init", "swr"),  # units and single weights are made new, with an anchor in between
        ("hare_and_tortoise", "redo", "upgd"),
    ],
)
def test_methods_around_one_another_learn_with_finite_numbers(names):
    tx = optax.sgd(0.1, momentum=0.9)
    for name in reversed(names):
        tx = around(name, tx)

    def steps(params):
        carry = (params, tx.init(params))
        return jax.lax.scan(lambda c, clock: (one_step(tx, *c, clock), None), carry, jnp.arange(STEPS))[0]

    params, state = jax.jit(steps)(PARAMS)
    floats = [leaf for leaf in jax.tree.leaves((params, state)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(np.isfinite(leaf).all() for leaf in floats)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (params, PARAMS)), strict=True))
