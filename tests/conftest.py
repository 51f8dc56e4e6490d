"""What every test shares: one thread per worker, compiled programs kept between runs, the recorded traces."""

import os
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

# Read once, when jax is imported, which no test module has done yet; processes that tests start inherit them.
for _name, _value in {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",  # XLA's threads; workers would fight over the cores
    "JAX_COMPILATION_CACHE_DIR": str(CACHE / "plastic_jax" / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}.items():
    os.environ.setdefault(_name, _value)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden: replays recorded traces of the published code from ../shared/golden")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded traces of the published code; a clone may stand without it."""
    if not GOLDEN.is_dir():
        pytest.skip(f"RECORDED TRACES NOT TESTED: not found: {GOLDEN}")
    return GOLDEN
