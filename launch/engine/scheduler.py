"""The scheduler: units of work in a shared folder, each run by whoever holds its lock.

`launch.train` is a launch of one experiment, `launch.sweep` one of several. This is what happens to it:

1. `prepare` checks all that can be known to fail. Then it writes the `run.json` of every label, which lists the label's
   *units of work*: batches of lanes that share a compiled program, named by a hash of all that decides their numbers.
2. `work_through` takes one unit after the other that is not over and that nobody else runs, and runs it from its newest
   good checkpoint to its end (`execution.run_units`). A unit is over when it has a checkpoint of the last step.
3. Whoever sees that all units of a label are over joins them: `metrics.npz` and `DONE`.

Processes know of each other only what the folder says. So they may be workers of one machine (`run_workers`), jobs of a
cluster (`slurm`) or somebody's terminal, and any of them may be killed at any moment: the same command goes on.
Machines without a shared folder each run a block of the units (`Block`); the folders copied into one, the same command
without the block finds the units over and joins them. Several devices of one process run several units side by side.
Several processes that share every batch (`hosts`) run the same units in the same order, and the first of them writes.
"""

import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch.config.experiment import Experiment, Plan, resolve
from launch.config.syntax import Every
from launch.engine import hosts
from launch.engine.build import job_program, load_data
from launch.engine.checkpoint_policy import DEFAULT, CheckpointPolicy, Place, ended, finished
from launch.engine.devices import Devices, Parallel
from launch.engine.execution import run_units
from launch.engine.label import Label, find_label
from launch.engine.processes import CONTEXT, Log, Messages, Report, enter, messages_to, one_thread_each
from launch.engine.resume import Resume, check_resume
from launch.engine.source_lanes import check_readable
from launch.engine.stopping import Stop, Stopped, blocked_for_children
from launch.engine.unit_of_work import Unit
from launch.errors import InputError, nearest
from launch.storage.durable import StorageError
from launch.storage.locks import LOCK, TakenError, holder, locked
from launch.storage.run_folder import RUN, Run, read_run

PATIENCE = 60.0
"""Seconds to wait for another process that begins or joins the same label."""


class Block(NamedTuple):
    """Every `of`-th unit of work of a label, from number `index` on."""

    index: int
    of: int


ALL = Block(0, 1)


@dataclasses.dataclass(frozen=True)
class Launch:
    """What processes work through together.

    Attributes:
        root: the run folder, a folder per label in it.
        experiments: whose labels these are.
        policy: when checkpoints are written, and which stay.
        devices: devices that share the work; by default all of them, on CPUs one.
        parallel: `"lanes"`, lanes of their own for every device, or `"batch"`, all devices share every lane's batch.
        block: the units of each label that are worked on here.
    """

    root: Path
    experiments: tuple[Experiment, ...]
    policy: CheckpointPolicy = DEFAULT
    devices: int | None = 1
    parallel: Parallel = "lanes"
    block: Block = ALL

    def units(self, label: Label) -> list[Unit]:
        """The label's units that are not over and are worked on here."""
        mine = {unit.name for unit in label.units[self.block.index :: self.block.of]}
        # Of several processes that share batches, all have to run again what ended in a damaged checkpoint.
        return [unit for unit in label.left(verified=jax.process_count() > 1) if unit.name in mine]


def labels_of(launch: Launch, resume: Resume = "auto") -> tuple[Label, ...]:
    """All labels of a launch, in the order asked for.

    Raises:
        InputError: an experiment cannot be, or the folder holds a run of other settings.
    """
    found = []
    for plan in map(resolve, launch.experiments):
        devices = Devices(_number_of_devices(launch, plan), launch.parallel)
        parts = launch.block.of * devices.abreast
        found += [find_label(plan, job, launch.root / job.label, resume, devices, parts) for job in plan.jobs]
    return tuple(found)


