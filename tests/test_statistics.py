"""Statistics of batches: the same sums as one pass over everything, in the same form."""

import pytest
import torch
from problems import problem

from lip_fast import LabelStatistics, ops
from lip_fast.statistics import _segment_sum
from lip_fast.targets import as_targets


def _targets(Y: torch.Tensor, n: int, l: int):
    return as_targets(Y, rows=n, classes=l, device=torch.device("cpu"))


@pytest.mark.parametrize("form", ["indices", "dense", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("q", "l", "n"), [(7, 4, 50), (3, 11, 5), (1, 1, 1)])
def test_statistics_are_the_products(q: int, l: int, n: int, dtype: torch.dtype, form: str) -> None:
    _, X, y, Y, _ = problem(q, l, n, dtype=dtype)
    labels = {"indices": y, "dense": Y, "sparse": Y.to_sparse()}[form]
    statistics = LabelStatistics(q, l)
    assert bool(statistics.absorb([(X, _targets(labels, n, l))]))
    X1 = torch.cat([X, torch.ones(n, 1)], 1).double()
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    assert torch.allclose(statistics.C, X1.mT @ Y.double(), atol=tolerance)
    assert torch.allclose(statistics.G, X1.mT @ X1, atol=tolerance)


def test_batches_add_and_old_ones_fade() -> None:
    _, X, y, _, _ = problem(7, 4, 60)
    parts = [(X[i : i + 20], y[i : i + 20]) for i in (0, 20, 40)]
    whole, split = LabelStatistics(7, 4), LabelStatistics(7, 4)
    whole.absorb([(X, y)])
    split.absorb(parts[:2])
    split.absorb(parts[2:])
    assert torch.allclose(whole.C, split.C)
    assert torch.allclose(whole.G, split.G)
    fading, alone = LabelStatistics(7, 4, decay=0.5), [LabelStatistics(7, 4) for _ in parts]
    for part, single in zip(parts, alone, strict=True):
        fading.absorb([part])
        single.absorb([part])
    for name in ("C", "G"):
        expected = 0.25 * getattr(alone[0], name) + 0.5 * getattr(alone[1], name) + getattr(alone[2], name)
        assert torch.allclose(getattr(fading, name), expected)


@pytest.mark.parametrize("with_bias", [False, True])
def test_sums_are_those_of_the_rows(with_bias: bool) -> None:
    _, X, y, _, bias = problem(7, 4, 60)
    g = torch.Generator().manual_seed(0)
    A = torch.randn(4, 3, generator=g, dtype=torch.float64)
    B = torch.randn(7, 3, generator=g, dtype=torch.float64)
    statistics = LabelStatistics(7, 4)
    statistics.absorb([(X, y)])
    b = bias if with_bias else None
    for got, expected in zip(statistics.sums(A, B, b), ops.label_sums(X, y, A, B, b), strict=True):
        assert torch.allclose(got.double(), expected.double(), rtol=1e-11)


def test_rows_without_a_label_do_not_count() -> None:
    _, X, y, _, _ = problem(7, 4, 60)
    kept = torch.arange(60) % 3 != 0
    some, expected = LabelStatistics(7, 4), LabelStatistics(7, 4)
    some.absorb([(X, torch.where(kept, y, -100))])
    expected.absorb([(X[kept], y[kept])])
    assert torch.allclose(some.C, expected.C)
    assert torch.allclose(some.G, expected.G)


def test_an_update_that_is_not_finite_is_refused_whole() -> None:
    _, X, y, _, _ = problem(7, 4, 60)
    statistics = LabelStatistics(7, 4, decay=0.9)
    statistics.absorb([(X, y)])
    C, G = statistics.C.clone(), statistics.G.clone()
    bad = X.clone()
    bad[3, 3] = float("nan")
    assert not bool(statistics.absorb([(X, y), (bad, y)]))
    assert torch.equal(statistics.C, C)
    assert torch.equal(statistics.G, G)


def test_the_segment_sum_of_accelerators_is_that_of_the_cpu() -> None:
    X = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), device="cpu")
    y = torch.randint(0, 7, (30,), generator=torch.Generator().manual_seed(1))
    y[y == 4] = 5  # an empty class
    order = torch.sort(y, stable=True)[1]
    by_segment = torch.segment_reduce(X[order], "sum", lengths=torch.bincount(y, minlength=7), axis=0)
    assert torch.allclose(_segment_sum(X, y, 7), by_segment)


def test_state_round_trip_and_bad_arguments() -> None:
    _, X, y, _, _ = problem(7, 4, 60)
    statistics, other = LabelStatistics(7, 4), LabelStatistics(7, 4)
    statistics.absorb([(X, y)])
    other.load_state_dict(statistics.state_dict())
    assert torch.equal(statistics.C, other.C)
    assert torch.equal(statistics.G, other.G)
    with pytest.raises(ValueError, match=r"expected C of shape \(7, 4\), got \(8, 4\)"):
        LabelStatistics(6, 4).load_state_dict(statistics.state_dict())
    with pytest.raises(ValueError, match=r"expected decay in \(0, 1\) or None, got 1.5"):
        LabelStatistics(7, 4, decay=1.5)
    with pytest.raises(TypeError, match="expected dtype float32 or float64"):
        LabelStatistics(7, 4, dtype=torch.bfloat16)
