"""The SVD of small square matrices, by whichever solver serves it."""

import pytest
import torch
from problems import gapped_matrix, orthonormal, relative_error

from lip_fast import ops
from lip_fast.backends.default import small_svd as kernel
from lip_fast.status import NOT_CONVERGED, NOT_FINITE, RANK_DEFICIENT

SHAPES = [(1, 1), (9, 9), (16, 16), (17, 17), (64, 64), (130, 130), (2, 3, 12, 12), (0, 4, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_the_decomposition(shape: tuple[int, ...], dtype: torch.dtype, start: str) -> None:
    m = shape[-1]
    T = (gapped_matrix(m, m, gap=0.97) + torch.zeros(shape)).to(dtype)
    near = None
    if start == "warm":
        V = torch.linalg.svd(T.double()).Vh.mT
        turn = torch.matrix_exp(1e-2 * (orthonormal(m, 1) - orthonormal(m, 1).mT))
        near = (V @ turn).to(dtype)
    U, S, V, sweeps, status = ops.small_svd(T, near)
    assert not status.any()
    assert sweeps.shape == status.shape == shape[:-2]
    if not T.numel():
        return
    budget = (5e-6 if dtype == torch.float32 else 1e-14) * m**0.5
    assert relative_error(S, torch.linalg.svdvals(T.double())) < budget
    assert relative_error((U * S[..., None, :]).double() @ V.double().mT, T.double()) < 4 * budget
    for F in (U, V):
        assert relative_error(F.double().mT @ F.double(), torch.eye(m).expand(shape)) < 4 * budget
        assert F.is_contiguous()


def test_each_of_a_batch_has_a_status_of_its_own() -> None:
    T = torch.stack([torch.eye(5), torch.zeros(5, 5), torch.full((5, 5), float("nan"))])
    status = ops.small_svd(T).status
    assert status.tolist() == [0, RANK_DEFICIENT, NOT_FINITE]


def test_a_solver_that_fails_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "svd", fail)
    T = torch.stack([torch.eye(3), torch.full((3, 3), float("inf"))])
    assert kernel.small_svd(T, None)[4].tolist() == [NOT_CONVERGED, NOT_FINITE]


def test_bad_operands_are_refused() -> None:
    with pytest.raises(TypeError, match="expected T in one of"):
        ops.small_svd(torch.eye(3).bfloat16())
    for shape in ((3, 4), (5,), (0, 0)):
        with pytest.raises(ValueError, match=r"expected T of shape \(\.\.\., m, m\) with m >= 1"):
            ops.small_svd(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected a start of shape \(3, 3\), got \(4, 4\)"):
        ops.small_svd(torch.eye(3), torch.eye(4))
    with pytest.raises(ValueError, match=r"expected a start in torch.float32, got torch.float64"):
        ops.small_svd(torch.eye(3), torch.eye(3).double())


@pytest.mark.parametrize("start", [None, torch.eye(6)])
def test_opcheck(start: torch.Tensor | None) -> None:
    torch.library.opcheck(torch.ops.lip_fast.small_svd.default, (gapped_matrix(6, 6).float(), start))
