"""A weight split in kept directions and a tail by products alone, whatever the number of kept directions.

Where LIP acts in every step the tail was squashed a step ago, and singular values fall by an order of
magnitude or more from the kept directions to the next. With that gap one warm-started power step finds the
kept subspace, and no decomposition of the kept part is needed: only of the few columns below it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast import host, ops
from lip_fast.cholesky import cholesky, divided, gram, inverse
from lip_fast.status import NOT_CONVERGED, NOT_FINITE, NOT_ORTHOGONAL

__all__ = [
    "FRESH",
    "GUARDS",
    "Split",
    "beside",
    "energy",
    "first_basis",
    "independent",
    "no_split",
    "of_columns",
    "split",
    "split_of_products",
]

FRESH = 8
"""Fresh random columns beside the tail: without them a warm start never sees a new direction."""
GUARDS = 8
"""Kept directions that are decomposed together with the tail, so that up to so many change places with it in
a step. A QR factorisation in the order kept, tail never swaps two of them, and the tail is squashed in that
same step: a new strong direction would be lost for good."""

# Of a float32 column what is left of it beside others, or of columns of like lengths one shorter than this
# share of the longest, is what rounding left.
_VANISHED = 3e-6
# Of the diagonal of a Gram matrix of columns which may nearly all depend on others: see cholesky().
_SHIFT = 100
# The smallest pivot of unit columns with which one pass in float32 is orthonormal to 1e-5: the rounding of a
# Gram matrix, 1e-7, over its square.
_PIVOT = 0.1
# That of columns which two Gram matrices in float64 make orthonormal: 1e-7, as a product is rounded, over it.
_LEAST_PIVOT = 1e-3
# Relative size of singular values whose vectors a float64 Gram matrix resolves: to 1e-16 over its square.
_RESOLVED = 1e-6
# Up to this length the series of a rotation is right to 1e-5; a longer one is taken in several steps.
_LARGEST_ANGLE = 0.25
# Columns from which on a Gram matrix is worth being taken in blocks.
_BLOCKED = 256
# max |Q^T Q - I| of a sound basis, as of the other decompositions.
_ORTHOGONALITY = 1e-4


class Split(NamedTuple):
    """M (l, q) in factors, Q Z^T but for what no column found, and of that a tail A diag(S) B^T.

    Attributes:
        left: (l, ...) column blocks of Q, and last A (l, m), orthonormal each; k + 2 m columns in all.
        right: (q, ...) blocks of Z, and last B (q, m): its columns have length 1, or 0 where there is no
            direction. What is kept is Q Z^T - A diag(S) B^T, of rank k.
        S: (m,) descending up to the rotation.
        s_1: () the largest length of a column of Z: between s_1 / sqrt(k) and s_1.
        s_k: () the smallest kept singular value; that of the tail's first direction where k = 0.
        gamma: () ||Z^T B diag(S)||_F / s_k^2, of the kept columns of Z and before the rotation: predicts the
            error of the kept part relative to what the step changes.
        deeper: () float64, the share of ||M||_F^2 below the first k + r directions.
        status: () int64, bits of :mod:`lip_fast.status`.
        basis: (q, k + r) of the next step.
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    S: Tensor
    s_1: Tensor
    s_k: Tensor
    gamma: Tensor
    deeper: Tensor
    status: Tensor
    basis: Tensor

    @property
    def A(self) -> Tensor:  # noqa: N802
        """(l, m) the class side of the tail."""
        return self.left[-1]

    @property
    def B(self) -> Tensor:  # noqa: N802
        """(q, m) the feature side of the tail."""
        return self.right[-1]


def first_basis(S: Tensor, B: Tensor, k: int, r: int) -> Tensor:
    """The basis (q, k + r) of :func:`split` after an exact decomposition with S (d,) and B (q, d)."""
    return B[:, : k + r] / torch.cat([_resolved(S[:k]), torch.ones_like(S[k : k + r])])


