"""Truncated SVD by one warm-started power step: M is read twice, all else is skinny or small."""

import math

import torch
from torch import Tensor

from lip_fast.backends.default.failed_svd import failed_svd
from lip_fast.backends.default.fresh_columns import fresh_columns
from lip_fast.backends.default.orthonormalize import orthonormalize

# Sums of a few thousand rounded products give 1e-6; a basis that is 1e-4 off is broken, not rounded.
_ORTHOGONALITY = 1e-4


def warm_svd(
    M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, t), S (t,), B (q, t), ok (). See :func:`lip_fast.ops.warm_svd`."""
    t = basis.shape[1]
    M = M.to(basis.dtype)
    V = torch.cat([basis, fresh_columns(step, M.shape[1], fresh, seed).to(basis.dtype)], 1)
    Y = M @ V
    # The fresh columns have no zero entry, so a single non-finite entry of M shows in Y, and in its sum.
    if not math.isfinite(float(Y.sum())):
        return failed_svd(M, t, t)
    Q, _ = orthonormalize(Y)
    # As Q^T M: the product then runs along the rows of M, a quarter faster than M^T Q.
    Z = (Q.mT @ M).mT
    P, T = orthonormalize(Z)
    try:
        U, S, Vh = torch.linalg.svd(T, full_matrices=False)
    except torch.linalg.LinAlgError:
        return failed_svd(M, t, t)
    # M ~ Q Z^T = Q T^T P^T = (Q V) S (P U)^T
    A = Q @ Vh[:t].mT
    B = P @ U[:, :t]
    deviation = B.mT @ B
    deviation.diagonal().sub_(1)
    ok = (deviation.abs().amax() <= _ORTHOGONALITY) & torch.isfinite(S).all()
    return A, S[:t].clone(), B, ok
