"""GCE: between cross entropy and the mean absolute error."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from lip_fast.harness.algorithms.algorithm import Algorithm

__all__ = ["GeneralizedCrossEntropy"]


class GeneralizedCrossEntropy(Algorithm):
    """L = (1 - p_y^q) / q; cross entropy for q -> 0, the mean absolute error 1 - p_y for q = 1.

    Source: Zhang & Sabuncu 2018, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
    Labels" (arXiv:1805.07836), equation 6, not truncated.

    Options:
        q: in (0, 1], 0.7.
    """

    TITLE = "GCE"
    OPTIONS: ClassVar = {"q": 0.7}

    @classmethod
    def check(cls, options: Mapping[str, float]) -> None:
        """See the class."""
        cls.expect("q", options["q"], "in (0, 1]", 0 < options["q"] <= 1)

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """See the class."""
        q = self.options["q"]
        log_p = nn.functional.log_softmax(logits, 1).gather(1, self.targets_of(rows)[:, None])
        # p^q by its logarithm: the derivative of the power itself is infinite at p = 0.
        return -torch.expm1(q * log_p).mean() / q
