"""Writing the weight: both forms, every dtype, and nothing at all where the flag says no."""

import pytest
import torch
from problems import linear, relative_error

from lip_fast import ops

STEP = torch.tensor(4)


def _factors(l: int, q: int, t: int, dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(0)
    A = torch.randn(l, t, generator=g, dtype=dtype)
    B = torch.randn(q, t, generator=g, dtype=dtype)
    s = torch.randn(t, generator=g, dtype=dtype)
    M = torch.randn(l, q, generator=g, dtype=dtype)
    return M, A, s, B


def _rebuild(M, A, s, B, *, ok=True, accumulate=False, seed=0, step=STEP) -> None:
    ops.rebuild_(M, A, s, B, ok=torch.tensor(ok), step=step, accumulate=accumulate, seed=seed)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(13, 29, 5), (29, 13, 1), (1, 1, 1), (6, 7, 0)], ids=str)
def test_product(shape: tuple[int, int, int], dtype: torch.dtype, accumulate: bool) -> None:
    M, A, s, B = _factors(*shape, dtype)
    expected = A.double() * s.double() @ B.double().mT + (M.double() if accumulate else 0)
    _rebuild(M, A, s, B, accumulate=accumulate)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert torch.allclose(M.double(), expected, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_strided_weight(accumulate: bool) -> None:
    M, A, s, B = _factors(13, 29, 5)
    strided = M.mT.contiguous().mT
    storage = torch.stack([M, M], 2)
    for view in (strided, storage[:, :, 0]):
        expected = A * s @ B.mT + (M if accumulate else 0)
        _rebuild(view, A, s, B, accumulate=accumulate)
        assert relative_error(view, expected) < 1e-6
    assert torch.equal(storage[:, :, 1], M)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_not_ok_leaves_every_bit(dtype: torch.dtype) -> None:
    M, A, s, B = _factors(13, 29, 5)
    M = M.to(dtype)
    before = M.clone()
    _rebuild(M, A * float("nan"), s, B, ok=False)
    assert torch.equal(M, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_is_right_in_the_mean(dtype: torch.dtype) -> None:
    target = 1 + 2.0**-12  # far below half a unit in the last place of both formats at 1
    A, B = torch.full((100, 1), target), torch.ones(200, 1)
    M = torch.zeros(100, 200, dtype=dtype)
    _rebuild(M, A, torch.ones(1), B)
    assert set(M.float().unique().tolist()) == {1.0, 1 + torch.finfo(dtype).eps}
    # Six standard deviations of the mean of 20000 roundings.
    share = 2.0**-12 / torch.finfo(dtype).eps
    spread = torch.finfo(dtype).eps * (share * (1 - share) / 20000) ** 0.5
    assert abs(float(M.double().mean()) - target) < 6 * spread


def test_values_the_format_holds_are_not_disturbed() -> None:
    M = torch.randn(50, 60, generator=torch.Generator().manual_seed(3)).bfloat16()
    before = M.clone()
    _rebuild(M, torch.ones(50, 2), torch.zeros(2), torch.ones(60, 2), accumulate=True)
    assert torch.equal(M, before)


def test_rounding_bits_belong_to_seed_and_step() -> None:
    def rounded(seed: int, step: int) -> torch.Tensor:
        M = torch.zeros(40, 40, dtype=torch.bfloat16)
        _, A, s, B = _factors(40, 40, 3)
        _rebuild(M, A, s, B, seed=seed, step=torch.tensor(step))
        return M

    assert torch.equal(rounded(1, 2), rounded(1, 2))
    assert not torch.equal(rounded(1, 2), rounded(1, 3))
    assert not torch.equal(rounded(1, 2), rounded(2, 2))


def test_a_float16_overflow_is_not_written() -> None:
    M = torch.ones(3, 4, dtype=torch.float16)
    _rebuild(M, torch.ones(3, 1), torch.full((1,), 1e6), torch.ones(4, 1))
    assert torch.equal(M, torch.ones(3, 4, dtype=torch.float16))


def test_backward_through_a_stale_weight_raises() -> None:
    head = linear(4, 3)
    loss = head(torch.ones(2, 4, requires_grad=True)).sum()
    with torch.no_grad():
        _rebuild(head.weight.detach(), torch.ones(3, 1), torch.ones(1), torch.ones(4, 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_bad_shapes_are_refused() -> None:
    M, A, s, B = _factors(5, 6, 2)
    before = M.clone()
    with pytest.raises(ValueError, match=r"expected M of shape \(5, 6\), got \(6, 5\)"):
        _rebuild(M.mT, A, s, B)
    with pytest.raises(ValueError, match="expected A and B with 2 columns"):
        _rebuild(M, A[:, :1], s, B)
    assert torch.equal(M, before)


def test_opcheck() -> None:
    M, A, s, B = _factors(5, 6, 2)
    torch.library.opcheck(
        torch.ops.lip_fast.rebuild_.default, (M, A, s, B, torch.tensor(True), STEP, True, 0)
    )
