import numpy as np
import torch
from harness.algorithms.problems import CANDIDATES, ROWS, Z, assert_loss_is, make, softmax


def test_formula() -> None:
    S = np.array(CANDIDATES)[ROWS]
    assert_loss_is(make("cc", CANDIDATES), Z, ROWS, lambda Z: -np.log((softmax(Z) * S).sum(1)).mean())


def test_all_candidates_cost_nothing() -> None:
    assert make("cc", [[1.0, 1.0, 1.0]]).loss(torch.tensor(Z[:1]), torch.tensor([0])) == 0