def prepare(launch: Launch, resume: Resume = "auto") -> tuple[Label, ...]:
    """Check all that can be known to fail; then write down every label's settings and units, which workers read.

    Raises:
        InputError: something asked for cannot be; nothing has been compiled or written.
        TakenError: another process begins or joins the same label, and takes long.
    """
    check_resume(resume)
    labels = labels_of(launch, resume)
    todo = [label for label in labels if not label.is_over()]
    for plan in dict.fromkeys(label.plan for label in todo):
        _check(launch, plan, [label for label in todo if label.plan is plan])
    hosts.highest(0)  # every process has looked before the first one writes
    return tuple(_begun(label, resume) if label in todo and hosts.is_first() else label for label in labels)


def _begun(label: Label, resume: Resume) -> Label:
    with locked(label.checkpoints / LOCK, PATIENCE):
        again = label.again(resume)  # somebody may have come before
        if not again.is_over():
            again.begin()
    return again


def work_through(
    launch: Launch,
    labels: Sequence[Label],
    only: str | None = None,
    stop: Stop | None = None,
    report: Report | None = None,
    log: Log | None = None,
) -> int:
    """Run every unit (or the one called `only`) that is neither over nor run by somebody else; how many these were.

    Raises:
        InputError: no unit is called `only`, or it is run by somebody else.
        Stopped, StorageError: see `launch.engine.execution.run_units`.
    """
    check_unit(launch, labels, only)
    total = 0
    while True:  # again, since another worker may have been killed meanwhile
        number = sum(_work_on(launch, label, only, stop, report, log) for label in labels)
        total += number
        if not number or only is not None or jax.process_count() > 1:
            return total


def _work_on(
    launch: Launch, label: Label, only: str | None, stop: Stop | None, report: Report | None, log: Log | None
) -> int:
    """Run a label's units that nobody else runs, and join them where they were the last."""
    number, shared = 0, jax.process_count() > 1
    for units in _side_by_side([u for u in launch.units(label) if only in (None, u.name)], label.devices.abreast):
        if not shared and only is None:  # several processes that share a batch must not look at what the first one does
            units = [unit for unit in units if not holder(label.checkpoints / unit.name / LOCK)]
        if not shared:  # as somebody else has left it by now
            units = [u for u in units if not (label.is_over() or ended(label.plan, u, label.checkpoints))]
        if not units:
            continue
        if stop is not None and stop.signal:
            raise Stopped(stop.signal)
        try:
            run_units(label.plan, units, Place(label.checkpoints, launch.policy), label.devices, stop, report, log)
            number += len(units)
        except TakenError:
            if only is not None or shared:
                raise
    _join(launch, label, stop)
    return number


def _side_by_side(units: Sequence[Unit], number: int) -> Iterator[list[Unit]]:
    """The units in groups that can run at once, of equal size and chunk."""
    alike: dict[tuple[int, int], list[Unit]] = {}
    for unit in units:
        alike.setdefault((unit.size, unit.chunk), []).append(unit)
    for same in alike.values():
        yield from (same[i : i + number] for i in range(0, len(same), number))


def _join(launch: Launch, label: Label, stop: Stop | None = None) -> None:
    """Join the units of a label that is over, unless somebody has, or is doing so."""
    if not hosts.is_first() or label.is_over() or label.left():
        return
    place = Place(label.checkpoints, launch.policy)
    with contextlib.suppress(TakenError), locked(label.checkpoints / LOCK):
        again = label.again()
        if again.is_over() or [unit.name for unit in again.units] != [unit.name for unit in label.units]:
            return
        # A last checkpoint that is no longer as it was written is computed again from the one before.
        measured = (
            finished(again.plan, unit, place.folder) or run_units(again.plan, [unit], place, again.devices, stop)[0]
            for unit in again.units
        )
        again.finish(list(measured), launch.policy)