def split(M: Tensor, basis: Tensor, k: int, *, step: Tensor, seed: int) -> Split:
    """Split M by one power step from ``basis``, and a rotation of what it found.

    Args:
        M: (l, q) float32.
        basis: (q, k + r): Z of the step before with columns divided by their squared lengths, which M takes
            nearly to Q where Z is nearly orthogonal, as it becomes; and unit columns of the tail.
        k: number of kept directions, 0..min(l, q) - 1.
        step: () int64, counter of the random columns.
        seed: key of the random columns.
    """
    if found := _split_at_once(M, basis, k, step, seed):
        return found
    r, n = basis.shape[1] - k, k - min(GUARDS, k)
    signs = ops.fresh_columns(step, len(basis), FRESH, seed=seed)
    Y, F = M @ basis, M @ signs[:, : min(M.shape) - k - r]
    Q = _orthonormal_at_once(Y[:, :n]) if M.device.type in host.READABLE else None
    if Q is None:
        X = _orthonormal_in_order(beside(Y, F), step, seed)
        return _in_order(X, (X.mT @ M).mT, k, r, energy(M), signs)
    # In the complement of Q: twice is enough (Kahan; Parlett, The Symmetric Eigenvalue Problem, 6.9).
    T = _without(Q, beside(Y[:, n:], F))
    T = _without(Q, independent(T, gram(T), step, seed))
    (T,) = _orthonormal(gram(T), T)
    # As Q^T M: the products then run along the rows of M.
    Z, image = (Q.mT @ M).mT, (T.mT @ M).mT
    return _split_of(Q, T, Z, image, k, r, total=energy(M), deviation=_deviation(Q, signs[:n]))


def _split_at_once(M: Tensor, basis: Tensor, k: int, step: Tensor, seed: int) -> Split | None:
    """On a host, in one call; None where that cannot be, or cannot be used."""
    if M.device.type not in host.READABLE:
        return None
    found = ops.split(M, basis, k, guards=GUARDS, fresh=FRESH, step=step, seed=seed)
    if found is None:
        return None
    zero = found.S.new_zeros(())
    return Split(
        found.left,
        found.right,
        found.S,
        s_1=zero + found.s_1,
        s_k=zero + found.s_k,
        gamma=zero + found.gamma,
        deeper=zero.double() + found.deeper,
        status=zero.long(),
        basis=found.basis,
    )


def split_of_products(
    sketch: Callable[[Tensor], Tensor],
    project: Callable[[Tensor], Tensor],
    basis: Tensor,
    k: int,
    *,
    step: Tensor,
    seed: int,
) -> Split:
    """:func:`split` of a weight M of which two products are had and no more, in the order of the arguments.

    Args:
        sketch: V (q, k + r + 8) -> M V, which may update M first.
        project: X (l, k + r + 8) -> M^T X.
        basis: (q, k + r), of a weight with at least k + r + 8 directions; else as of :func:`split`.
        k: number of kept directions.
        step: () int64, counter of the random columns.
        seed: key of the random columns.

    Returns:
        That split, with an estimate of ``deeper``.
    """
    known = basis.shape[1]
    signs = ops.fresh_columns(step, len(basis), FRESH, seed=seed)
    Y = sketch(beside(basis, signs))
    X = _orthonormal_in_order(Y, step, seed)
    Z = project(X)
    # Within the span of the kept columns and the tail ||M||_F^2 is known; outside of it, it is the mean of
    # ||M v||^2 over random signs v (Hutch++; Meyer, Musco, Musco and Woodruff, SOSA 2021).
    outside = X[:, known:].mT @ Y[:, known:]
    total = energy(torch.linalg.vector_norm(Z[:, :known], dim=0)) + energy(outside) / FRESH
    return _in_order(X, Z, k, known - k, total, signs)


