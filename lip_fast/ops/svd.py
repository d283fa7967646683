"""A truncated decomposition by one warm-started power step, and its parts.

A step whose products are taken elsewhere, as by the update of the weight, begins with the columns of
:func:`start_basis` and ends with :func:`finish_svd`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel, never
from lip_fast.backends.native.library import MAX_COLUMNS, MOST_AT_ONCE, fits_at_once
from lip_fast.ops.checks import COMPUTED, SEEDS, bad_step, elsewhere, expected, not_a_matrix
from lip_fast.ops.op import Op

__all__ = ["SVD", "finish_svd", "orthonormalize", "start_basis", "warm_svd"]


class SVD(NamedTuple):
    """M ~ A diag(S) B^T, and why it cannot be used, as bits of :mod:`lip_fast.status`: 0 where it can."""

    A: Tensor
    S: Tensor
    B: Tensor
    status: Tensor


def _check_fresh(t: int, fresh: int, most: int) -> None:
    if fresh < 1 or t + fresh > most:
        raise expected(
            f"at least one fresh column and at most {most} columns in all",
            f"{t} columns of the basis and {fresh} fresh ones",
        )


def _check_warm(M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int, tf32: bool = True) -> None:
    if step.dtype != torch.int64 or step.dim() or seed not in SEEDS or step.device != M.device:
        raise bad_step(step, seed, "M", M.device)
    if M.dim() != 2 or not M.is_floating_point():
        raise not_a_matrix("M", M)
    if basis.dim() != 2 or basis.dtype not in COMPUTED:
        raise not_a_matrix("basis", basis, COMPUTED)
    if basis.shape[0] != M.shape[1]:
        raise expected(f"a basis with {M.shape[1]} rows (the columns of M)", basis)
    if basis.device != M.device:
        raise elsewhere("a basis", basis, "M", M.device)
    _check_fresh(basis.shape[1], fresh, min(M.shape))


def _check_start(basis: Tensor, step: Tensor, fresh: int, seed: int) -> None:
    if step.dtype != torch.int64 or step.dim() or seed not in SEEDS or step.device != basis.device:
        raise bad_step(step, seed, "the basis", basis.device)
    if basis.dim() != 2 or basis.dtype not in COMPUTED:
        raise not_a_matrix("basis", basis, COMPUTED)
    _check_fresh(basis.shape[1], fresh, basis.shape[0])


def _check_finish(Y: Tensor, Z: Tensor, rank: int) -> None:
    if Y.dim() != 2 or Y.dtype not in COMPUTED:
        raise not_a_matrix("Y", Y, COMPUTED)
    if Z.dim() != 2 or Z.dtype != Y.dtype:
        raise not_a_matrix("Z", Z, (Y.dtype,))
    if Z.device != Y.device:
        raise elsewhere("Z", Z, "Y", Y.device)
    (l, m), (q, columns) = Y.shape, Z.shape
    if columns != m:
        raise expected(f"Z with {m} columns, as many as Y", Z)
    if m > l or m > q:
        raise expected(f"at most {min(l, q)} columns", m)
    if not 0 <= rank <= m:
        raise expected(f"rank in 0..{m}", rank)


def _check_columns(Y: Tensor) -> None:
    if Y.dim() != 2 or Y.dtype not in COMPUTED:
        raise not_a_matrix("Y", Y, COMPUTED)


def _factors(like: Tensor, l: int, q: int, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    status = like.new_empty((), dtype=torch.int64)
    return like.new_empty(l, t), like.new_empty(t), like.new_empty(t, q).mT, status


def _thin(Y: Tensor) -> tuple[Tensor, Tensor]:
    (n, m), d = Y.shape, min(Y.shape)
    return Y.new_empty(d, n).mT, Y.new_empty(d, m)


def _can_warm(M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int, tf32: bool = True) -> bool:
    return M.dtype != torch.float64 and _can_start(basis, step, fresh, seed)


def _can_on_host(M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int, tf32: bool = True) -> bool:
    return M.dtype == basis.dtype == torch.float32 and fits_at_once(basis.shape[1], fresh)


def _can_start(basis: Tensor, step: Tensor, fresh: int, seed: int) -> bool:
    return basis.dtype == torch.float32 and 1 <= basis.shape[1] <= MAX_COLUMNS - fresh


def _can_finish(Y: Tensor, Z: Tensor, rank: int) -> bool:
    return Y.dtype == torch.float32 and rank >= 1 and Y.shape[1] <= MAX_COLUMNS


def _native(
    path: str,
    can: Callable[..., bool],
    on_host: str = "BLAS and LAPACK are faster",
    on_device: str = f"does not wait for the device, up to {MAX_COLUMNS} columns",
) -> tuple[Kernel, Kernel]:
    """Two kernels, and why the first, on the host, is taken only where it is asked for, and the second is."""
    return (
        Kernel(path, "cpu", can=can, pays=never, reason=on_host),
        Kernel(path, "cuda", can=can, reason=on_device),
    )


_WARM = Op(
    "warm_svd(Tensor M, Tensor basis, Tensor step, int fresh, int seed, bool tf32=True)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    check=_check_warm,
    outputs=lambda M, basis, *how: _factors(basis, len(M), *basis.shape),
    default="default.svd:warm_svd",
    small_algebra=True,
    kernels=(
        *_native("native.svd:warm_svd", _can_warm),
        Kernel(
            "native.at_once:warm_svd",
            "cpu",
            can=_can_on_host,
            reason=f"faster than BLAS and LAPACK up to {MOST_AT_ONCE} columns",
        ),
    ),
)
_START = Op(
    "start_basis(Tensor basis, Tensor step, int fresh, int seed) -> Tensor",
    check=_check_start,
    outputs=lambda basis, step, fresh, seed: basis.new_empty(basis.shape[1] + fresh, basis.shape[0]).mT,
    default="default.svd:start_basis",
    small_algebra=True,
    kernels=_native(
        "native.svd:start_basis",
        _can_start,
        "the step on CPU is one of the library",
        "does not wait for the device",
    ),
)
_FINISH = Op(
    "finish_svd(Tensor Y, Tensor Z, int rank) -> (Tensor, Tensor, Tensor, Tensor)",
    check=_check_finish,
    outputs=lambda Y, Z, rank: _factors(Y, len(Y), len(Z), rank),
    default="default.svd:finish_svd",
    small_algebra=True,
    kernels=_native("native.svd:finish_svd", _can_finish),
)
_ORTHONORMALIZE = Op(
    "orthonormalize(Tensor Y) -> (Tensor, Tensor)",
    check=_check_columns,
    outputs=_thin,
    default="default.svd:orthonormalize",
    small_algebra=True,
)


def warm_svd(M: Tensor, basis: Tensor, step: Tensor, *, fresh: int, seed: int, tf32: bool = True) -> SVD:
    """Top singular triplets of a slowly changing matrix, by one power step from the last basis.

    With V = [basis, fresh random signs]: Y = M V = Q R, Z = M^T Q = P T, T = U S V_T^T, A = Q V_T, B = P U.
    One step an update keeps the truncation error within 1e-3 of the optimum; the fresh columns find
    directions that the basis is blind to.

    Args:
        M: (l, q) floating point.
        basis: (q, t) float32 or float64: B of the last step. Its span matters, not its order.
        step: () int64, counter of the fresh columns.
        fresh: number of fresh columns, at least 1; t + fresh <= min(l, q).
        seed: key of the fresh columns.
        tf32: as of :func:`lip_fast.ops.sketch`.

    Returns:
        A (l, t), S (t,) descending and B (q, t), its columns contiguous, in the dtype of ``basis``; status
        () int64, not 0 where M is not finite, the small decomposition failed, or ``max |B^T B - I|`` > 1e-4:
        the factors are then not to be used.
    """
    return SVD(*_WARM(M, basis, step, fresh, seed, tf32))


def start_basis(basis: Tensor, step: Tensor, *, fresh: int, seed: int) -> Tensor:
    """The columns V that a warm-started power step multiplies M by: the last basis, and fresh columns.

    Args:
        basis: (q, t) float32 or float64: B of the last step.
        step: () int64, counter of the fresh columns.
        fresh: number of fresh columns, at least 1; t + fresh <= q.
        seed: key of the fresh columns.

    Returns:
        V (q, t + fresh), its columns contiguous, in the dtype of ``basis``.
    """
    return _START(basis, step, fresh, seed)


def finish_svd(Y: Tensor, Z: Tensor, *, rank: int) -> SVD:
    """Top singular triplets of M from Y = M V and Z = M^T Y: Rayleigh-Ritz on the span of Y.

    With Y = Q R: M^T Q = Z R^-1 = P T, T = U S V_T^T, A = Q V_T, B = P U; M itself is not needed.

    Args:
        Y: (l, m) float32 or float64, m <= min(l, q).
        Z: (q, m) in the dtype of ``Y``.
        rank: number of triplets, 0..m.

    Returns:
        As :func:`warm_svd`: A (l, rank), S (rank,) descending, B (q, rank) and status ().
    """
    return SVD(*_FINISH(Y, Z, rank))


def orthonormalize(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Thin factorisation Y = Q R with orthonormal Q, whatever the rank of Y.

    CholeskyQR in float64 for float32 columns; Householder QR for float64 or nearly dependent ones.

    Args:
        Y: (n, m) float32 or float64, finite.

    Returns:
        Q (n, min(n, m)), its columns contiguous, and R (min(n, m), m), in the dtype of ``Y``; Q^T Q = I to
        about 1e-6 in float32.
    """
    return _ORTHONORMALIZE(Y)
