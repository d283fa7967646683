"""Products of the features with each other, by the library."""

from torch import Tensor

from lip_fast import host
from lip_fast.rounding import compute_dtype


def gram(X: Tensor, mask: Tensor | None) -> Tensor:
    """G (q, q). See :func:`lip_fast.ops.gram`."""
    X = X.to(compute_dtype(X))
    if mask is not None and not (X.device.type in host.READABLE and bool(mask.all())):
        X = X.masked_fill(~mask[:, None], 0)
    return X.mT @ X
