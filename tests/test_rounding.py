import pytest
import torch

from lip_fast import ops
from lip_fast.rounding import negligible


@pytest.mark.parametrize(("l", "q", "rows"), [(10, 512, 512), (4096, 64, 4096), (10**8, 512, 4096)])
def test_rounding_does_not_grow_beyond_what_is_measured(l: int, q: int, rows: int) -> None:
    assert negligible(l, q, torch.float32) == rows * torch.finfo(torch.float32).eps
    assert negligible(l, q, torch.float64) == rows * torch.finfo(torch.float64).eps


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
