import pytest
import torch

from lip_fast import ops
from lip_fast.rounding import negligible


@pytest.mark.parametrize(("l", "q"), [(30, 40), (40, 30), (300, 500)])
@pytest.mark.parametrize("outlier", [0.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_a_weight_lacks_are_negligible_and_others_are_not(
    l: int, q: int, outlier: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    rank, k = 20, 8
    U, V = (
        torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64))[0] for n in (l, q)
    )
    S = 0.9 ** torch.arange(rank, dtype=torch.float64)
    S[0] += outlier
    # What a tail regrows in a step of a small learning rate.
    S[-2:] = 3e-5 * S[1] * (1 if outlier == 0 else 100)
    svd = ops.tail_svd((U * S @ V.mT).to(dtype), rank=k)
    directions = svd.S > negligible(dtype) * svd.S[0]
    assert int(directions.sum()) == rank


def test_small_directions_of_many_classes_are_found(generator: torch.Generator) -> None:
    # By the bound of the worst case, all below 0.036 would be rounding.
    l, q, t = 300_000, 16, 6
    U, _ = torch.linalg.qr(torch.randn(l, q, generator=generator))
    V, _ = torch.linalg.qr(torch.randn(q, q, generator=generator))
    S = 0.3 ** torch.arange(q)
    M = (U * S) @ V.mT
    step = torch.zeros((), dtype=torch.int64)
    svd = ops.finish_svd(
        *ops.sketch(M, ops.start_basis(V[:, :t].contiguous(), step, fresh=8, seed=0)), rank=t
    )
    assert int(svd.status) == 0
    assert torch.allclose(svd.S, S[:t], rtol=1e-2)
