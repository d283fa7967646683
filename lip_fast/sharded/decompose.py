"""Decompositions of a weight of which each process has a part.

They return what the ops of :mod:`lip_fast.ops` return for the whole weight; a factor on the sharded side has
the rows of this process.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lip_fast import host, ops
from lip_fast.cholesky import cholesky, gram
from lip_fast.projected import FRESH, Split, beside, energy, independent, no_split, of_columns
from lip_fast.rounding import compute_dtype
from lip_fast.sharded.group import Group
from lip_fast.status import NOT_FINITE, NOT_ORTHOGONAL

__all__ = [
    "no_svd",
    "products_of",
    "randomized_svd",
    "split",
    "tail_svd",
    "warm_svd",
    "whole_svd",
]

# Gram matrices are summed in float64, so that one factorisation is orthonormal to float32. For a float64
# matrix a second and a third bring back the digits that squaring costs: shifted CholeskyQR3 (Fukaya et al.,
# SIAM J. Sci. Comput. 42, 2020).
_PASSES = {torch.float32: 1, torch.float64: 3}
# max |B^T B - I| of a sound basis, as for a weight of one process.
_ORTHOGONALITY = 1e-4
# Singular values up to this share of the largest have no vectors: as for a weight of one process.
_RESOLVED = 1e-6


def warm_svd(
    group: Group,
    M: Tensor,
    basis: Tensor,
    step: Tensor,
    *,
    fresh: int,
    seed: int,
    products: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> ops.SVD:
    """:func:`lip_fast.ops.warm_svd` of the whole weight.

    Args:
        group: the processes that hold its parts.
        M: this process's part of it.
        basis: (q, t), the same on every process.
        step: () int64, likewise.
        fresh: number of fresh columns.
        seed: of the fresh columns.
        products: V -> M V, M^T M V of this part, which an update may change first.

    Returns:
        A (l, t), of a weight sharded by class the rows of this process; S (t,) and B (q, t) whole.
    """
    V = _start_columns(basis, step, fresh, seed)
    if group.sharding.dim == 1:
        return _svd_by_feature(group, M, V, basis.shape[1])
    return _svd_by_class(group, M, V, basis.shape[1], products)


def tail_svd(group: Group, M: Tensor, *, rank: int) -> ops.SVD:
    """:func:`lip_fast.ops.tail_svd` of the whole weight.

    By the Gram matrix of the feature side of a weight sharded by class, or the class side of one sharded by
    feature, where that is the smaller side; otherwise of all parts put together, which are then no more
    numbers than the vectors on the side that every process has to know.

    Args:
        group: the processes that hold its parts.
        M: this process's part of it.
        rank: number of leading directions whose vectors are not wanted.

    Returns:
        A (l, d - rank), of a weight sharded by class the rows of this process; S (d,) and B (q, d - rank)
        whole.
    """
    sharding = group.sharding
    l, q = sharding.shape
    dtype = compute_dtype(M)
    by_class = sharding.dim == 0
    part, long, short = (M, l, q) if by_class else (M.mT, q, l)

    def nothing() -> ops.SVD:
        return no_svd(M, q, min(l, q) - rank, kept=rank)

    if long <= short:
        together = _gather(group, part, long)

        def split() -> ops.SVD:
            svd = ops.tail_svd(together if by_class else together.mT, rank=rank)
            return svd._replace(A=sharding.part(svd.A)) if by_class else svd

        return group.compute_or(split, nothing)
    (G,) = group.sum(lambda: (gram(part.to(dtype)),), [(short, short)])
    _, R = _orthonormalize(group, part.to(dtype), G, factor_alone=True)

    def project() -> ops.SVD:
        svd = ops.tail_svd(R.to(dtype), rank=rank)
        tail = svd.S[rank:]
        inverse = torch.where(tail > _RESOLVED * svd.S[:1], tail.reciprocal(), 0)
        return svd._replace(A=(part.to(dtype) @ svd.B) * inverse)

    svd = group.compute_or(
        project,
        lambda: nothing()._replace(A=torch.zeros(len(part), short - rank, dtype=dtype, device=M.device)),
    )
    return svd if by_class else svd._replace(A=svd.B, B=_gather(group, svd.A, long))


def split(group: Group, M: Tensor, basis: Tensor, k: int, *, step: Tensor, seed: int) -> Split:
    """:func:`lip_fast.projected.split` of the whole weight, by two sums of a weight sharded by class.

    The columns are orthonormalised twice by Gram matrices in float64, all of them together: those of the tail
    come after the kept ones, and hence end in their complement.

    Args:
        group: the processes that hold its parts.
        M: this process's part of it.
        basis: (q, k + r), the same on every process.
        k: number of kept directions.
        step: () int64, counter of the random columns, likewise.
        seed: key of the random columns.

    Returns:
        ``left``, of a weight sharded by class, with the rows of this process; all else whole.
    """
    sharding = group.sharding
    (l, q), r = sharding.shape, basis.shape[1] - k
    signs = ops.fresh_columns(step, q, FRESH, seed=seed)
    V = beside(basis, signs[:, : min(l, q) - k - r])
    m, by_class = V.shape[1], sharding.dim == 0
    M = group.compute_or(M.float, lambda: M)

    def broken(rows: int) -> Tensor:
        return V.new_full((rows, m), torch.nan)

    if by_class:
        X = group.compute_or(lambda: M @ V, lambda: broken(len(M)))
        (G,) = group.sum(lambda: (gram(X),), [(m, m)])
    else:
        X, total = group.sum(lambda: (M @ sharding.part(V), energy(M)), [(l, m), ()])
        X, G = group.compute_or(lambda: (X.float(), gram(X)), lambda: (broken(l), broken(m)))
    # Rows of other processes are given other random numbers: with the same, columns would repeat themselves.
    own = sharding.own_seed(seed) if by_class else seed
    X = group.compute_or(lambda: independent(X, G, step, own), lambda: broken(len(M)))
    if by_class:
        Z, G, total = group.sum(lambda: ((X.mT @ M).mT, gram(X), energy(M)), [(q, m), (m, m), ()])
    else:
        Z = _gather(group, group.compute_or(lambda: (X.mT @ M).mT, lambda: broken(M.shape[1])), q)
        G = group.compute_or(lambda: gram(X), lambda: broken(m))
    return group.compute_or(lambda: of_columns(X, Z.float(), G, k, r, total), lambda: no_split(M, basis, k))


def randomized_svd(group: Group, M: Tensor, V: Tensor, t: int, iterations: int) -> ops.SVD:
    """Subspace iteration from the columns V (q, m), of the whole weight; else as :func:`warm_svd`."""
    step = _svd_by_feature if group.sharding.dim == 1 else _svd_by_class
    svd = step(group, M, V, V.shape[1] if iterations else t)
    for left in reversed(range(iterations)):
        svd = step(group, M, svd.B, V.shape[1] if left else t)
    return svd


def whole_svd(group: Group, M: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading ``t`` singular triplets, exactly: A and B with the rows of this process where sharded.

    By a triangular factor of the sharded side, of as many rows as the other side is long; or of all parts put
    together where that is the longer side.
    """
    l, q = group.sharding.shape
    by_class = group.sharding.dim == 0
    part, long, short = (M, l, q) if by_class else (M.mT, q, l)
    if long > short:
        svd = _svd_by_class(group, part, torch.eye(short, dtype=M.dtype, device=M.device), t)
        far, S, near = svd.A, svd.S, svd.B
    else:
        U, S, Vh = torch.linalg.svd(_gather(group, part, long), full_matrices=False)
        far, S, near = group.sharding.part(U[:, :t]), S[:t].clone(), Vh[:t].mT
    return (far, S, near) if by_class else (near, S, far)


