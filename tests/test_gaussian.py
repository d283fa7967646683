"""The Gaussian head against scikit-learn and its own form by singular vectors, and what is refused."""

import math

import pytest
import torch
from problems import relative_error
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from lip_fast import LabelStatistics
from lip_fast.gaussian import spread

Q, L, N = 14, 6, 150


def _data(q: int = Q, l: int = L, n: int = N, *, mean: float = 3.0) -> tuple[Tensor, Tensor]:
    """Gaussian classes of unequal size in correlated features, each class with a row; float64."""
    g = torch.Generator().manual_seed(q + 100 * l + 10000 * n)
    y = torch.cat([torch.arange(l), (l * torch.rand(n - l, generator=g).square()).long()])
    centres = torch.randn(l, q, generator=g, dtype=torch.float64)
    X = centres[y] + torch.randn(n, q, generator=g, dtype=torch.float64) @ torch.randn(
        q, q, generator=g, dtype=torch.float64
    )
    return X + mean, y


def _statistics(X: Tensor, Y: Tensor, l: int = L, **settings: object) -> LabelStatistics:
    return LabelStatistics(X.shape[1], l, **settings).update(X, Y)


def _one_hot(y: Tensor, l: int = L) -> Tensor:
    return torch.nn.functional.one_hot(y, l).double()


def _by_rows(X: Tensor, Y: Tensor, alpha: float = 0.3, noise_rate: float = 0.0) -> tuple[Tensor, Tensor]:
    """The head from the rows themselves, by singular vectors of the whitened class means; Y (n, l)."""
    n, mu, counts = len(X), X.mean(0), Y.sum(0)
    Xc = X - mu
    eigenvalues, V = torch.linalg.eigh(Xc.mT @ Xc)
    R = V / (eigenvalues.clamp(min=0) + alpha * eigenvalues.mean()).sqrt()
    means = (Xc.mT @ Y) / counts
    U, c, Vh = torch.linalg.svd(R.mT @ (means * counts.sqrt()), full_matrices=False)
    c = c / (1 - noise_rate)
    m = c[:, None] * Vh / (counts / n).sqrt()
    W = math.sqrt(n) * (R @ U / (1 - c.square())) @ m
    bias = torch.log(counts / n) - (m.square() / (1 - c.square())[:, None]).sum(0) / 2 - mu @ W
    return W.mT, bias


@pytest.mark.parametrize(
    ("q", "l", "n"), [(Q, L, N), (5, 2, 40), (40, 17, 60), (3, 12, 90), (30, 9, 9), (60, 4, 21)]
)
@pytest.mark.parametrize(("alpha", "noise_rate"), [(0.3, 0.0), (2.0, 0.05), (1e-2, 0.0)])
def test_it_is_its_form_by_singular_vectors(q: int, l: int, n: int, alpha: float, noise_rate: float) -> None:
    X, y = _data(q, l, n)
    head = _statistics(X, y, l).gaussian(alpha, noise_rate)
    M, bias = _by_rows(X, _one_hot(y, l), alpha, noise_rate)
    assert relative_error(head.M, M) < 1e-10
    assert relative_error(head.bias, bias) < 1e-10


@pytest.mark.parametrize("alpha", [0.05, 0.3, 4.0])
def test_it_is_linear_discriminant_analysis_of_scikit_learn(alpha: float) -> None:
    X, y = _data()
    head = _statistics(X, y).gaussian(alpha)
    Xc = X - X.mean(0)
    within = X - torch.stack([X[y == c].mean(0) for c in range(L)])[y]
    odds = alpha * float(Xc.square().sum() / within.square().sum())
    shrinkage = odds / (1 + odds)
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X.numpy(), y.numpy())
    prior = torch.log(torch.bincount(y).double() / N)
    # Its scatter is (1 - s) times ours, and it takes the means of the classes from 0.
    expected = torch.from_numpy(X.numpy() @ other.coef_.T + other.intercept_) - prior
    got = (X @ head.M.mT + head.bias - prior) / (1 - shrinkage)
    assert relative_error(got - got.mean(1, keepdim=True), expected - expected.mean(1, keepdim=True)) < 1e-10
    if alpha == 0.05:
        predicted = (X @ head.M.mT + head.bias).argmax(1)
        assert not torch.equal(predicted, y)


