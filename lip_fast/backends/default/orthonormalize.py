"""Thin orthonormal factor by CholeskyQR, with Householder QR where it does not apply."""

import torch
from torch import Tensor

# Smallest part of a column, relative to its length, that is not in the span of those before it. In float64
# CholeskyQR is orthogonal to 1e-16 over its square; below, Householder reflections are the honest answer.
_INDEPENDENT = 3e-5


def orthonormalize(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Q (n, m), R (m, m) with Y = Q R. See :func:`lip_fast.ops.orthonormalize`."""
    n, m = Y.shape
    if Y.dtype == torch.float32 and n >= m > 0:
        # In float64, which has the digits that squaring Y costs. Scaling the columns would change nothing:
        # the rounding of a Cholesky factor does not depend on it.
        D = Y.double()
        G = D.mT @ D
        L, info = torch.linalg.cholesky_ex(G)
        independent = L.diagonal() / G.diagonal().sqrt()
        # NaN compares false, so columns that are zero or broken end below.
        if int(info) == 0 and float(independent.min()) > _INDEPENDENT:
            Q = torch.linalg.solve_triangular(L.mT, D, upper=True, left=False)
            return _columns_contiguous(Q.to(Y.dtype)), L.mT.to(Y.dtype).contiguous()
    Q, R = torch.linalg.qr(Y)
    return _columns_contiguous(Q), R.contiguous()


def _columns_contiguous(Q: Tensor) -> Tensor:
    """As LAPACK returns it: no copy on CPU."""
    return Q.mT.contiguous().mT
