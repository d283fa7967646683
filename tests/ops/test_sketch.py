"""Both products of a power step."""

import pytest
import torch
from problems import gapped_matrix, orthonormal, relative_error

from lip_fast import ops


@pytest.mark.parametrize(
    ("l", "q", "m"), [(1, 1, 1), (30, 50, 7), (50, 30, 30), (17, 3, 1), (4, 9, 0), (0, 5, 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_the_products(l: int, q: int, m: int, dtype: torch.dtype, layout: str) -> None:
    M, V = (
        gapped_matrix(l, q).to(dtype) if l else torch.empty(0, q, dtype=dtype),
        orthonormal(q, 1)[:, :m].to(dtype),
    )
    if layout == "columns":
        M, V = M.mT.contiguous().mT, V.mT.contiguous().mT
    Y, Z = ops.sketch(M, V)
    exact = M.double() @ V.double()
    budget = 1e-5 if dtype == torch.float32 else 1e-13
    assert relative_error(Y, exact) < budget
    assert relative_error(Z, M.double().mT @ exact) < budget
    for product in (Y, Z):
        assert product.dtype == dtype
        assert product.mT.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_weight_is_multiplied_in_the_dtype_of_the_basis(dtype: torch.dtype) -> None:
    M, V = gapped_matrix(20, 30).to(dtype), orthonormal(30, 1)[:, :5].float()
    Y, Z = ops.sketch(M, V)
    assert Y.dtype == Z.dtype == torch.float32
    assert relative_error(Y, M.double() @ V.double()) < 1e-5


def test_bad_operands_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected V with 4 rows \(the columns of M\), got \(5, 2\)"):
        ops.sketch(torch.ones(3, 4), torch.ones(5, 2))
    with pytest.raises(TypeError, match="expected V in one of"):
        ops.sketch(torch.ones(3, 4), torch.ones(4, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="expected V on cpu, where M is, got meta"):
        ops.sketch(torch.ones(3, 4), torch.ones(4, 2, device="meta"))


def test_opcheck() -> None:
    arguments = (gapped_matrix(12, 10).float(), orthonormal(10, 1)[:, :3].float())
    torch.library.opcheck(torch.ops.lip_fast.sketch.default, arguments)
