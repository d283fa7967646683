"""Both products of a power step: read once where a kernel is at hand, else by the library."""

import torch
from torch import Tensor

from lip_fast.backends.default.sketch import sketch as by_library
from lip_fast.backends.native.library import MODULES, addresses, stream_of
from lip_fast.backends.native.one_read import is_cached


def sketch(M: Tensor, V: Tensor, tf32: bool = True) -> tuple[Tensor, Tensor]:
    """Y (l, m), Z (q, m). See :func:`lip_fast.ops.sketch`.

    Also of a step whose products are a part of it, which may not be in TF32.
    """
    (l, q), m = M.shape, V.shape[1]
    if tf32 and M.device.type == "cuda" and M.dtype == torch.float32 and not is_cached(M):
        module = MODULES["cuda"]
        values = module.one_read_workspace(l, q, m)
        if values >= 0 and M.stride(1) == 1 and M.stride(0) % 4 == 0 and M.data_ptr() % 16 == 0:
            Vt = V.mT.contiguous()
            Yt, Zt, workspace = V.new_empty(m, l), V.new_empty(m, q), V.new_empty(values)
            given = (M.data_ptr(), l, q, M.stride(0), Vt.data_ptr(), m, *addresses(Yt, Zt, workspace))
            module.one_read(*given, values, stream_of(M.device))
            return Yt.mT, Zt.mT
    return by_library(M, V)
