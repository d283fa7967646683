"""Refitted singular values from the sums, with every guard of the step."""

import torch
from torch import Tensor

# A batch that puts less than this share of its energy on a direction says nothing of its singular value.
_SEEN = 1e-6


def refit(
    S: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    energy: Tensor,
    ok: Tensor,
    rank: int,
    tolerance: float,
    clip: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """s (r,), ok (), clipped (). See :func:`lip_fast.ops.refit`."""
    tail = S[rank : rank + len(numerator)]
    use = (denominator > _SEEN * energy) & (tail > tolerance * S[:1])
    fitted = (numerator / denominator).to(S.dtype)
    if clip and len(S):
        limit = S[max(rank - 1, 0)]
        limited = torch.clamp(fitted, -limit, limit)
        clipped = (use & (limited != fitted)).sum()
        fitted = limited
    else:
        clipped = torch.zeros((), dtype=torch.int64, device=S.device)
    s = torch.where(use, fitted, tail)
    # Entries of A diag(s) B^T are bounded by the sum of |s|: a quarter of the range leaves room for the
    # weight that it is added to. A sum that is not finite shows in the sum of all.
    bound = torch.finfo(S.dtype).max / 4
    finite = torch.isfinite((numerator + denominator).sum() + energy)
    ok = ok & finite & (s.abs().sum() < bound)
    return s, ok, torch.where(ok, clipped, 0)