def test_without_a_penalty_it_is_that_of_the_scatter_alone() -> None:
    X, y = _data()
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.0).fit(X.numpy(), y.numpy())
    head = _statistics(X, y).gaussian(0)
    expected = torch.from_numpy(X.numpy() @ other.coef_.T + other.intercept_)
    got = X @ head.M.mT + head.bias
    assert relative_error(got - got.mean(1, keepdim=True), expected - expected.mean(1, keepdim=True)) < 1e-9


@pytest.mark.parametrize("form", ["one batch", "batches", "merged", "sparse", "dense", "unlabelled"])
def test_however_the_rows_come(form: str) -> None:
    X, y = _data()
    expected = _by_rows(X, _one_hot(y))
    if form == "one batch":
        statistics = _statistics(X, y)
    elif form == "batches":
        statistics = LabelStatistics(Q, L).update(zip(X.split(17), y.split(17), strict=True))
    elif form == "merged":
        statistics = _statistics(X[:50], y[:50]).merge(_statistics(X[50:], y[50:]))
    elif form == "unlabelled":
        more = torch.cat([X, torch.full((5, Q), torch.nan, dtype=X.dtype)])
        statistics = _statistics(more, torch.cat([y, torch.full((5,), -100)]))
    else:
        Y = _one_hot(y)
        statistics = _statistics(X, Y.to_sparse() if form == "sparse" else Y)
    head = statistics.gaussian()
    assert relative_error(head.M, expected[0]) < 1e-10
    assert relative_error(head.bias, expected[1]) < 1e-10


def test_older_rows_fade() -> None:
    X, y = _data()
    head = LabelStatistics(Q, L, decay=0.5).update([(X[:90], y[:90]), (X[90:], y[90:])]).gaussian()
    weights = torch.where(torch.arange(N) < 90, 0.5, 1.0).double()
    rows = weights.sum()
    mu = (weights[:, None] * X).sum(0) / rows
    Xc, Y = X - mu, _one_hot(y)
    counts = (weights[:, None] * Y).sum(0)
    G, means = Xc.mT @ (weights[:, None] * Xc), (Xc.mT @ (weights[:, None] * Y)) / counts
    S = G + 0.3 * G.diagonal().mean() * torch.eye(Q, dtype=G.dtype) - means * counts @ means.mT
    assert relative_error(head.M.mT, rows * torch.linalg.solve(S, means)) < 1e-10


