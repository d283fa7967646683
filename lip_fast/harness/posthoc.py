"""A trained network's head, repaired without training."""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import lip_fast
from lip_fast.harness.config import TrainConfig
from lip_fast.harness.labels import as_targets
from lip_fast.harness.models import MLP
from lip_fast.harness.training import make_lip

__all__ = ["Rows", "repaired_head"]


class Rows(NamedTuple):
    """Samples with the labels they are learned from.

    Attributes:
        features: (n, d) float32 inputs of the network.
        labels: (n,) int64 class indices, or (n, l) uint8 candidate sets.
    """

    features: np.ndarray
    labels: np.ndarray

    def of(self, model: MLP) -> tuple[Tensor, Tensor]:
        """What the head of ``model`` sees of them, and their labels as LIP takes them."""
        return model.features(torch.from_numpy(self.features)), as_targets(self.labels)


@torch.no_grad()
def repaired_head(
    method: str, config: TrainConfig, model: MLP, trained: Rows, held_out: Rows | None
) -> tuple[nn.Linear, int | None]:
    """A copy of the network's head, repaired.

    Args:
        method: "post-hoc" (LIP with the rank of the settings), or "ridge" or "auto" of
            :func:`lip_fast.repair`, chosen by the held-out labels.
        config: the settings; of those of LIP only ``rank`` matters afterwards.
        model: the trained network; it is not changed.
        trained: what it was trained on.
        held_out: what it was not, for the methods that choose.

    Returns:
        the head, and the number of directions LIP kept; None where LIP was not what repaired it.
    """
    features, targets = trained.of(model)
    if method == "post-hoc":
        rank = make_lip(config, model.head, seed=0).stats()["rank"]
        if rank is None:  # "auto": LIP would decide at its first step, by the same rule
            rank = lip_fast.select_rank(torch.linalg.svdvals(model.head.weight))
        head = copy.deepcopy(model.head)
        head.weight.copy_(lip_fast.lip(head.weight.T, features, targets, rank, bias=head.bias).T)
        return head, rank
    assert held_out is not None
    statistics = lip_fast.LabelStatistics(model.head.in_features, model.head.out_features)
    statistics.update(features, targets)
    report = lip_fast.repair(model.head, statistics, method, held_out.of(model))
    chosen = report.chosen
    rank = int(chosen.parameter) if chosen.method == "lip" and chosen.parameter is not None else None
    return report.head, rank