def independent(X: Tensor, G: Tensor, step: Tensor, seed: int) -> Tensor:
    """X R^-1, nearly orthonormal, of rows X (l, m) of a matrix with the Gram matrix G = R^T R.

    Random columns take the place of those that depend on others before them, and of zeros.
    """
    R = cholesky(G, _SHIFT)
    lengths = G.diagonal().sqrt()
    # No pivot is below the root of the shift.
    least = max(_VANISHED, 2 * (_SHIFT * len(G) * torch.finfo(G.dtype).eps) ** 0.5)
    dependent = R.diagonal() <= least * torch.where(lengths > 0, lengths, 1)
    Q = X @ inverse(R).float()
    if not len(X) or (X.device.type in host.READABLE and not bool(dependent.any())):
        return Q
    # Not the columns that M was multiplied by.
    return torch.where(dependent, ops.fresh_columns(step, *X.shape, seed=seed ^ 1), Q)


def of_columns(X: Tensor, Z: Tensor, G: Tensor, k: int, r: int, total: Tensor) -> Split:
    """The split of M from its nearly orthonormal columns, those of the kept directions first.

    Args:
        X: (l, k + m), maybe some rows of all; m columns of the tail and fresh ones.
        Z: (q, k + m) M^T X.
        G: (k + m, k + m) X^T X in float64.
        k: number of kept directions.
        r: number of directions of the tail.
        total: () float64, ||M||_F^2.
    """
    X, Z = _orthonormal(G, X, Z)
    return _in_order(X, Z, k, r, total)


def _orthonormal_in_order(Y: Tensor, step: Tensor, seed: int) -> Tensor:
    """Orthonormal columns (l, m), of which the first ones span those of Y, however many these are."""
    X = independent(Y, gram(Y), step, seed)
    (X,) = _orthonormal(gram(X), X)
    return X


def _in_order(X: Tensor, Z: Tensor, k: int, r: int, total: Tensor, signs: Tensor | None = None) -> Split:
    """:func:`of_columns` of columns X that are orthonormal.

    With random ``signs`` (q, 8) it is seen whether they are; None where X has some rows of all.
    """
    n = k - min(GUARDS, k)
    Q = X[:, :n]
    deviation = torch.zeros_like(Z[0, 0])
    if signs is not None:
        deviation = _deviation(Q, torch.where((Q != 0).any(0)[:, None], signs[:n], 0))
    return _split_of(Q, X[:, n:], Z[:, :n], Z[:, n:], k, r, total=total, deviation=deviation)


def _split_of(
    Q: Tensor, T: Tensor, Z: Tensor, image: Tensor, k: int, r: int, *, total: Tensor, deviation: Tensor
) -> Split:
    """The split of M from orthonormal columns of which the leading ones span what is kept.

    Args:
        Q: (l, n) those of the kept directions without the guards; maybe some rows of all.
        T: (l, g + m) those of g guards, the tail and fresh columns, in the complement of Q; likewise.
        Z: (q, n) M^T Q.
        image: (q, g + m) M^T T.
        k: number of kept directions.
        r: number of directions of the tail.
        total: () float64, ||M||_F^2.
        deviation: () of Q^T Q from the identity.
    """
    guards = min(GUARDS, k)
    A, S, B = _small_svd(T, image)
    found = energy(Z) + energy(S[: guards + r])
    s_k = S[max(guards - 1, 0)]
    A_kept, S_kept, B_kept = A[:, :guards], S[:guards], B[:, :guards]
    A, S, B = A[:, guards:], S[guards:], B[:, guards:]
    C = B * S
    lengths = torch.linalg.vector_norm(Z, dim=0)
    E = Z.mT @ C
    A_tail, C_tail = _rotated(Q, Z, A, C, lengths, E, S)
    S_tail = torch.linalg.vector_norm(C_tail, dim=0)
    B_tail = _divide(C_tail, S_tail)
    following = beside(Z / _resolved(lengths).square(), _divide(B_kept, S_kept), B_tail[:, :r])
    return Split(
        left=(Q, A_kept, A, A_tail),
        right=(Z, B_kept * S_kept, C, B_tail),
        S=S_tail,
        s_1=torch.cat([lengths, S_kept, S_tail]).max(),
        s_k=s_k,
        gamma=_divide(torch.linalg.vector_norm(E), s_k.square()),
        deeper=_divide(total - found, total),
        status=_soundness(deviation, total, found + following.sum()),
        basis=following,
    )