def test_soft_labels_count_by_their_weights() -> None:
    X, y = _data()
    Y = torch.softmax(_one_hot(y) * 3 + torch.randn(N, L, generator=torch.Generator().manual_seed(1)), 1)
    head = _statistics(X, Y).gaussian()
    M, bias = _by_rows(X, Y)
    assert relative_error(head.M, M) < 1e-10
    assert relative_error(head.bias, bias) < 1e-10
    rounded = _statistics(X, Y.bfloat16()).gaussian()
    assert relative_error(rounded.M, M) < 1e-2


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e4])
@pytest.mark.parametrize("accumulators", [torch.float32, torch.float64])
def test_float32_features_of_any_mean(mean: float, accumulators: torch.dtype) -> None:
    X, y = _data(n=900, mean=0)
    X = (X + mean).float()
    head = _statistics(X, y, dtype=accumulators).gaussian()
    M, bias = _by_rows(X.double(), _one_hot(y))
    # As ridge regression from the same sums: the products of float32 features are rounded.
    assert relative_error(head.M, M) < 1e-5
    logits = (X.double() - mean) @ head.M.double().mT + head.bias.double() + mean * head.M.double().sum(1)
    assert relative_error(logits, X.double() @ M.mT + bias) < (1e-5 if accumulators.itemsize == 8 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_without_rows_is_never_predicted(dtype: torch.dtype) -> None:
    X, y = _data()
    kept = y != 2
    statistics = _statistics(X[kept], y[kept], dtype=dtype)
    others = [c for c in range(L) if c != 2]
    expected, bias = _by_rows(X[kept], _one_hot(y[kept])[:, others])
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    for head in (statistics.gaussian(), statistics.gaussian_path([0.3])[0]):
        assert not head.M[2].any()
        assert float(head.bias[2]) == torch.finfo(dtype).min / 2
        assert float(head.to(torch.float16).bias[2]) == torch.finfo(torch.float16).min / 2
    head = statistics.gaussian()
    assert relative_error(head.M[others].double(), expected) < limit
    assert relative_error(head.bias[others].double(), bias) < limit
    (logits,) = statistics.gaussian_path([0.3]).logits(X)
    assert int((logits.argmax(1) == 2).sum()) == 0


def test_the_path_is_the_head_where_nothing_is_corrected() -> None:
    # So many rows that chance adds next to nothing.
    X, y = _data(4, 3, 60000)
    X = X * 3
    statistics = _statistics(X, y, 3)
    for alpha, rate in ((0.3, 0.0), (1.0, 0.1)):
        member, head = statistics.gaussian_path([alpha], [rate])[0], statistics.gaussian(alpha, rate)
        assert relative_error(member.M, head.M) < 2e-3
        assert relative_error(member.bias, head.bias) < 2e-3


@pytest.mark.parametrize(("q", "l", "n"), [(Q, L, N), (5, 12, 80), (30, 9, 9), (40, 5, 30)])
def test_the_path_frees_correlations_of_what_chance_adds(q: int, l: int, n: int) -> None:
    X, y = _data(q, l, n)
    Y, mu = _one_hot(y, l), X.mean(0)
    Xc, counts = X - mu, Y.sum(0)
    alphas, rates = [0.1, 1.0], [0.0, 0.4, 0.9]
    path = _statistics(X, y, l).gaussian_path(alphas, rates)
    assert path.parameters == tuple((a, r) for a in alphas for r in rates)
    logits = list(path.logits(X))
    eigenvalues, V = torch.linalg.eigh(Xc.mT @ Xc)
    for i, (alpha, rate) in enumerate(path.parameters):
        penalised = eigenvalues.clamp(min=0) + alpha * eigenvalues.mean()
        R = V / penalised.sqrt()
        U, c, Vh = torch.linalg.svd(R.mT @ (Xc.mT @ Y / counts.sqrt()), full_matrices=False)
        d = (eigenvalues / penalised).sum() / n
        c = (((c**2 - d).clamp(min=0) / (1 - d)).sqrt() / (1 - rate)).clamp(max=0.99)
        m = c[:, None] * Vh / (counts / n).sqrt()
        W = math.sqrt(n) * (R @ U / (1 - c.square())) @ m
        bias = torch.log(counts / n) - (m.square() / (1 - c.square())[:, None]).sum(0) / 2 - mu @ W
        assert relative_error(path[i].M.mT, W) < 1e-8 or float(W.norm()) < 1e-9 > float(path[i].M.norm())
        assert relative_error(path[i].bias, bias) < 1e-8
        assert relative_error(logits[i], X @ W + bias) < 1e-8
    assert float(path[-1].M.norm()) > 0
    with pytest.raises(IndexError):
        path[len(path)]


def test_noise_that_is_known_is_undone() -> None:
    """Labels replaced at random leave the head of the clean ones, but for its scale, with the rate known."""
    X, y = _data(6, 4, 4000)
    Y = 0.6 * _one_hot(y, 4) + 0.4 * _one_hot(y, 4).mean(0)
    clean, noisy = _statistics(X, y, 4), _statistics(X, Y, 4)
    assert relative_error(noisy.gaussian(0.1, 0.4).M, clean.gaussian(0.1).M) < 1e-9
    assert relative_error(noisy.gaussian(0.1).M, clean.gaussian(0.1).M) > 0.1


def test_what_cannot_be_is_refused() -> None:
    X, y = _data()
    statistics = _statistics(X, y)
    for alpha in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="expected alpha >= 0 and finite, got"):
            statistics.gaussian(alpha)
    for rate in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"expected noise_rate in \[0, 1\), got"):
            statistics.gaussian(noise_rate=rate)
    with pytest.raises(ValueError, match="expected at least one noise_rate, got none"):
        statistics.gaussian_path([0.3], [])
    with pytest.raises(ValueError, match="at least one labelled row, got none"):
        LabelStatistics(Q, L).gaussian()
    sets = _one_hot(y) + _one_hot((y + 1) % L)
    signed = _one_hot(y) * 2 - _one_hot((y + 1) % L)
    for Y, told in (
        (sets, "2 on average: divide"),
        (signed, "1 on average and classes of negative weight"),
    ):
        for head in (LabelStatistics.gaussian, lambda s: s.gaussian_path([0.3])):
            with pytest.raises(ValueError, match=f"whose weights sum to 1 in each row, got {told}"):
                head(_statistics(X, Y))
    dependent = torch.cat([X, X[:, :1]], 1)
    with pytest.raises(ValueError, match="got a singular scatter with alpha=0: raise alpha"):
        _statistics(dependent, y).gaussian(0)
    assert _statistics(dependent, y).gaussian().M.isfinite().all()
    with pytest.raises(ValueError, match="got a singular scatter"):
        _statistics(dependent[:L], y[:L]).gaussian(0)
    for rows in (slice(None), slice(1)):
        with pytest.raises(ValueError, match="features that differ from row to row, got constant ones"):
            _statistics(torch.ones_like(X)[rows], y[rows]).gaussian()
    with pytest.raises(ValueError, match="with which the scatter stays finite, got 1e\\+308"):
        statistics.gaussian(1e308)
    for wrong in ("x", None, [0.3]):
        with pytest.raises(TypeError, match="expected alpha as a number, got"):
            statistics.gaussian(wrong)
        with pytest.raises(TypeError, match="expected noise_rate as a number, got"):
            statistics.gaussian(0.3, wrong)


