"""A trained network's head, repaired without training."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import lip_fast
from lip_fast.harness.config import TrainConfig
from lip_fast.harness.evaluation import Rows
from lip_fast.harness.lip_settings import rank_of

__all__ = ["RULES", "rank_path", "repaired_head"]

# The method of lip_fast.repair that each name stands for.
_REPAIR = {"swept": "lip", "ridge": "ridge", "auto": "auto"}
# Ranks that are tried along a path: all of a small head, evenly spaced ones of a large head.
_MOST_RANKS = 64
# How a rank can be had without clean labels, by the name that tables give it.
RULES = ("settings", "energy", "gavish-donoho", "held-out labels")


@torch.no_grad()
def repaired_head(
    method: str, config: TrainConfig, head: nn.Linear, trained: Rows, held_out: Rows
) -> tuple[nn.Linear, int | None]:
    """A copy of a head, repaired.

    Args:
        method: "post-hoc" (LIP with the rank of the settings), or by :func:`lip_fast.repair`, chosen by the
            held-out labels: "swept" (LIP), "ridge" or "auto".
        config: the settings; of those of LIP only ``rank`` matters afterwards.
        head: the trained head; it is not changed.
        trained: what the head sees of the samples it was trained on.
        held_out: the same of others, for the methods that choose.

    Returns:
        the head, and the number of directions LIP kept; None where LIP was not what repaired it.
    """
    if method == "post-hoc":
        rank = rank_of(config, head)
        repaired = copy.deepcopy(head)
        repaired.weight.copy_(lip_fast.lip(head.weight.T, *trained, rank, bias=head.bias).T)
        return repaired, rank
    statistics = lip_fast.LabelStatistics(head.in_features, head.out_features, device=head.weight.device)
    statistics.update(*trained)
    report = lip_fast.repair(head, statistics, _REPAIR[method], (held_out.X, held_out.Y))
    chosen = report.chosen
    if chosen.method == "lip" and chosen.parameter is not None:
        return report.head, int(chosen.parameter)
    return report.head, None


@torch.no_grad()
def rank_path(
    config: TrainConfig,
    head: nn.Linear,
    trained: Rows,
    held_out: Rows,
    score: Callable[[nn.Linear], tuple[float, float | None]],
) -> dict[str, Any]:
    """What LIP afterwards would give at every rank, and the rank that each rule takes.

    Args:
        config: the settings.
        head: the trained head; it is not changed.
        trained: what the head sees of the samples it was trained on.
        held_out: the same of others; there may be none.
        score: test accuracy and agreement with held-out labels of a head.

    Returns:
        plain values: ``ranks`` and, for each, ``test_accuracy`` and ``validation``; ``rules``, the rank by
        the names in ``RULES``.
    """
    largest = min(head.weight.shape)
    path = lip_fast.lip_path(head.weight.T, *trained, bias=head.bias)
    rules = {
        "settings": rank_of(config, head),
        "energy": lip_fast.select_rank(path),
        "gavish-donoho": lip_fast.select_rank(path, method="gavish-donoho"),
    }
    ranks = {round(i * largest / (_MOST_RANKS - 1)) for i in range(_MOST_RANKS)} | set(rules.values())
    repaired = copy.deepcopy(head)
    result: dict[str, Any] = {"ranks": sorted(ranks), "test_accuracy": [], "validation": []}
    for rank in result["ranks"]:
        repaired.weight.copy_(path.weight(rank).T)
        test_accuracy, validation = score(repaired)
        result["test_accuracy"].append(test_accuracy)
        result["validation"].append(validation)
    if len(held_out):
        # Of equals the largest, which changes least.
        rules["held-out labels"] = max(zip(result["validation"], result["ranks"], strict=True))[1]
    return {**result, "rules": rules}
