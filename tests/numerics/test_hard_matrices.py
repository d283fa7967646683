"""Every decomposition on matrices that are hard to decompose, against float64.

Budgets are a few roundings of the largest singular value, times the root of the longer side; what is said of
singular vectors is said of their residuals and orthogonality, for single ones are not determined where values
repeat.
"""

import math
from collections.abc import Callable

import pytest
import torch
from numerics.families import FAMILIES
from problems import relative_error
from torch import Tensor

import lip_fast
from lip_fast import ops
from lip_fast.backends.default.svd import warm_svd as default_warm_svd
from lip_fast.backends.default.tail_svd import tail_svd as default_tail_svd
from lip_fast.backends.native import library
from lip_fast.backends.native.small_svd import small_svd
from lip_fast.backends.native.svd import warm_svd as native_warm_svd
from lip_fast.backends.native.tail_svd import tail_svd as native_tail_svd
from lip_fast.status import NOT_FINITE, RANK_DEFICIENT

RANK, FRESH = 10, 8
DTYPES = [torch.float32, torch.float64]
SHAPES = [(120, 60), (60, 150), (20, 50)]
# The second and third leave float32 no room for squares.
SCALES = [1.0, 1e-30, 1e15]
native = pytest.mark.skipif(library.cpu() is None, reason=f"no CPU extension: {library.problems()}")

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.parametrize("family", list(FAMILIES)),
    pytest.mark.parametrize("scale", SCALES),
]


def _eps(dtype: torch.dtype, shape: tuple[int, ...]) -> float:
    """The budget: relative to the largest singular value."""
    return 16 * math.sqrt(max(shape)) * torch.finfo(dtype).eps


def _deviation(F: Tensor) -> float:
    """max |F^T F - I| in float64."""
    F = F.double()
    return float((F.mT @ F - torch.eye(F.shape[1])).abs().amax()) if F.shape[1] else 0.0


def _near_best(
    M: Tensor, U: Tensor, S: Tensor, V: Tensor, s: Tensor, *, factor: float, denormal: float = 0
) -> None:
    """U S V^T is orthonormal, no value is too large, and the error is ``factor`` times the least at most."""
    eps, k = _eps(S.dtype, M.shape) + denormal, len(S)
    assert _deviation(U) < eps
    assert _deviation(V) < eps
    assert (S.diff() <= 0).all()
    assert ((S.double() - s[:k]) <= eps * s[0]).all()
    error = torch.linalg.vector_norm(M.double() - U.double() * S.double() @ V.double().mT)
    assert error <= factor * torch.linalg.vector_norm(s[k:]) + eps * torch.linalg.vector_norm(s)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_randomized_svd(family: str, scale: float, shape: tuple[int, int], dtype: torch.dtype) -> None:
    M = (FAMILIES[family](*shape) * scale).to(dtype)
    U, S, Vh = lip_fast.randomized_svd(M, RANK)
    _near_best(M, U, S, Vh.mT, torch.linalg.svdvals(M.double()), factor=1.02)


def _warm_steps(
    kernel: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]], M: Tensor, B: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """``steps`` of power steps from B; ends at the first that is no use."""
    for i in range(steps):
        A, S, B, status = kernel(M, B, torch.tensor(i), FRESH, 0)
        if int(status):
            break
    return A, S, B, int(status)


