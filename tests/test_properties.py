"""Invariances of LIP, on random gapped spectra (where values repeat, LIP depends on the basis)."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from problems import orthonormal, problem, relative_error

import lip_fast
from lip_fast import reference

shapes = st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(15, 40))
seeds = st.integers(0, 10_000)
# One torch call can take long on a busy machine; time is not what these tests are about.
quick = settings(max_examples=40, deadline=None)


def _case(shape: tuple[int, int, int], k: int, seed: int):
    q, l, n = shape
    return problem(q, l, n, seed=seed), min(k, q, l)


@quick
@given(shapes, st.integers(0, 14), seeds)
def test_equals_the_reference(shape: tuple[int, int, int], k: int, seed: int) -> None:
    (W, X, y, Y, bias), k = _case(shape, k, seed)
    expected = reference.lip(W, X, Y, k, bias=bias)
    assert relative_error(lip_fast.lip(W, X, y, k, bias=bias), expected) < 1e-9


@quick
@given(shapes, st.integers(0, 14), seeds)
def test_the_order_of_rows_does_not_matter(shape: tuple[int, int, int], k: int, seed: int) -> None:
    (W, X, y, _, bias), k = _case(shape, k, seed)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    a, b = lip_fast.lip(W, X, y, k, bias=bias), lip_fast.lip(W, X[order], y[order], k, bias=bias)
    assert relative_error(a, b) < 1e-9


@quick
@given(shapes, st.integers(0, 14), seeds)
def test_classes_can_be_renamed(shape: tuple[int, int, int], k: int, seed: int) -> None:
    (W, X, y, _, bias), k = _case(shape, k, seed)
    order = torch.randperm(W.shape[1], generator=torch.Generator().manual_seed(seed))
    renamed = lip_fast.lip(W[:, order], X, torch.argsort(order)[y], k, bias=bias[order])
    assert relative_error(renamed, lip_fast.lip(W, X, y, k, bias=bias)[:, order]) < 1e-8


@quick
@given(shapes, st.integers(0, 14), seeds)
def test_features_can_be_rotated(shape: tuple[int, int, int], k: int, seed: int) -> None:
    (W, X, y, _, bias), k = _case(shape, k, seed)
    Q = orthonormal(W.shape[0], seed)
    rotated = lip_fast.lip(Q @ W, X @ Q.mT, y, k, bias=bias)
    assert relative_error(rotated, Q @ lip_fast.lip(W, X, y, k, bias=bias)) < 1e-8


@quick
@given(shapes, st.integers(0, 14), seeds, st.floats(0.1, 10))
def test_features_and_weight_can_be_rescaled(
    shape: tuple[int, int, int], k: int, seed: int, scale: float
) -> None:
    (W, X, y, _, bias), k = _case(shape, k, seed)
    scaled = lip_fast.lip(W / scale, X * scale, y, k, bias=bias)
    assert relative_error(scaled * scale, lip_fast.lip(W, X, y, k, bias=bias)) < 1e-9
