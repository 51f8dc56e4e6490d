"""`--log=tensorboard,wandb`: where curves go while a run is under way, besides the run folder.

Every setting of a label is a curve of its own for every unit of work, as `backprop/step_size=0.01/seeds=0:10`: the mean
over the lanes that run together, bin by bin, as soon as a bin is complete. A sink whose server fails, or is slow, does
not hold up the run: it costs a warning. Its package is imported only when it is asked for.
"""

import contextlib
import importlib
import math
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from launch.config.experiment import Job, Plan
from launch.engine.processes import Log
from launch.engine.unit_of_work import Unit
from launch.errors import InputError, unknown
from launch.storage.bins import Mean
from launch.storage.run_folder import number_texts, seeds_text

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
CLOSING_SECONDS = 60.0
"""How long the end of a run waits for what is not sent yet."""


class Curves:
    """The curves of one unit of work: names, and which rows of the bins they are the mean of."""

    def __init__(self, plan: Plan, job: Job, unit: Unit, first_row: int, done: int) -> None:
        self._bin, self._steps, self._done = plan.bin, plan.steps, done
        rows: dict[str, list[int]] = {}
        for row, setting in enumerate(_settings(job, unit)):
            rows.setdefault(setting, []).append(row)
        self._rows = {
            f"{job.label}/{setting}seeds={seeds_text(unit.lanes[i].seed for i in found)}": first_row + np.array(found)
            for setting, found in rows.items()
        }

    def send(self, step: int, bins: Mapping[str, Mean], log: Log) -> None:
        """Hand every bin that has become complete to `log`; `step` are the steps done."""
        for number in range(self._done // self._bin, -(-step // self._bin)):
            end = min((number + 1) * self._bin, self._steps)
            if self._done < end <= step:
                for curve, rows in self._rows.items():
                    log(curve, end, _means(bins, rows, number))
        self._done = step


def _settings(job: Job, unit: Unit) -> list[str]:
    """For every lane of the unit the numbers by which settings of the job differ, as `step_size=0.01/`."""
    differ = [name for name in job.lanes[0].hyper if len({lane.hyper[name] for lane in job.lanes}) > 1]
    texts = {name: number_texts([lane.hyper[name] for lane in unit.lanes]) for name in differ}
    return ["".join(f"{name}={texts[name][i]}/" for name in differ) for i in range(len(unit.lanes))]


def _means(bins: Mapping[str, Mean], rows: np.ndarray, number: int) -> dict[str, float]:
    """The mean over lanes of every metric that was measured in a bin."""
    found = {}
    for name, (total, count) in bins.items():
        measured = rows[count[rows, number] > 0]
        if len(measured):
            found[name] = float(np.mean(total[measured, number] / count[measured, number]))
    return {name: value for name, value in found.items() if math.isfinite(value)}  # sinks would draw or refuse others


class Sink(Protocol):
    """What takes curves."""

    def __call__(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        """Take the values of `curve` at `step`."""

    def close(self) -> None:
        """Bring what was taken to where it belongs."""


def check_sinks(names: Sequence[str]) -> None:
    """InputError for a sink that does not exist, or whose package is not installed; before anything runs."""
    for name in names:
        if name not in PACKAGES:
            raise unknown("--log", name, PACKAGES)
        _module(name)


def _module(name: str) -> ModuleType:
    package = PACKAGES[name]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"--log={name}: needs the package {package}; pip install {package}") from error


@contextlib.contextmanager
def sending(names: Sequence[str], directory: Path | str, settings: Mapping[str, Any]) -> Iterator[Log | None]:
    """A `Log` that hands bins to sinks in a thread of its own; `None` where no sink is named.

    Args:
        names: of sinks.
        directory: the run folder.
        settings: what sinks keep beside the curves.

    Raises:
        InputError: see `check_sinks`.
    """
    if not names:
        yield None
        return
    sinks = open_sinks(names, directory, settings)
    bins: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sender = threading.Thread(target=_send, args=(sinks, bins), daemon=True)
    sender.start()
    try:
        yield lambda *one: bins.put(one)
    finally:
        bins.put(None)
        sender.join(CLOSING_SECONDS)
        if sender.is_alive():
            _warn(f"--log={','.join(sinks)}: not everything was sent within {CLOSING_SECONDS:g} seconds")


def _send(sinks: dict[str, Sink], bins: queue.SimpleQueue[Any]) -> None:
    """Hand what comes to the sinks, and leave out those that fail."""

    def guarded(name: str, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001  whatever a client of a server raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            _warn(f"--log={name}: failed, and gets nothing more of this run ({reason})")
            sinks.pop(name)

    for one in iter(bins.get, None):
        for name, sink in list(sinks.items()):
            guarded(name, sink, *one)
    for name, sink in list(sinks.items()):
        guarded(name, sink.close)


def _warn(line: str) -> None:
    print("warning:", line, file=sys.stderr, flush=True)


def open_sinks(names: Sequence[str], directory: Path | str, settings: Mapping[str, Any]) -> dict[str, Sink]:
    """A sink per name for the run folder `directory`; nothing is written before a sink's first call."""
    check_sinks(names)
    opened: dict[str, Callable[..., Sink]] = {"tensorboard": TensorBoard, "wandb": Wandb}
    return {name: opened[name](_module(name), Path(directory), settings) for name in names}


class TensorBoard:
    """Event files in `directory/tensorboard/<curve>`, so that curves share their axes."""

    def __init__(self, package: Any, directory: Path, settings: Mapping[str, Any]):
        self._package, self._directory, self._settings = package, directory / "tensorboard", settings
        self._writers: dict[str, Any] = {}

    def __call__(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        """Write the values at `step`."""
        if curve not in self._writers:
            # What an interrupted run wrote from this step on is superseded.
            writer = self._package.SummaryWriter(str(self._directory / curve), purge_step=step)
            writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in self._settings.items()))
            self._writers[curve] = writer
        for name, value in values.items():
            self._writers[curve].add_scalar(name, value, step)
        self._writers[curve].flush()

    def close(self) -> None:
        """Bring everything to disk."""
        for writer in self._writers.values():
            writer.close()


class Wandb:
    """One wandb run for the run folder, metrics as `curve/metric`; WANDB_MODE=offline and the like are wandb's own."""

    def __init__(self, package: Any, directory: Path, settings: Mapping[str, Any]):
        self._package, self._directory, self._settings = package, directory, settings
        self._run: Any = None
        self._curves: set[str] = set()

    def __call__(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        """Log the values at `step`."""
        if self._run is None:
            self._run = self._package.init(
                project="plastic_jax",
                name=self._directory.absolute().name,
                config=dict(self._settings),
                dir=str(self._directory),
            )
        if curve not in self._curves:
            # Curves begin one after the other, each at its first step, and wandb's own step never goes back.
            self._run.define_metric(f"{curve}/*", step_metric=f"{curve}/step")
            self._curves.add(curve)
        self._run.log({f"{curve}/step": step} | {f"{curve}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """End the wandb run."""
        if self._run is not None:
            self._run.finish()
