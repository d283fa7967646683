"""The end of a power step whose products were taken by something else."""

import torch
from torch import Tensor

from lip_fast.backends.default.failed_svd import failed_svd
from lip_fast.backends.default.orthonormalize import orthonormalize
from lip_fast.backends.default.ritz import ritz
from lip_fast.rounding import negligible
from lip_fast.status import RANK_DEFICIENT


def finish_svd(Y: Tensor, Z: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, rank), S (rank,), B (q, rank), status (). See :func:`lip_fast.ops.finish_svd`."""
    Q, R = orthonormalize(Y)
    try:
        U, s, Vh = torch.linalg.svd(R.double())
    except torch.linalg.LinAlgError:
        return failed_svd(R, (len(Y), len(Z)), rank)
    # Directions of Y that are rounding have no image under M^T that could be told from Z / 0.
    floor = negligible(len(Y), Y.shape[1], Y.dtype) * s[:1]
    inverse = torch.where(s > floor, s.reciprocal(), 0)
    # M^T (Q U) = Z V / s.
    image = (Z.double() @ (Vh.mT * inverse)).to(Z.dtype)
    A, S, B, status = ritz(Q @ U.to(Q.dtype), image, rank, image)
    return A, S, B, status | ((s > floor).sum() < rank) * RANK_DEFICIENT
