"""All singular values and the trailing vectors of a small weight in one call."""

import torch
from torch import Tensor

from lip_fast.backends.native.library import MODULES


def tail_svd(M: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, d - rank), S (d,), B (q, d - rank), status (). See :func:`lip_fast.ops.tail_svd`."""
    M = M.float()
    (l, q), d = M.shape, min(M.shape)
    A, S, B = M.new_empty(l, d - rank), M.new_empty(d), M.new_empty(q, d - rank)
    module = MODULES["cpu"]
    status = module.tail_svd(M.data_ptr(), l, q, *M.stride(), rank, A.data_ptr(), S.data_ptr(), B.data_ptr())
    return A, S, B, torch.tensor(status)
