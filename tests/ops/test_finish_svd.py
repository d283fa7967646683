"""The parts of a power step: the columns it begins with, and its end from both products."""

import pytest
import torch
from problems import gapped_matrix, relative_error

from lip_fast import ops
from lip_fast.status import RANK_DEFICIENT

STEP = torch.tensor(3)
SHAPES = [(30, 50), (50, 30), (37, 41), (29, 29), (18, 200)]
T, FRESH = 9, 8


def _products(M: torch.Tensor, V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    Y = (V.mT @ M.mT).mT
    return Y, (Y.mT @ M).mT


def _basis(M: torch.Tensor, t: int = T) -> torch.Tensor:
    return torch.linalg.svd(M.double(), full_matrices=False).Vh[:t].mT.contiguous().to(M.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_basis_comes_first_and_the_fresh_columns_add_what_it_has_not(dtype: torch.dtype) -> None:
    basis = torch.linalg.qr(torch.randn(41, T, generator=torch.Generator().manual_seed(0), dtype=dtype)).Q
    V = ops.start_basis(basis, STEP, fresh=FRESH, seed=5)
    assert V.shape == (41, T + FRESH)
    assert V.dtype == dtype
    assert V.mT.is_contiguous()
    assert relative_error(V[:, :T], basis) < 1e-6
    signs = ops.fresh_columns(STEP, 41, FRESH, seed=5).to(dtype)
    both = torch.cat([basis, signs], 1).double()
    # The same span, whether they are orthonormal or as they came.
    assert torch.linalg.matrix_rank(torch.cat([V.double(), both], 1), rtol=1e-5) == T + FRESH
    assert torch.linalg.matrix_rank(V.double(), rtol=1e-5) == T + FRESH


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-12)])
def test_the_end_of_a_step_is_the_step(shape: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    M = gapped_matrix(*shape).to(dtype)
    basis = _basis(M)
    Y, Z = _products(M, ops.start_basis(basis, STEP, fresh=FRESH, seed=0))
    A, S, B, status = ops.finish_svd(Y, Z, rank=T)
    assert int(status) == 0
    assert (A.shape, S.shape, B.shape) == ((shape[0], T), (T,), (shape[1], T))
    U, s, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    assert relative_error(S, s[:T]) < tolerance
    best = U[:, :T] * s[:T] @ Vh[:T]
    assert relative_error(A.double() * S.double() @ B.double().mT, best) < 3 * tolerance
    for F in (A, B):
        assert (F.double().mT @ F.double() - torch.eye(T)).abs().max() < 3 * tolerance


def test_products_in_any_layout() -> None:
    M = gapped_matrix(30, 50).float()
    Y, Z = _products(M, ops.start_basis(_basis(M), STEP, fresh=FRESH, seed=0))
    expected = ops.finish_svd(Y, Z, rank=T)
    got = ops.finish_svd(Y.contiguous(), Z.contiguous(), rank=T)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_directions_that_are_none_are_told_or_harmless() -> None:
    U, s, Vh = torch.linalg.svd(gapped_matrix(40, 60), full_matrices=False)
    M = (U[:, :6] * s[:6] @ Vh[:6]).float()
    Y, Z = _products(M, ops.start_basis(_basis(M), STEP, fresh=FRESH, seed=0))
    A, S, B, status = ops.finish_svd(Y, Z, rank=T)
    # A solver may take rounding for directions, as long as they are orthonormal.
    if int(status) != RANK_DEFICIENT:
        assert int(status) == 0
        assert (B.mT @ B - torch.eye(T)).abs().max() < 1e-4
    assert relative_error(S[:6], s[:6]) < 5e-6
    assert relative_error(A[:, :6] * S[:6] @ B[:, :6].mT, M) < 2e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["Y", "Z"])
def test_products_that_are_not_finite_are_told(bad: float, where: str) -> None:
    M = gapped_matrix(30, 50).float()
    Y, Z = _products(M, ops.start_basis(_basis(M), STEP, fresh=FRESH, seed=0))
    (Y if where == "Y" else Z)[3, 2] = bad
    A, S, B, status = ops.finish_svd(Y, Z, rank=T)
    assert int(status)
    assert (A.shape, S.shape, B.shape) == ((30, T), (T,), (50, T))


@pytest.mark.parametrize(
    ("Y", "Z", "rank", "error", "told"),
    [
        (torch.ones(30, 5), torch.ones(50, 6), 3, ValueError, "expected Z with 5 columns"),
        (torch.ones(30, 5), torch.ones(50, 5), 6, ValueError, r"expected rank in 0..5, got 6"),
        (torch.ones(4, 5), torch.ones(50, 5), 3, ValueError, "expected at most 4 columns, got 5"),
        (torch.ones(30, 5), torch.ones(50, 5).double(), 3, TypeError, "expected Z in one of"),
        (torch.ones(30), torch.ones(50, 5), 3, ValueError, "expected Y to be a matrix"),
    ],
)
def test_what_does_not_fit_is_refused(
    Y: torch.Tensor, Z: torch.Tensor, rank: int, error: type, told: str
) -> None:
    with pytest.raises(error, match=told):
        ops.finish_svd(Y, Z, rank=rank)


def test_too_many_columns_to_start_with_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 12 columns in all, got 9 columns of the basis and 8"):
        ops.start_basis(torch.ones(12, 9), STEP, fresh=8, seed=0)


def test_opcheck() -> None:
    M = gapped_matrix(30, 50).float()
    basis = _basis(M)
    torch.library.opcheck(torch.ops.lip_fast.start_basis.default, (basis, STEP, FRESH, 0))
    Y, Z = _products(M, ops.start_basis(basis, STEP, fresh=FRESH, seed=0))
    torch.library.opcheck(torch.ops.lip_fast.finish_svd.default, (Y, Z, T))
