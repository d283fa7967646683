"""All singular values and the trailing vectors of a weight with one small side."""

import torch
from torch import Tensor

from lip_fast.backends.native.library import MODULES
from lip_fast.backends.native.small_svd import small_svd
from lip_fast.cholesky import cholesky
from lip_fast.status import RANK_DEFICIENT

# Relative size of singular values whose vectors on the large side are resolved, as of other decompositions.
_RESOLVED = 1e-6


def tail_svd(M: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, d - rank), S (d,), B (q, d - rank), status (). See :func:`lip_fast.ops.tail_svd`."""
    if M.device.type != "cpu":
        return tail_svd_of_factor(M, rank)
    M = M.float()
    (l, q), d = M.shape, min(M.shape)
    A, S, B = M.new_empty(l, d - rank), M.new_empty(d), M.new_empty(q, d - rank)
    module = MODULES["cpu"]
    status = module.tail_svd(M.data_ptr(), l, q, *M.stride(), rank, A.data_ptr(), S.data_ptr(), B.data_ptr())
    return A, S, B, torch.tensor(status)


def tail_svd_of_factor(M: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same without a look from the host, up to a side of 128.

    With D = M or M^T, its small side first: D D^T = R^T R in float64, which has the digits that squaring D
    costs, and R = U S V^T by one-sided Jacobi. In float32 that is accurate to the rounding of the largest
    singular value; a second time, of R V, to that of each of them, for its columns are about as long as the
    singular values.
    """
    is_wide = M.shape[0] <= M.shape[1]
    D = M.double() if is_wide else M.mT.double()
    R = cholesky(D @ D.mT)
    first = small_svd(R.float())
    V = first.V.double()
    # Orthonormal in float64 as well: the error of V^T V is squared.
    V = 1.5 * V - 0.5 * V @ (V.mT @ V)
    second = small_svd((R @ V).float())
    small = V @ second.V.double()
    large = D.mT @ small
    S = torch.linalg.vector_norm(large, dim=0)
    large *= torch.where(S > _RESOLVED * S[:1], S.reciprocal(), 0)
    A, B = (X[:, rank:] for X in ((small, large) if is_wide else (large, small)))
    status = (first.status | second.status) & ~RANK_DEFICIENT
    sound = status == 0
    A, S, B = (torch.where(sound, X.float(), 0) for X in (A, S, B))
    return A, S, B, status
