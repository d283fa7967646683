"""One warm power step: exact on what the basis holds, sound on what is broken."""

import pytest
import torch
from problems import gapped_matrix, relative_error

from lip_fast import ops
from lip_fast.backends.default import svd as kernel
from lip_fast.status import NOT_CONVERGED, NOT_FINITE, NOT_ORTHOGONAL

STEP = torch.tensor(0)
SHAPES = [(30, 50), (50, 30), (37, 41), (29, 29)]


def _warm(M: torch.Tensor, t: int, dtype: torch.dtype = torch.float32) -> ops.SVD:
    _, _, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    return ops.warm_svd(M, Vh[:t].mT.contiguous().to(dtype), STEP, fresh=8, seed=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_from_the_right_basis_it_is_the_truncated_svd(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    M = gapped_matrix(*shape)
    A, S, B, status = _warm(M.to(dtype), 10, dtype)
    assert int(status) == 0
    assert A.shape == (shape[0], 10)
    assert B.shape == (shape[1], 10)
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    assert relative_error(S, s[:10]) < tolerance
    best = U[:, :10] * s[:10] @ Vh[:10]
    assert relative_error(A.double() * S.double() @ B.double().mT, best) < 3 * tolerance
    for F in (A, B):
        gram = F.double().mT @ F.double()
        assert (gram - torch.eye(10, dtype=torch.float64)).abs().max() < 3 * tolerance


def test_a_low_rank_matrix_is_found_from_any_basis() -> None:
    U, s, Vh = torch.linalg.svd(gapped_matrix(40, 60), full_matrices=False)
    M = (U[:, :6] * s[:6] @ Vh[:6]).float()
    g = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(60, 12, generator=g)).Q
    A, S, B, status = kernel.warm_svd(M, basis, STEP, 8, 0)
    assert int(status) == 0
    assert relative_error(A * S @ B.mT, M) < 1e-5
    # Directions a low-rank matrix does not have are orthonormal all the same.
    assert (B.mT @ B - torch.eye(12)).abs().max() < 1e-5
    assert (A.mT @ A - torch.eye(12)).abs().max() < 1e-5


def test_the_zero_matrix() -> None:
    A, S, B, status = kernel.warm_svd(torch.zeros(30, 20), torch.eye(20, 5), STEP, 8, 0)
    assert int(status) == 0
    assert not S.any()
    assert torch.isfinite(A).all()
    assert torch.isfinite(B).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [5, 0])
@pytest.mark.usefixtures("arithmetic")
def test_what_is_not_finite_is_reported_not_raised(bad: float, dtype: torch.dtype, t: int) -> None:
    M = gapped_matrix(30, 20).to(dtype)
    M[29, 19] = bad
    result = ops.warm_svd(M, torch.eye(20, t, dtype=dtype), STEP, fresh=8, seed=0)
    assert int(result.status) == NOT_FINITE
    assert result.A.shape == (30, t)


@pytest.mark.usefixtures("arithmetic")
def test_a_solver_that_fails_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    status = kernel.warm_svd(gapped_matrix(30, 20).float(), torch.eye(20, 5), STEP, 8, 0)[3]
    assert int(status) == NOT_CONVERGED
    assert status.dtype == torch.int64


@pytest.mark.parametrize(("off", "expected"), [(0.5e-4, 0), (2e-4, NOT_ORTHOGONAL), (1e30, NOT_FINITE)])
@pytest.mark.usefixtures("arithmetic")
def test_a_basis_that_is_not_orthogonal_is_reported(
    off: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = kernel._by_gram

    def skewed(*arguments: object) -> tuple[torch.Tensor, ...]:
        A, S, B = solve(*arguments)
        B = B.clone()
        B[:, 1] += off * B[:, 0]
        return A, S, B

    monkeypatch.setattr(kernel, "_by_gram", skewed)
    status = kernel.warm_svd(gapped_matrix(30, 20).float(), torch.eye(20, 5), STEP, 8, 0)[3]
    assert int(status) == expected
    assert status.dtype == torch.int64


def test_bfloat16_is_decomposed_in_float32() -> None:
    M = gapped_matrix(30, 50).bfloat16()
    S = _warm(M, 10).S
    assert S.dtype == torch.float32
    assert relative_error(S, torch.linalg.svdvals(M.double())[:10]) < 2e-6


def test_a_new_direction_is_seen_through_the_fresh_columns() -> None:
    # The basis is blind to it: all of the new direction is orthogonal to the old ones.
    old = torch.zeros(40, 60)
    old.diagonal()[:10] = torch.linspace(2, 1, 10)
    new = old.clone()
    new[20, 30] = 3.0
    basis = torch.eye(60, 14)[:, :10]
    A, S, B, _ = ops.warm_svd(new, basis, STEP, fresh=8, seed=0)
    assert float(S[0]) == pytest.approx(3, rel=1e-5)
    assert float(A[20, 0] * B[30, 0]) == pytest.approx(1, rel=1e-5)


def test_bad_shapes_are_refused() -> None:
    M = torch.ones(12, 20)
    with pytest.raises(ValueError, match="expected a basis with 20 rows"):
        ops.warm_svd(M, torch.ones(12, 2), STEP, fresh=8, seed=0)
    with pytest.raises(ValueError, match="at most 12 columns in all"):
        ops.warm_svd(M, torch.ones(20, 5), STEP, fresh=8, seed=0)
    with pytest.raises(ValueError, match="at least one fresh column"):
        ops.warm_svd(M, torch.ones(20, 5), STEP, fresh=0, seed=0)


def test_opcheck() -> None:
    arguments = (gapped_matrix(20, 30).float(), torch.eye(30, 4), STEP, 8, 0)
    torch.library.opcheck(torch.ops.lip_fast.warm_svd.default, arguments)