def no_svd(M: Tensor, q: int, t: int, *, kept: int = 0, reason: int = NOT_FINITE) -> ops.SVD:
    """Zeros in the place of a decomposition that failed, and the reason.

    Args:
        M: (rows, ...) the weight, or this process's part of it.
        q: features of the whole weight.
        t: number of directions.
        kept: number of leading singular values without vectors.
        reason: a bit of :mod:`lip_fast.status`; a decomposition of finite numbers that does not converge has
            not been seen where none is given.
    """
    like = M.new_zeros(0, dtype=compute_dtype(M))
    status = torch.full((), reason, dtype=torch.int64, device=M.device)
    return ops.SVD(like.new_zeros(M.shape[0], t), like.new_zeros(kept + t), like.new_zeros(q, t), status)


# Steps that all processes take together -------------------------------------------------------------------


def _svd_by_class(
    group: Group,
    M: Tensor,
    V: Tensor,
    t: int,
    products: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> ops.SVD:
    """One fused sum: Y = M V stays where it is, M^T Y and Y^T Y are sums over the parts."""
    q, m = V.shape
    Y = torch.full((M.shape[0], m), torch.nan, dtype=V.dtype, device=V.device)

    def take() -> tuple[Tensor, Tensor]:
        nonlocal Y
        Y, Z = products_of(M, V) if products is None else products(V)
        return Z, gram(Y)

    Z, G = group.sum(take, [(q, m), (m, m)])
    Q, R = _orthonormalize(group, Y, G)
    return group.compute_or(lambda: _finish_by_class(Q, R, Z, t, V), lambda: no_svd(M, V.shape[0], t))


def _svd_by_feature(group: Group, M: Tensor, V: Tensor, t: int) -> ops.SVD:
    """Y = M V is a sum over the parts, M^T Q is put together from them."""
    q, m = V.shape
    V_part = group.sharding.part(V)
    (Y,) = group.sum(lambda: (M.to(V.dtype) @ V_part,), [(M.shape[0], m)])

    def project() -> tuple[Tensor, Tensor]:
        try:
            Q, _ = ops.orthonormalize(Y.to(V.dtype))
        except torch.linalg.LinAlgError:  # the same numbers on every process, hence the same error
            Q = torch.full_like(Y, torch.nan, dtype=V.dtype)
        return Q, (Q.mT @ M.to(V.dtype)).mT

    Q, part = group.compute_or(project, lambda: (V.new_zeros(M.shape[0], m), V.new_zeros(M.shape[1], m)))
    Z = _gather(group, part, q)
    return group.compute_or(lambda: ops.finish_svd(Q, Z, rank=t), lambda: no_svd(M, q, t))


def _orthonormalize(
    group: Group, Y: Tensor, G: Tensor, *, factor_alone: bool = False
) -> tuple[Tensor, Tensor]:
    """Y = Q R in float64, of the parts Y (n, m) on each process and their Gram matrix G (m, m).

    Shifted CholeskyQR, which any Gram matrix allows; once for float32, which loses nothing by squaring in
    float64, three times for float64.
    """
    passes = _PASSES[Y.dtype]
    broken = torch.full_like(G, torch.nan)
    if factor_alone and passes == 1:
        return Y, group.compute_or(lambda: cholesky(G), lambda: broken)

    def divide(Q: Tensor, G: Tensor, R: Tensor | None) -> tuple[Tensor, Tensor]:
        again = cholesky(G)
        Q = torch.linalg.solve_triangular(again, Q.double(), upper=True, left=False)
        return Q, again if R is None else again @ R

    Q, R = group.compute_or(lambda: divide(Y, G, None), lambda: (Y, broken))
    for _ in range(1, passes):
        (G,) = group.sum(lambda: (gram(Q),), [tuple(G.shape)])  # noqa: B023
        Q, R = group.compute_or(lambda: divide(Q, G, R), lambda: (Q, broken))  # noqa: B023
    return Q, R


def _gather(group: Group, part: Tensor, length: int) -> Tensor:
    """All rows of a matrix, of the weight's parts; NaN where this process failed and was in it before."""
    if group.joins():
        return group.sharding.gather(part, length)
    return part.new_full((length, part.shape[1]), torch.nan)


# Algebra that all processes do alike ----------------------------------------------------------------------


def _start_columns(basis: Tensor, step: Tensor, fresh: int, seed: int) -> Tensor:
    """The basis and fresh columns (q, t + fresh), as :func:`lip_fast.ops.start_basis`, which span the same.

    The part of the fresh columns in the span of the basis is taken out first. It would add nothing to M^T M V
    but numbers of the size of the largest singular value, and the small directions would drown in their
    rounding.
    """
    F = ops.fresh_columns(step, basis.shape[0], fresh, seed=seed).to(basis.dtype)
    for _ in range(2):  # twice is enough (Kahan; Parlett, The Symmetric Eigenvalue Problem, 6.9)
        F = F - basis @ (basis.mT @ F)
    return torch.cat([basis.mT, F.mT]).mT


def _finish_by_class(Q: Tensor, R: Tensor, Z: Tensor, t: int, V: Tensor) -> ops.SVD:
    """Directions from M V = Q R, of which each process has its rows of Q, and Z = M^T M V."""
    # M^T Q, without reading M again.
    image = torch.linalg.solve_triangular(R, Z, upper=True, left=False)
    if V.device.type not in host.READABLE:
        svd = ops.finish_svd(R.to(V.dtype), Z.to(V.dtype), rank=t)
        return svd._replace(A=(Q @ svd.A.double()).to(V.dtype))
    try:
        P, T = ops.orthonormalize(image.to(V.dtype))
        U, S, Vh = torch.linalg.svd(T)
    except torch.linalg.LinAlgError:  # the same numbers on every process, hence the same error
        return no_svd(Q.to(V.dtype), V.shape[0], t)
    B = (U[:, :t].mT @ P.mT).mT
    return ops.SVD((Q @ Vh[:t].mT.double()).to(V.dtype), S[:t].clone(), B, _soundness(B))


def products_of(M: Tensor, V: Tensor, *, tf32: bool = True) -> tuple[Tensor, Tensor]:
    """:func:`lip_fast.ops.sketch` of a part of a weight, which may be empty."""
    if M.shape[0] == 0:
        return V.new_zeros(0, V.shape[1]), torch.zeros_like(V)
    return ops.sketch(M, V, tf32=tf32)


def _soundness(B: Tensor) -> Tensor:
    """The status word of a basis: whether it is orthonormal, or finite at all."""
    if not B.shape[1]:
        return torch.zeros((), dtype=torch.int64, device=B.device)
    deviation = B.mT @ B
    deviation.diagonal().sub_(1)
    worst = deviation.abs().max()
    finite = torch.isfinite(worst)
    return (~finite) * NOT_FINITE + (finite & (worst > _ORTHOGONALITY)) * NOT_ORTHOGONAL
