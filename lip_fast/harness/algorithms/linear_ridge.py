"""Ridge regression on the labels as they are, all at once."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lip_fast.harness.algorithms.algorithm import Algorithm
from lip_fast.harness.algorithms.features import statistics_of
from lip_fast.harness.models import Network

__all__ = ["LinearRidge"]


class LinearRidge(Algorithm):
    """W = (X^T X + alpha I)^-1 X^T Y, the columns of X and Y centred: the intercept is not penalised.

    X (n, q) are the features of all rows and Y (n, l) their one-hot labels, or candidate sets divided by
    their size. It minimises ||Y - X W - 1 b^T||^2 + alpha ||W||^2, sums over all rows: alpha counts against n
    times the variance of a feature. With alpha 0, directions that no feature has get no weight.

    Source: Hoerl & Kennard 1970, "Ridge Regression: Biased Estimation for Nonorthogonal Problems"
    (doi:10.1080/00401706.1970.10488634), equation 2.1.

    Options:
        alpha: at least 0, 1 (the source leaves it open).
    """

    TITLE = "ridge regression"
    OPTIONS: ClassVar = {"alpha": 1.0}
    LABELS = ("indices", "candidates")
    WHOLE = True

    @classmethod
    def check(cls, options: Mapping[str, float]) -> None:
        """See the class."""
        cls.expect("alpha", options["alpha"], "at least 0 and finite", 0 <= options["alpha"] < float("inf"))

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """This algorithm takes no steps: see :meth:`fit`."""
        raise NotImplementedError

    @torch.no_grad()
    def fit(self, model: Network) -> None:
        """Set the head to W^T and b; the body stays."""
        statistics = statistics_of(model, self.task.features, self.task.targets)
        W = statistics.ridge_path([self.options["alpha"]])[0]
        model.head.weight.copy_(W.M)
        model.head.bias.copy_(W.bias)
