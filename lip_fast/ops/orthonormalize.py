"""A thin orthonormal factor."""

from torch import Tensor

from lip_fast.ops.checks import COMPUTED, not_a_matrix
from lip_fast.ops.op import Op

__all__ = ["orthonormalize"]


def _check(Y: Tensor) -> None:
    if Y.dim() != 2 or Y.dtype not in COMPUTED:
        raise not_a_matrix("Y", Y, COMPUTED)


def _outputs(Y: Tensor) -> tuple[Tensor, Tensor]:
    n, m = Y.shape
    d = min(n, m)
    return Y.new_empty(d, n).mT, Y.new_empty(d, m)


_OP = Op(
    "orthonormalize(Tensor Y) -> (Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    default="default.svd:orthonormalize",
)


def orthonormalize(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Thin factorisation Y = Q R with orthonormal Q, whatever the rank of Y.

    CholeskyQR in float64 for float32 columns; Householder QR for float64 or nearly dependent ones.

    Args:
        Y: (n, m) float32 or float64, finite.

    Returns:
        Q (n, min(n, m)), its columns contiguous, and R (min(n, m), m), in the dtype of ``Y``; Q^T Q = I to
        about 1e-6 in float32.
    """
    factors: tuple[Tensor, Tensor] = _OP(Y)
    return factors
