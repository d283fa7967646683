"""What a decomposition returns when it has nothing to return."""

import torch
from torch import Tensor


def failed_svd(M: Tensor, values: int, vectors: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Zero factors of the promised shapes, and ok = False."""
    ok = torch.zeros((), dtype=torch.bool, device=M.device)
    l, q = M.shape
    return M.new_zeros(l, vectors), M.new_zeros(values), M.new_zeros(q, vectors), ok