def run_workers(
    launch: Launch,
    labels: Sequence[Label],
    workers: int | None = None,
    stop: Stop | None = None,
    report: Report | None = None,
    log: Log | None = None,
) -> None:
    """Work through a launch with that many processes of this machine; one is this process itself.

    By default there is one a core on CPUs, and none beside this one elsewhere.

    Raises:
        Stopped: `stop` was requested, and something is left to do.
        InputError, StorageError: a unit cannot be run, or a checkpoint not be written; or workers were killed, or other
            processes have not come to their end.
    """
    waiting = _number_left(launch, labels)
    alone = jax.default_backend() != "cpu" or launch.devices not in (None, 1) or launch.parallel == "batch"
    wanted = min(waiting, workers or (1 if alone else os.cpu_count() or 1))
    early = 0
    if report is not None:
        for label in labels:
            done = len(label.job.lanes) - sum(len(unit.lanes) for unit in label.left())
            if done and not label.is_over():
                report(label.name, done * (label.plan.steps - label.plan.start))
    if wanted > 1:
        early = _run_processes(launch, wanted, stop or Stop(), report, log)
    else:
        work_through(launch, labels, None, stop, report, log)
    if stop is not None and stop.signal and _number_left(launch, labels):
        raise Stopped(stop.signal)
    for label in labels:  # a worker may have been killed while it joined
        _join(launch, label, stop)
    left = _number_left(launch, labels)
    if left and hosts.is_first():
        why = f"{early} of {wanted} workers ended early" if early else "others are still running"
        raise InputError(f"--workers: {why}, {left} unit{'s' * (left != 1)} left; the same command goes on")


def _run_processes(launch: Launch, workers: int, stop: Stop, report: Report | None, log: Log | None) -> int:
    """Work through a launch with worker processes; how many of them ended early."""
    with messages_to(report, log) as messages, one_thread_each():
        errors = CONTEXT.SimpleQueue()
        arguments = (launch, stop, messages, errors, sys.path)
        processes = [CONTEXT.Process(target=_worker, args=arguments) for _ in range(workers)]
        with blocked_for_children():  # a signal to the whole group must not kill workers that do not listen yet
            for process in processes:
                process.start()
        for process in processes:
            process.join()
        if not errors.empty():
            raise errors.get()
    return sum(process.exitcode != 0 for process in processes)


def _worker(launch: Launch, stop: Stop, messages: Messages, errors: Any, path: list[str]) -> None:
    enter(path, stop)
    try:
        work_through(launch, labels_of(launch), None, stop, messages.report, messages.log)
    except Stopped:
        pass
    except (InputError, StorageError) as error:
        errors.put(error)
        stop.request(signal.SIGTERM)  # the others need not come to their end first


