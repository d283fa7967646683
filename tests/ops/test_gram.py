"""X^T X, in every layout, with rows that do not count."""

import pytest
import torch

from lip_fast import ops

# Empty, one row, primes, tall, wide, more than a tile of 64 features, more than a run of 256 rows.
SHAPES = [(0, 4), (1, 1), (3, 2), (37, 41), (5, 131), (600, 3), (257, 65), (1031, 17)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def _random(n: int, q: int) -> torch.Tensor:
    return torch.randn(n, q, generator=torch.Generator().manual_seed(n + q))


def _check(X: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Against float64: n products, each rounded, and n additions."""
    G = ops.gram(X, mask)
    single = torch.float64 if X.dtype == torch.float64 else torch.float32
    kept = (X if mask is None else X[mask]).double()
    assert G.dtype == single
    assert G.shape == (X.shape[1], X.shape[1])
    budget = (len(kept) + 1) * torch.finfo(single).eps / 2
    # The expected ones have their own rounding, which float64 alone is held to.
    budget = budget * (2 if single == torch.float64 else 1)
    sizes = kept.abs().mT @ kept.abs()
    for half in (G, G.mT):
        assert ((half.double() - kept.mT @ kept).abs() <= budget * sizes).all()
    return G


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_product(shape: tuple[int, int], dtype: torch.dtype, marked: bool) -> None:
    X = _random(*shape).to(dtype)
    mask = None
    if marked:
        mask = torch.arange(len(X)) % 3 != 1
        X[~mask] = torch.nan  # may hold anything
    assert torch.isfinite(_check(X, mask)).all()


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("all_of_them", [True, False])
def test_all_rows_count_or_none(all_of_them: bool) -> None:
    X = _random(300, 7)
    G = _check(X, torch.full((300,), all_of_them))
    assert bool(G.any()) is all_of_them


@pytest.mark.usefixtures("arithmetic")
def test_any_strides() -> None:
    X = _random(600, 50)
    mask = torch.arange(600) % 5 < 3
    _check(X[::2, 1::3], mask[::2])
    _check(X.mT.contiguous().mT, torch.stack([mask, ~mask], 1)[:, 0])
    _check(X[:1].expand(300, 50), torch.ones((), dtype=torch.bool).expand(300))
    assert ops.gram(X[:, :0]).shape == (0, 0)


@pytest.mark.usefixtures("arithmetic")
def test_what_is_not_finite_shows_in_its_row_and_column_alone() -> None:
    X = _random(300, 70)
    X[299, 66] = torch.nan
    G = ops.gram(X)
    expected = torch.ones(70, 70, dtype=torch.bool)
    expected[66], expected[:, 66] = False, False
    assert torch.equal(torch.isfinite(G), expected)


@pytest.mark.usefixtures("arithmetic")
def test_the_same_inputs_give_the_same_bits() -> None:
    X, mask = _random(600, 30), torch.arange(600) % 7 != 0
    assert torch.equal(ops.gram(X), ops.gram(X))
    assert torch.equal(ops.gram(X, mask), ops.gram(X, mask))


def test_opcheck() -> None:
    X = _random(12, 5)
    for mask in (None, torch.arange(12) > 3):
        torch.library.opcheck(torch.ops.lip_fast.gram.default, (X, mask))
        torch.library.opcheck(torch.ops.lip_fast.gram.default, (X.half(), mask))


@pytest.mark.parametrize(
    ("X", "mask", "error", "told"),
    [
        (torch.ones(3), None, ValueError, "expected X to be a matrix"),
        (torch.ones(3, 4).long(), None, TypeError, "X in a floating-point dtype"),
        (torch.ones(3, 4), torch.ones(4).bool(), ValueError, r"mask of shape \(3,\), got \(4,\)"),
        (torch.ones(3, 4), torch.ones(3), TypeError, "mask in torch.bool, got torch.float32"),
        (torch.ones(3, 4), torch.ones(3).bool().to("meta"), ValueError, "on cpu, where X is, got meta"),
    ],
)
def test_what_does_not_fit_is_refused(
    X: torch.Tensor, mask: torch.Tensor | None, error: type, told: str
) -> None:
    with pytest.raises(error, match=told):
        ops.gram(X, mask)
