"""Thin orthonormal factor by column-scaled CholeskyQR2, with Householder QR where it does not apply."""

import torch
from torch import Tensor

# The second Cholesky factor makes Q orthonormal to rounding when the first left it this close; beyond, the
# columns were dependent to working precision and Householder reflections are the honest answer.
_NEARLY_ORTHONORMAL = 0.1
# Units of rounding that the products themselves leave in Q^T Q - I: one pass was enough.
_ROUNDING = 32


def _cholesky_pass(Y: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q = Y R^-1 and R (float64) from the Gram matrix G of Y (float64); info is 0 where it worked."""
    norm = G.diagonal().sqrt()
    # Scaling the columns to unit length takes the grading of Y out of the condition number.
    L, info = torch.linalg.cholesky_ex(G / torch.outer(norm, norm))
    R = L.mT * norm
    identity = torch.eye(len(G), dtype=G.dtype, device=G.device)
    R_inverse = torch.linalg.solve_triangular(R, identity, upper=True)
    return Y @ R_inverse.to(Y.dtype), R, info


def orthonormalize(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Q (n, m), R (m, m) with Y = Q R. See :func:`lip_fast.ops.orthonormalize`."""
    n, m = Y.shape
    if m == 0:
        return Y.clone(), Y.new_empty(0, 0)
    if n >= m:
        # The first Gram matrix is formed in float64: float32 columns then keep a positive definite one up
        # to a condition number near 1e8, where the Gram matrix in float32 ends at 3e3. The second is near
        # the identity and needs no more digits than Y has.
        D = Y.double()
        Q, R1, info = _cholesky_pass(Y, D.mT @ D)
        G = (Q.mT @ Q).double()
        deviation = float((G - torch.eye(m, dtype=G.dtype, device=G.device)).abs().amax())
        # NaN compares false, so a broken first pass ends in Householder QR.
        if int(info) == 0 and deviation <= _ROUNDING * torch.finfo(Y.dtype).eps:
            return Q, R1.to(Y.dtype)
        if int(info) == 0 and deviation <= _NEARLY_ORTHONORMAL:
            Q, R2, _ = _cholesky_pass(Q, G)
            return Q, (R2 @ R1).to(Y.dtype)
    Q, R = torch.linalg.qr(Y)
    return Q, R
