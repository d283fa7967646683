"""Repaired heads against scikit-learn in float64, the choice among them, and what is refused."""

import copy
from collections.abc import Callable

import pytest
import torch
from problems import linear, problem, relative_error
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import lip_fast
from lip_fast import LabelStatistics, RepairReport, reference
from lip_fast.repair import Candidate

Q, L, N = 14, 6, 120


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features with a mean that is not zero, indices, one-hot labels; float64."""
    _, X, y, Y, _ = problem(Q, L, N)
    return X * torch.linspace(3, 0.1, Q, dtype=torch.float64) + 1, y, Y


def _head(bias: bool = True) -> torch.nn.Linear:
    return linear(Q, L, bias=bias, dtype=torch.float64)


def _stats(X: torch.Tensor, Y: torch.Tensor) -> LabelStatistics:
    return LabelStatistics(Q, L).update(X, Y)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 50.0])
def test_ridge_is_that_of_scikit_learn(data: tuple, bias: bool, alpha: float) -> None:
    X, y, Y = data
    head = lip_fast.repair(_head(bias), _stats(X, y), "ridge", parameters=[alpha]).head
    expected = Ridge(alpha=alpha, fit_intercept=bias).fit(X.numpy(), Y.numpy())
    assert relative_error(head.weight, torch.from_numpy(expected.coef_)) < 1e-10
    if bias:
        assert relative_error(head.bias, torch.from_numpy(expected.intercept_)) < 1e-10
    else:
        assert head.bias is None


@pytest.mark.parametrize("d", [0, 1, 5, Q])
def test_pcr_is_that_of_scikit_learn(data: tuple, d: int) -> None:
    X, y, Y = data
    head = lip_fast.repair(_head(), _stats(X, y), "pcr", parameters=[d]).head
    if d == 0:
        assert not head.weight.any()
        assert relative_error(head.bias, Y.mean(0)) < 1e-12
        return
    pca = PCA(d).fit(X.numpy())
    fit = LinearRegression().fit(pca.transform(X.numpy()), Y.numpy())
    expected = torch.from_numpy(fit.predict(pca.transform(X.numpy())))
    assert relative_error(head(X), expected) < 1e-10


def test_least_squares_at_the_end_of_both_paths(data: tuple) -> None:
    X, y, Y = data
    fit = LinearRegression().fit(X.numpy(), Y.numpy())
    stats = _stats(X, y)
    for weight in (stats.ridge_path([0.0])[0], stats.pcr_path([Q])[0]):
        assert relative_error(weight.M, torch.from_numpy(fit.coef_)) < 1e-9
        assert relative_error(weight.bias, torch.from_numpy(fit.intercept_)) < 1e-9


def test_dependent_features_do_not_matter_without_penalty(data: tuple) -> None:
    X, y, Y = data
    X = torch.cat([X[:, :-1], X[:, :1]], 1)
    fit = LinearRegression().fit(X.numpy(), Y.numpy())  # of minimal norm
    weight = _stats(X, y).ridge_path([0.0])[0]
    assert relative_error(X @ weight.M.mT + weight.bias, torch.from_numpy(fit.predict(X.numpy()))) < 1e-8


def test_truncate_projects_on_the_leading_eigenvectors(data: tuple) -> None:
    X, y, _ = data
    head = _head()
    repaired = lip_fast.repair(head, _stats(X, y), "truncate", parameters=[4]).head
    V = torch.linalg.svd(X, full_matrices=False).Vh[:4].mT
    assert relative_error(repaired.weight, head.weight @ V @ V.mT) < 1e-10
    assert torch.equal(repaired.bias, head.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_lip_is_the_paper(data: tuple, bias: bool) -> None:
    X, y, Y = data
    head = _head(bias)
    repaired = lip_fast.repair(head, _stats(X, y), "lip", parameters=[3]).head
    expected = reference.lip(head.weight.mT, X, Y, 3, bias=head.bias)
    assert relative_error(repaired.weight.mT, expected) < 1e-9


def test_lip_of_the_least_squares_head_changes_nothing(data: tuple) -> None:
    X, _, Y = data
    head = _head(bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.linalg.lstsq(X, Y).solution.mT)
    for k in range(L + 1):
        repaired = lip_fast.repair(head, _stats(X, Y), "lip", parameters=[k]).head
        assert relative_error(repaired.weight, head.weight) < 1e-9


def test_lip_without_a_holdout_keeps_the_energy(data: tuple) -> None:
    X, y, _ = data
    report = lip_fast.repair(_head(), _stats(X, y), "lip")
    S = torch.linalg.svdvals(_head().weight)
    assert report.chosen == ("lip", lip_fast.select_rank(S), None, None)


def _noisy_problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Separable classes, 40% wrong labels: ridge regression sees through them."""
    g = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(L, Q, generator=g)
    clean = torch.randint(0, L, (900,), generator=g)
    X = centres[clean] + torch.randn(900, Q, generator=g)
    noisy = torch.where(torch.rand(900, generator=g) < 0.4, torch.randint(0, L, (900,), generator=g), clean)
    return X, noisy, clean