def no_split(M: Tensor, basis: Tensor, k: int) -> Split:
    """Zeros in the place of a split of M (l, q), maybe some rows or columns of it, that failed."""
    l, (q, columns) = len(M), basis.shape
    r = columns - k
    zero = basis.new_zeros((), dtype=torch.float32)
    return Split(
        left=(zero.new_zeros(l, columns), zero.new_zeros(l, r)),
        right=(zero.new_zeros(q, columns), zero.new_zeros(q, r)),
        S=zero.new_zeros(r),
        s_1=zero,
        s_k=zero,
        gamma=zero,
        deeper=zero.double(),
        status=torch.full((), NOT_FINITE, dtype=torch.int64, device=M.device),
        basis=torch.zeros_like(basis),
    )


def _rotated(
    Q: Tensor, Z: Tensor, A: Tensor, C: Tensor, lengths: Tensor, E: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """The tail A C^T as it is once both parts are rotated by X, until M^T maps them to orthogonal spaces.

    To first order that takes H X = E, with H = Z^T Z, whose diagonal is ``lengths`` squared, and E = Z^T C.
    The columns of Z are nearly orthogonal: a power step takes them towards the singular vectors, one by one.
    So X is one step of conjugate gradients, preconditioned by the diagonal. It leaves some hundredths of X in
    a training, and a tenth where LIP acts in every eighth step; the error of the kept part is 10 to 90 times
    smaller than without, as by a second power step. With s_{k+1}^2 added to H it stays finite where kept
    directions died. The kept part need not be rotated: the sum of both is the same before and after, and
    the basis of the next step is as good without.
    """
    if not E.numel():
        return A, C
    shift = S.max().square()
    X = _divide(E.mT, lengths.square() + shift).mT
    moved = Z @ X
    along = (E * X).sum(0)
    size = _divide(along, moved.square().sum(0) + shift * X.square().sum(0))
    angle = torch.linalg.vector_norm(X * size)
    size = size * (_LARGEST_ANGLE / torch.where(angle > 0, angle, 1)).clamp(max=1)
    X = X * size
    P = X.mT @ X
    # (I + X^T X)^(-1/2), to X^6.
    N = torch.addmm(P, P, P, beta=-0.5, alpha=0.375)
    N.diagonal().add_(1)
    # What the series leaves of the lengths of A's columns, by X alone: A may have some rows of all.
    stretch = (N.square().sum(0) + (N * (P @ N)).sum(0)).sqrt()
    return torch.addmm(A, Q, X, alpha=-1) @ (N / stretch), torch.addcmul(C, moved, size, value=-1) @ N


def _factor(G: Tensor) -> Tensor:
    """The lower Cholesky factor; NaN where there is none, for the status to tell."""
    L, info = torch.linalg.cholesky_ex(G)
    return torch.where(info == 0, L, torch.nan)


def _orthonormal(G: Tensor, *matrices: Tensor) -> list[Tensor]:
    """X R^-1 of each matrix X, with the Gram matrix G = R^T R of the first one, which becomes orthonormal.

    G is nearly I.
    """
    R = cholesky(G, _SHIFT)
    # Where random columns were to fill a space up, one may depend on the others: it is left out, as zeros.
    usable = ~(R.diagonal() <= _LEAST_PIVOT * G.diagonal().sqrt())
    return [torch.where(usable, divided(X, R), 0) for X in matrices]


def _orthonormal_at_once(Y: Tensor) -> Tensor | None:
    """An orthonormal basis of columns that nearly are so, by one pass of CholeskyQR; None of any others."""
    if not Y.shape[1]:
        return Y
    G = _lower_gram(Y)
    L, lengths = _factor(G), G.diagonal().sqrt()
    # NaN compares false.
    if bool(((lengths > _VANISHED * lengths.max()) & (L.diagonal() > _PIVOT * lengths)).all()):
        return _exactly_unit(torch.linalg.solve_triangular(L, Y.mT, upper=False).mT)
    return None


def _exactly_unit(Q: Tensor) -> Tensor:
    """Columns that CholeskyQR left 1e-7 too long on average: the weight would grow by as much in each step.

    Not divided by their lengths, which in float32 are 1 or next to it.
    """
    excess = 1 - torch.linalg.vector_norm(Q, dim=0, dtype=torch.float64).reciprocal()
    return torch.addcmul(Q, Q, excess.float(), value=-1)


def _small_svd(T: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, S, B of T image^T: T (l, m) orthonormal, maybe some rows of all, and image (q, m)."""
    if T.device.type not in host.READABLE:
        within = ops.finish_svd(torch.eye(T.shape[1], device=T.device), image, rank=T.shape[1])
        return T @ within.A, within.S, within.B
    X = image.double()
    # A library raises where a number is not finite; the status will say so.
    P = torch.linalg.eigh(torch.nan_to_num(X.mT @ X, posinf=0, neginf=0))[1].flip(1)
    B = X @ P
    S = torch.linalg.vector_norm(B, dim=0)
    B *= torch.where(S > _RESOLVED * S.max(), S.reciprocal(), 0)
    return T @ P.float(), S.float(), B.float()


def _deviation(Q: Tensor, signs: Tensor) -> Tensor:
    """() max |Q^T Q signs - signs|, of Q (l, n) and signs (n, 8).

    Q^T Q has as many numbers as Q; of its products with eight sign vectors, one entry is at least as large as
    any |Q^T Q - I|_ij with a probability of 1 - 2^-8.
    """
    deviation = (Q.mT @ (Q @ signs) - signs).abs()
    return deviation.max() if deviation.numel() else deviation.new_zeros(())


def _soundness(deviation: Tensor, total: Tensor, made: Tensor) -> Tensor:
    """() int64: whether M, of energy ``total``, and what was ``made`` of it are finite, and Q orthonormal."""
    finite, found = torch.isfinite(total), torch.isfinite(deviation) & torch.isfinite(made)
    broken = (finite & ~found) * NOT_CONVERGED + (found & (deviation > _ORTHOGONALITY)) * NOT_ORTHOGONAL
    return (~finite) * NOT_FINITE + broken * finite


def _lower_gram(Y: Tensor) -> Tensor:
    """The lower triangle of Y^T Y, and some of the upper one: a third of the work less, in blocks of rows."""
    n = Y.shape[1]
    if n < _BLOCKED:
        return Y.mT @ Y
    G = Y.new_zeros(n, n)
    for first in range(0, n, -(-n // 3)):
        rows = slice(first, min(first + -(-n // 3), n))
        torch.mm(Y[:, rows].mT, Y[:, : rows.stop], out=G[rows, : rows.stop])
    return G


def _without(Q: Tensor, Y: Tensor) -> Tensor:
    """What the columns of Y have in the complement of Q."""
    return torch.addmm(Y, Q, Q.mT @ Y, alpha=-1)


def _resolved(lengths: Tensor) -> Tensor:
    """Lengths of like columns; those that rounding left are as long as it may make them."""
    if not len(lengths):
        return lengths
    least = _VANISHED * lengths.max()
    return torch.where(lengths > least, lengths, torch.where(least > 0, least, 1))


def _divide(X: Tensor, by: Tensor) -> Tensor:
    """X / by; X where that is 0."""
    return X / torch.where(by > 0, by, 1)


def energy(X: Tensor) -> Tensor:
    """() ||X||_F^2 in float64."""
    return torch.linalg.vector_norm(X).double().square()


def beside(*columns: Tensor) -> Tensor:
    """Matrices beside each other; tall ones are kept with their columns contiguous."""
    return torch.cat([X.mT for X in columns]).mT
