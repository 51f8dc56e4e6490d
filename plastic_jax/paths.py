"""Names of the leaves of a pytree, and random keys that depend on these names alone.

A name joins the keys on the way to a leaf with "/": `params/Dense_0/kernel`. It is the same on every platform, in every
process and for every version of JAX, so that names may stand in saved files and random keys may be made from them.
"""

import difflib
import sys
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

PyTree = Any
Sampler = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
Tree = TypeVar("Tree")


def path_name(path: tuple[Any, ...]) -> str:
    """The keys of one `jax.tree_util` path joined with "/", for example "params/Dense_0/kernel" or "layers/0/bias"."""
    return "/".join(_entry_name(entry) for entry in path)


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Name and value of every leaf, in the order of `jax.tree.leaves`.

    A `flax.nnx.Variable` is no part of a name: a tree of variables has the names of the same tree of arrays.
    """
    variable = getattr(sys.modules.get("flax.nnx"), "Variable", ())
    found = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, variable)):
        inside = jax.tree_util.tree_leaves_with_path(node) if isinstance(node, variable) else [((None,), node)]
        found += [(path_name((*path, *within[1:])), leaf) for within, leaf in inside]
    return found


def leaf_names(tree: PyTree) -> list[str]:
    """The name of every leaf, in the order of `jax.tree.leaves`. ValueError where two leaves have the same name."""
    names = [name for name, _ in named_leaves(tree)]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two leaves of the tree have the same name {twice[0]!r}; a key must not contain '/'")
    return names


def leaf_key(key: jax.Array, name: str) -> jax.Array:
    """A key for the leaf called `name`: `fold_in(key, name_number(name))`."""
    return jax.random.fold_in(key, name_number(name))


def name_number(name: str) -> int:
    """The CRC-32 of a name, below 2^32. (Python's own hash differs between processes.)"""
    return zlib.crc32(name.encode())


def get_leaf(tree: PyTree, name: str) -> Any:
    """The leaf called `name`. ValueError naming the nearest match where there is none."""
    names = leaf_names(tree)
    _require_known(name, names)
    return jax.tree.leaves(tree)[names.index(name)]


def set_leaves(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """A tree of the same structure in which the leaves named in `values` are replaced; `tree` itself is not changed.

    ValueError naming the nearest match where `values` names a leaf that the tree does not have.
    """
    names = leaf_names(tree)
    for name in values:
        _require_known(name, names)
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, [values.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)])


def keep_leaves(tree: Tree, old: Tree, names: Collection[str]) -> Tree:
    """`tree` with the leaves called `names` as they are in `old`."""
    return set_leaves(tree, {name: get_leaf(old, name) for name in names}) if names else tree


def random_like(key: jax.Array, tree: Tree, sampler: Sampler) -> Tree:
    """A tree like `tree` in structure, shapes and dtypes whose leaves are `sampler(leaf_key, shape, dtype)`.

    A leaf's numbers depend on `key` and its own name only, not on which other leaves there are.
    `jax.random.normal` and `jax.random.uniform` are samplers.
    """
    names = leaf_names(tree)
    leaves, treedef = jax.tree.flatten(tree)
    drawn = [sampler(leaf_key(key, name), leaf.shape, leaf.dtype) for name, leaf in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def normal_like(key: jax.Array, tree: Tree) -> Tree:
    """A tree like `tree` of standard normal numbers, all from one draw.

    In a small network that is twice as fast as `random_like`, but what a leaf gets depends on the sizes of the others.
    """
    leaves, treedef = jax.tree.flatten(tree)
    dtype = jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
    flat = jax.random.normal(key, (sum(leaf.size for leaf in leaves),), dtype)
    parts = jnp.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
    drawn = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def _entry_name(entry: Any) -> str:
    match entry:
        case DictKey(key=key) | FlattenedIndexKey(key=key):
            return str(key)
        case GetAttrKey(name=name):
            return name
        case SequenceKey(idx=idx):
            return str(idx)
    return str(entry)


def _require_known(name: str, names: list[str]) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else "; the tree has no leaves"
    raise ValueError(f"no leaf is called {name!r}{hint}")
