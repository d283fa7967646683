"""What a truncated decomposition returns when it has nothing to return."""

import torch
from torch import Tensor


def failed_svd(M: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Zero factors of t columns, laid out as those of :func:`lip_fast.ops.warm_svd`, and ok = False."""
    ok = torch.zeros((), dtype=torch.bool, device=M.device)
    l, q = M.shape
    return M.new_zeros(l, t), M.new_zeros(t), M.new_zeros(t, q).mT, ok
