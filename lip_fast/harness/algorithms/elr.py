"""ELR: what the network said of a row early on holds it back from learning the row's label later."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lip_fast.harness.algorithms.algorithm import Algorithm, Task
from lip_fast.harness.algorithms.row_state import restore

__all__ = ["EarlyLearningRegularization"]

# As in the authors' code: probabilities are kept off 0 and 1, and with them 1 - <p, t> off 0.
_CLAMP = 1e-4


class EarlyLearningRegularization(Algorithm):
    """L = CE + lambda log(1 - <p, t>), where t <- beta t + (1 - beta) p for each row before its loss.

    The p that enters both is clamped to [1e-4, 1 - 1e-4], and the one that enters t divided by its sum again;
    t starts at 0 and no gradient goes through it.

    Source: Liu et al. 2020, "Early-Learning Regularization Prevents Memorization of Noisy Labels"
    (arXiv:2007.00151), equations 6 to 9, without ELR+; its values for CIFAR-10.

    Options:
        beta: in [0, 1), 0.7.
        lambda: at least 0, 3.
    """

    TITLE = "ELR"
    OPTIONS: ClassVar = {"beta": 0.7, "lambda": 3.0}

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._t = torch.zeros(len(task.targets), task.classes, device=task.features.device)

    @classmethod
    def check(cls, options: Mapping[str, float]) -> None:
        """See the class."""
        cls.expect("beta", options["beta"], "in [0, 1)", 0 <= options["beta"] < 1)
        strength = options["lambda"]
        cls.expect("lambda", strength, "at least 0 and finite", 0 <= strength < float("inf"))

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """See the class; each call moves t of its rows."""
        p = logits.softmax(1).clamp(_CLAMP, 1 - _CLAMP)
        beta, said = self.options["beta"], p.detach()
        t = beta * self._t[rows] + (1 - beta) * (said / said.sum(1, keepdim=True)).to(self._t.dtype)
        self._t[rows] = t
        regularization = torch.log(1 - (p * t.to(p.dtype)).sum(1)).mean()
        cross_entropy = nn.functional.cross_entropy(logits, self.targets_of(rows))
        return cross_entropy + self.options["lambda"] * regularization

    def table(self) -> Tensor:
        """``t``, see :meth:`Algorithm.table`."""
        return self._t

    def state_dict(self) -> dict[str, Any]:
        """``t`` (n, l) float32."""
        return {"t": self._t.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Algorithm.load_state_dict`."""
        restore(self._t, "t", state)
