"""Truncated SVD by one warm-started power step: M is read twice, all else is skinny or small."""

from torch import Tensor

from lip_fast.backends.default.orthonormalize import orthonormalize
from lip_fast.backends.default.ritz import ritz
from lip_fast.backends.default.start_basis import start_basis


def warm_svd(
    M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, t), S (t,), B (q, t), status (). See :func:`lip_fast.ops.warm_svd`."""
    t = basis.shape[1]
    M = M.to(basis.dtype)
    Q, _ = orthonormalize(M @ start_basis(basis, step, fresh, seed))
    # As Q^T M: the product then runs along the rows of M, a quarter faster than M^T Q.
    Z = (Q.mT @ M).mT
    return ritz(Q, Z, t, M)
