"""What every test shares: the CPU unless JAX_PLATFORMS says otherwise, a compilation cache, and the reference cases."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Before anything imports jax, and inherited by the commands that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# The suite compiles more than it computes: machine code without LLVM's optimisation takes a third off its time, and
# XLA's own passes, which the tests of compiled text read, are the same.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if needing_gpu and not _gpu_present():
        for item in needing_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and JAX_PLATFORMS that allows it"))


@pytest.fixture(scope="module", autouse=True)
def compiled() -> Iterator[None]:
    """What a module compiled goes with it: of the whole suite, it would fill a worker with gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


def _gpu_present() -> bool:
    import jax

    return jax.default_backend() == "gpu"


@pytest.fixture(scope="session")
def reference_cases() -> Path:
    """The folder of recorded reference cases: tests/golden, or another of its layout named by REFERENCE_CASES."""
    folder = Path(os.environ.get("REFERENCE_CASES", ROOT / "tests" / "golden"))
    if not folder.is_dir():
        raise pytest.UsageError(f"REFERENCE_CASES={folder}: no such folder; name one laid out like tests/golden")
    return folder


@pytest.fixture(scope="session")
def scoring_case(reference_cases: Path) -> Path:
    """The scoring case: a chat-format checkpoint without SlowFast, clips, and expected.json with their numbers."""
    inner = reference_cases / "scoring"
    return inner if inner.is_dir() else reference_cases
