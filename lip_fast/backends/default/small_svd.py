"""The SVD of small square matrices by LAPACK or its counterpart on the device."""

import torch
from torch import Tensor

from lip_fast.status import NOT_CONVERGED, NOT_FINITE, RANK_DEFICIENT


def small_svd(T: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """U, S, V, sweeps, status; ``start`` is of no use here. See :func:`lip_fast.ops.small_svd`."""
    finite = torch.isfinite(T).all(-1).all(-1)
    sweeps = torch.zeros_like(finite, dtype=torch.int64)
    try:
        U, S, Vh = torch.linalg.svd(torch.where(finite[..., None, None], T, 0), full_matrices=False)
    except torch.linalg.LinAlgError:
        U, S, Vh = torch.zeros_like(T), T.new_zeros(T.shape[:-1]), torch.zeros_like(T)
        status = torch.full_like(sweeps, NOT_CONVERGED)
    else:
        status = (S[..., -1] == 0) * RANK_DEFICIENT
    status = torch.where(finite, status, NOT_FINITE)
    return U.contiguous(), S, Vh.mT.contiguous(), sweeps, status
