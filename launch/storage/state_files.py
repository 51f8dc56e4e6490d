"""Leaves by name, as orbax keeps them in a folder. The only file that knows orbax."""

import functools
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def write_state(path: Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Write the leaves that hold a number into the new folder `path`."""
    stored = {_stored(name): value for name, value in leaves.items() if value.size}
    if not stored:  # orbax refuses a tree without leaves, and arrays without numbers
        return
    with _checkpointer() as checkpointer:
        checkpointer.save(path.absolute(), args=_orbax().args.PyTreeSave(stored))


def read_state(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The leaves of these names, in host memory."""
    wanted = {_stored(name): 0 for name in names}
    if not wanted:
        return {}
    ocp = _orbax()
    how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
    with _checkpointer() as checkpointer:
        restored = checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore(item=wanted, restore_args=how))
    return {name: restored[_stored(name)] for name in names}


def _checkpointer() -> Any:
    """orbax for this process alone: where several processes run one program, it would wait for all of them."""
    ocp, this = _orbax(), jax.process_index()
    options = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        options = ocp.options.MultiprocessingOptions(
            primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process {this}"
        )
    # Random numbers compress by a tenth and take three times as long.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


@functools.cache
def _orbax() -> Any:
    """orbax, imported where it is used, since that takes most of a second."""
    import orbax.checkpoint

    # Its threads log what fails with a long traceback; it is raised as well, and told in one line.
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    return orbax.checkpoint


def _stored(name: str) -> str:
    return name or "leaf"  # the name of a tree that is a single leaf is empty
