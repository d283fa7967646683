"""What the head of a network sees, block by block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import lip_fast
from lip_fast.harness.models import Network

__all__ = ["features_of", "statistics_of"]

# Rows that go through the network at a time: bounds what its layers keep.
_ROWS = 1000


@torch.no_grad()
def features_of(model: Network, inputs: Tensor) -> Tensor:
    """What the head sees of ``inputs`` (n, d) when nothing is trained: (n, q).

    The network is in eval mode meanwhile and as it was afterwards.
    """
    with _evaluating(model):
        return torch.cat([model.features(block) for block in inputs.split(_ROWS)])


def statistics_of(model: Network, inputs: Tensor, targets: Tensor) -> lip_fast.LabelStatistics:
    """Label statistics of the features of ``inputs`` in float64, without keeping the features.

    Args:
        model: the network, see :func:`features_of`.
        inputs: (n, d).
        targets: (n,) int64 or (n, l), as :meth:`lip_fast.LabelStatistics.update` takes them.
    """
    head = model.head
    statistics = lip_fast.LabelStatistics(head.in_features, head.out_features, device=inputs.device)
    for x, y in zip(inputs.split(_ROWS), targets.split(_ROWS), strict=True):
        statistics.update(features_of(model, x).double(), y)
    return statistics


@contextmanager
def _evaluating(model: Network) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
