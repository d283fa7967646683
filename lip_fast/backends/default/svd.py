"""Truncated decompositions by one warm-started power step, and their parts, in plain torch.

M is read twice; all else is skinny or small. Decompositions of small matrices go to LAPACK or its counterpart
on the device.
"""

import math

import torch
from torch import Tensor

from lip_fast import host
from lip_fast.backends.default.fresh_columns import fresh_columns
from lip_fast.status import NOT_CONVERGED, NOT_FINITE, NOT_ORTHOGONAL, RANK_DEFICIENT

# Smallest part of a column, relative to its length, that is not in the span of those before it. In float64
# CholeskyQR is orthogonal to 1e-16 over its square; below, Householder reflections are the honest answer.
_INDEPENDENT = 3e-5
# Sums of a few thousand rounded products give 1e-6; a basis that is 1e-4 off is broken, not rounded.
_ORTHOGONALITY = 1e-4
# Relative size of singular values that eigenvectors of a float64 Gram matrix resolve: orthogonal to 1e-16
# over its square, 1e-6.
_RESOLVED = 1e-5
# max(l, m) eps bounds the rounding of sums of l products taken one by one. They are summed in blocks: from so
# many classes on the error no longer grows, where the bound would at last exceed 1.
_LONGEST = 4096


def warm_svd(
    M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int, tf32: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, t), S (t,), B (q, t), status (). See :func:`lip_fast.ops.warm_svd`."""
    t = basis.shape[1]
    M = M.to(basis.dtype)
    Q, _ = orthonormalize(M @ start_basis(basis, step, fresh, seed))
    # As Q^T M: the product then runs along the rows of M, a quarter faster than M^T Q.
    Z = (Q.mT @ M).mT
    return ritz(Q, Z, t, M)


def start_basis(basis: Tensor, step: Tensor, fresh: int, seed: int) -> Tensor:
    """V (q, t + fresh). See :func:`lip_fast.ops.start_basis`."""
    signs = fresh_columns(step, basis.shape[0], fresh, seed).to(basis.dtype)
    # M times raw signs is mostly in the span of M times the basis: what is not would be lost in rounding.
    signs = torch.addmm(signs, basis, basis.mT @ signs, alpha=-1)
    # Tall factors are kept with their columns contiguous: to append some is then to copy two blocks.
    return torch.cat([basis.mT, signs.mT]).mT


def finish_svd(Y: Tensor, Z: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, rank), S (rank,), B (q, rank), status (). See :func:`lip_fast.ops.finish_svd`."""
    Q, R = orthonormalize(Y)
    try:
        U, s, Vh = torch.linalg.svd(R.double())
    except torch.linalg.LinAlgError:
        return failed_svd(R, (len(Y), len(Z)), rank)
    # Directions of Y that are rounding have no image under M^T that could be told from Z / 0.
    floor = min(max(Y.shape), _LONGEST) * torch.finfo(Y.dtype).eps * s[:1]
    inverse = torch.where(s > floor, s.reciprocal(), 0)
    # M^T (Q U) = Z V / s.
    image = (Z.double() @ (Vh.mT * inverse)).to(Z.dtype)
    A, S, B, status = ritz(Q @ U.to(Q.dtype), image, rank, image)
    return A, S, B, status | ((s > floor).sum() < rank) * RANK_DEFICIENT


def orthonormalize(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Q (n, m), R (m, m) with Y = Q R. See :func:`lip_fast.ops.orthonormalize`."""
    n, m = Y.shape
    if Y.dtype == torch.float32 and n >= m > 0:
        # In float64, which has the digits that squaring Y costs. Scaling the columns would change nothing:
        # the rounding of a Cholesky factor does not depend on it.
        D = Y.double()
        G = D.mT @ D
        L, info = torch.linalg.cholesky_ex(G)
        independent = L.diagonal() / G.diagonal().sqrt()
        # NaN compares false, so columns that are zero or broken end below.
        if int(info) == 0 and float(independent.min()) > _INDEPENDENT:
            Q = torch.linalg.solve_triangular(L.mT, D, upper=True, left=False)
            return Q.to(Y.dtype).mT.contiguous().mT, L.mT.to(Y.dtype).contiguous()
    Q, R = torch.linalg.qr(Y)
    # LAPACK returns contiguous columns: no copy on CPU.
    return Q.mT.contiguous().mT, R.contiguous()


def ritz(Q: Tensor, Z: Tensor, t: int, M: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of Q Z^T with orthonormal Q (l, m) and Z (q, m): A (l, t), S (t,), B (q, t), status ().

    Where the decomposition fails, ``M`` says whether that was for want of finite numbers.
    """
    try:
        A, S, B = _by_gram(Q, Z, t) or _by_svd(Q, Z, t)
    except torch.linalg.LinAlgError:  # not finite, or no convergence
        return failed_svd(M, (len(Q), len(Z)), t)
    return A, S, B, _status(B, Z)


def _status(B: Tensor, Z: Tensor) -> Tensor:
    """From max |B^T B - I|, which is not finite where something else is not."""
    t = B.shape[1]
    if t:
        deviation = torch.addmm(torch.eye(t, dtype=B.dtype, device=B.device), B.mT, B, beta=-1)
        worst = torch.linalg.vector_norm(deviation, torch.inf)
    else:
        worst = Z.sum() * 0
    if worst.device.type in host.READABLE:
        value = float(worst)
        broken = NOT_ORTHOGONAL if math.isfinite(value) else NOT_FINITE
        return torch.tensor(0 if value <= _ORTHOGONALITY else broken)
    finite = torch.isfinite(worst)
    return (~finite) * NOT_FINITE + (finite & (worst > _ORTHOGONALITY)) * NOT_ORTHOGONAL


def _by_gram(Q: Tensor, Z: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """M ~ Q Z^T by the eigenvectors of Z^T Z; None where they cannot be trusted.

    Squaring Z costs the float64 of the Gram matrix half its digits. A float32 Z has no more than that, as
    long as the directions asked for stand clear of the largest one's rounding.
    """
    if Z.dtype != torch.float32 or t == 0:
        return None
    D = Z.mT.double()
    eigenvalues, P = torch.linalg.eigh(D @ D.mT)
    eigenvalues, P = eigenvalues.flip(0)[:t], P.flip(1)[:, :t]
    if not float(eigenvalues[-1]) > _RESOLVED**2 * float(eigenvalues[0]):
        return None
    S = eigenvalues.sqrt()
    return Q @ P.float(), S.float(), ((P / S).mT @ D).float().mT


def _by_svd(Q: Tensor, Z: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """M ~ Q Z^T by a QR factorisation of Z, whatever its condition."""
    P, T = orthonormalize(Z)
    U, S, Vh = torch.linalg.svd(T, full_matrices=False)
    # Q Z^T = Q T^T P^T = (Q V) S (P U)^T
    return Q @ Vh[:t].mT, S[:t].clone(), (U[:, :t].mT @ P.mT).mT


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
