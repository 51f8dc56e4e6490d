"""Several hosts: one program in several processes, which look at the same folder; the first of them writes."""

import re
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from launch.errors import InputError

AUTO = "auto"


def define_host_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags that say which process of several this one is."""
    flags.DEFINE_string(
        "hosts", None, "processes in all, or auto: as Slurm or the TPU's environment says", flag_values=values
    )
    flags.DEFINE_integer("host", None, "number of this process, from 0 on", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, the same for all", flag_values=values)


def join(hosts: str | int | None, host: int | None = None, coordinator: str | None = None) -> None:
    """Meet the other processes; to be called before JAX looks for devices. Nothing happens where no flag is given.

    Raises:
        InputError: the flags do not fit together, or the environment names no other processes.
    """
    if hosts is None:
        for flag, value in (("--host", host), ("--coordinator", coordinator)):
            if value is not None:
                raise InputError(f"{flag}={value}: needs --hosts=N, the number of processes")
        return
    if hosts == AUTO:
        for flag, value in (("--host", host), ("--coordinator", coordinator)):
            if value is not None:
                raise InputError(f"{flag}={value}: --hosts=auto finds that out by itself; leave it out")
        _initialize("--hosts=auto: no Slurm step, TPU pod or other cluster found")
        return
    number = _number_of_hosts(hosts)
    if host is None or coordinator is None:
        missing = "--host" if host is None else "--coordinator"
        raise InputError(f"--hosts={number}: needs --host=I and --coordinator=HOST:PORT; {missing} is missing")
    if not 0 <= host < number:
        raise InputError(f"--host: {host} is not a number from 0 to {number - 1}, as --hosts={number} asks")
    if not re.fullmatch(r"\S+:\d{1,5}", coordinator) or not 0 < int(coordinator.rpartition(":")[2]) < 65536:
        raise InputError(f"--coordinator: '{coordinator}' is not of the form HOST:PORT, as in 10.0.0.1:1234")
    _initialize(
        f"--coordinator: {coordinator}: process {host} of {number} did not meet the others",
        coordinator_address=coordinator,
        num_processes=number,
        process_id=host,
        cluster_detection_method="deactivate",
    )


def _number_of_hosts(text: str | int) -> int:
    if not str(text).isdecimal() or int(text) < 1:
        raise InputError(f"--hosts: '{text}' is neither a number of processes from 1 on nor {AUTO}")
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
            f"--workdir: the hosts find different {what} ({everywhere[0].tolist()}, here {list(values)}); "
            "it has to be a folder that all of them share"
        )
