"""Optional sinks, `--log=tensorboard,wandb`: where mean curves go besides the run folder.

A sink is called with (label, step, {metric: mean over lanes}); its package is imported only when it is asked for.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from launch.errors import InputError, unknown

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Sink(Protocol):
    """What takes mean curves."""

    def __call__(self, label: str, step: int, values: Mapping[str, float]) -> None:
        """Take the means of `label` at `step`; values that are not finite are left out."""

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


def open_sinks(names: Sequence[str], directory: Path | str, settings: Mapping[str, Any]) -> list[Sink]:
    """A sink per name for the run folder `directory`; nothing is written before a sink's first call.

    `sink.close()` brings what was written to disk; at the end of the program that happens by itself.
    """
    check_sinks(names)
    opened: dict[str, Callable[..., Sink]] = {"tensorboard": TensorBoard, "wandb": Wandb}
    return [opened[name](_module(name), Path(directory), settings) for name in dict.fromkeys(names)]


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """A bin without a measurement is NaN, which sinks would draw or refuse."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


class TensorBoard:
    """Event files in `directory/tensorboard/<label>`, so that labels share their axes."""

    def __init__(self, package: Any, directory: Path, settings: Mapping[str, Any]):
        self._package, self._directory, self._settings = package, directory / "tensorboard", settings
        self._writers: dict[str, Any] = {}

    def __call__(self, label: str, step: int, values: Mapping[str, float]) -> None:
        """Write the finite values at `step`."""
        if label not in self._writers:
            # What an interrupted run wrote from this step on is superseded.
            writer = self._package.SummaryWriter(str(self._directory / label), purge_step=step)
            writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in self._settings.items()))
            self._writers[label] = writer
        for name, value in _finite(values).items():
            self._writers[label].add_scalar(name, value, step)

    def close(self) -> None:
        """Bring everything to disk; a later call starts a new event file."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


class Wandb:
    """One wandb run for the run folder, metrics as `label/metric`; WANDB_MODE=offline and the like are wandb's own."""

    def __init__(self, package: Any, directory: Path, settings: Mapping[str, Any]):
        self._package, self._directory, self._settings = package, directory, settings
        self._run: Any = None
        self._labels: set[str] = set()

    def __call__(self, label: str, step: int, values: Mapping[str, float]) -> None:
        """Log the finite values at `step`."""
        if self._run is None:
            self._run = self._package.init(
                project="plastic_jax",
                name=self._directory.absolute().name,
                config=dict(self._settings),
                dir=str(self._directory),
            )
        if label not in self._labels:
            # Labels come one after the other, each from its first step, and wandb's own step never goes back.
            self._run.define_metric(f"{label}/*", step_metric=f"{label}/step")
            self._labels.add(label)
        finite = {f"{label}/{name}": value for name, value in _finite(values).items()}
        self._run.log({f"{label}/step": step} | finite)

    def close(self) -> None:
        """End the wandb run; a later call starts a new one."""
        if self._run is not None:
            self._run.finish()
        self._run = None
        self._labels.clear()
