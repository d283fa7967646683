"""Tests of the Triton kernels: on a CUDA device where there is one, in Triton's interpreter everywhere.

The interpreter is chosen when a kernel is first imported, for all of a process: ``make test-all`` runs these
files once more with ``TRITON_INTERPRET=1``, and ``test_interpreted.py`` one of them in a process of its own.
Without a device they are skipped outside of it.
"""

import os
from collections.abc import Callable

import pytest
import torch

from lip_fast.backends import triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# These start processes of their own, which need no device.
_WITHOUT_DEVICE = {"test_interpreted.py", "test_compiles.py"}


def _missing(file: str) -> str | None:
    if problem := triton.problem():
        return problem
    if file in _WITHOUT_DEVICE:
        return "started from the process that is interpreted" if INTERPRETED else None
    if not INTERPRETED and not torch.cuda.is_available():
        return "torch sees no CUDA device: `make test-all` runs this file in the interpreter"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Here and not in a marker: it holds for every file of this folder, before any fixture is set up.
    if reason := _missing(item.path.name):
        pytest.skip(reason)


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run: the host in the interpreter, else the CUDA device."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def far_apart(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Of a matrix of three columns, the same one with the last of them 2^31 entries from the first.

    It begins in the middle of its storage, so that a product that wraps in 32 bits reads other entries, and
    no other memory. On the host the storage is address space, of which next to nothing is touched.
    """

    def spread(X: torch.Tensor) -> torch.Tensor:
        try:
            # No tensor yet: that would be filled where tests fill what is not written.
            storage = torch.UntypedStorage((2**32 + len(X)) * X.element_size(), device=device)
        except RuntimeError as error:
            pytest.skip(f"needs 2^32 entries: {error}")
        return torch.empty(0, dtype=X.dtype, device=device).set_(storage, 2**31, X.shape, (1, 2**30)).copy_(X)

    return spread