def run(
    experiment: Experiment,
    workdir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    report: Report | None = None,
    *,
    resume: Resume = "auto",
    policy: CheckpointPolicy = DEFAULT,
    devices: int | None = None,
    parallel: Parallel = "lanes",
    block: Block = ALL,
    stop: Stop | None = None,
    log: Log | None = None,
) -> dict[str, Run]:
    """Run every lane of the experiment, or go on with it.

    Args:
        experiment: what to run.
        workdir: where to keep the results, a folder per label; in a folder that is removed at the end where `None`.
            What is already there of equal settings is gone on with: a label that is over is read, one on its way
            continues from its newest checkpoints, a longer run continues from the end, and new seeds run beside the old
            ones.
        workers: processes that share the work; by default one a core on CPUs, and none beside this one elsewhere. A
            script that calls this with more than one needs `if __name__ == "__main__":` around it.
        report: called with a label and the lane-steps done since the last call.
        resume: `"auto"`, `"never"` (refuse a folder that holds a run) or `"must"` (refuse one that does not).
        policy: when checkpoints are written, and which stay.
        devices: devices that share the work; by default all of them, on CPUs one.
        parallel: `"lanes"`, lanes of their own for every device, or `"batch"`, all devices share every lane's batch.
        block: the units of work of every label that are run here; by default all.
        stop: a flag to look at between chunks.
        log: called with every bin of every curve as soon as it is complete, see `launch.engine.sinks`.

    Returns:
        What was measured, by label; labels of which other blocks have units that are not over are missing.

    Raises:
        InputError: something asked for cannot be; nothing has been compiled or written. Or workers were killed.
        Stopped: `stop` was requested; the same call goes on.
        StorageError: a checkpoint could not be written; the last good ones stand.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers: {workers} is not a positive number")
    if (workers or 1) > 1 and ((devices or 1) > 1 or parallel == "batch"):
        raise InputError(f"--workers={workers}: several devices are worked on by one process; leave --workers out")
    if workdir is None:
        with tempfile.TemporaryDirectory() as folder:
            seldom = dataclasses.replace(policy, every=Every(), keep=1)
            how = {"resume": resume, "devices": devices, "parallel": parallel, "stop": stop, "log": log}
            runs = run(experiment, folder, workers, report, policy=seldom, **how)
            meta = {label: {k: v for k, v in one.meta.items() if k != "folder"} for label, one in runs.items()}
            return {label: dataclasses.replace(one, meta=meta[label]) for label, one in runs.items()}
    launch = Launch(Path(workdir), (experiment,), policy, devices, parallel, block)
    labels = prepare(launch, resume)
    run_workers(launch, labels, workers, stop, report, log)
    hosts.highest(0)  # until the first process has written
    return {label.name: read_run(label.folder) for label in labels if label.is_over()}


def check_unit(launch: Launch, labels: Sequence[Label], name: str | None) -> None:
    """Refuse the name of a unit that there is not."""
    names = [unit.name for label in labels for unit in label.units]
    if name is not None and name not in names:
        raise InputError(
            f"--unit: there is no '{name}' in {launch.root}{nearest(name, names)}; --status lists the units of work"
        )


def parse_block(text: str) -> Block:
    """`I/N` as the block `I` of `N`.

    Raises:
        InputError: it is not of that form, or `I` is not from 0 to `N - 1`.
    """
    index, _, of = text.partition("/")
    if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise InputError(f"--block: '{text}' is not I/N with I from 0 to N-1, as 0/4, 1/4, 2/4 and 3/4")
    return Block(int(index), int(of))


def _number_left(launch: Launch, labels: Sequence[Label]) -> int:
    return sum(len(launch.units(label)) for label in labels)


def _number_of_devices(launch: Launch, plan: Plan) -> int:
    asked, batch = launch.devices, launch.parallel == "batch"
    there = jax.device_count() if batch else jax.local_device_count()
    alone = jax.process_count() == 1
    if not alone and (not batch or asked not in (None, there)):
        raise InputError(
            "--num_processes: several processes share batches over all devices, --parallel=batch; for lanes see --block"
        )
    number = asked or (1 if jax.default_backend() == "cpu" and alone else there)
    if not 1 <= number <= there:
        raise InputError(f"--devices: {number} asked, this machine has {there}")
    if batch and plan.learner is not None:
        raise InputError("--parallel=batch: devices cannot share environments; allowed is lanes")
    if batch and plan.task.spec.batch % number:
        raise InputError(f"--parallel=batch: {number} devices cannot share batches of {plan.task.spec.batch} equally")
    return number


def _check(launch: Launch, plan: Plan, labels: Sequence[Label]) -> None:
    """All that can be known to fail, before anything is compiled or written."""
    for label in labels:
        job_program(plan, label.job)
        if launch.block.index >= len(label.units):
            block = f"--block={launch.block.index}/{launch.block.of}"
            raise InputError(f"{block}: {label.name} has only {len(label.units)} units of work")
        for step, chunk in itertools.product(launch.policy.at, sorted({unit.chunk for unit in label.units})):
            if step % chunk or not plan.start < step <= plan.steps:
                raise InputError(
                    f"--checkpoint_at: {step} is not a multiple of {chunk}, the steps between two looks, "
                    f"up to {plan.steps}"
                )
    if plan.source is not None and any(label.meta is None for label in labels):
        check_readable(plan.source)
    if (launch.root / RUN).is_file():
        raise InputError(f"--workdir: {launch.root} is itself a run; give the folder above it")
    load_data(plan)
    for path in (launch.root, *(label.folder for label in labels)):
        _check_writable(path)


def _check_writable(workdir: Path) -> None:
    existing = workdir.absolute()
    if existing.exists() and not existing.is_dir():
        raise InputError(f"--workdir: {workdir} is a file, not a folder")
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--workdir: cannot write in {existing}")
