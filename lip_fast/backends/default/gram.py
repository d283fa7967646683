"""Products of the features with each other, by the library."""

from torch import Tensor

from lip_fast import host
from lip_fast.backends.default.update import compute_dtype


def gram(X: Tensor, counts: Tensor | None) -> Tensor:
    """G (q, q). See :func:`lip_fast.ops.gram`."""
    X = X.to(compute_dtype(X))
    if counts is not None and not (X.device.type in host.READABLE and bool(counts.all())):
        X = X.masked_fill(~counts[:, None], 0)
    return X.mT @ X
