import subprocess
import sys
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax.paths import get_leaf, leaf_key, leaf_names, random_like, set_leaves


class Pair(NamedTuple):
    left: jax.Array
    right: list


TREE = {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "pair": Pair(jnp.ones(1), [jnp.ones(2), {}])}


def test_names_join_keys_fields_and_positions():
    assert leaf_names(TREE) == ["Dense_0/bias", "Dense_0/kernel", "pair/left", "pair/right/0"]
    with pytest.raises(ValueError, match="the same name 'a/b'"):
        leaf_names({"a/b": 1, "a": {"b": 2}})


def test_leaf_is_read_and_set_by_name_and_the_tree_stays_as_it_was():
    assert get_leaf(TREE, "pair/right/0").shape == (2,)
    changed = set_leaves(TREE, {"Dense_0/bias": jnp.full(3, 7.0)})
    assert changed["Dense_0"]["bias"][0] == 7
    assert TREE["Dense_0"]["bias"][0] == 0
    assert jax.tree.structure(changed) == jax.tree.structure(TREE)
    for use in (lambda: get_leaf(TREE, "Dense_0/kernal"), lambda: set_leaves(TREE, {"Dense_0/kernal": 1})):
        with pytest.raises(ValueError, match="no leaf is called 'Dense_0/kernal'; did you mean 'Dense_0/kernel'"):
            use()


def test_keys_of_names_are_the_same_in_every_process():
    code = (
        "import jax; from plastic_jax.paths import leaf_key; "
        "print(jax.random.key_data(leaf_key(jax.random.key(5), 'a/b')))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    ours = jax.random.key_data(leaf_key(jax.random.key(5), "a/b"))
    assert str(ours) == other
    np.testing.assert_array_equal(ours, jax.random.key_data(jax.random.fold_in(jax.random.key(5), zlib.crc32(b"a/b"))))


def test_random_leaves_depend_on_their_own_names_only():
    key = jax.random.key(0)
    whole = random_like(key, TREE, jax.random.normal)
    part = random_like(key, {"Dense_0": {"kernel": TREE["Dense_0"]["kernel"]}}, jax.random.normal)
    np.testing.assert_array_equal(whole["Dense_0"]["kernel"], part["Dense_0"]["kernel"])
    same_shape = random_like(key, {"a": jnp.ones(3), "b": jnp.ones(3)}, jax.random.normal)
    assert (same_shape["a"] != same_shape["b"]).all()
