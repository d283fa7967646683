"""What the head of a network sees, block by block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import lip_fast
from lip_fast.harness.models import Network

__all__ = ["features_of", "label_weights", "statistics_of"]

# Rows that go through the network at a time: bounds what its layers keep.
_ROWS = 1000


@torch.no_grad()
def features_of(model: Network, inputs: Tensor) -> Tensor:
    """What the head sees of ``inputs`` (n, d) when nothing is trained: (n, q).

    The network is in eval mode meanwhile and as it was afterwards.
    """
    with _evaluating(model):
        return torch.cat([model.features(block) for block in inputs.split(_ROWS)])


def statistics_of(
    model: Network, inputs: Tensor, targets: Tensor, dtype: torch.dtype = torch.float64
) -> lip_fast.LabelStatistics:
    """Label statistics of the features of ``inputs``, without keeping the features.

    Args:
        model: the network, see :func:`features_of`.
        inputs: (n, d).
        targets: (n,) int64, or candidate sets (n, l), of which :func:`label_weights` are taken.
        dtype: in which products of features are taken; they are summed in float64.
    """
    head = model.head
    statistics = lip_fast.LabelStatistics(head.in_features, head.out_features, device=inputs.device)
    for x, y in zip(inputs.split(_ROWS), targets.split(_ROWS), strict=True):
        statistics.update(features_of(model, x).to(dtype), label_weights(y))
    return statistics


def label_weights(targets: Tensor) -> Tensor:
    """Labels that weigh 1 in each row: (n,) int64 as they are, a candidate set (n, l) over its size.

    So are soft labels; a row without a positive weight has none.
    """
    if targets.ndim == 1:
        return targets
    total = targets.sum(1, keepdim=True, dtype=torch.float64)
    return torch.where(total > 0, targets / total, 0.0)


@contextmanager
def _evaluating(model: Network) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
