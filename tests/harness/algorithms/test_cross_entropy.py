import numpy as np
import torch
from harness.algorithms.problems import LABELS, ROWS, Z, assert_loss_is, make, softmax

from lip_fast.harness.algorithms.label_loss import label_loss


def test_formula() -> None:
    y = np.array(LABELS)[ROWS]
    algorithm = make("cross-entropy", LABELS)
    assert_loss_is(algorithm, Z, ROWS, lambda Z: -np.log(softmax(Z)[range(3), y]).mean())


def test_it_is_cc_of_one_candidate_each() -> None:
    logits, labels = torch.tensor(Z), torch.tensor(LABELS)[ROWS]
    one_hot = torch.eye(3)[labels]
    torch.testing.assert_close(label_loss(logits, labels), label_loss(logits, one_hot))
