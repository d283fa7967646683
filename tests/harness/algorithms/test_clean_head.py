import numpy as np
import pytest
import torch
from harness.algorithms.problems import LABELS, blobs, make_network, make_task

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS
from lip_fast.harness.algorithms.clean_head import CleanHead
from lip_fast.harness.models import MLP

PENALTIES = 10.0 ** np.arange(-6, 3.1, 0.5)


def clean_head(noise: float = 0.3, n: int = 40) -> tuple[CleanHead, MLP, np.ndarray, np.ndarray]:
    X, clean, noisy = blobs(wrong=noise)
    rows = np.arange(5, 5 + n)
    task = make_task(noisy, X, clean_rows=rows, clean_labels=clean[rows])
    algorithm, model = ALGORITHMS["clean-head"](task), make_network(hidden=8)
    assert isinstance(algorithm, CleanHead)
    features = model.features(X[rows]).detach().double().numpy()
    return algorithm, model, features, np.eye(3)[clean[rows]]


def solve(F: np.ndarray, Y: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    centred = F - F.mean(0)
    W = np.linalg.solve(centred.T @ centred + alpha * np.eye(F.shape[1]), centred.T @ (Y - Y.mean(0)))
    return W, Y.mean(0) - F.mean(0) @ W


def test_it_is_ridge_regression_with_the_penalty_that_leaving_one_out_says() -> None:
    algorithm, model, F, Y = clean_head()
    # A head that differs between penalties: features hardly bear one of the classes.
    errors = []
    alphas = PENALTIES * ((F - F.mean(0)) ** 2).sum() / F.shape[1]
    for alpha in alphas:
        error = 0.0
        for i in range(len(F)):
            W, b = solve(np.delete(F, i, 0), np.delete(Y, i, 0), alpha)
            error += ((F[i] @ W + b - Y[i]) ** 2).sum()
        errors.append(error)
    best = int(np.argmin(errors))
    assert 0 < best < len(alphas) - 1
    W, b = solve(F, Y, alphas[best])
    head = algorithm.classifier(model)
    np.testing.assert_allclose(head.weight.detach(), W.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head.bias.detach(), b, rtol=1e-4, atol=1e-6)
    assert head is not model.head
    assert head.weight.dtype == torch.float32


def test_noisy_labels_of_the_clean_rows_do_not_enter() -> None:
    heads = []
    for noise in (0.0, 0.9):
        algorithm, model, *_ = clean_head(noise)
        heads.append(algorithm.classifier(model))
    assert torch.equal(heads[0].weight, heads[1].weight)


def test_classes_without_a_clean_row_and_features_that_are_all_alike() -> None:
    task = make_task(LABELS, torch.ones(4, 2), clean_rows=[0, 1], clean_labels=[1, 1])
    head = ALGORITHMS["clean-head"](task).classifier(make_network())
    assert (head.weight == 0).all()
    np.testing.assert_allclose(head.bias.detach(), [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_clean_rows(n: int) -> None:
    with pytest.raises(UserError, match=f"expected at least 2 clean labels for clean head, got {n}"):
        ALGORITHMS["clean-head"](make_task(LABELS, clean_rows=range(n), clean_labels=[0] * n))


def test_it_says_that_it_looks_at_clean_labels() -> None:
    assert [name for name, algorithm in ALGORITHMS.items() if algorithm.USES_CLEAN] == ["clean-head"]
