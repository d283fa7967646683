"""Sums of the rows of each class, in every layout, with rows that do not count."""

import pytest
import torch

from lip_fast import ops

# Empty, one row, more classes than rows, primes, one class, several chunks of 256 rows.
SHAPES = [(0, 4, 3), (1, 1, 1), (9, 3, 40), (37, 41, 10), (131, 67, 1), (600, 5, 2), (1031, 7, 3)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def _problem(n: int, q: int, l: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, q, generator=g), torch.randint(0, l, (n,), generator=g)


def _check(X: torch.Tensor, y: torch.Tensor, l: int) -> ops.ClassSums:
    """Against float64: with n rows a class an entry has n additions, and one rounding of the result."""
    got = ops.class_sums(X, y, l)
    counted = (y >= 0) & (y < l)
    Y = torch.nn.functional.one_hot(y[counted], l).double() if l else torch.empty(int(counted.sum()), 0)
    kept = X[counted].double()
    sizes = Y.double().mT @ kept.abs()
    single = torch.float64 if X.dtype == torch.float64 else torch.float32
    assert got.sums.dtype == single
    assert got.sums.shape == (l, X.shape[1])
    assert got.sums.is_contiguous()
    assert got.counts.dtype == torch.int64
    assert torch.equal(got.counts.double(), Y.double().sum(0))
    budget = (got.counts[:, None] + 1) * torch.finfo(single).eps / 2
    # Float64 sums have no wider ones to be held to: those expected have their own rounding.
    budget = budget * (2 if single == torch.float64 else 1)
    assert ((got.sums.double() - Y.double().mT @ kept).abs() <= budget * sizes).all()
    return got


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_they_are_the_sums(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, q, l = shape
    X, y = _problem(n, q, l)
    _check(X.to(dtype), y, l)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("n", [1, 255, 256, 257, 513])
def test_all_rows_in_one_class_of_many(n: int) -> None:
    X, _ = _problem(n, 5, 1)
    got = _check(X, torch.full((n,), 3), 7)
    assert not got.sums[[0, 1, 2, 4, 5, 6]].any()


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_that_do_not_count_may_hold_anything(dtype: torch.dtype) -> None:
    X, y = _problem(601, 9, 4)
    y[::3] = -100
    y[1], y[40], y[64], y[599] = -1, 4, 2**40, -(2**62)
    X = X.to(dtype)
    X[(y < 0) | (y >= 4)] = torch.nan
    assert torch.isfinite(_check(X, y, 4).sums).all()


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("l", [0, 3])
def test_no_row_counts(l: int) -> None:
    X, _ = _problem(300, 5, 1)
    got = _check(X, torch.full((300,), -100), l)
    assert not got.sums.any()
    assert not got.counts.any()


@pytest.mark.usefixtures("arithmetic")
def test_what_is_not_finite_shows_in_its_class_and_column_alone() -> None:
    X, y = _problem(700, 6, 2)
    X[333, 4] = torch.inf
    sums = ops.class_sums(X, y, 2).sums
    expected = torch.ones(2, 6, dtype=torch.bool)
    expected[y[333], 4] = False
    assert torch.equal(torch.isfinite(sums), expected)


@pytest.mark.usefixtures("arithmetic")
def test_any_strides() -> None:
    X, y = _problem(1200, 21, 5)
    _check(X[::2, 1::3], y[::2], 5)
    _check(X.mT.contiguous().mT, torch.stack([y, y - 1], 1)[:, 0], 5)
    _check(X[:1].expand(600, 21), y[600:], 5)
    _check(X.new_ones(()).expand(1200, 1), y, 5)
    empty = ops.class_sums(X[:, :0], y, 5)
    assert empty.sums.shape == (5, 0)
    assert int(empty.counts.sum()) == 1200


@pytest.mark.usefixtures("arithmetic")
def test_the_same_inputs_give_the_same_bits() -> None:
    X, y = _problem(1031, 70, 3)
    y[::7] = -100
    assert torch.equal(ops.class_sums(X, y, 3).sums, ops.class_sums(X, y, 3).sums)


def test_opcheck() -> None:
    X, y = _problem(12, 5, 3)
    torch.library.opcheck(torch.ops.lip_fast.class_sums.default, (X, y, 3))
    torch.library.opcheck(torch.ops.lip_fast.class_sums.default, (X.bfloat16(), y, 3))


@pytest.mark.parametrize(
    ("X", "y", "classes", "error", "told"),
    [
        (torch.ones(3, 4), torch.zeros(2).long(), 2, ValueError, r"indices of shape \(3,\), got \(2,\)"),
        (torch.ones(3, 4), torch.zeros(3, 1).long(), 2, ValueError, r"indices of shape \(3,\), got \(3, 1\)"),
        (
            torch.ones(3, 4),
            torch.zeros(3).int(),
            2,
            TypeError,
            "class indices in torch.int64, got torch.int32",
        ),
        (torch.ones(3), torch.zeros(3).long(), 2, ValueError, "expected X to be a matrix"),
        (torch.ones(3, 4).long(), torch.zeros(3).long(), 2, TypeError, "X in a floating-point dtype"),
        (torch.ones(3, 4), torch.zeros(3).long(), -1, ValueError, "expected classes >= 0, got -1"),
        (torch.ones(3, 4), torch.zeros(3).long().to("meta"), 2, ValueError, "on cpu, where X is, got meta"),
    ],
)
def test_what_does_not_fit_is_refused(
    X: torch.Tensor, y: torch.Tensor, classes: int, error: type, told: str
) -> None:
    with pytest.raises(error, match=told):
        ops.class_sums(X, y, classes)
