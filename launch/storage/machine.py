"""What runs here: machine, versions, commit."""

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_DISTRIBUTIONS = ("jax", "jaxlib", "flax", "optax", "numpy")


def machine() -> dict[str, Any]:
    """System, processor, number of cores, and JAX's first device."""
    device = jax.devices()[0]
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "backend": device.platform,
        "device": device.device_kind,
    }


def versions() -> dict[str, str]:
    """Of Python and of what numbers depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _DISTRIBUTIONS}


@functools.cache
def commit() -> str:
    """The clone's commit, `-dirty` where files differ from it; empty outside a clone."""
    root = Path(__file__).resolve().parents[2]
    try:
        asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
