"""Cross entropy or CC, whichever fits the form of the labels: for algorithms that change something else."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lip_fast.harness.algorithms.algorithm import Algorithm

__all__ = ["LabelLoss", "label_loss"]


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean loss over a batch: cross entropy, or for candidate sets the classifier-consistent loss.

    Args:
        logits: (b, l).
        targets: (b,) int64 class indices, or (b, l) zeros and ones with a one in each row.

    Returns:
        a scalar; with one candidate each, both are the same.
    """
    if targets.ndim == 1:
        return nn.functional.cross_entropy(logits, targets)
    among = logits.masked_fill(targets == 0, -torch.inf).logsumexp(1)
    return (logits.logsumexp(1) - among).mean()


class LabelLoss(Algorithm):
    """Base of the algorithms that train by :func:`label_loss` and differ elsewhere."""

    LABELS: ClassVar[tuple[str, ...]] = ("indices", "candidates")

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """See :func:`label_loss`."""
        return label_loss(logits, self.targets_of(rows))
