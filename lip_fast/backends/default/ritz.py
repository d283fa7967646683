"""Singular triplets from an orthonormal basis of one side, and whether they can be used."""

import math

import torch
from torch import Tensor

from lip_fast import host
from lip_fast.backends.default.failed_svd import failed_svd
from lip_fast.backends.default.orthonormalize import orthonormalize
from lip_fast.status import NOT_FINITE, NOT_ORTHOGONAL

# Sums of a few thousand rounded products give 1e-6; a basis that is 1e-4 off is broken, not rounded.
_ORTHOGONALITY = 1e-4
# Relative size of singular values that eigenvectors of a float64 Gram matrix resolve: orthogonal to 1e-16
# over its square, 1e-6.
_RESOLVED = 1e-5


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
