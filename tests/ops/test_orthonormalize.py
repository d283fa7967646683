"""Q R of columns that are easy, graded, dependent, zero, or more than the rows."""

import pytest
import torch
from problems import gapped_matrix, relative_error

from lip_fast import ops

# Orthonormality of Householder and CholeskyQR2 factors is a small multiple of the rounding unit.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def _cases(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    Y = torch.randn(97, 13, generator=g, dtype=torch.float64)
    graded = Y * 10.0 ** -torch.arange(13)
    nearly = Y.clone()
    nearly[:, 7:] = Y[:, :6] + 1e-5 * Y[:, 7:]
    dependent = Y.clone()
    dependent[:, 9] = dependent[:, 2]
    zero_column = Y.clone()
    zero_column[:, 4] = 0
    cases = {
        "random": Y,
        "graded over 12 decades": graded,
        "nearly dependent": nearly,
        "dependent": dependent,
        "zero column": zero_column,
        "zero": torch.zeros(20, 5),
        "ill-conditioned": gapped_matrix(60, 20, gap=0.4),
        "square": Y[:13],
        "wide": Y[:6],
        "one column": Y[:, :1],
        "one by one": Y[:1, :1],
        "no column": Y[:, :0],
        "transposed": Y.mT.contiguous().mT,
    }
    return {name: case.to(dtype) for name, case in cases.items()}


@pytest.mark.parametrize("name", list(_cases(torch.float32)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors(name: str, dtype: torch.dtype) -> None:
    Y = _cases(dtype)[name]
    before = Y.clone()
    Q, R = ops.orthonormalize(Y)
    d = min(Y.shape)
    assert Q.shape == (Y.shape[0], d)
    assert R.shape == (d, Y.shape[1])
    assert Q.dtype == R.dtype == dtype
    assert torch.isfinite(Q).all()
    deviation = Q.double().mT @ Q.double() - torch.eye(d, dtype=torch.float64)
    assert deviation.abs().max() < TOLERANCE[dtype] if d else True
    if Y.numel() and Y.any():
        assert relative_error(Q.double() @ R.double(), Y) < TOLERANCE[dtype]
        # Column by column, so that small columns count too.
        columns = Y.double().norm(dim=0)
        error = (Q.double() @ R.double() - Y.double()).norm(dim=0)
        assert (error <= 10 * TOLERANCE[dtype] * columns + torch.finfo(dtype).tiny).all()
    assert torch.equal(Y, before)


def test_a_half_precision_matrix_is_refused() -> None:
    with pytest.raises(TypeError, match="expected Y in one of"):
        ops.orthonormalize(torch.ones(3, 2, dtype=torch.bfloat16))


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.lip_fast.orthonormalize.default, (_cases(torch.float32)["random"],))
