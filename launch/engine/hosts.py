"""One program in several processes, which look at the same folder; the first of them writes."""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from launch.errors import InputError

AUTO = "auto"


def join(num_processes: str | int | None, process_id: int | None = None, coordinator: str | None = None) -> None:
    """Meet the other processes, before JAX looks for devices; nothing happens where no flag is given.

    Raises:
        InputError: the flags do not fit together, or the environment names no other processes.
    """
    others = {"--process_id": process_id, "--coordinator_address": coordinator}
    given = [f"{flag}={value}" for flag, value in others.items() if value is not None]
    missing = [flag for flag, value in others.items() if value is None]
    if num_processes is None:
        if given:
            raise InputError(f"{given[0]}: needs --num_processes=N")
        return
    if num_processes == AUTO:
        if given:
            raise InputError(f"{given[0]}: --num_processes=auto finds that out by itself; leave it out")
        _initialize("--num_processes=auto: no Slurm step, TPU pod or other cluster found")
        return
    number = _number_of_processes(num_processes)
    if process_id is None or coordinator is None:
        raise InputError(
            f"--num_processes={number}: needs --process_id=I and --coordinator_address=HOST:PORT; "
            f"{missing[0]} is missing"
        )
    if not 0 <= process_id < number:
        raise InputError(
            f"--process_id: {process_id} is not a number from 0 to {number - 1}, as --num_processes={number} asks"
        )
    if not re.fullmatch(r"\S+:\d{1,5}", coordinator) or not 0 < int(coordinator.rpartition(":")[2]) < 65536:
        raise InputError(f"--coordinator_address: '{coordinator}' is not of the form HOST:PORT, as in 10.0.0.1:1234")
    _initialize(
        f"--coordinator_address: {coordinator}: process {process_id} of {number} did not meet the others",
        coordinator_address=coordinator,
        num_processes=number,
        process_id=process_id,
        cluster_detection_method="deactivate",
    )


def _number_of_processes(text: str | int) -> int:
    if not str(text).isdecimal() or int(text) < 1:
        raise InputError(f"--num_processes: '{text}' is neither a number of processes from 1 on nor {AUTO}")
    return int(text)


def _initialize(problem: str, **where) -> None:
    try:
        jax.distributed.initialize(**where)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{problem} ({' '.join(str(error).split())[:200]})") from None


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def highest(value: int) -> int:
    """The highest of all processes' values; every process has to ask, and waits for the others."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.asarray(value))))


def check_equal(what: str, values: Sequence[int]) -> None:
    """Refuse what is not the same in every process.

    Raises:
        InputError: it differs, which happens where the processes do not see the same files.
    """
    if jax.process_count() == 1:
        return
    everywhere = np.asarray(multihost_utils.process_allgather(np.asarray(values)))
    if np.any(everywhere != everywhere[0]):
        raise InputError(
            f"--workdir: the processes find different {what} ({everywhere[0].tolist()}, here {list(values)}); "
            "it has to be a folder that all of them share"
        )
