"""What every test shares: one thread per worker, compiled programs kept between runs, the recorded traces."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

# Read once, when jax is imported, which no test module has done yet; processes that tests start inherit them.
for _name, _value in {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",  # XLA's threads; workers would fight over the cores
    # Most time is compiling, which takes a fifth so; `make test-slow` lets XLA optimize.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE / "plastic_jax" / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}.items():
    os.environ.setdefault(_name, _value)

BYTES_BETWEEN_MODULES, MOST_BYTES = 10**9, 2 * 10**9
"""Memory from which on a worker gives compiled programs back: between modules, and between any two tests."""

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden: replays recorded traces of the published code from ../shared/golden")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded traces of the published code; a clone may stand without it."""
    if not GOLDEN.is_dir():
        pytest.skip(f"RECORDED TRACES NOT TESTED: not found: {GOLDEN}")
    return GOLDEN


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with few small pictures, as the image tasks read them."""
    from tests.launch import tiny  # which imports jax

    folder = tmp_path_factory.mktemp("images")
    tiny.write_pictures(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Programs that tests have compiled would pile up to gigabytes in a worker; the next module has no use for them."""
    last = nextitem is None or nextitem.path != item.path
    jax = sys.modules.get("jax")
    if jax is not None and _resident_bytes() > (BYTES_BETWEEN_MODULES if last else MOST_BYTES):
        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)


def _resident_bytes() -> int:
    """Memory of this process; 0 where /proc does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
