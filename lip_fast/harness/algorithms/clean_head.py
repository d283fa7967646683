"""A linear head fitted to a few clean rows, on features that noisy labels taught."""

import copy

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import nn

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms.algorithm import Task, one_hot
from lip_fast.harness.algorithms.features import features_of
from lip_fast.harness.algorithms.label_loss import LabelLoss
from lip_fast.harness.models import Network

__all__ = ["CleanHead"]

# Penalties relative to the mean eigenvalue of the centred X^T X: from next to none to one that leaves next to
# nothing, two a decade.
_PENALTIES = np.logspace(-6, 3, 19)


class CleanHead(LabelLoss):
    """Cross entropy (CC for candidate sets) on all rows, then ridge regression on the clean ones.

    The head minimises ||Y - X W - 1 b^T||^2 + alpha ||W||^2, where X are the network's features of the clean
    rows and Y their one-hot labels. Of 19 penalties alpha the one with the least leave-one-out error is
    taken. The network's own head is left as it is.

    Source: Li et al. 2020, "Noisy Labels Can Induce Good Representations" (arXiv:2012.12896): the last layers
    are replaced by a linear model learned from a small clean set. The grid of penalties is this module's.

    Raises:
        UserError: fewer than two clean rows.
    """

    TITLE = "clean head"
    USES_CLEAN = True

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if len(task.clean_rows) < 2:
            raise UserError(f"expected at least 2 clean labels for {self.TITLE}, got {len(task.clean_rows)}")

    def classifier(self, model: Network) -> nn.Linear:
        """The head of the clean rows, a new one."""
        task = self.task
        X = features_of(model, task.features[task.clean_rows]).double().cpu().numpy()
        Y = one_hot(task.clean_labels, task.classes, torch.float64).cpu().numpy()
        eigenvalue = np.square(X - X.mean(0)).sum() / X.shape[1]
        # If all features are alike, that mean is 0; every penalty then gives W = 0.
        ridge = RidgeCV(_PENALTIES * (eigenvalue or 1.0)).fit(X, Y)
        head = copy.deepcopy(model.head)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(ridge.coef_))
            head.bias.copy_(torch.from_numpy(ridge.intercept_))
        return head
