"""LIP for a head, with a run's settings."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import lip_fast
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.settings import Settings

__all__ = ["check_lip", "fixed_rank", "make_lip", "repaired_weight"]


def make_lip(
    config: TrainConfig, head: nn.Linear, seed: int, *, epoch_steps: int = 1, data_group: object = None
) -> lip_fast.LIP:
    """LIP for a head, with the run's settings.

    Args:
        config: the settings.
        head: the head.
        seed: of LIP's fresh columns.
        epoch_steps: steps of an epoch, after which LIP starts where the settings leave that open.
        data_group: the processes whose batches differ, see :class:`lip_fast.LIP`.

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
        start=epoch_steps if config.start is None else config.start,
        decay=config.decay,
        clip=config.clip,
        data_group=data_group,
        seed=seed,
    )


def fixed_rank(config: TrainConfig, head: nn.Linear) -> int | None:
    """The number of directions kept of a head afterwards; None where a rule decides.

    Raises:
        TypeError, ValueError: there are not so many.
    """
    return Settings(rank=config.rank_afterwards).kept(min(head.weight.shape))


def check_lip(config: TrainConfig, head: nn.Linear) -> None:
    """Refuse settings of LIP that do not fit a head.

    Raises:
        TypeError, ValueError: with LIP's own message.
    """
    with _detached():
        make_lip(config, head, seed=0)
    fixed_rank(config, head)


@contextmanager
def _detached() -> Iterator[None]:
    """Silence LIP's warning of several processes: a LIP that is made inside is never attached."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LIP acts on a weight that this process has to itself", UserWarning)
        yield


@torch.no_grad()
def repaired_weight(
    config: TrainConfig, head: nn.Linear, statistics: lip_fast.LabelStatistics, held_out: Rows
) -> tuple[Tensor, int]:
    """Apply LIP once to a head, with all samples: the new weight (l, q) and the number of directions kept.

    Where ``rank_afterwards`` is "auto", it is the rank that agrees best with the held-out labels, of equals
    the largest, which changes least; without a hold-out it is that of :func:`lip_fast.select_rank` by energy.

    Args:
        config: the settings, of which ``rank_afterwards`` matters here.
        head: the trained head; it is not changed.
        statistics: of what the head sees of the samples it was trained on.
        held_out: what it sees of others; there may be none.

    Raises:
        ValueError: weights or features that are not finite, or too large to be summed.
    """
    rank = fixed_rank(config, head)
    ks = None if rank is None else [rank]
    path = lip_fast.lip_path(head.weight.T, statistics, ks=ks, bias=head.bias)
    if rank is None and held_out.size:
        rank = lip_fast.select_rank(path, method="holdout", holdout=(held_out.X, held_out.Y), bias=head.bias)
    elif rank is None:
        rank = lip_fast.select_rank(path)
    return path.weight(rank).T, rank
