"""Optional sinks, `--log=tensorboard,wandb`: where mean curves go besides the run folder.

A sink is called with (label, step, {metric: mean over lanes}); its package is imported only when it is asked for.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from launch.errors import InputError, unknown

Sink = Callable[[str, int, Mapping[str, float]], None]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


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
    """A sink per name for the run folder `directory`; nothing is written before a sink's first call."""
    check_sinks(names)
    opened = {"tensorboard": _tensorboard, "wandb": _wandb}
    return [opened[name](_module(name), Path(directory), settings) for name in dict.fromkeys(names)]


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """A bin without a measurement is NaN, which sinks would draw or refuse."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _tensorboard(package: ModuleType, directory: Path, settings: Mapping[str, Any]) -> Sink:
    """Event files in `directory/tensorboard/<label>`, so that labels share their axes."""
    writers: dict[str, Any] = {}

    def sink(label: str, step: int, values: Mapping[str, float]) -> None:
        if label not in writers:
            # What an interrupted run wrote from this step on is superseded.
            writers[label] = package.SummaryWriter(str(directory / "tensorboard" / label), purge_step=step)
            writers[label].add_text("settings", "\n".join(f"    {key} = {value}" for key, value in settings.items()))
        for name, value in _finite(values).items():
            writers[label].add_scalar(name, value, step)
        writers[label].flush()

    return sink


def _wandb(package: ModuleType, directory: Path, settings: Mapping[str, Any]) -> Sink:
    """One wandb run for the run folder, metrics as `label/metric`; WANDB_MODE=offline and the like are wandb's own."""
    labels: list[str] = []
    runs: list[Any] = []

    def sink(label: str, step: int, values: Mapping[str, float]) -> None:
        if not runs:
            name = directory.absolute().name
            runs.append(package.init(project="plastic_jax", name=name, config=dict(settings), dir=str(directory)))
        if label not in labels:
            # Labels run one after the other, each from step 0, and wandb's own step never goes back.
            runs[0].define_metric(f"{label}/*", step_metric=f"{label}/step")
            labels.append(label)
        runs[0].log({f"{label}/step": step} | {f"{label}/{name}": value for name, value in _finite(values).items()})

    return sink
