"""All singular values and the trailing vectors of a small weight in one call."""

import torch
from torch import Tensor

from lip_fast.backends.native.front_door import module_and_stream


def tail_svd(M: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, d - rank), S (d,), B (q, d - rank), status (). See :func:`lip_fast.ops.tail_svd`."""
    M = M.float()
    (l, q), d = M.shape, min(M.shape)
    A, S, B = M.new_empty(l, d - rank), M.new_empty(d), M.new_empty(q, d - rank)
    module, _ = module_and_stream(M.device)
    status = module.tail_svd(M.data_ptr(), l, q, *M.stride(), rank, A.data_ptr(), S.data_ptr(), B.data_ptr())
    return A, S, B, torch.tensor(status)
