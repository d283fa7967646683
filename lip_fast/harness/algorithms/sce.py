"""SCE: cross entropy and its reverse together."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from lip_fast.harness.algorithms.algorithm import Algorithm

__all__ = ["SymmetricCrossEntropy"]


class SymmetricCrossEntropy(Algorithm):
    """L = alpha CE + beta RCE with RCE = -sum_j p_j log y_j, where log 0 is taken for A: RCE = -A (1 - p_y).

    Source: Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels"
    (arXiv:1908.06112); its values for CIFAR-10.

    Options:
        alpha: at least 0, 0.1.
        beta: at least 0 and not 0 with alpha, 1.
        A: below 0, -4.
    """

    TITLE = "SCE"
    OPTIONS: ClassVar = {"alpha": 0.1, "beta": 1.0, "A": -4.0}

    @classmethod
    def check(cls, options: Mapping[str, float]) -> None:
        """See the class."""
        for name in ("alpha", "beta"):
            cls.expect(name, options[name], "at least 0 and finite", 0 <= options[name] < float("inf"))
        beta, either = options["beta"], options["alpha"] + options["beta"] > 0
        cls.expect("beta", beta, "above 0 where alpha is 0", either)
        cls.expect("A", options["A"], "below 0 and finite", float("-inf") < options["A"] < 0)

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """See the class."""
        log_p = nn.functional.log_softmax(logits, 1).gather(1, self.targets_of(rows)[:, None])
        reverse = self.options["A"] * torch.expm1(log_p)
        return (self.options["beta"] * reverse - self.options["alpha"] * log_p).mean()
