"""Class sums: one rounding and those of a tile of 16 rows away from float64, however many rows there are."""

import pytest
import torch

from lip_fast import backends

class_sums = backends.kernel("class_sums", "triton", "cuda").run
# A tile is summed in float32, with at most 15 additions to an entry, and the result is rounded once.
BUDGET = 16 * 2.0**-24
# More features than a narrow and than a wide block, chunks that end where a class does, and not.
SHAPES = [(0, 5, 3), (1, 1, 1), (37, 41, 10), (300, 65, 1), (1024, 3, 4), (2100, 5, 3), (530, 259, 2)]


def _problem(n: int, q: int, l: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, q, generator=g).to(device), torch.randint(0, l, (n,), generator=g).to(device)


def _check(X: torch.Tensor, y: torch.Tensor, l: int) -> tuple[torch.Tensor, torch.Tensor]:
    sums, counts = class_sums(X, y, l)
    kept = (y >= 0) & (y < l)
    Y = torch.nn.functional.one_hot(y[kept], l).double()
    exact, sizes = Y.mT @ X[kept].double(), Y.mT @ X[kept].double().abs()
    assert sums.dtype == torch.float32
    assert torch.equal(counts, Y.sum(0).long())
    assert ((sums.double() - exact).abs() <= BUDGET * sizes).all()
    return sums, counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_sums_are_those_of_float64(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    n, q, l = shape
    X, y = _problem(n, q, l, device)
    _check(X.to(dtype), y, l)


@pytest.mark.parametrize("first", [0, 1, 255, 256, 257, 500])
@pytest.mark.parametrize("length", [1, 12, 256, 257, 511, 512, 600])
def test_a_segment_may_begin_and_end_anywhere(first: int, length: int, device: torch.device) -> None:
    n = first + length + 30
    X, _ = _problem(n, 3, 1, device)
    y = torch.full((n,), 2, device=device)
    y[:first], y[first + length :] = 0, -100
    _check(X[torch.randperm(n, generator=torch.Generator().manual_seed(n)).to(device)], y, 5)


def test_the_error_does_not_grow_with_the_rows(device: torch.device) -> None:
    # Added one by one in float32, all but the first would be lost: 2^16 + 2^-9 is 2^16.
    n = 8192
    X = torch.full((n, 1), 2.0**-9, device=device)
    X[0] = 2.0**16
    _check(X, torch.zeros(n, dtype=torch.int64, device=device), 1)


def test_rows_that_do_not_count_are_not_read(device: torch.device) -> None:
    X, y = _problem(900, 9, 3, device)
    y[100:500] = -100
    y[7], y[8], y[9] = -1, 3, 2**40
    marked = X.clone()
    marked[(y < 0) | (y >= 3)] = torch.nan
    got, _ = _check(marked, y, 3)
    expected, _ = class_sums(X, torch.where((y >= 0) & (y < 3), y, 3), 3)
    assert torch.equal(got, expected)


def test_any_strides_and_the_same_bits(device: torch.device) -> None:
    X, y = _problem(1100, 20, 3, device)
    sums, _ = _check(X, y, 3)
    for other in (X.mT.contiguous().mT, torch.stack([X, torch.full_like(X, torch.nan)], -1)[..., 0], X):
        assert torch.equal(class_sums(other, y, 3)[0], sums)
