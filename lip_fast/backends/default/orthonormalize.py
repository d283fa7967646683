"""Thin orthonormal factor by column-scaled CholeskyQR, with Householder QR where it does not apply."""

import torch
from torch import Tensor

# Smallest part of a unit column that is not in the span of those before it. In float64 CholeskyQR is
# orthogonal to 1e-16 over its square; below, Householder reflections are the honest answer.
_INDEPENDENT = 3e-5


def orthonormalize(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Q (n, m), R (m, m) with Y = Q R. See :func:`lip_fast.ops.orthonormalize`."""
    n, m = Y.shape
    if Y.dtype == torch.float32 and n >= m > 0:
        # In float64, which has the digits that squaring Y costs.
        D = Y.double()
        G = D.mT @ D
        norm = G.diagonal().sqrt()
        # Scaling the columns to unit length takes the grading of Y out of the condition number, and makes the
        # diagonal of L tell how dependent they are.
        L, info = torch.linalg.cholesky_ex(G / torch.outer(norm, norm))
        # NaN compares false, so columns that are zero or broken end below.
        if int(info) == 0 and float(L.diagonal().min()) > _INDEPENDENT:
            R = L.mT * norm
            Q = torch.linalg.solve_triangular(R, D, upper=True, left=False)
            return Q.to(Y.dtype).contiguous(), R.to(Y.dtype).contiguous()
    Q, R = torch.linalg.qr(Y)
    return Q.contiguous(), R.contiguous()
