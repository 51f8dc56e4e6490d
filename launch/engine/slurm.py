"""Workers as jobs of a cluster, through submitit; its local executor takes the same way on this machine."""

import ast
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from launch.engine.processes import enable_compilation_cache
from launch.engine.scheduler import Launch, labels_of, work_through
from launch.engine.stopping import listening
from launch.errors import InputError

LOGS = "jobs"
"""Folder below the sweep's for what jobs print."""
LOG_LEVEL = "SUBMITIT_LOG_LEVEL"


class Worker:
    """A job: it works through the sweep until nothing is left, and is sent again when its time is over."""

    def __init__(self, sweep: Launch) -> None:
        self.sweep = sweep

    def __call__(self) -> int:
        """Run units of work; how many these were."""
        enable_compilation_cache()
        with listening() as stop:
            return work_through(self.sweep, labels_of(self.sweep), stop=stop)

    def checkpoint(self) -> Any:
        """What submitit runs in the place of a job that is preempted, or out of time: the same again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def executor(root: Path, cluster: Literal["slurm", "local"], settings: Sequence[str]) -> Any:
    """What sends jobs; nothing has been written yet.

    Args:
        root: folder of the sweep.
        cluster: `"slurm"`, or `"local"` for processes of this machine.
        settings: `NAME=VALUE` of `submitit.AutoExecutor.update_parameters`.

    Raises:
        InputError: submitit is not installed, Slurm is not there, or a setting is not known.
    """
    submitit = _submitit()
    try:
        sender = submitit.AutoExecutor(folder=root.absolute() / LOGS, cluster=cluster)
    except RuntimeError as error:
        raise InputError(f"--submit={cluster}: {' '.join(str(error).split())}") from None
    try:
        sender.update_parameters(**{"name": root.absolute().name, "timeout_min": 60, **_parameters(settings)})
    except (NameError, TypeError, AssertionError, ValueError) as error:
        told = str(error).partition("As a reminder")[0]  # a list of all parameters follows
        raise InputError(f"--slurm: {' '.join(told.split())}") from None
    return sender


def submit(sender: Any, sweep: Launch, workers: int) -> str:
    """Send `workers` jobs that work through the sweep; what was sent, in words.

    Raises:
        InputError: the cluster refuses them.
    """
    job = Worker(dataclasses.replace(sweep, root=sweep.root.absolute()))
    try:
        with sender.batch():
            jobs = [sender.submit(job) for _ in range(workers)]
    except RuntimeError as error:
        raise InputError(f"--submit: {' '.join(str(error).split())}") from None
    names = ", ".join(job.job_id for job in jobs)
    return f"{workers} job{'s' * (workers != 1)}: {names}\nlogs: {sweep.root / LOGS}"


def _submitit() -> Any:
    """submitit, kept from closing the log handlers of this process, as it does when it is imported."""
    former = os.environ.get(LOG_LEVEL)
    os.environ[LOG_LEVEL] = "NOCONFIG"
    try:
        import submitit
    except ImportError:
        raise InputError("--submit: submitit is not installed; pip install -e '.[slurm]'") from None
    finally:
        os.environ.pop(LOG_LEVEL) if former is None else os.environ.update({LOG_LEVEL: former})
    return submitit


def _parameters(settings: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in settings:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise InputError(f"--slurm: '{text}' is not of the form NAME=VALUE")
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[name] = value
    return found
