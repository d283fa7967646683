"""The Cholesky factor of a Gram matrix that rounding may have made singular."""

import torch
from torch import Tensor

__all__ = ["cholesky"]


def cholesky(G: Tensor) -> Tensor:
    """Upper triangular R with R^T R = G up to rounding, of any positive semidefinite G; NaN of any other."""
    scale = G.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1)
    # With unit columns, a shift by the rounding of the sums leaves no room for a negative pivot.
    C = G / (scale[:, None] * scale)
    C.diagonal().add_(G.shape[0] * torch.finfo(G.dtype).eps)
    L, info = torch.linalg.cholesky_ex(C)
    return torch.where(info == 0, L.mT * scale, torch.nan)
