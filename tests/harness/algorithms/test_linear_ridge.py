import numpy as np
import pytest
import torch
from harness.algorithms.problems import blobs, candidates_of, make, make_network, make_task

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS


@pytest.mark.parametrize("alpha", [None, 30.0])
@pytest.mark.parametrize("candidates", [False, True])
def test_it_solves_the_normal_equations(candidates: bool, alpha: float | None) -> None:
    X, clean, noisy = blobs(2500)  # of more rows than go through the network at a time
    options = {} if alpha is None else {"alpha": alpha}
    targets = candidates_of(clean) if candidates else noisy
    model = make_network()
    body = [weight.clone() for weight in model.body.parameters()]
    ALGORITHMS["linear-ridge"](make_task(targets, X, options=options)).fit(model)
    F = model.features(X).detach().double().numpy()
    Y = targets / targets.sum(1, keepdims=True) if candidates else np.eye(3)[noisy]
    ones = np.hstack([F, np.ones((len(F), 1))])
    penalty = np.diag([1.0 if alpha is None else alpha] * F.shape[1] + [0.0])
    W = np.linalg.solve(ones.T @ ones + penalty, ones.T @ Y)
    np.testing.assert_allclose(model.head.weight.detach(), W[:-1].T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.head.bias.detach(), W[-1], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(x, y) for x, y in zip(body, model.body.parameters(), strict=True))


def test_without_a_penalty_features_that_are_never_there_get_no_weight() -> None:
    X, _, noisy = blobs()
    model = make_network(hidden=40)
    with torch.no_grad():
        model.body[0].weight[0] = 0
        model.body[0].bias[0] = -1
    ALGORITHMS["linear-ridge"](make_task(noisy, X, options={"alpha": 0.0})).fit(model)
    assert model.head.weight.isfinite().all()
    assert model.head.weight[:, 0].abs().max() < 1e-6


def test_it_takes_no_steps() -> None:
    algorithm = make("linear-ridge", [0, 1, 2])
    assert algorithm.WHOLE
    with pytest.raises(NotImplementedError):
        algorithm.loss(torch.zeros(1, 3), torch.tensor([0]))


def test_range() -> None:
    with pytest.raises(UserError, match="alpha of ridge regression at least 0 and finite, got -1"):
        make("linear-ridge", [0, 1], alpha=-1.0)
