"""Truncated singular value decomposition by randomized subspace iteration."""

import torch
from torch import Tensor

from lip_fast import ops
from lip_fast.sharded import decompose as parts
from lip_fast.sharded.group import Group
from lip_fast.sharded.layout import Sharding
from lip_fast.sharded.tensors import first_of_mesh, full_tensor, is_sharded, local_part
from lip_fast.validation import check_finite, check_float_matrix, check_int, full_precision

__all__ = ["randomized_svd"]


@full_precision
def randomized_svd(
    M: Tensor,
    rank: int,
    *,
    oversample: int = 8,
    n_iter: int = 2,
    basis: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Truncated singular value decomposition by randomized subspace iteration, with an optional warm start.

    Halko, Martinsson and Tropp (arXiv:0909.4061), algorithms 4.4 and 5.1, every product followed by an
    orthonormalisation. Where rank + oversample reaches min(l, q) the result is exact.

    Of a DTensor no process ever has all, except where the result is exact and l <= q (``Shard(0)``; with
    ``Shard(1)`` q <= l): one all-reduce of (q + m) m numbers an iteration, m = rank + oversample, of a matrix
    sharded by rows, whatever their number; (l + q) m by columns. Every process has to call it.

    Args:
        M: (l, q) float32 or float64, any strides; tall or wide. Or a DTensor, sharded in one of its
            dimensions or replicated.
        rank: number of triplets, 0 <= rank <= min(l, q).
        oversample: extra columns of the sketch that are cut off at the end.
        n_iter: power iterations; each reads M twice. The total is 2 n_iter + 2 reads.
        basis: (q, c) approximate right singular vectors to start from, for instance ``Vh.mT`` of an earlier
            call; columns missing up to rank + oversample are drawn at random. With a good basis
            ``n_iter=0`` is enough.
        generator: of the random columns, on the device of ``M``; None draws from a generator of its own with
            a fixed seed. The global random state is never touched. Of a DTensor the columns are those of the
            first process of its mesh.

    Returns:
        U (l, rank), S (rank,) descending, Vh (rank, q), in the dtype of ``M``. Of a DTensor they are
        DTensors: U (Vh) sharded as the rows (columns) of ``M`` are, the others replicated; columns of a
        sharded factor whose singular value is at rounding are not orthonormal.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: rank, oversample, n_iter or basis do not fit, ``M`` is not finite, or its layout is
            another.
        PeerError: another process of the mesh is gone.
    """
    check_float_matrix("M", M, (torch.float32, torch.float64))
    l, q = M.shape
    check_int("rank", rank, 0, min(l, q))
    check_int("oversample", oversample, 0)
    check_int("n_iter", n_iter, 0)
    if basis is not None:
        basis = full_tensor(basis)
        _check_basis(basis, M)
    if is_sharded(M):
        return _randomized_svd_jointly(M, rank, oversample, n_iter, basis, generator)
    check_finite("M", M)
    m = min(rank + oversample, l, q)
    with torch.no_grad():
        if m == min(l, q):
            U, S, Vh = torch.linalg.svd(M, full_matrices=False)
            return U[:, :rank].contiguous(), S[:rank].clone(), Vh[:rank].contiguous()
        V = _test_columns(M, m, basis, generator)
        for _ in range(n_iter):
            Q, _ = ops.orthonormalize(M @ V)
            V, _ = ops.orthonormalize(M.mT @ Q)
        Q, _ = ops.orthonormalize(M @ V)
        P, T = ops.orthonormalize(M.mT @ Q)
        # M ~ Q Q^T M = Q (P T)^T and T = L S R^T, so M ~ (Q R) S (P L)^T.
        L, S, Rh = torch.linalg.svd(T, full_matrices=False)
        return Q @ Rh[:rank].mT, S[:rank].clone(), (P @ L[:, :rank]).mT.contiguous()


@torch.no_grad()
def _randomized_svd_jointly(
    M: Tensor,
    rank: int,
    oversample: int,
    n_iter: int,
    basis: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    sharding, part = Sharding(M, None), local_part(M)
    l, q = M.shape
    group = Group(sharding, [], torch.ones((), dtype=torch.bool, device=M.device), dtype=M.dtype)
    (broken,) = group.sum(lambda: ((~torch.isfinite(part)).sum(),), [()])
    if bool(broken):
        raise ValueError(f"expected finite M, got {int(broken)} entries that are not")
    m = min(rank + oversample, l, q)
    V = None
    if m < min(l, q):
        V = _test_columns(part.new_empty(0, q), m, basis, generator)
        if generator is not None:
            V = first_of_mesh(V, M)
    if not sharding.shards:
        U, S, Vh = randomized_svd(part, rank, oversample=oversample, n_iter=n_iter, basis=V)
    elif V is None:
        A, S, B = parts.whole_svd(group, part, rank)
        U, Vh = A, B.mT
    else:
        svd = parts.randomized_svd(group, part, V, rank, n_iter)
        U, S, Vh = svd.A, svd.S, sharding.features_of(svd.B).mT
    rows, columns = (0 if sharding.dim == 0 else None), (1 if sharding.dim == 1 else None)
    return (
        sharding.as_dtensor(U, (l, rank), rows),
        sharding.as_dtensor(S, (rank,), None),
        sharding.as_dtensor(Vh, (rank, q), columns),
    )


def _check_basis(basis: Tensor, M: Tensor) -> None:
    check_float_matrix("basis", basis, (M.dtype,))
    if basis.shape[0] != M.shape[1]:
        raise ValueError(
            f"expected a basis with {M.shape[1]} rows (the columns of M), got {tuple(basis.shape)}"
        )
    if basis.device != M.device:
        raise ValueError(f"expected basis on the device of M, {M.device}, got {basis.device}")
    check_finite("basis", basis)


def _test_columns(M: Tensor, m: int, basis: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """(q, m): the basis, filled up with or cut down from Gaussian columns."""
    columns = [] if basis is None else [basis[:, :m]]
    missing = m - sum(c.shape[1] for c in columns)
    if missing or not columns:
        if generator is None:
            generator = torch.Generator(device=M.device)
            generator.manual_seed(0)
        columns.append(torch.randn(M.shape[1], missing, generator=generator, dtype=M.dtype, device=M.device))
    return torch.cat(columns, 1)
