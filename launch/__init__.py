"""Launching runs: `run(experiment)` from Python, `python -m launch.train` from a shell."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Lazy, so that commands that only read results start without JAX.
    if name == "run":
        from launch.engine.scheduler import run

        return run
    if name == "Experiment":
        from launch.config.experiment import Experiment

        return Experiment
    raise AttributeError(f"module 'launch' has no attribute '{name}'")
