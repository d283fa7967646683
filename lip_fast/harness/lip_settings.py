"""LIP for a head, with a run's settings."""

import torch
from torch import nn

import lip_fast
from lip_fast.harness.config import TrainConfig

__all__ = ["make_lip", "rank_of"]


def make_lip(config: TrainConfig, head: nn.Linear, seed: int) -> lip_fast.LIP:
    """LIP for a head, with the run's settings.

    Raises:
        ValueError: settings that do not fit the head.
    """
    return lip_fast.LIP(
        head,
        config.rank,
        tail_rank=config.tail_rank,
        tail=config.tail,
        rest=config.rest,
        every=config.every,
        start=config.start,
        decay=config.decay,
        clip=config.clip,
        seed=seed,
    )


def rank_of(config: TrainConfig, head: nn.Linear) -> int:
    """The number of directions that LIP keeps of this head, were it applied now."""
    rank = make_lip(config, head, seed=0).stats()["rank"]
    if rank is None:  # "auto": LIP would decide at its first step, by the same rule
        return lip_fast.select_rank(torch.linalg.svdvals(head.weight.detach()))
    return rank
