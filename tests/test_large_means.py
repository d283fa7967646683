"""Features whose mean is far larger than their spread: as accurate as scikit-learn in the same precision."""

import copy

import pytest
import torch
from problems import linear, relative_error
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge
from torch import Tensor

import lip_fast
from lip_fast import LabelStatistics, reference

N, Q, L, KEPT, ALPHA = 900, 20, 5, 12, 1.0
MEANS = (0.0, 10.0, 100.0, 1e3, 1e4)
FLOATS = (torch.float32, torch.float64)
# Of the weight, by the narrower of the dtypes of features and accumulators; measured at most 3e-6 and 1e-13.
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-12}


def _data(mean: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Correlated features of about unit spread around ``mean``, and labels that follow them."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(N, Q, generator=g, dtype=torch.float64)
    X = X + 0.7 * torch.randn(N, 1, generator=g, dtype=torch.float64)
    noise = torch.randn(N, L, generator=g, dtype=torch.float64)
    y = (X @ torch.randn(Q, L, generator=g, dtype=torch.float64) + 2 * noise).argmax(1)
    return (X + mean).to(dtype), y


def _one_hot(y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y, L).double()


def _ridge(X: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """The ridge head (l, q) of the features as they are, by scikit-learn in float64 on centred ones."""
    X = X.double()
    centred = (X - X.mean(0)).numpy()
    weights = None if weights is None else weights.numpy()
    fit = Ridge(ALPHA, solver="cholesky").fit(centred, _one_hot(y).numpy(), weights)
    return torch.from_numpy(fit.coef_)


def _pcr(X: Tensor, y: Tensor) -> Tensor:
    X = X.double()
    centred = (X - X.mean(0)).numpy()
    pca = PCA(KEPT, svd_solver="full").fit(centred)
    fit = LinearRegression().fit(pca.transform(centred), _one_hot(y).numpy())
    return torch.from_numpy(fit.coef_ @ pca.components_)


def _limit(*dtypes: torch.dtype) -> float:
    return max(LIMITS[dtype] for dtype in dtypes)


@pytest.mark.parametrize("accumulators", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.usefixtures("arithmetic")
def test_ridge_and_pcr_do_not_depend_on_the_mean(
    mean: float, dtype: torch.dtype, accumulators: torch.dtype
) -> None:
    X, y = _data(mean, dtype)
    stats = LabelStatistics(Q, L, dtype=accumulators)
    stats.update((X[i : i + 100], y[i : i + 100]) for i in range(0, N, 100))
    limit = _limit(dtype, accumulators)
    ridge, pcr = stats.ridge_path([ALPHA]), stats.pcr_path([KEPT])
    assert relative_error(ridge[0].M, _ridge(X, y)) < limit
    assert relative_error(pcr[0].M, _pcr(X, y)) < limit
    # Of the least squares of scikit-learn in the same precision.
    theirs = Ridge(ALPHA).fit(X.numpy(), _one_hot(y).to(dtype).numpy())
    logits = next(ridge.logits(X))
    expected = (X.double() - X.double().mean(0)) @ _ridge(X, y).mT + _one_hot(y).mean(0)
    error = relative_error(logits, expected)
    assert error < max(limit, relative_error(torch.from_numpy(theirs.predict(X.numpy())), expected))


@pytest.mark.parametrize("labels", ["indices", "dense", "sparse"])
@pytest.mark.parametrize("accumulators", FLOATS, ids=str)
@pytest.mark.usefixtures("arithmetic")
def test_parts_with_very_different_means(accumulators: torch.dtype, labels: str) -> None:
    X, y = _data(0, torch.float32)
    # Accumulators in float32 round the scatter that the means themselves are.
    far, limit = (1e3, 1e-5) if accumulators == torch.float64 else (30.0, 1e-3)
    X = X + torch.tensor([0.0, far, -far]).repeat_interleave(N // 3)[:, None]
    Y = {"indices": y, "dense": _one_hot(y), "sparse": _one_hot(y).to_sparse()}[labels]
    parts = [
        LabelStatistics(Q, L, dtype=accumulators).update(X[i : i + N // 3], _rows(Y, i, N // 3))
        for i in range(0, N, N // 3)
    ]
    merged = copy.deepcopy(parts[0]).merge(parts[1]).merge(parts[2])
    again = copy.deepcopy(parts[2]).merge(parts[1]).merge(parts[0])
    streamed = LabelStatistics(Q, L, dtype=accumulators)
    streamed.update((X[i : i + 100], _rows(Y, i, 100)) for i in range(0, N, 100))
    for stats in (merged, again, streamed):
        assert relative_error(stats.ridge_path([ALPHA])[0].M, _ridge(X, y)) < limit
        assert stats.rows == N


def _rows(Y: Tensor, first: int, count: int) -> Tensor:
    if Y.layout == torch.strided:
        return Y[first : first + count]
    return Y.to_dense()[first : first + count].to_sparse()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fading_rows_are_weighted_ones(dtype: torch.dtype) -> None:
    X, y = _data(1e3, dtype)
    drift = torch.arange(N // 100).repeat_interleave(100)[:, None].to(dtype)
    X = X + drift
    stats = LabelStatistics(Q, L, decay=0.8, dtype=dtype)
    stats.update((X[i : i + 100], y[i : i + 100]) for i in range(0, N, 100))
    weights = 0.8 ** (N // 100 - 1 - drift[:, 0].double())
    assert relative_error(stats.ridge_path([ALPHA])[0].M, _ridge(X, y, weights)) < 10 * LIMITS[dtype]


@pytest.mark.usefixtures("arithmetic")
def test_rows_that_say_nothing_do_not_place_the_others() -> None:
    X, y = _data(1e3, torch.float32)
    X[:, 3] = 1e3  # constant
    stats = LabelStatistics(Q, L, dtype=torch.float32)
    stats.update(X[:0], y[:0])
    bad = torch.full((4, Q), torch.nan)
    stats.update(bad, torch.full((4,), -100))
    with pytest.raises(ValueError, match="expected finite X, got nan"):
        stats.update(bad, y[:4])
    with pytest.raises(ValueError, match="expected finite X, got inf"):
        stats.update(bad.fill_(torch.inf), y[:4])
    assert stats.rows == 0
    some = y.clone()
    some[::3] = -100
    stats.update(torch.where(some[:, None] < 0, torch.nan, X), some)
    kept = some >= 0
    M = stats.ridge_path([ALPHA])[0].M
    assert relative_error(M, _ridge(X[kept], y[kept])) < LIMITS[torch.float32]
    assert float(M[:, 3].abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mean", [0.0, 100.0, 1e3])
def test_lip_is_that_of_the_rows(mean: float, bias: bool, dtype: torch.dtype) -> None:
    X, y = _data(mean, dtype)
    head = linear(Q, L, bias=bias, dtype=dtype)
    W, b = head.weight.detach().mT, None if head.bias is None else head.bias.detach()
    expected = reference.lip(W.double(), X.double(), _one_hot(y), 2, bias=None if b is None else b.double())
    stats = LabelStatistics(Q, L).update(X, y)
    # Rounding of the directions themselves is multiplied by the mean.
    eps = torch.finfo(dtype).eps
    limit = 50 * eps * (1 + mean)
    assert relative_error(lip_fast.lip(W, stats, k=2, bias=b), expected) < limit
    assert relative_error(lip_fast.lip(W, X, y, 2, bias=b), expected) < limit
    repaired = lip_fast.repair(head, stats, "lip", parameters=[2]).head
    assert relative_error(repaired.weight.mT, expected) < limit


def test_an_unseen_direction_keeps_its_value() -> None:
    X, y = _data(1e3, torch.float64)
    W = linear(Q, L, dtype=torch.float64).weight.detach().mT
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    X = X - (X @ U[:, 3:]) @ U[:, 3:].mT
    for dtype in FLOATS:
        w, x = W.to(dtype), X.to(dtype)
        for got in (lip_fast.lip(w, LabelStatistics(Q, L).update(x, y), k=1), lip_fast.lip(w, x, y, 1)):
            s = torch.diagonal(U.mT @ got.double() @ Vh.mT)
            assert torch.allclose(s[3:], S[3:], rtol=1e-4)
            assert not torch.allclose(s[1:3], S[1:3], rtol=1e-2)


def test_truncation_keeps_the_mean_as_the_first_direction() -> None:
    X, y = _data(1e3, torch.float32)
    V = torch.linalg.svd(X.double(), full_matrices=False).Vh[:4].mT
    for accumulators in FLOATS:
        P = LabelStatistics(Q, L, dtype=accumulators).update(X, y).truncate(4).double()
        assert relative_error(P @ P.mT, V @ V.mT) < 1e-4
    assert float(P[:, 0].mean().abs()) == pytest.approx(Q**-0.5, rel=1e-4)


@pytest.mark.parametrize("method", ["ridge", "pcr", "auto"])
def test_a_repaired_head_is_as_good_far_from_zero(method: str) -> None:
    accuracies = []
    for mean in (0.0, 1e3):
        X, y = _data(mean, torch.float32)
        head = linear(Q, L, bias=True)
        stats = LabelStatistics(Q, L).update(X[:600], y[:600])
        repaired = lip_fast.repair(head, stats, method, (X[600:], y[600:])).head
        accuracies.append(float((repaired(X[600:]).argmax(1) == y[600:]).double().mean()))
    assert accuracies[0] > 0.5
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.01)


def test_a_state_without_a_shift_is_of_features_as_they_are() -> None:
    X, y = _data(10, torch.float64)
    stats = LabelStatistics(Q, L).update(X, y)
    old = {"C": stats.C, "G": stats.G, "rounding": torch.finfo(torch.float64).eps}
    restored = LabelStatistics(Q, L)
    restored.load_state_dict(old)
    for name in ("C", "G"):
        assert relative_error(getattr(restored, name), getattr(stats, name)) < 1e-14
    assert relative_error(restored.ridge_path([ALPHA])[0].M, _ridge(X, y)) < 1e-10
    restored.update(X, y)
    assert relative_error(restored.G, 2 * stats.G) < 1e-14


def test_a_state_is_restored_to_the_bit() -> None:
    X, y = _data(1e3, torch.float32)
    stats, other = LabelStatistics(Q, L).update(X[:500], y[:500]), LabelStatistics(Q, L)
    other.load_state_dict(stats.state_dict())
    for each in (stats, other):
        each.update(X[500:], y[500:])
    for name, value in stats.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_scale_of_the_features_does_not_matter(scale: float) -> None:
    """Squares of sums over squares of large features are beyond float32; each of them is not."""
    X, y = _data(0.0, torch.float32)
    near, scaled = LabelStatistics(Q, L).update(X, y), LabelStatistics(Q, L).update(X * scale, y)
    expected, found = near.pcr_path([Q])[0].M, scaled.pcr_path([Q])[0].M
    assert relative_error(found * scale, expected) < 1e-4
    assert bool(torch.isfinite(scaled.state_dict()["rounding"]))


@pytest.mark.parametrize("name", ["C", "G", "shift", "rounding"])
def test_a_state_that_is_not_finite_is_refused(name: str) -> None:
    statistics = LabelStatistics(Q, L).update(*_data(0.0, torch.float32))
    state = statistics.state_dict()
    damaged = state | {name: torch.full_like(state[name], float("nan"))}
    with pytest.raises(ValueError, match=f"expected a finite {name}"):
        statistics.load_state_dict(damaged)
    assert torch.equal(statistics.state_dict()[name], state[name])
