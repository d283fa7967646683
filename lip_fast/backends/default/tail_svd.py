"""All singular values and the trailing singular vectors, exactly."""

import math

import torch
from torch import Tensor

from lip_fast import host
from lip_fast.backends.default.svd import failed_svd
from lip_fast.rounding import compute_dtype
from lip_fast.status import NOT_FINITE

# Small sides up to this are decomposed directly: one call of LAPACK costs less than the way round it.
_SMALL = 32
# Relative size of singular values whose vectors a float64 Gram matrix resolves: to 1e-16 over its square.
_RESOLVED = 1e-6


def tail_svd(M: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, d - rank), S (d,), B (q, d - rank), status (). See :func:`lip_fast.ops.tail_svd`."""
    try:
        if M.dtype == torch.float64 or min(M.shape) <= _SMALL:
            return _by_svd(M.to(compute_dtype(M)), rank)
        return _by_gram(M, rank)
    except torch.linalg.LinAlgError:  # no convergence
        A, S, B, status = failed_svd(M.to(compute_dtype(M)), (len(M), M.shape[1]), min(M.shape))
        return A[:, rank:].contiguous(), S, B[:, rank:].contiguous(), status


def _by_svd(M: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    A, S, Bh = torch.linalg.svd(M, full_matrices=False)
    # Where the solver does not raise, what is not finite shows in the values.
    return A[:, rank:].contiguous(), S, Bh[rank:].mT.contiguous(), _status(S.sum())


def _by_gram(M: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Eigenvectors of the Gram matrix of the small side, in float64. Squaring costs half the digits of
    # float64, which leaves the eight that a float32 weight has. 2 to 3 times faster than the SVD of M.
    D = M.double()
    wide = D.shape[0] <= D.shape[1]
    if not wide:
        D = D.mT
    G = D @ D.mT
    total = G.diagonal().sum()
    status = _status(total)
    if not (G.device.type in host.READABLE and int(status) == 0):
        G = torch.where(torch.isfinite(total), G, 0)
    eigenvalues, P = torch.linalg.eigh(G)
    S = eigenvalues.clamp_(min=0).sqrt_().flip(0)
    small = P.flip(1)[:, rank:]
    large = D.mT @ small
    norm = torch.linalg.vector_norm(large, dim=0)
    S[rank:] = norm  # more accurate than the root of the eigenvalue, and free
    # No direction: a zero column, so that nothing downstream divides by it.
    large *= torch.where(norm > _RESOLVED * S[:1], norm.reciprocal(), 0)
    A, B = (small, large) if wide else (large, small)
    return A.float().contiguous(), S.float(), B.float().contiguous(), status


def _status(total: Tensor) -> Tensor:
    """From a sum that is not finite where the matrix is not."""
    if total.device.type in host.READABLE:
        return torch.tensor(0 if math.isfinite(float(total)) else NOT_FINITE)
    return (~torch.isfinite(total)) * NOT_FINITE
