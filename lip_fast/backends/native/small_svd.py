"""The native solver of small square problems by itself."""

from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast.backends.native.library import MODULES, stream_of

__all__ = ["SmallSVD", "small_svd"]


class SmallSVD(NamedTuple):
    """T = U diag(S) V^T of each matrix, the sweeps it took, and its status word."""

    U: Tensor
    S: Tensor
    V: Tensor
    sweeps: Tensor
    status: Tensor


def small_svd(T: Tensor, start: Tensor | None = None) -> SmallSVD:
    """SVD of small square matrices by one-sided Jacobi: a CUDA block, or one CPU thread, for each.

    Args:
        T: (..., m, m) float32, on a CPU float64 too, m <= 128.
        start: (..., m, m) like ``T``, orthogonal and near V, such as V of the last, similar T.

    Returns:
        U (..., m, m), S (..., m) descending and V (..., m, m); sweeps (...) int64; status (...) int64, the
        word of :mod:`lip_fast.status`. Of a singular T, columns of U may be 0.
    """
    device, m = T.device, T.shape[-1]
    T = T.contiguous()
    if start is not None:
        if start.shape != T.shape or start.dtype != T.dtype or start.device != device:
            raise ValueError(f"expected a start like T, {tuple(T.shape)} in {T.dtype} on {device}")
        start = start.contiguous()
    U, V, work = torch.empty_like(T), torch.empty_like(T), torch.empty_like(T)
    S = T.new_empty(T.shape[:-1])
    sweeps = T.new_empty(T.shape[:-2], dtype=torch.int64)
    status = torch.empty_like(sweeps)
    module = MODULES[device.type]
    kernel = {torch.float32: "small_svd_float32", torch.float64: "small_svd_float64"}[T.dtype]
    getattr(module, kernel)(
        T.data_ptr(),
        0 if start is None else start.data_ptr(),
        sweeps.numel(),
        m,
        U.data_ptr(),
        S.data_ptr(),
        V.data_ptr(),
        work.data_ptr(),
        sweeps.data_ptr(),
        status.data_ptr(),
        stream_of(device),
    )
    return SmallSVD(U, S, V, sweeps, status)
