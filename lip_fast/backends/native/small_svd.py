"""The SVD of small square matrices by one-sided Jacobi: a CUDA block, or one CPU thread, for each."""

import torch
from torch import Tensor

from lip_fast.backends.native.front_door import address, module_and_stream


def small_svd(T: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """U, S, V, sweeps, status. See :func:`lip_fast.ops.small_svd`."""
    device, dtype, m = T.device, T.dtype, T.shape[-1]
    T = T.contiguous()
    if start is not None:
        start = start.contiguous()
    U, V, work = torch.empty_like(T), torch.empty_like(T), torch.empty_like(T)
    S = T.new_empty(T.shape[:-1])
    sweeps = T.new_empty(T.shape[:-2], dtype=torch.int64)
    status = torch.empty_like(sweeps)
    module, stream = module_and_stream(device)
    kernel = module.small_svd_float64 if dtype == torch.float64 else module.small_svd_float32
    kernel(
        address("T", T, T.shape, dtype, device),
        0 if start is None else address("start", start, T.shape, dtype, device),
        sweeps.numel(),
        m,
        U.data_ptr(),
        S.data_ptr(),
        V.data_ptr(),
        work.data_ptr(),
        sweeps.data_ptr(),
        status.data_ptr(),
        stream,
    )
    return U, S, V, sweeps, status
