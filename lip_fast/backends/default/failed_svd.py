"""What a truncated decomposition returns when it has nothing to return."""

import torch
from torch import Tensor

from lip_fast.status import NOT_CONVERGED, NOT_FINITE


def failed_svd(M: Tensor, shape: tuple[int, int], t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Zero factors of t columns, laid out as those of :func:`lip_fast.ops.warm_svd`, and the reason.

    ``M`` is what was to be decomposed, of this shape, or what was made of it.

    Libraries raise on what is not finite as on what does not converge; that they raised is known on the host,
    so that to look once more costs nothing that has not been lost already.
    """
    reason = NOT_CONVERGED if bool(torch.isfinite(M).all()) else NOT_FINITE
    l, q = shape
    status = torch.full((), reason, dtype=torch.int64, device=M.device)
    return M.new_zeros(l, t), M.new_zeros(t), M.new_zeros(t, q).mT, status
