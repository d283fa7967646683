"""The singular vectors below the top ones, exactly."""

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.backends.native.library import MAX_COLUMNS
from lip_fast.ops.checks import expected, not_a_matrix
from lip_fast.ops.op import Op
from lip_fast.ops.svd import SVD
from lip_fast.rounding import compute_dtype

__all__ = ["tail_svd"]

# Small sides up to this are decomposed faster by one thread of our own than by LAPACK: 10 x 512 in a fifth of
# the time, 24 x 512 about even.
SMALL_SIDE = 24


def _check(M: Tensor, rank: int) -> None:
    if M.dim() != 2 or not M.is_floating_point():
        raise not_a_matrix("M", M)
    if not 0 <= rank <= min(M.shape):
        raise expected(f"rank in 0..{min(M.shape)}", rank)


def _outputs(M: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (l, q), d = M.shape, min(M.shape)
    M = M.new_empty(0, dtype=compute_dtype(M))
    status = M.new_empty((), dtype=torch.int64)
    return M.new_empty(l, d - rank), M.new_empty(d), M.new_empty(q, d - rank), status


_OP = Op(
    "tail_svd(Tensor M, int rank) -> (Tensor, Tensor, Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    default="default.tail_svd",
    small_algebra=True,
    kernels=(
        Kernel(
            "native.tail_svd",
            "cpu",
            can=lambda M, rank: M.dtype != torch.float64 and min(M.shape) <= SMALL_SIDE,
            reason=f"faster than LAPACK up to a side of {SMALL_SIDE}",
        ),
        Kernel(
            "native.tail_svd",
            "cuda",
            can=lambda M, rank: M.dtype != torch.float64 and 1 <= min(M.shape) <= MAX_COLUMNS,
            reason=f"does not wait for the device, up to a side of {MAX_COLUMNS}",
        ),
    ),
)


def tail_svd(M: Tensor, *, rank: int) -> SVD:
    """All singular values, and the singular vectors below the top ``rank``, exactly.

    Args:
        M: (l, q) floating point; d = min(l, q).
        rank: number of leading directions whose vectors are not wanted.

    Returns:
        A (l, d - rank), S (d,), descending up to rounding, and B (q, d - rank) in float64 for a float64
        ``M``, else in float32, where the vectors of values up to 1e-6 s_1 may be zero columns of the larger
        side: there is no direction to speak of; status () int64, not 0 where M is not finite or the solver
        failed.
    """
    return SVD(*_OP(M, rank))