@pytest.mark.parametrize("method", ["gaussian-path", "lip", "ridge", "pcr", "truncate"])
def test_the_best_on_the_holdout_is_taken(method: str) -> None:
    X, noisy, _ = _noisy_problem()
    head = linear(Q, L, bias=True)
    stats = LabelStatistics(Q, L).update(X[:600], noisy[:600])
    before = copy.deepcopy(head.state_dict())
    holdout = (X[600:], noisy[600:])
    report = lip_fast.repair(head, stats, method, holdout)
    assert report.head is not head
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    assert report.chosen.score == max(c.score for c in report.candidates[1:])
    assert report.candidates[0].method == "trained"
    assert {c.method for c in report.candidates[1:]} == {method}
    agreement = (report.head(X[600:]).argmax(1) == noisy[600:]).double().mean()
    assert float(agreement) == pytest.approx(report.chosen.score)


def test_auto_finds_a_good_head_from_noisy_labels_alone() -> None:
    X, noisy, clean = _noisy_problem()
    head = linear(Q, L, bias=True)
    stats = LabelStatistics(Q, L).update(X[:600], noisy[:600])
    report = lip_fast.repair(head, stats, "auto", (X[600:], noisy[600:]))
    assert float((head(X[600:]).argmax(1) == clean[600:]).double().mean()) < 0.5
    assert float((report.head(X[600:]).argmax(1) == clean[600:]).double().mean()) > 0.9
    table = report.table()
    assert table.count("<- chosen") == 1
    assert [line.split()[0] for line in table.splitlines()[1:]] == [
        "trained",
        "gaussian",
        "ridge",
        "pcr",
        "lip",
        "gaussian-path",
    ]


def _opposite() -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    """100 rows of one feature, two classes apart by its sign, and a head that says the opposite."""
    x = torch.linspace(-3, 3, 100)[:, None]
    y = (x[:, 0] > 0).long()
    head = linear(1, 2, bias=True)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        head.bias.zero_()
    return x, y, head