def test_the_largest_rate_of_noise_is_told() -> None:
    X, y = _data()
    statistics = _statistics(X, y)
    with pytest.raises(ValueError, match="expected noise_rate below") as error:
        statistics.gaussian(noise_rate=0.9)
    most = float(str(error.value).split("below ")[1].split(",")[0])
    assert statistics.gaussian(noise_rate=most - 1e-9).M.isfinite().all()
    with pytest.raises(ValueError, match="expected noise_rate below"):
        statistics.gaussian(noise_rate=most + 2e-3)


def test_the_spread_of_logits_is_that_over_the_rows() -> None:
    X, y = _data()
    M = torch.randn(L, Q, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = X @ M.mT
    logits = logits - logits.mean(0)
    logits = logits - logits.mean(1, keepdim=True)
    rows = _statistics(X, y).centred()
    assert spread(rows, M) == pytest.approx(float(logits.square().mean().sqrt()), rel=1e-10)
    # What rounding leaves of classes that are alike.
    assert spread(rows, (M[:1] / 3).expand(L, -1)) == 0
    assert spread(rows, torch.ones(L, Q)) == pytest.approx(0, abs=1e-6)


def test_a_class_that_faded_is_one_without_rows() -> None:
    X, y = _data()
    faded = LabelStatistics(Q, L, decay=0.6).update(X, y)
    rest = y != 2
    for _ in range(1500):
        faded.update(X[rest], y[rest])
    # It stops at the smallest number there is.
    assert 0 < float(faded.C[-1, 2]) < 1e-300
    fresh = LabelStatistics(Q, L).update(X[rest], y[rest])
    for head in (faded.gaussian(), faded.gaussian_path([0.3])[0]):
        assert not head.M[2].any()
        assert float(head.bias[2]) == torch.finfo(torch.float64).min / 2
    assert relative_error(faded.gaussian().M, fresh.gaussian().M) < 1e-8
    nothing = torch.full((3,), -100)
    for _ in range(1500):
        faded.update(X[:3], nothing)
    with pytest.raises(ValueError, match="at least one labelled row, got none"):
        faded.gaussian()


def test_a_weight_that_rounding_made_slightly_negative_counts_for_nothing() -> None:
    X, y = _data()
    kept = y != 2
    Y = _one_hot(y)[kept]
    Y[:, 2] = -1e-5
    Y[:, 0] += 1e-5
    assert _statistics(X[kept], Y).gaussian().M.isfinite().all()
    assert _statistics(X[kept], Y).gaussian_path([0.3])[0].M.isfinite().all()


def test_a_singular_scatter_is_seen_beyond_its_pivots() -> None:
    # A draw with which no pivot is as small as the eigenvalue that rounding made of 0.
    g = torch.Generator().manual_seed(9)
    y = torch.randint(0, 3, (200,), generator=g)
    X = torch.randn(200, 39, generator=g, dtype=torch.float64)
    X = X @ torch.randn(39, 39, generator=g, dtype=torch.float64)
    X = torch.cat([X @ torch.randn(39, 1, generator=g, dtype=torch.float64), X], 1)
    with pytest.raises(ValueError, match="got a singular scatter"):
        _statistics(X, y, 3).gaussian(0)
    assert _statistics(X, y, 3).gaussian(1e-3).M.isfinite().all()
