import numpy as np
import torch
from harness.algorithms.problems import CANDIDATES, ROWS, Z, assert_loss_is, make, softmax

S = np.array(CANDIDATES)[ROWS]


def formula(Z: np.ndarray, w: np.ndarray) -> float:
    return float(-(w * np.log(softmax(Z))).sum(1).mean())


def test_formula_of_two_passes() -> None:
    algorithm = make("proden", CANDIDATES)
    uniform = S / S.sum(1, keepdims=True)
    assert_loss_is(algorithm, Z, ROWS, lambda Z: formula(Z, uniform))
    P = softmax(Z) * S
    weights = P / P.sum(1, keepdims=True)
    np.testing.assert_allclose(algorithm.state_dict()["w"][ROWS], weights, rtol=1e-6)
    np.testing.assert_array_equal(algorithm.state_dict()["w"][2], [0, 1, 0])  # was not in the batch
    assert_loss_is(algorithm, -Z, ROWS, lambda Z: formula(Z, weights))


def test_where_all_candidates_are_improbable() -> None:
    algorithm = make("proden", [[1.0, 1.0, 0.0]])
    algorithm.loss(torch.tensor([[0.0, 1.0, 1e4]]), torch.tensor([0]))
    expected = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    np.testing.assert_allclose(algorithm.state_dict()["w"][0], [*expected, 0], rtol=1e-6)
