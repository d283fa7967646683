"""Tests that need a GPU and the native kernels for it; elsewhere they are skipped, with the reason."""

import os
from collections.abc import Iterator

import pytest
import torch

from lip_fast.backends.native import library

# Read when cuBLAS is first called: without it, deterministic algorithms refuse every product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _missing() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if library.cuda() is None:
        return f"no CUDA extension: {library.problems() or 'not built'}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Here and not in a marker: it holds for every file of this folder, before any fixture is set up.
    if reason := _missing():
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _device_is_left_sound() -> Iterator[None]:
    """An error of the device is raised in the test that made it; the device's random state is left alone."""
    before = torch.cuda.get_rng_state()
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.equal(before, torch.cuda.get_rng_state()), "the random state of the device was touched"
