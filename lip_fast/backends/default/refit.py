"""Refitted singular values from the sums, with every guard of the step.

On the host, one number at a time: there are a few dozen, and each torch operation on them would cost more
than all of the arithmetic.
"""

import math

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
    values = S.tolist()
    tail = values[rank : rank + len(numerator)]
    limit = values[max(rank - 1, 0)] if clip and values else math.inf
    smallest = tolerance * values[0] if values else 0.0
    total = float(energy)
    # What is not finite is carried along to the end: no comparison with it holds.
    bound, clipped, s = sum(map(abs, values)), 0, []
    for value, n, d in zip(tail, numerator.tolist(), denominator.tolist(), strict=True):
        finite = math.isfinite(n) and math.isfinite(d)
        if finite and d > _SEEN * total and value > smallest:
            value = n / d
            if abs(value) > limit:
                value = math.copysign(limit, value)
                clipped += 1
        bound += abs(value) if finite else math.inf
        s.append(value)
    # Entries of A diag(s) B^T are bounded by the sum of |s|, taken here with all old values on top; a quarter
    # of the range leaves room for the weight that it is added to.
    sound = bool(ok) and math.isfinite(total) and bound < torch.finfo(S.dtype).max / 4
    return (
        torch.tensor(s if sound else tail, dtype=S.dtype, device=S.device),
        torch.tensor(sound, device=S.device),
        torch.tensor(clipped if sound else 0, device=S.device),
    )
