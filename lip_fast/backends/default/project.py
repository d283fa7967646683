"""The second product of a power step, by the library."""

from torch import Tensor


def project(M: Tensor, Y: Tensor) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.project`."""
    # As Y^T M: the product then runs along the rows of M, a quarter faster than M^T Y.
    return (Y.mT @ M.to(Y.dtype)).contiguous().mT
