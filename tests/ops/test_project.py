"""Z = M^T Y, in every layout."""

import pytest
import torch

from lip_fast import ops

SHAPES = [(1, 1, 1), (3, 5, 2), (7, 129, 9), (130, 33, 17), (257, 64, 48), (5, 300, 128), (0, 4, 2)]
# Sums of up to 257 products in float32, each side rounded once.
TOLERANCE = 2e-6


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _check(M: torch.Tensor, Y: torch.Tensor) -> None:
    Z = ops.project(M, Y)
    expected = M.double().mT @ Y.double()
    scale = M.double().norm(dim=0)[:, None] * Y.double().norm(dim=0)
    assert Z.shape == expected.shape
    assert Z.dtype == Y.dtype
    assert Z.mT.is_contiguous()
    assert ((Z.double() - expected).abs() <= TOLERANCE * scale + 1e-30).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_it_is_the_product(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    l, q, m = shape
    single = torch.float64 if dtype == torch.float64 else torch.float32
    _check(_random(l, q, seed=0).to(dtype), _random(m, l, seed=1).mT.to(single))


def test_any_strides() -> None:
    M, Y = _random(60, 80, seed=0), _random(60, 34, seed=1)
    _check(M[::2, 1::3], Y[::2, ::2])
    _check(M.mT[:30], Y[:30].contiguous())


def test_the_same_inputs_give_the_same_bits() -> None:
    M, Y = _random(300, 70, seed=0), _random(300, 20, seed=1)
    assert torch.equal(ops.project(M, Y), ops.project(M, Y))


def test_opcheck() -> None:
    torch.library.opcheck(
        torch.ops.lip_fast.project.default, (_random(12, 10, seed=0), _random(12, 3, seed=1))
    )


@pytest.mark.parametrize(
    ("M", "Y", "error", "told"),
    [
        (torch.ones(3, 4), torch.ones(4, 2), ValueError, "expected Y with 3 rows"),
        (torch.ones(3), torch.ones(3, 2), ValueError, "expected M to be a matrix"),
        (torch.ones(3, 4), torch.ones(3, 2).half(), TypeError, "expected Y in one of"),
    ],
)
def test_what_does_not_fit_is_refused(M: torch.Tensor, Y: torch.Tensor, error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        ops.project(M, Y)
