"""Which weights the kernels that read a weight once are for, and how they want them to lie in memory."""

from torch import Tensor

# Weights below this stay in the second-level cache between two products (50 MB of it on an H200), so that
# reading them once saves nothing.
CACHED_BYTES = 32 << 20


def is_cached(M: Tensor) -> bool:
    """Whether a float32 weight is too small for one read of it to save anything."""
    return 4 * M.numel() <= CACHED_BYTES


def lies_alike(M: Tensor, *others: Tensor) -> bool:
    """Whether every array is laid out as M is, with rows one after the other on 16-byte boundaries."""
    rows_apart: int = M.stride(0)
    return (
        M.stride(1) == 1
        and rows_apart % 4 == 0
        and rows_apart >= M.shape[1]
        and all(X.stride() == M.stride() and X.data_ptr() % 16 == 0 for X in (M, *others))
    )
