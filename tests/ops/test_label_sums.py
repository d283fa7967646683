"""The 2r sums: every form of labels against the dense formula in float64."""

import pytest
import torch
from problems import problem

from lip_fast import ops
from lip_fast.backends.default import label_sums as kernel
from lip_fast.targets import as_targets


def _expected(X, Y, A, B, bias):
    X, Y, A, B = X.double(), Y.double(), A.double(), B.double()
    target = Y if bias is None else Y - bias.double()
    numerator = torch.diagonal(B.mT @ X.mT @ target @ A)
    return numerator, (X @ B).square().sum(0), X.square().sum()


@pytest.fixture(params=[True, False], ids=["one block", "blocks of 7"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(kernel, "_ROWS_CPU", 7)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("form", ["indices", "dense", "integers", "coo", "csr"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("q", "l", "n", "r"), [(11, 5, 40, 3), (3, 17, 13, 2), (1, 1, 1, 1), (6, 4, 7, 0)])
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_sums(q: int, l: int, n: int, r: int, dtype: torch.dtype, with_bias: bool, form: str) -> None:
    _, X, y, Y, bias = problem(q, l, n, dtype=dtype)
    g = torch.Generator().manual_seed(5)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    A = torch.randn(l, r, generator=g, dtype=compute)
    B = torch.randn(q, r, generator=g, dtype=compute)
    labels = {
        "indices": y,
        "dense": Y,
        "integers": Y.long(),
        "coo": Y.to_sparse(),
        "csr": Y.to_sparse_csr(),
    }[form]
    targets = as_targets(labels, rows=n, classes=l, device=X.device)
    bias_or_none = bias if with_bias else None
    sums = ops.label_sums(X, targets, A, B, bias_or_none)
    numerator, denominator, energy = _expected(X, Y, A, B, bias_or_none)
    scale = (energy * max(n, 1)).sqrt() * 20
    tolerance = (1e-13 if dtype == torch.float64 else 1e-6) * scale
    assert sums.numerator.dtype == torch.float64
    assert (sums.numerator - numerator).abs().max().item() <= tolerance if r else True
    assert (sums.denominator - denominator).abs().max().item() <= tolerance * scale if r else True
    assert abs(float(sums.energy - energy)) <= tolerance * scale
    assert int(sums.masked) == 0


def test_candidate_sets_sum_their_classes() -> None:
    X = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    candidates = torch.tensor([[1, 1, 0], [0, 1, 1]])
    A = torch.tensor([[1.0], [10.0], [100.0]], dtype=torch.float64)
    B = torch.ones(1, 1, dtype=torch.float64)
    for labels in (candidates, candidates.to_sparse()):
        targets = as_targets(labels, rows=2, classes=3, device=X.device)
        sums = ops.label_sums(X, targets, A, B)
        assert float(sums.numerator) == 2 * 11 + 3 * 110
        assert float(sums.denominator) == 13


def test_rows_without_a_label_do_not_count() -> None:
    _, X, y, _, bias = problem(11, 5, 40)
    A, B = torch.eye(5, 3, dtype=torch.float64), torch.eye(11, 3, dtype=torch.float64)
    kept = torch.arange(40) % 3 != 0
    marked = torch.where(kept, y, -100)
    X_marked = X.clone()
    X_marked[~kept] = float("nan")  # not even read
    some = ops.label_sums(X_marked, marked, A, B, bias)
    expected = ops.label_sums(X[kept], y[kept], A, B, bias)
    for got, want in zip(some, expected, strict=True):
        assert torch.allclose(got.double(), want.double(), rtol=1e-12)


def test_indices_out_of_range_are_masked_and_counted() -> None:
    _, X, y, _, _ = problem(11, 5, 40)
    A, B = torch.eye(5, 3, dtype=torch.float64), torch.eye(11, 3, dtype=torch.float64)
    wrong = y.clone()
    wrong[3], wrong[20], wrong[30] = 5, -1, -100
    kept = torch.ones(40, dtype=torch.bool)
    kept[[3, 20, 30]] = False
    sums = ops.label_sums(X, wrong, A, B)
    assert int(sums.masked) == 2
    assert torch.allclose(sums.numerator, ops.label_sums(X[kept], y[kept], A, B).numerator, rtol=1e-12)


def test_strides_do_not_matter() -> None:
    _, X, y, _, _ = problem(11, 5, 40)
    A, B = torch.eye(5, 3, dtype=torch.float64), torch.eye(11, 3, dtype=torch.float64)
    strided = torch.stack([X, X], 2)[:, :, 0].mT.contiguous().mT
    expected = ops.label_sums(X, y, A, B)
    got = ops.label_sums(strided, torch.stack([y, y], 1)[:, 0], A.mT.contiguous().mT, B)
    assert torch.allclose(got.numerator, expected.numerator, rtol=1e-13)


def test_bad_shapes_are_refused() -> None:
    X, A, B = torch.ones(4, 3), torch.ones(5, 2), torch.ones(3, 2)
    y = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected B with 3 rows"):
        ops.label_sums(X, y, A, torch.ones(4, 2))
    with pytest.raises(ValueError, match="expected A and B with 2 columns"):
        ops.label_sums(X, y, A, torch.ones(3, 1))
    with pytest.raises(ValueError, match="labels of 4 rows"):
        ops.label_sums(X, y[:3], A, B)
    with pytest.raises(ValueError, match=r"a bias of shape \(5,\)"):
        ops.label_sums(X, y, A, B, torch.ones(4))
    with pytest.raises(TypeError, match="expected B in one of"):
        ops.label_sums(X, y, A, B.double())


def test_opcheck() -> None:
    _, X, y, Y, bias = problem(6, 4, 9, dtype=torch.float32)
    A, B = torch.eye(4, 2), torch.eye(6, 2)
    for labels in (y, Y):
        for b in (None, bias):
            torch.library.opcheck(torch.ops.lip_fast.label_sums.default, (X, labels, A, B, b))
    csr = as_targets(Y.to_sparse(), rows=9, classes=4, device=X.device)
    # Copies: opcheck cannot follow views into a sparse tensor.
    parts = [part.clone() for part in csr]
    torch.library.opcheck(torch.ops.lip_fast.label_sums_csr.default, (X, *parts, A, B, bias))
