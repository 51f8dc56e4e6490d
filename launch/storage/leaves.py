"""Pytrees as named arrays in host memory, and back; and hashes of them."""

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.paths import leaf_names


def structure(tree: Any) -> dict[str, str]:
    """Name of every leaf -> dtype and shape, such as `float32[3,20]` or `key<fry>[3]`; arrays or their abstract kin."""
    return {name: _kind(leaf) for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)}


def on_host(tree: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Copies of all leaves by name, typed keys as their data; and the implementation of each of these keys by name.

    Raises:
        ValueError: two leaves of one name, or 64 bits in a leaf that JAX would cut to 32.
    """
    names, leaves = leaf_names(tree), jax.tree.leaves(tree)
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and not _is_key(leaf):
            leaf.copy_to_host_async()
    named = list(zip(names, leaves, strict=True))
    keys = {name: str(jax.random.key_impl(leaf)) for name, leaf in named if _is_key(leaf)}
    return {name: _host(name, leaf) for name, leaf in named}, keys


def rebuilt(abstract: Any, host: Mapping[str, np.ndarray]) -> Any:
    """The tree of `abstract` with leaves in host memory, keys as their data; those of no number need not be given."""
    named = zip(leaf_names(abstract), jax.tree.leaves(abstract), strict=True)
    leaves = [host[name] if name in host else _nothing(wanted) for name, wanted in named]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def with_keys(tree: Any, keys: Mapping[str, str]) -> Any:
    """The tree with typed keys in place of their data; `keys` is the implementation by name, as `on_host` gives it."""
    leaves = [
        jax.random.wrap_key_data(leaf, impl=keys[name]) if name in keys else leaf
        for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def checksum(value: np.ndarray) -> str:
    """CRC-32 of an array's numbers."""
    return f"{zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data):08x}"


def digest_of(tree: Any) -> str:
    """SHA-256 of all leaves with their names, kinds and shapes; empty for a tree without leaves."""
    leaves, found = jax.tree.leaves(tree), hashlib.sha256()
    for name, leaf in zip(leaf_names(tree), leaves, strict=True):
        value = np.ascontiguousarray(leaf)
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(value.reshape(-1).view(np.uint8).data)
    return found.hexdigest() if leaves else ""


def is_empty(kind: str) -> bool:
    """Whether a leaf of this kind holds no number: orbax does not store those."""
    return "0" in kind[kind.rindex("[") + 1 : -1].split(",")


def _kind(leaf: Any) -> str:
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _host(name: str, leaf: Any) -> np.ndarray:
    """A leaf in host memory that nobody else holds: the view that `np.asarray` gives would change after donation."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    host = np.array(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf))
    if jax.dtypes.canonicalize_dtype(host.dtype) != host.dtype:
        raise ValueError(f"{name} is {host.dtype}, which JAX would cut to 32 bits; such numbers belong in `arrays`")
    return host


def _nothing(wanted: Any) -> np.ndarray:
    shape = jax.eval_shape(jax.random.key_data, wanted) if _is_key(wanted) else wanted
    return np.zeros(shape.shape, shape.dtype)