@pytest.mark.parametrize("start", ["the right basis", "a random basis"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        (default_warm_svd, torch.float32),
        (default_warm_svd, torch.float64),
        pytest.param(native_warm_svd, torch.float32, marks=native),
    ],
    ids=["default float32", "default float64", "native float32"],
)
def test_warm_svd(
    family: str, scale: float, kernel: Callable, dtype: torch.dtype, shape: tuple[int, int], start: str
) -> None:
    M = (FAMILIES[family](*shape) * scale).to(dtype)
    _, s, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    if start == "the right basis":
        B, steps, factor = Vh[:RANK].mT.to(dtype), 1, 1.001
    else:
        random = torch.randn(shape[1], RANK, generator=torch.Generator().manual_seed(3), dtype=dtype)
        B, steps, factor = torch.linalg.qr(random).Q, 6, 1.01
    A, S, B, status = _warm_steps(kernel, M, B, steps)
    squares = s[0] ** 2
    if kernel is native_warm_svd and status:
        # It takes squares in float32 and drops columns that are nearly dependent, and says so. From a basis
        # like the last step's that is so only of a weight without as many directions as it carries.
        assert status in (NOT_FINITE, RANK_DEFICIENT)
        if start == "the right basis" and 1e-36 < squares < 1e36:
            assert s[RANK - 1] <= _eps(dtype, shape) * s[0]
        return
    assert status == 0
    # Below the normal range squares have an absolute rounding.
    denormal = max(shape) * 1.4e-45 / float(squares) if kernel is native_warm_svd else 0.0
    _near_best(M, A, S, B, s, factor=factor, denormal=denormal)


@pytest.mark.parametrize("rank", [0, RANK])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        (default_tail_svd, torch.float32),
        (default_tail_svd, torch.float64),
        pytest.param(native_tail_svd, torch.float32, marks=native),
    ],
    ids=["default float32", "default float64", "native float32"],
)
def test_tail_svd(
    family: str, scale: float, kernel: Callable, dtype: torch.dtype, shape: tuple[int, int], rank: int
) -> None:
    if kernel is native_tail_svd and min(shape) > 24:
        pytest.skip("the native kernel takes small sides")
    M = (FAMILIES[family](*shape) * scale).to(dtype)
    A, S, B, status = (t.double() for t in kernel(M, rank))
    assert int(status) == 0
    eps, W = _eps(dtype, shape), M.double()
    s = torch.linalg.svdvals(W)
    assert ((S - s).abs() <= eps * s[0]).all()
    small, large = (A, B) if shape[0] <= shape[1] else (B, A)
    # Vectors of the larger side are zero where there is no direction to speak of.
    zero = ~large.any(0)
    assert (s[rank:][zero] <= 1.1e-6 * s[0]).all()
    assert _deviation(small) < eps
    assert _deviation(large[:, ~zero]) < eps
    assert ((W @ B - A * S[rank:])[:, ~zero].norm(dim=0) <= eps * s[0]).all()
    # A direction that was given up leaves its own value, and no more.
    assert ((W.mT @ A - B * S[rank:]).norm(dim=0)[~zero] <= eps * s[0]).all()


@pytest.mark.parametrize("m", [20, 60, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@native
def test_small_svd(family: str, scale: float, dtype: torch.dtype, m: int) -> None:
    T = (FAMILIES[family](m, m) * scale).to(dtype)
    U, S, V, _, status = small_svd(T)
    eps, s = _eps(dtype, T.shape), torch.linalg.svdvals(T.double())
    assert int(status) & ~RANK_DEFICIENT == 0
    assert ((S.double() - s).abs() <= eps * s[0]).all()
    assert (S.diff() <= 0).all()
    assert _deviation(V) < eps
    # Of a singular matrix columns of U may be 0.
    assert _deviation(U[:, S > 0]) < eps
    assert relative_error(U.double() * S.double() @ V.double().mT, T) < eps


@pytest.mark.parametrize("shape", [(200, 24), (24, 24), (24, 40)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_orthonormalize(family: str, scale: float, shape: tuple[int, int], dtype: torch.dtype) -> None:
    Y = (FAMILIES[family](*shape) * scale).to(dtype)
    Q, R = ops.orthonormalize(Y)
    assert _deviation(Q) < _eps(dtype, shape)
    assert relative_error(Q.double() @ R.double(), Y) < _eps(dtype, shape)
    # Column by column, so that short columns count too.
    error = (Q.double() @ R.double() - Y.double()).norm(dim=0)
    assert (error <= 10 * _eps(dtype, shape) * Y.double().norm(dim=0)).all()
