"""What a step of LIP costs, before anyone trains: operations, bytes, and the ratio to the head's own work."""

from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast import flops
from lip_fast.directions import Directions
from lip_fast.settings import Settings
from lip_fast.sharded.tensors import is_split

__all__ = ["Cost", "cost"]


class Cost(NamedTuple):
    """What a warm step of LIP on a weight (l, q) costs, and what the head's own work on a batch does.

    Attributes:
        path: how the weight is decomposed: "exact", "truncated", "by products", or "nothing" where every
            direction is kept.
        rank: number of kept directions; that of rank="auto" is the largest it may take.
        refitted: number of directions below them that are refitted.
        flops: floating point operations of the step. Those of an exact decomposition, most of them of an
            eigenproblem in float64, take several times as long as those of products in float32.
        bytes: read and written beyond caches, if every pass over the weight and its factors is one.
        head_flops: operations of the head's forward and backward pass on the batch: three products.
    """

    path: str
    rank: int
    refitted: int
    flops: float
    bytes: float
    head_flops: float

    @property
    def ratio(self) -> float:
        """Operations of the step in those of the head's own forward and backward pass."""
        return self.flops / self.head_flops


def cost(
    l: int, q: int, settings: Settings, rows: int, *, like: Tensor | None = None, rank: int | None = None
) -> Cost:
    """What a step costs with a batch of so many rows.

    Args:
        l: classes.
        q: features.
        settings: how LIP acts; checked here.
        rows: of the batch.
        like: has the dtype and the device of the weight; None is float32 on the host.
        rank: number of kept directions where it is decided; None: what the settings say.

    Raises:
        TypeError, ValueError: a setting that does not fit.
    """
    d = min(l, q)
    settings.check(d)
    like = torch.zeros(()) if like is None else like
    kept = settings.kept(d) if rank is None else rank
    k = Settings.most_kept(d) if kept is None else kept
    directions = Directions(l, q, rank=k, settings=settings, device=like.device, whole=not is_split(like))
    r, head = directions.tail_rank, 6.0 * rows * l * q
    if directions.changes_nothing:
        return Cost("nothing", k, 0, 0.0, 0.0, head)
    path = directions.path(like.dtype)
    if path == "by products":
        taken, columns = directions.flops, k + r
    elif path == "exact":
        taken, columns = flops.exact(l, q, r), r
    else:
        columns = directions.columns
        taken = flops.truncated(l, q, columns, k + r if directions.drops else r)
    # The weight is read and written in four passes at most, its factors twice each.
    moved = 4.0 * like.element_size() * l * q + 16.0 * (l + q) * columns
    return Cost(path, k, r, taken + 2.0 * rows * q * r, moved, head)
