"""Statistics of batches: the same sums as one pass over everything, in the same form."""

import copy

import pytest
import torch
from problems import problem, relative_error

import lip_fast
import lip_fast.statistics as statistics_module
from lip_fast import LabelStatistics, moments, ops
from lip_fast.targets import as_targets


def _targets(Y: torch.Tensor, n: int, l: int):
    return as_targets(Y, rows=n, classes=l, device=torch.device("cpu"))


@pytest.mark.parametrize("form", ["indices", "dense", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("q", "l", "n"), [(7, 4, 50), (3, 11, 5), (1, 1, 1)])
@pytest.mark.usefixtures("arithmetic")
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


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_features_are_summed_in_single_precision_however_they_come(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, X, y, Y, _ = problem(7, 4, 60, dtype=dtype)
    monkeypatch.setattr(statistics_module, "_ROWS", 11)
    kept = torch.arange(60) % 3 != 0
    X[~kept] = torch.nan
    statistics = LabelStatistics(7, 4)
    assert bool(statistics.absorb([(X, torch.where(kept, y, -100))]))
    X1 = torch.cat([X, torch.ones(60, 1)], 1).double()[kept]
    sizes = X1.abs().mT @ torch.cat([X1.abs(), Y.double()[kept]], 1)
    # Of 40 rows: a product and 40 additions, each rounded to float32.
    error = torch.cat([statistics.G - X1.mT @ X1, statistics.C - X1.mT @ Y.double()[kept]], 1).abs()
    assert (error <= 41 * 2.0**-24 * sizes).all()
    assert statistics.rows == 40


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


def test_update_in_one_piece_in_blocks_and_from_a_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    _, X, y, Y, _ = problem(7, 4, 60)
    whole = LabelStatistics(7, 4).update(X, y)
    pairs = torch.utils.data.TensorDataset(X, y)
    loader = torch.utils.data.DataLoader(pairs, batch_size=13, generator=torch.Generator())
    monkeypatch.setattr(statistics_module, "_ROWS", 11)
    monkeypatch.setattr(moments, "_ENTRIES", 5)
    for streamed in (
        LabelStatistics(7, 4).update(loader),
        LabelStatistics(7, 4).update(X, y),
        LabelStatistics(7, 4).update(X, Y),
        LabelStatistics(7, 4).update(X, Y.to_sparse()),
        LabelStatistics(7, 4).update(X[:20], y[:20]).merge(LabelStatistics(7, 4).update(X[20:], Y[20:])),
    ):
        assert torch.allclose(streamed.C, whole.C, rtol=1e-12)
        assert torch.allclose(streamed.G, whole.G, rtol=1e-12)
        assert streamed.rows == 60


def test_merge_is_associative_to_rounding() -> None:
    _, X, y, _, _ = problem(7, 4, 60, dtype=torch.float32)
    a, b, c = (LabelStatistics(7, 4).update(X[i : i + 20], y[i : i + 20]) for i in (0, 20, 40))
    left = copy.deepcopy(a).merge(b).merge(c)
    right = copy.deepcopy(a).merge(copy.deepcopy(b).merge(c))
    assert torch.allclose(left.G, right.G, rtol=1e-14)
    assert torch.allclose(left.C, right.C, rtol=1e-14)
    rounding = float(left.state_dict()["rounding"])
    assert rounding == pytest.approx(float(right.state_dict()["rounding"]), rel=1e-14)
    assert 0.5 < rounding / (torch.finfo(torch.float32).eps * float(torch.linalg.matrix_norm(left.G))) < 2


def test_refit_is_the_quotient_and_blind_directions_have_none() -> None:
    _, X, y, _, bias = problem(7, 4, 60)
    X = torch.cat([X[:, :6], torch.zeros(60, 1)], 1)
    A, B = torch.eye(4, 2, dtype=torch.float64), torch.eye(7, dtype=torch.float64)[:, [0, 6]]
    stats = LabelStatistics(7, 4).update(X, y)
    sums = ops.label_sums(X, y, A, B, bias)
    s = stats.refit(A, B, bias)
    assert float(s[0]) == pytest.approx(float(sums.numerator[0] / sums.denominator[0]))
    assert torch.isnan(s[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lip_from_statistics_and_from_batches_is_lip(dtype: torch.dtype) -> None:
    W, X, y, _, bias = problem(12, 5, 300, dtype=dtype)
    expected = lip_fast.lip(W, X, y, 2, bias=bias)
    stats = LabelStatistics(12, 5).update(X, y)
    batches = [(X[i : i + 70], y[i : i + 70]) for i in range(0, 300, 70)]
    for data in (stats, batches, iter(batches)):
        got = lip_fast.lip(W, data, k=2, bias=bias)
        assert relative_error(got, expected) < (1e-4 if dtype == torch.float32 else 1e-10)


def test_an_unseen_direction_keeps_its_value_from_statistics_too() -> None:
    W, X, y, _, _ = problem(12, 6, 80)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    X = X - (X @ U[:, 4:]) @ U[:, 4:].mT
    for dtype in (torch.float64, torch.float32):
        stats = LabelStatistics(12, 6).update(X.to(dtype), y)
        got = lip_fast.lip(W, stats, k=2)
        assert torch.allclose(torch.diagonal(U.mT @ got @ Vh.mT)[4:], S[4:], rtol=1e-9)


def test_held_out_rank_is_the_best_of_the_path() -> None:
    W, X, y, _, bias = problem(12, 5, 300)
    path = lip_fast.lip_path(W, X[:200], y[:200], bias=bias)
    held = (X[200:], y[200:])
    scores = {
        k: float(((X[200:] @ weight + bias).argmax(1) == y[200:]).double().mean()) for k, weight in path
    }
    assert path.agreement(held, bias=bias) == pytest.approx(scores)
    best = lip_fast.select_rank(path, method="holdout", holdout=held, bias=bias)
    assert scores[best] == max(scores.values())
    with pytest.raises(TypeError, match="expected a LIPPath for method holdout"):
        lip_fast.select_rank(path.S, method="holdout", holdout=held)
    with pytest.raises(TypeError, match=r"hold-out as a pair"):
        lip_fast.select_rank(path, method="holdout")
    assert lip_fast.select_rank(path) == lip_fast.select_rank(path.S)
    assert lip_fast.select_rank(path, method="gavish-donoho") == lip_fast.select_rank(
        path.S, method="gavish-donoho", shape=(5, 12)
    )


# What overflows on purpose is a warning of numpy in Triton's interpreter.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3, 7),), TypeError, "expected labels with the features"),
        ((torch.ones(3, 6), torch.zeros(3, dtype=torch.int64)), ValueError, r"7 columns, got shape \(3, 6\)"),
        ((torch.ones(3, 7), torch.full((3,), 4)), ValueError, r"class indices in 0\.\.3 .*got 4"),
        ((torch.full((3, 7), torch.nan), torch.zeros(3, dtype=torch.int64)), ValueError, "finite X, got nan"),
        ((torch.ones(3, 7), torch.full((3, 4), torch.inf)), ValueError, "finite Y, got inf"),
        ((torch.full((3, 7), 1e30), torch.zeros(3, dtype=torch.int64)), ValueError, "squares can be summed"),
        (([1.0], torch.zeros(3, dtype=torch.int64)), TypeError, "expected X as a torch.Tensor"),
    ],
)
def test_bad_updates_are_named_and_change_nothing(arguments: tuple, error: type, message: str) -> None:
    stats = LabelStatistics(7, 4)
    with pytest.raises(error, match=message):
        stats.update(*arguments)
    assert not stats.G.any()
    assert not stats.C.any()


def test_bad_data_for_lip_is_named() -> None:
    W, X, y, _, _ = problem(12, 5, 30)
    stats = LabelStatistics(12, 5).update(X, y)
    for arguments, error, message in [
        ((W, stats, y, 2), TypeError, "no Y beside LabelStatistics"),
        ((W, LabelStatistics(12, 4), None, 2), ValueError, "12 features and 5 classes, got 12 and 4"),
        ((W, LabelStatistics(12, 5), None, 2), ValueError, "at least one labelled row"),
        ((W, [], None, 2), ValueError, "at least one batch"),
        ((W, X, None, 2), TypeError, "expected Y beside X, got None"),
        ((W, 3, None, 2), TypeError, "LabelStatistics or batches of pairs, got int 3"),
        ((W, [(X.tolist(), y)], None, 2), TypeError, "X as a torch.Tensor, got list"),
        ((W, X, y), TypeError, "expected k, the number of directions"),
    ]:
        with pytest.raises(error, match=message):
            lip_fast.lip(*arguments)
