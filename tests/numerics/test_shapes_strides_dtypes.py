"""Every public function and op on tensors of any shape, layout and dtype that it takes.

What counts is the matrix, not how it lies in memory: the result is that of a contiguous copy to rounding,
finite, of the promised shape and dtype, and the operands stay as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from problems import gapped_matrix, problem, relative_error
from torch import Tensor, nn

import lip_fast
from lip_fast import ops
from lip_fast.backends.native import library
from lip_fast.backends.native.small_svd import small_svd

pytestmark = pytest.mark.hostile

# One torch call can take long on a busy machine; time is not what these tests are about.
quick = settings(max_examples=40, deadline=None, derandomize=True)
ZERO, TRUE = torch.tensor(0), torch.tensor(True)


def _transposed(X: Tensor) -> Tensor:
    return X.mT.clone(memory_format=torch.contiguous_format).mT


def _every_second(X: Tensor) -> Tensor:
    wide = X.new_full([2 * size for size in X.shape], torch.nan if X.is_floating_point() else 7)
    view = wide[(slice(None, None, 2),) * X.dim()]
    return view.copy_(X)


def _off_by_one(X: Tensor) -> Tensor:
    """An address that no vector instruction is fond of."""
    flat = X.new_empty(X.numel() + 1)[1:]
    return flat.copy_(X.reshape(-1)).view(X.shape)


def _in_a_corner(X: Tensor) -> Tensor:
    outer = X.new_full([size + 3 for size in X.shape], torch.nan if X.is_floating_point() else 7)
    view = outer[tuple(slice(1, size + 1) for size in X.shape)]
    return view.copy_(X)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    *(torch.clone, _every_second, _off_by_one, _in_a_corner),
]
layouts = st.sampled_from(LAYOUTS)
matrix_layouts = st.sampled_from([*LAYOUTS, _transposed])
sizes = st.integers(1, 24)
seeds = st.integers(0, 10_000)
compute = st.sampled_from([torch.float32, torch.float64])
floats = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def _tolerance(*dtypes: torch.dtype) -> float:
    """Of results in which rounding is not blown up: that of the narrowest dtype."""
    return 300 * max(torch.finfo(dtype).eps for dtype in dtypes)


def _same(function: Callable[..., Any], strided: Sequence[Tensor], tolerance: float) -> Sequence[Tensor]:
    """Both results agree, and the operands are what they were."""
    plain = [X.contiguous().clone() for X in strided]
    got, expected = function(*strided), function(*plain)
    for X, copy in zip(strided, plain, strict=True):
        assert torch.equal(X, copy)
    got, expected = ([r] if isinstance(r, Tensor) else list(r) for r in (got, expected))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        if a.is_floating_point() and b.any():
            assert relative_error(a, b) < tolerance
        else:
            assert torch.equal(a, b)
    return got


# Public functions -------------------------------------------------------------------------------------------


@quick
@given(sizes, sizes, st.integers(25, 40), st.integers(0, 24), seeds, floats, *[matrix_layouts] * 2, layouts)
def test_lip(
    q: int,
    l: int,
    n: int,
    k: int,
    seed: int,
    dtype: torch.dtype,
    of_W: Callable,
    of_X: Callable,
    of_y: Callable,
) -> None:
    W, X, y, _, bias = problem(q, l, n, seed=seed, dtype=dtype)
    k = min(k, q, l)
    # A quotient of cancelling sums has fewer digits than its operands.
    tolerance = 30 * _tolerance(dtype)
    strided = (of_W(W), of_X(X), of_y(y), of_y(bias))
    (got,) = _same(lambda W, X, y, b: lip_fast.lip(W, X, y, k, bias=b), strided, tolerance)
    assert got.shape == (q, l)
    assert got.dtype == dtype


@quick
@given(sizes, sizes, st.data(), seeds, compute, matrix_layouts)
def test_randomized_svd(
    l: int, q: int, data: st.DataObject, seed: int, dtype: torch.dtype, layout: Callable
) -> None:
    rank = data.draw(st.integers(0, min(l, q)))
    oversample, n_iter = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 3))
    M = layout(gapped_matrix(l, q, gap=0.6, seed=seed).to(dtype))

    def product(M: Tensor) -> Tensor:
        U, S, Vh = lip_fast.randomized_svd(M, rank, oversample=oversample, n_iter=n_iter)
        assert U.shape == (l, rank)
        assert S.shape == (rank,)
        assert Vh.shape == (rank, q)
        return U * S @ Vh  # the vectors have a sign that is nobody's

    _same(product, [M], _tolerance(dtype))


@quick
@given(sizes, sizes, st.integers(1, 30), seeds, floats, matrix_layouts, layouts, st.booleans())
def test_label_statistics(
    q: int,
    l: int,
    n: int,
    seed: int,
    dtype: torch.dtype,
    of_X: Callable,
    of_y: Callable,
    dense: bool,
) -> None:
    _, X, y, Y, _ = problem(q, l, n, seed=seed, dtype=dtype)

    def collected(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        statistics = lip_fast.LabelStatistics(q, l).update(X, Y)
        return statistics.C, statistics.G

    labels = of_X(Y) if dense else of_y(y)
    C, G = _same(collected, (of_X(X), labels), 1e-5)
    ones = torch.cat([X.double(), torch.ones(n, 1, dtype=torch.float64)], 1)
    assert relative_error(G, ones.mT @ ones) < 1e-5
    assert relative_error(C, ones.mT @ Y.double()) < 1e-5


@quick
@given(sizes, st.integers(2, 12), seeds, floats, st.sampled_from(["lip", "ridge", "pcr", "truncate"]))
def test_repair(q: int, l: int, seed: int, dtype: torch.dtype, method: str) -> None:
    W, X, y, _, bias = problem(q, l, 60, seed=seed, dtype=dtype)
    head = nn.Linear(q, l, dtype=dtype, device="meta").to_empty(device="cpu")
    head.weight.data, head.bias.data = W.mT, bias  # not contiguous
    statistics = lip_fast.LabelStatistics(q, l).update(X[:40], y[:40])
    report = lip_fast.repair(head, statistics, method, (X[40:], y[40:]))
    assert torch.equal(head.weight, W.mT)
    repaired = report.head
    assert repaired.weight.shape == (l, q)
    assert repaired.weight.dtype == repaired.bias.dtype == dtype
    assert torch.isfinite(repaired.weight).all()
    assert torch.isfinite(repaired.bias).all()


@quick
@given(st.integers(0, 30), compute, layouts, st.floats(0.01, 1), seeds)
def test_select_rank(d: int, dtype: torch.dtype, layout: Callable, energy: float, seed: int) -> None:
    S = torch.rand(d, generator=torch.Generator().manual_seed(seed)).to(dtype).sort(descending=True).values
    k = lip_fast.select_rank(layout(S), energy=energy)
    assert 0 <= k <= d
    squares = S.double().square()
    assert squares[:k].sum() >= (energy - 1e-9) * squares.sum()
    assert k == 0 or squares[: k - 1].sum() <= (energy + 1e-9) * squares.sum()


# Ops --------------------------------------------------------------------------------------------------------


@quick
@given(sizes, sizes, seeds, compute, matrix_layouts)
def test_orthonormalize(n: int, m: int, seed: int, dtype: torch.dtype, layout: Callable) -> None:
    Y = gapped_matrix(n, m, gap=0.7, seed=seed).to(dtype)

    def product(Y: Tensor) -> Tensor:
        Q, R = ops.orthonormalize(Y)
        assert (Q.mT @ Q - torch.eye(min(n, m), dtype=dtype)).abs().max() < _tolerance(dtype)
        return Q @ R

    (back,) = _same(product, [layout(Y)], _tolerance(dtype))
    assert relative_error(back, Y) < _tolerance(dtype)


@quick
@given(sizes, sizes, st.integers(1, 9), seeds, floats, compute, matrix_layouts, matrix_layouts)
def test_sketch(
    l: int, q: int, m: int, seed: int, dtype: torch.dtype, of_V: torch.dtype, a: Callable, b: Callable
) -> None:
    M, V = gapped_matrix(l, q, seed=seed).to(dtype), gapped_matrix(q, m, seed=seed + 5).to(of_V)
    Y, Z = _same(ops.sketch, (a(M), b(V)), _tolerance(of_V))
    assert Y.dtype == Z.dtype == of_V
    assert relative_error(Z, M.double().mT @ (M.double() @ V.double())) < 10 * _tolerance(of_V)


@quick
@given(st.integers(3, 24), st.integers(3, 24), st.data(), seeds, floats, compute, *[matrix_layouts] * 2)
def test_warm_svd(
    l: int,
    q: int,
    data: st.DataObject,
    seed: int,
    dtype: torch.dtype,
    of_basis: torch.dtype,
    a: Callable,
    b: Callable,
) -> None:
    fresh = data.draw(st.integers(1, min(l, q)))
    t = data.draw(st.integers(0, min(l, q) - fresh))
    M = gapped_matrix(l, q, gap=0.7, seed=seed).to(dtype)
    basis = torch.linalg.svd(M.double(), full_matrices=False).Vh[:t].mT.to(of_basis)

    def product(M: Tensor, basis: Tensor) -> Tensor:
        A, S, B, status = ops.warm_svd(M, basis, ZERO, fresh=fresh, seed=0)
        assert int(status) == 0
        assert A.dtype == S.dtype == B.dtype == of_basis
        return A * S @ B.mT

    (got,) = _same(product, (a(M), b(basis)), _tolerance(of_basis))
    assert got.shape == (l, q)


@quick
@given(sizes, sizes, st.data(), seeds, floats, matrix_layouts)
def test_tail_svd(
    l: int, q: int, data: st.DataObject, seed: int, dtype: torch.dtype, layout: Callable
) -> None:
    rank = data.draw(st.integers(0, min(l, q)))
    M = gapped_matrix(l, q, gap=0.7, seed=seed).to(dtype)

    def products(M: Tensor) -> tuple[Tensor, Tensor]:
        A, S, B, status = ops.tail_svd(M, rank=rank)
        assert int(status) == 0
        # As in the step: what is below float32 does not count beside the largest value.
        return S, A * S[rank:] @ B.mT + S[0]

    single = torch.promote_types(dtype, torch.float32)
    S, _ = _same(products, [layout(M)], _tolerance(single))
    assert S.dtype == single
    assert relative_error(S, torch.linalg.svdvals(M.double())) < _tolerance(single)


@pytest.mark.skipif(library.cpu() is None, reason="no CPU extension")
@quick
@given(st.lists(st.integers(0, 3), max_size=2), sizes, seeds, compute, layouts)
def test_small_svd(batch: list[int], m: int, seed: int, dtype: torch.dtype, layout: Callable) -> None:
    T = gapped_matrix(m, m, gap=0.7, seed=seed).to(dtype).expand(*batch, m, m)

    def product(T: Tensor) -> tuple[Tensor, Tensor]:
        U, S, V, sweeps, status = small_svd(T)
        assert sweeps.shape == status.shape == tuple(batch)
        assert not status.any()
        return S, U * S[..., None, :] @ V.mT

    S, back = _same(product, [layout(T)], _tolerance(dtype))
    if T.numel():
        assert relative_error(back, T) < _tolerance(dtype)
    assert S.shape == (*batch, m)


@quick
@given(
    *(st.integers(0, 20), sizes, sizes, st.data(), seeds, floats, compute),
    *(matrix_layouts, layouts, matrix_layouts, matrix_layouts),
    *(st.booleans(), st.booleans()),
)
def test_label_sums(
    n: int,
    q: int,
    l: int,
    data: st.DataObject,
    seed: int,
    dtype: torch.dtype,
    of_A: torch.dtype,
    of_X: Callable,
    of_y: Callable,
    a: Callable,
    b: Callable,
    dense: bool,
    with_bias: bool,
) -> None:
    r = data.draw(st.integers(0, min(q, l)))
    _, X, y, Y, bias = problem(q, l, n, seed=seed, dtype=dtype)
    A, B = gapped_matrix(l, r, seed=seed).to(of_A), gapped_matrix(q, r, seed=seed + 3).to(of_A)
    bias = of_y(bias.to(of_A)) if with_bias else None
    labels = of_X(Y) if dense else of_y(y)
    sums = ops.Sums(
        *_same(lambda X, Y, A, B: ops.label_sums(X, Y, A, B, bias), (of_X(X), labels, a(A), b(B)), 1e-3)
    )
    P = X.double() @ B.double()
    target = (Y.double() if bias is None else Y.double() - bias.double()) @ A.double()
    scale = 1 + P.norm() * target.norm()
    assert ((sums.numerator - (P * target).sum(0)).abs() <= 1e-5 * scale).all()
    assert ((sums.denominator - P.square().sum(0)).abs() <= 1e-5 * (1 + P.norm() ** 2)).all()
    assert int(sums.masked) == 0


@quick
@given(sizes, st.data(), seeds, compute, layouts, st.booleans())
def test_refit(
    t: int, data: st.DataObject, seed: int, dtype: torch.dtype, layout: Callable, clip: bool
) -> None:
    rank = data.draw(st.integers(0, t))
    g = torch.Generator().manual_seed(seed)
    S = torch.rand(t, generator=g).to(dtype).sort(descending=True).values
    numerator, denominator = torch.randn(2, t - rank, generator=g, dtype=torch.float64)
    sums = (numerator, denominator.abs() + 0.1, (denominator.abs() + 0.1).sum())

    def refitted(S: Tensor, *sums: Tensor) -> ops.Refit:
        return ops.refit(S, ops.Sums(*sums, ZERO), TRUE, rank=rank, tolerance=1e-6, clip=clip)

    s, ok, _ = _same(refitted, [layout(S), layout(sums[0]), layout(sums[1]), sums[2]], _tolerance(dtype))
    assert bool(ok)
    assert s.dtype == dtype
    if clip and t:
        assert (s.abs() <= S[max(rank - 1, 0)]).all()


@quick
@given(*(sizes, sizes, st.integers(0, 9), seeds, floats, compute), *[matrix_layouts] * 3, st.booleans())
def test_rebuild(
    l: int,
    q: int,
    t: int,
    seed: int,
    dtype: torch.dtype,
    of_A: torch.dtype,
    of_M: Callable,
    a: Callable,
    b: Callable,
    accumulate: bool,
) -> None:
    g = torch.Generator().manual_seed(seed)
    old = torch.randn(l, q, generator=g).to(dtype)
    A, B = torch.randn(l, t, generator=g).to(of_A), torch.randn(q, t, generator=g).to(of_A)
    s = torch.randn(t, generator=g).to(of_A)
    M = of_M(old)
    around = M.untyped_storage().tolist() if of_M is _in_a_corner else None
    arguments = {"step": ZERO, "accumulate": accumulate, "seed": seed}
    assert not bool(ops.rebuild_(M, a(A), s, b(B), ok=torch.tensor(False), **arguments))
    assert torch.equal(M, old)
    assert around is None or around == M.untyped_storage().tolist()
    assert bool(ops.rebuild_(M, a(A), s, b(B), ok=TRUE, **arguments))
    expected = A.double() * s.double() @ B.double().mT + (old.double() if accumulate else 0)
    assert ((M.double() - expected).abs() <= _tolerance(dtype, of_A) * (1 + expected.abs().max())).all()
    if of_M is _in_a_corner:  # nothing beside it
        outer = M.as_strided((l + 3, q + 3), (q + 3, 1), 0)
        assert torch.isnan(outer[0]).all()
        assert torch.isnan(outer[:, 0]).all()
        assert torch.isnan(outer[l + 1 :]).all()
        assert torch.isnan(outer[:, q + 1 :]).all()


@quick
@given(st.integers(0, 40), st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 2**63 - 1))
def test_fresh_columns(rows: int, columns: int, step: int, seed: int) -> None:
    signs = ops.fresh_columns(torch.tensor(step), rows, columns, seed=seed)
    assert signs.shape == (rows, columns)
    assert (signs.abs() == 1).all()
    fewer = ops.fresh_columns(torch.tensor(step), rows, columns // 2, seed=seed)
    assert torch.equal(signs[:, : columns // 2], fewer)
