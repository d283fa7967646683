"""What training minimises."""

import torch
from torch import Tensor

__all__ = ["label_loss"]


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean loss over a batch: cross entropy, or for candidate sets the classifier-consistent loss.

    The latter is the negative logarithm of the probability of all candidates together (Feng et al. 2020,
    arXiv:2007.08929); with one candidate each it is cross entropy.

    Args:
        logits: (n, l).
        targets: (n,) int64 class indices, or (n, l) zeros and ones with a one in each row.
    """
    if targets.ndim == 1:
        return torch.nn.functional.cross_entropy(logits, targets)
    among = logits.masked_fill(targets == 0, -torch.inf).logsumexp(1)
    return (logits.logsumexp(1) - among).mean()