@pytest.mark.parametrize(("against", "taken"), [(40, "gaussian"), (58, "gaussian"), (62, "trained")])
def test_auto_leaves_the_gaussian_head_only_for_more_than_two_standard_errors(
    against: int, taken: str
) -> None:
    """Two classes far apart: the trained head says the opposite of the Gaussian one on all 100 rows.

    At 60 rows against it the difference is 0.2, and its standard error 0.1.
    """
    x, y, head = _opposite()
    # As many of each class, so that a constant head is right on half of the rows.
    labels = y.clone()
    for rows in (slice(0, against // 2), slice(100 - against // 2, 100)):
        labels[rows] = 1 - y[rows]
    report = lip_fast.repair(head, LabelStatistics(1, 2).update(x, y), "auto", (10 * x, labels))
    assert report.chosen.method == taken
    scores = report.best()
    assert scores["trained"].score == pytest.approx(against / 100)
    assert scores["gaussian"].score == pytest.approx(1 - against / 100)


@pytest.mark.parametrize(("rows", "taken"), [(1, "gaussian"), (4, "gaussian"), (5, "trained")])
@pytest.mark.filterwarnings("error")
def test_few_rows_are_no_evidence_however_alike(rows: int, taken: str) -> None:
    x, y, head = _opposite()
    holdout = (10 * x[:rows], 1 - y[:rows])
    report = lip_fast.repair(head, LabelStatistics(1, 2).update(x, y), "auto", holdout)
    assert report.chosen.method == taken


def test_the_table_shows_the_chosen_candidate_beside_the_best_of_its_method() -> None:
    tried = (
        Candidate("trained", None, 0.4),
        Candidate("gaussian-path", 0.1, 0.6, 0.0),
        Candidate("gaussian-path", 0.3, 0.5, 0.3),
    )
    table = RepairReport(linear(2, 2), tried[2], tried).table().splitlines()
    assert [line.split() for line in table[1:]] == [
        ["trained", "40.00%", "1"],
        ["gaussian-path", "0.1", "60.00%", "2"],
        ["gaussian-path", "0.3,", "rate", "0.3", "50.00%", "<-", "chosen"],
    ]


@pytest.mark.parametrize("wrap", [weight_norm, lambda head: prune.random_unstructured(head, "weight", 0.3)])
def test_a_head_that_computes_its_weight_is_refused(wrap: Callable[[torch.nn.Linear], object]) -> None:
    X, noisy, _ = _noisy_problem()
    head = linear(Q, L, bias=True)
    with torch.random.fork_rng(devices=[]):
        wrap(head)
    with pytest.raises(
        ValueError, match="weight and bias are its own parameters, got one that computes them"
    ):
        lip_fast.repair(head, _float_statistics(X, noisy), inplace=True)


def test_a_bias_of_another_dtype_than_the_weight() -> None:
    X, noisy, _ = _noisy_problem()
    kept = noisy != 3
    head = linear(Q, L, bias=True)
    head.bias = torch.nn.Parameter(head.bias.detach().half())
    made = lip_fast.repair(head, _float_statistics(X[kept], noisy[kept])).head
    assert float(made.bias[3].detach()) == torch.finfo(torch.float16).min / 2


def test_the_gaussian_head_is_the_default_and_auto_without_a_holdout() -> None:
    X, noisy, _ = _noisy_problem()
    stats, head = _float_statistics(X, noisy), linear(Q, L, bias=True)
    expected = stats.gaussian()
    for method in ({}, {"method": "auto"}):
        report = lip_fast.repair(head, stats, **method)
        assert report.chosen == ("gaussian", 0.3, None, 0.0)
        assert torch.equal(report.head.weight, expected.M.float())
        assert torch.equal(report.head.bias, expected.bias.float())
    assert lip_fast.repair(head, stats, noise_rate=0.1).chosen == ("gaussian", 0.3, None, 0.1)
    written = lip_fast.repair(head, stats, parameters=[2.0], noise_rate=0.1, inplace=True).head
    assert written is head
    assert relative_error(head.weight, stats.gaussian(2.0, 0.1).M) < 1e-6


@pytest.mark.parametrize("method", ["gaussian", "gaussian+trained", "gaussian-path", "auto"])
def test_a_head_without_a_bias_gets_one_on_a_copy(method: str) -> None:
    X, noisy, _ = _noisy_problem()
    stats, head = _float_statistics(X, noisy), linear(Q, L)
    report = lip_fast.repair(head, stats, method, (X, noisy))
    assert head.bias is None
    assert isinstance(report.head.bias, torch.nn.Parameter)
    assert float((report.head(X).argmax(1) == noisy).double().mean()) == pytest.approx(report.chosen.score)
    with pytest.raises(ValueError, match=f"expected a head with a bias, which method .*{method[:8]}"):
        lip_fast.repair(head, stats, method, (X, noisy), inplace=True)
    assert lip_fast.repair(head, stats, "ridge", parameters=[1.0]).head.bias is None


def test_logits_of_both_heads_have_the_same_spread() -> None:
    X, noisy, _ = _noisy_problem()
    stats, head = _float_statistics(X.double(), noisy), linear(Q, L, bias=True, dtype=torch.float64)
    gaussian = stats.gaussian()

    def centred(logits: torch.Tensor) -> torch.Tensor:
        logits = logits - logits.mean(0)
        return logits - logits.mean(1, keepdim=True)

    first, second = X.double() @ gaussian.M.mT + gaussian.bias, head(X.double())
    scale = centred(first).norm() / centred(second).norm()
    together = lip_fast.repair(head, stats, "gaussian+trained").head(X.double())
    assert relative_error(together, first + scale * second) < 1e-10
    with torch.no_grad():
        head.weight.copy_(torch.ones(L, Q))
    # It tells no classes apart: nothing of it can be scaled up.
    alone = lip_fast.repair(head, stats, "gaussian+trained").head
    assert relative_error(alone.weight, gaussian.M) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["gaussian", "gaussian+trained"])
def test_a_class_without_rows_is_never_predicted(dtype: torch.dtype, method: str) -> None:
    X, noisy, _ = _noisy_problem()
    kept = noisy != 3
    stats = _float_statistics(X[kept], noisy[kept])
    head = lip_fast.repair(linear(Q, L, bias=True).to(dtype), stats, method).head
    assert float(head.bias[3].detach()) == torch.finfo(dtype).min / 2
    logits = head(X.to(dtype))
    assert bool(logits.isfinite().all())
    assert not bool((logits.argmax(1) == 3).any())


def test_auto_keeps_a_head_that_nothing_improves() -> None:
    X, _, clean = _noisy_problem()
    head = linear(Q, L, bias=True)
    with torch.no_grad():
        best = _float_statistics(X, clean).ridge_path([1e-3])[0]
        head.weight.copy_(best.M)
        head.bias.copy_(best.bias)
    bad = torch.randint(0, L, clean.shape, generator=torch.Generator().manual_seed(1))
    report = lip_fast.repair(head, _float_statistics(X, bad), "auto", (X, clean))
    assert report.chosen.method == "trained"
    assert torch.equal(report.head.weight, head.weight)


def _float_statistics(X: torch.Tensor, y: torch.Tensor) -> LabelStatistics:
    return LabelStatistics(Q, L).update(X, y)


def test_in_place_writes_the_head_and_invalidates_graphs() -> None:
    X, noisy, _ = _noisy_problem()
    head = linear(Q, L, bias=True)
    loss = head(X[:5].clone().requires_grad_()).sum()
    report = lip_fast.repair(head, _float_statistics(X, noisy), "ridge", (X, noisy), inplace=True)
    assert report.head is head
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("form", ["candidates", "sparse candidates", "unlabelled rows"])
def test_other_forms_of_holdout_labels(form: str) -> None:
    X, noisy, _ = _noisy_problem()
    Y = torch.nn.functional.one_hot(noisy, L)
    Y[:, 0] = 1
    marked = noisy.clone()
    marked[::2] = -100
    labels = {"candidates": Y, "sparse candidates": Y.to_sparse(), "unlabelled rows": marked}[form]
    report = lip_fast.repair(
        linear(Q, L), _float_statistics(X, noisy), "ridge", (X, labels), parameters=[1.0]
    )
    predicted = report.head(X).argmax(1)
    if form == "unlabelled rows":
        expected = (predicted == noisy)[1::2].double().mean()
    else:
        expected = ((predicted == noisy) | (predicted == 0)).double().mean()
    assert report.chosen.score == pytest.approx(float(expected))


def test_bad_input_is_named_and_nothing_is_written() -> None:
    X, noisy, _ = _noisy_problem()
    stats, holdout = _float_statistics(X, noisy), (X, noisy)
    one_hot = torch.nn.functional.one_hot(noisy, L)
    sets = _float_statistics(X, one_hot + one_hot.roll(1, 1))
    head = linear(Q, L, bias=True)
    before = copy.deepcopy(head.state_dict())
    nan = X.clone()
    nan[3, 3] = float("nan")
    cases = [
        ((head, stats, "magic", holdout), {}, ValueError, "method to be one of .*got 'magic'"),
        ((head, stats, "ridge"), {"noise_rate": 0.1}, ValueError, "noise_rate with gaussian.*0.1 with ridge"),
        ((head, stats), {"noise_rate": 0.9}, ValueError, "expected noise_rate below 0"),
        ((head, stats), {"parameters": [-1]}, ValueError, "alpha >= 0 and finite, got -1"),
        ((head, sets), {}, ValueError, "weights sum to 1 in each row, got 2 on average"),
        ((head, sets, "auto", holdout), {}, ValueError, "weights sum to 1 in each row, got 2 on average"),
        ((head, stats, "ridge"), {}, ValueError, "hold-out to choose among 20 candidates"),
        (
            (head, stats, "ridge", X),
            {},
            TypeError,
            r"hold-out as a pair \(features, labels\) of tensors, got a tensor",
        ),
        ((head, stats, "ridge", (X, None)), {}, TypeError, "labels as a torch.Tensor, got NoneType"),
        ((head, stats, "ridge", (X[:0], noisy[:0])), {}, ValueError, r"\(n >= 1, 14\), got \(0, 14\)"),
        ((head, stats, "ridge", (X[:, :3], noisy)), {}, ValueError, r"got \(900, 3\)"),
        (
            (head, stats, "ridge", (nan, noisy)),
            {},
            ValueError,
            r"finite hold-out features, got nan at \(3, 3\)",
        ),
        ((head, LabelStatistics(Q, L)), {}, ValueError, "at least one labelled row"),
        ((head, LabelStatistics(Q, 9)), {}, ValueError, "14 features and 6 classes, got 14 and 9"),
        ((head, X), {}, TypeError, "expected LabelStatistics, got a tensor"),
        ((torch.nn.ReLU(), stats), {}, TypeError, "floating-point nn.Linear, got ReLU"),
        ((head, stats, "ridge"), {"parameters": [-1.0]}, ValueError, "alphas >= 0 and finite, got -1.0"),
        ((head, stats, "lip"), {"parameters": [7]}, ValueError, r"parameters of lip in 0\.\.6, got 7"),
        ((head, stats, "pcr"), {"parameters": [15]}, ValueError, r"parameters of pcr in 0\.\.14, got 15"),
        (
            (head, stats, "pcr"),
            {"parameters": [2.7]},
            TypeError,
            "parameters of pcr as an int, got float 2.7",
        ),
        ((head, stats, "auto", holdout), {"parameters": [1]}, ValueError, "no parameters with method auto"),
        ((head, stats, "lip", holdout), {"parameters": []}, ValueError, "at least one parameter, got none"),
        (
            (head, stats, "auto", (X, torch.full_like(noisy, -100))),
            {},
            ValueError,
            "at least one labelled row",
        ),
    ]
    for arguments, options, error, message in cases:
        with pytest.raises(error, match=message):
            lip_fast.repair(*arguments, inplace=True, **options)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_a_broken_head_is_refused() -> None:
    X, noisy, _ = _noisy_problem()
    head = linear(Q, L, bias=True)
    with torch.no_grad():
        head.weight[2, 3] = float("inf")
    with pytest.raises(ValueError, match=r"finite weight of the head, got inf at \(2, 3\)"):
        lip_fast.repair(head, _float_statistics(X, noisy), "ridge", parameters=[1.0])


def test_what_the_head_cannot_hold_is_not_written() -> None:
    X, noisy, _ = _noisy_problem()
    head = linear(Q, L, bias=True).half()
    before = head.weight.detach().clone()
    stats = LabelStatistics(Q, L).update(1e-7 * X, noisy)
    with pytest.raises(ValueError, match=r"finite repaired weight in torch.float16"):
        lip_fast.repair(head, stats, "ridge", parameters=[0.0], inplace=True)
    assert torch.equal(head.weight, before)
