"""Cholesky factors of Gram matrices in float64, which has the digits that squaring float32 columns costs."""

import torch
from torch import Tensor

__all__ = ["cholesky", "divided", "gram", "inverse"]


def gram(Y: Tensor) -> Tensor:
    """Y^T Y in float64."""
    D = Y.double()
    return D.mT @ D


def cholesky(G: Tensor, shift: float = 1) -> Tensor:
    """Upper triangular R with R^T R = G up to rounding, of any positive semidefinite G; NaN of any other.

    Args:
        G: (m, m) float64.
        shift: of the diagonal, with unit columns, in units of m eps, the rounding of a sum. 1 leaves no room
            for a negative pivot where a few columns depend on others, 100 where most of them do.
    """
    scale = G.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1)
    C = G / (scale[:, None] * scale)
    C.diagonal().add_(shift * G.shape[0] * torch.finfo(G.dtype).eps)
    L, info = torch.linalg.cholesky_ex(C)
    return torch.where(info == 0, L.mT * scale, torch.nan)


def inverse(R: Tensor) -> Tensor:
    """R^-1 of a triangular R (m, m), in float64."""
    return torch.linalg.solve_triangular(R, torch.eye(len(R), dtype=R.dtype, device=R.device), upper=True)


def divided(X: Tensor, R: Tensor) -> Tensor:
    """X R^-1 in float32, of a triangular R that is nearly I.

    R^-1 in float32 would be rounded to one side of I, and the same one each time.
    """
    return torch.addmm(X, X, (inverse(R) - torch.eye(len(R), device=R.device)).float())
