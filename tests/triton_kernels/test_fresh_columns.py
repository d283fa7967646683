"""Random signs: the same bits as in numpy."""

import pytest
import torch

from lip_fast import backends
from lip_fast.backends.default.fresh_columns import fresh_columns as numpy_fresh_columns

fresh_columns = backends.kernel("fresh_columns", "triton", "cuda").run


@pytest.mark.parametrize("rows", [0, 1, 127, 128, 131])
@pytest.mark.parametrize("columns", [0, 1, 8, 128, 129, 300])
@pytest.mark.parametrize(("step", "seed"), [(0, 0), (7, 1), (2**31, 2**32 - 1), (2**32 + 5, 2**63 - 1)])
def test_the_same_bits(rows: int, columns: int, step: int, seed: int, device: torch.device) -> None:
    got = fresh_columns(torch.tensor(step, device=device), rows, columns, seed)
    assert got.device == torch.tensor(0, device=device).device
    assert torch.equal(got.cpu(), numpy_fresh_columns(torch.tensor(step), rows, columns, seed))
    assert got.mT.is_contiguous()
