"""Truncated SVD by one warm-started power step, without a look from the host."""

from torch import Tensor

from lip_fast.backends.native.finish_svd import finish_svd
from lip_fast.backends.native.sketch import sketch
from lip_fast.backends.native.start_basis import start_basis


def warm_svd(
    M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, t), S (t,), B (q, t), status (). See :func:`lip_fast.ops.warm_svd`."""
    return finish_svd(*sketch(M, start_basis(basis, step, fresh, seed)), basis.shape[1])
