"""Several devices: lanes side by side, or one batch in parts. The one place that knows how work is laid on devices."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from launch.config.flags import Parallel
from launch.storage.leaves import with_keys

AXIS = "devices"
"""Name of the mapped axis."""


class Devices(NamedTuple):
    """How many devices share the work, and which way."""

    number: int = 1
    parallel: Parallel = "lanes"

    @property
    def axis_name(self) -> str | None:
        """The mapped axis that a program has to average over."""
        return AXIS if self.parallel == "batch" else None

    @property
    def abreast(self) -> int:
        """How many units of work run at once."""
        return self.number if self.parallel == "lanes" else 1


ONE_DEVICE = Devices()


def mesh(devices: int) -> Mesh:
    """The first `devices` devices in a row; those of all processes where there are several."""
    return Mesh(np.asarray(jax.devices()[:devices]), (AXIS,), axis_types=(AxisType.Auto,))


def spread(function: Callable[..., Any], devices: int, parallel: Parallel) -> Callable[..., Any]:
    """`function(lanes, hyper, start, data)` on that many devices.

    For `lanes` the leading axis of `lanes`, `hyper` and of all that is returned is cut into equal parts, one for every
    device; the program of a part is the one that a single device would run. For `batch` every device runs all lanes
    with the mapped axis `AXIS`, over which the function has to average, and returns the same.
    """
    if devices == 1 and parallel == "lanes":
        return function
    lanes, shared = (PartitionSpec(AXIS) if parallel == "lanes" else PartitionSpec()), PartitionSpec()
    return jax.shard_map(
        function, mesh=mesh(devices), in_specs=(lanes, lanes, shared, shared), out_specs=lanes, check_vma=False
    )


def put_lanes(tree: Any, devices: int, parallel: Parallel) -> Any:
    """Host arrays of lanes, laid on the devices as `spread` wants them."""
    return _put(tree, devices, PartitionSpec(AXIS) if parallel == "lanes" else PartitionSpec())


def put_data(data: Any, devices: int) -> Any:
    """A copy of the data on every device, once."""
    return _put(data, devices, PartitionSpec())


def put_state(tree: Any, keys: Mapping[str, str], devices: int, parallel: Parallel) -> Any:
    """Lanes out of checkpoints, laid as `put_lanes` does, with typed keys, in memory of their own: they are donated."""
    lanes = put_lanes(tree, devices, parallel)
    if jax.devices()[0].platform == "cpu":  # where an array that was put may still be the host's own
        lanes = _copied(lanes)
    return with_keys(lanes, keys)


def part(tree: Any, index: int, devices: int, parallel: Parallel) -> Any:
    """Of lanes on several devices those of number `index`, where they lie; of batches that all hold alike, one copy."""
    if devices == 1 or parallel == "batch":
        return jax.tree.map(lambda x: x if x.is_fully_addressable else x.addressable_data(0), tree)
    return jax.tree.map(lambda x: sorted(x.addressable_shards, key=_first_row)[index].data, tree)


def _first_row(shard: Any) -> int:
    return shard.index[0].start or 0


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _put(tree: Any, devices: int, spec: PartitionSpec) -> Any:
    if jax.process_count() == 1:
        return jax.device_put(tree, NamedSharding(mesh(devices), spec)) if devices > 1 else jax.device_put(tree)
    return jax.tree.map(lambda leaf: _shared(leaf, NamedSharding(mesh(devices), spec)), tree)


def _shared(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every host has whole, on the devices of all of them."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_shared(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
