"""Exact singular values and trailing vectors, from the Gram matrix (float32) or LAPACK (float64)."""

import pytest
import torch
from problems import gapped_matrix, relative_error

from lip_fast import ops
from lip_fast.backends.default import tail_svd as kernel
from lip_fast.status import NOT_CONVERGED, NOT_FINITE

SHAPES = [(10, 64), (64, 10), (37, 43), (43, 37), (35, 35), (1, 7), (7, 1), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep", ["none", "some", "all"])
def test_values_and_trailing_vectors(shape: tuple[int, int], dtype: torch.dtype, keep: str) -> None:
    M = gapped_matrix(*shape, gap=0.6 if min(shape) < 20 else 0.85).to(dtype)
    d = min(shape)
    k = {"none": 0, "some": d // 2, "all": d}[keep]
    A, S, B, status = ops.tail_svd(M, rank=k)
    U, s, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    assert int(status) == 0
    assert A.shape == (shape[0], d - k)
    assert B.shape == (shape[1], d - k)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    # Relative to each value, over four decades: this is what squaring in float32 would lose.
    assert ((S.double() - s).abs() <= 10 * tolerance * s + tolerance * 1e-2).all()
    tail = U[:, k:] * s[k:] @ Vh[k:]
    assert (A.double() * S[k:].double() @ B.double().mT - tail).abs().max() <= 10 * tolerance


def test_small_directions_of_float32_are_accurate() -> None:
    M = gapped_matrix(36, 50, gap=0.75).float()  # down to 4e-5 of the largest
    A, S, B, _ = ops.tail_svd(M, rank=0)
    for F in (A, B):
        assert (F.double().mT @ F.double() - torch.eye(36)).abs().max() < 1e-5
    assert relative_error(S, torch.linalg.svdvals(M.double())) < 1e-6


def test_no_direction_is_a_zero_column_of_the_larger_side() -> None:
    # Zero rows: exactly of rank 5, and too large for the direct way.
    M = torch.zeros(40, 60)
    M[:5] = gapped_matrix(5, 60).float()
    A, S, B, status = ops.tail_svd(M, rank=3)
    assert int(status) == 0
    assert not B[:, 2:].any()
    assert not S[5:].any()
    assert torch.isfinite(A).all()
    zero = ops.tail_svd(torch.zeros(4, 6), rank=0)
    assert int(zero.status) == 0
    assert not zero.S.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(6, 9), (40, 35)], ids=str)
@pytest.mark.usefixtures("arithmetic")
def test_what_is_not_finite_is_reported_not_raised(
    dtype: torch.dtype, bad: float, shape: tuple[int, int]
) -> None:
    M = gapped_matrix(*shape).to(dtype)
    M[5, 8] = bad
    assert int(ops.tail_svd(M, rank=2).status) == NOT_FINITE


@pytest.mark.parametrize("shape", [(6, 9), (40, 35)], ids=str)
@pytest.mark.usefixtures("arithmetic")
def test_a_solver_that_fails_is_reported_not_raised(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    monkeypatch.setattr(torch.linalg, "svd", fail)
    A, S, B, status = kernel.tail_svd(gapped_matrix(*shape).float(), 2)
    d = min(shape)
    assert int(status) == NOT_CONVERGED
    assert (A.shape, S.shape, B.shape) == ((shape[0], d - 2), (d,), (shape[1], d - 2))


def test_rank_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected rank in 0\.\.4, got 5"):
        ops.tail_svd(torch.ones(4, 6), rank=5)


@pytest.mark.parametrize("shape", [(6, 9), (40, 35)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.library.opcheck(torch.ops.lip_fast.tail_svd.default, (gapped_matrix(*shape).to(dtype), 2))
