"""A trained network's head, repaired without training."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import lip_fast
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training.lip import fixed_rank, repaired_weight

__all__ = ["RULES", "rank_path", "repaired_head"]

# Ranks that are tried along a path: all of a small head, evenly spaced ones of a large head.
_MOST_RANKS = 64
_FRACTIONS = (0.5, 0.8, 0.9)
# The rules that find a rank without clean labels, by the names that tables give them.
RULES = (*map(str, _FRACTIONS), "95% of the energy", "Gavish-Donoho", "held-out labels")


@torch.no_grad()
def repaired_head(
    method: str, config: TrainConfig, head: nn.Linear, statistics: lip_fast.LabelStatistics, held_out: Rows
) -> tuple[nn.Linear, int | None]:
    """A copy of a head, repaired.

    Args:
        method: "post-hoc" (LIP, see :func:`repaired_weight`), or another one of ``REPAIRS``, which
            :func:`lip_fast.repair` has by the same name.
        config: the settings; of those of LIP only ``rank_afterwards`` matters.
        head: the trained head; it is not changed.
        statistics: of what the head sees of the samples it was trained on.
        held_out: what it sees of others, whose labels choose; there must be some for "ridge".

    Returns:
        the head, and the number of directions LIP kept; None where LIP was not what repaired it.
    """
    if method == "post-hoc":
        repaired = copy.deepcopy(head)
        weight, rank = repaired_weight(config, head, statistics, held_out)
        repaired.weight.copy_(weight)
        return repaired, rank
    holdout = (held_out.X, held_out.Y) if held_out.size else None
    report = lip_fast.repair(head, statistics, method, holdout)
    chosen = report.chosen
    if chosen.method == "lip" and chosen.parameter is not None:
        return report.head, int(chosen.parameter)
    return report.head, None


@torch.no_grad()
def rank_path(
    config: TrainConfig,
    head: nn.Linear,
    statistics: lip_fast.LabelStatistics,
    held_out: Rows,
    score: Callable[[nn.Linear], tuple[float, float | None]],
) -> dict[str, Any]:
    """What LIP afterwards would give at every rank, and the rank that each rule takes.

    Args:
        config: the settings.
        head: the trained head; it is not changed.
        statistics: of what the head sees of the samples it was trained on.
        held_out: what it sees of others; there may be none.
        score: test accuracy and agreement with held-out labels of a head.

    Returns:
        plain values: ``ranks`` and, for each, ``test_accuracy`` and ``validation``; ``rules``, the rank by
        the names in ``RULES``, "held-out labels" only where there are some.
    """
    largest = min(head.weight.shape)
    path = lip_fast.lip_path(head.weight.T, statistics, bias=head.bias)
    rules = {str(fraction): math.ceil(fraction * largest) for fraction in _FRACTIONS}
    rules["95% of the energy"] = lip_fast.select_rank(path)
    rules["Gavish-Donoho"] = lip_fast.select_rank(path, method="gavish-donoho")
    ranks = {round(i * largest / (_MOST_RANKS - 1)) for i in range(_MOST_RANKS)} | set(rules.values())
    if (own := fixed_rank(config, head)) is not None:
        ranks.add(own)
    repaired = copy.deepcopy(head)
    result: dict[str, Any] = {"ranks": sorted(ranks), "test_accuracy": [], "validation": []}
    for rank in result["ranks"]:
        repaired.weight.copy_(path.weight(rank).T)
        test_accuracy, validation = score(repaired)
        result["test_accuracy"].append(test_accuracy)
        result["validation"].append(validation)
    if held_out.size:
        # Of ranks that agree equally well the largest is taken, which changes the head least.
        rules["held-out labels"] = max(zip(result["validation"], result["ranks"], strict=True))[1]
    return {**result, "rules": rules}
