"""What a step of LIP costs, before anyone trains: operations, bytes, and the ratio to the head's own work."""

from typing import NamedTuple

import torch

from lip_fast.directions import Directions
from lip_fast.projected import FRESH, GUARDS
from lip_fast.settings import Settings

__all__ = ["Cost", "cost"]

# Of d x d symmetric eigenproblems with vectors (divide and conquer): Golub and Van Loan, Matrix Computations,
# section 8.7, in units of d^3.
_EIGENPROBLEM = 9


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


def cost(l: int, q: int, settings: Settings, rows: int, *, itemsize: int = 4) -> Cost:
    """What a step costs with a batch of so many rows.

    Args:
        l: classes.
        q: features.
        settings: how LIP acts; checked here.
        rows: of the batch.
        itemsize: bytes of an entry of the weight.

    Raises:
        TypeError, ValueError: a setting that does not fit.
    """
    d, long = min(l, q), max(l, q)
    settings.check(d)
    kept = settings.kept(d)
    rank = Settings.most_kept(d) if kept is None else kept
    directions = Directions(l, q, rank=rank, settings=settings, device=torch.device("cpu"))
    k, r = rank, directions.tail_rank
    weight, head = itemsize * l * q, 6.0 * rows * l * q
    if directions.changes_nothing:
        return Cost("nothing", k, 0, 0.0, 0.0, head)
    refit = 2.0 * rows * q * r
    if directions.projects:
        n, m = max(k - GUARDS, 0), min(r + FRESH, d - k)
        columns, tail = k + m, min(GUARDS, k) + m
        written = columns + m if settings.rest == "drop" or settings.tail_rank is None else r
        products = 2.0 * l * q * (2 * columns + written)
        # Of the kept columns: one Gram matrix and one triangular solve on the side of the classes, a Gram
        # matrix and two solves on that of the features, and the factors.
        kept_part = (3.0 * l + 4.0 * q) * n * n + n**3
        # Of the tail: two projections off the kept columns, four small factorisations, the eigenproblem, and
        # the rotation.
        tail_part = 8.0 * l * n * tail + 12.0 * l * tail**2 + 4.0 * q * tail**2 + _EIGENPROBLEM * tail**3
        rotation = (2.0 * l + 4.0 * q) * n * m + 2.0 * n * n * m
        flops = products + kept_part + tail_part + rotation
        return Cost("by products", k, r, flops + refit, _passes(4, weight, l, q, columns), head)
    if directions.exact:
        # The Gram matrix of the small side, its eigenvectors, the vectors of the long side, and the write.
        flops = 2.0 * d * d * long + _EIGENPROBLEM * d**3 + 4.0 * l * q * r
        return Cost("exact", k, r, flops + refit, _passes(4, weight, l, q, r), head)
    m = k + r + FRESH
    written = k + r if settings.rest == "drop" else r
    # Two CholeskyQR on either side, and the decomposition of a small matrix.
    small = 6.0 * (l + q) * m * m + 20.0 * m**3
    flops = 2.0 * l * q * (2 * m + written) + small
    return Cost("truncated", k, r, flops + refit, _passes(4, weight, l, q, m), head)


def _passes(passes: int, weight: float, l: int, q: int, columns: int) -> float:
    """Bytes of so many passes over the weight, and of two reads and writes of so many columns of factors."""
    return passes * weight + 16.0 * (l + q) * columns
