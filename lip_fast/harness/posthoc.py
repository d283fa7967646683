"""LIP applied to a trained network."""

import copy

import numpy as np
import torch
from torch import nn

import lip_fast
from lip_fast.harness.config import TrainConfig
from lip_fast.harness.data import Dataset
from lip_fast.harness.labels import as_targets
from lip_fast.harness.models import MLP
from lip_fast.harness.training import make_lip

__all__ = ["repaired_head"]


@torch.no_grad()
def repaired_head(
    config: TrainConfig, dataset: Dataset, labels: np.ndarray, model: MLP
) -> tuple[nn.Linear, int]:
    """A copy of the network's head, repaired with the labels it was trained on.

    Args:
        config: the settings; of those of LIP only ``rank`` matters afterwards.
        dataset: the data.
        labels: (n,) int64 training labels learned from, or (n, l) uint8 candidate sets.
        model: the trained network; it is not changed.

    Returns:
        the head, and the number of directions kept.
    """
    rank = make_lip(config, model.head, seed=0).stats()["rank"]
    if rank is None:  # "auto": LIP would decide at its first step, by the same rule
        rank = lip_fast.select_rank(torch.linalg.svdvals(model.head.weight))
    features = model.features(torch.from_numpy(dataset.train_features))
    head = copy.deepcopy(model.head)
    weight = lip_fast.lip(head.weight.T, features, as_targets(labels), rank, bias=head.bias)
    head.weight.copy_(weight.T)
    return head, rank
