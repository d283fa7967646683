"""PRODEN: the network finds the true label among the candidates while it learns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lip_fast.harness.algorithms.algorithm import Algorithm, Task
from lip_fast.harness.algorithms.row_state import restore

__all__ = ["ProgressiveIdentification"]


class ProgressiveIdentification(Algorithm):
    """L = -sum_j w_j log p_j over the candidates j, then w_j <- p_j / sum_{k in S} p_k of the same p.

    The weights w of each row start equal over its candidates S.

    Source: Lv et al. 2020, "Progressive Identification of True Labels for Partial-Label Learning"
    (arXiv:2002.08053), equations 8 and 9 and algorithm 1.
    """

    TITLE = "PRODEN"
    LABELS = ("candidates",)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._w = (task.targets / task.targets.sum(1, keepdim=True)).float()

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """See the class; each call sets w of its rows."""
        w = self._w[rows]
        # The softmax of the candidates' logits alone: their probabilities among all classes may underflow.
        among = logits.detach().masked_fill(self.targets_of(rows) == 0, -torch.inf)
        self._w[rows] = among.softmax(1).to(self._w.dtype)
        return -(w.to(logits.dtype) * nn.functional.log_softmax(logits, 1)).sum(1).mean()

    def table(self) -> Tensor:
        """``w``, see :meth:`Algorithm.table`."""
        return self._w

    def state_dict(self) -> dict[str, Any]:
        """``w`` (n, l) float32."""
        return {"w": self._w.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Algorithm.load_state_dict`."""
        restore(self._w, "w", state)
