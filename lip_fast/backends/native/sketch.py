"""Both products of a power step: read once where a kernel is at hand, else by the library."""

import torch
from torch import Tensor

from lip_fast.backends.default.sketch import sketch as by_library
from lip_fast.backends.native.front_door import address, module_and_stream

# Weights below this stay in the second-level cache between two products (50 MB of it on an H200), so that
# reading them once saves nothing.
_CACHED_BYTES = 32 << 20


def is_cached(M: Tensor) -> bool:
    """Whether a float32 weight is too small for one read of it to save anything."""
    return 4 * M.numel() <= _CACHED_BYTES


def sketch(M: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Y (l, m), Z (q, m). See :func:`lip_fast.ops.sketch`."""
    (l, q), m = M.shape, V.shape[1]
    if M.device.type == "cuda" and M.dtype == torch.float32 and not is_cached(M):
        module, stream = module_and_stream(M.device)
        values = module.one_read_workspace(l, q, m)
        if values >= 0 and M.stride(1) == 1 and M.stride(0) % 4 == 0 and M.data_ptr() % 16 == 0:
            V = V.mT.contiguous().mT
            Yt, Zt, workspace = V.new_empty(m, l), V.new_empty(m, q), V.new_empty(values)
            module.one_read(
                M.data_ptr(),
                l,
                q,
                M.stride(0),
                address("V", V, (q, m), torch.float32, M.device, columns=True),
                m,
                Yt.data_ptr(),
                Zt.data_ptr(),
                workspace.data_ptr(),
                values,
                stream,
            )
            return Yt.mT, Zt.mT
    return by_library(M, V)
