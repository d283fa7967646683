"""One-shot ``lip()`` on class indices against the published form."""

import torch
from torch import Tensor

from lip_fast import reference
from lip_fast.bench.cases import Case, require_memory
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.problems import OneShot, one_shot
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Variant
from lip_fast.functional import lip

__all__ = ["one_shot_calls", "one_shot_gates", "one_shot_lip"]

# float32 sums over a million samples at most; the reference itself in float32 is about as far from float64.
DISTANCE = 1e-5


def one_shot_calls(problem: OneShot, k: int) -> list[Variant]:
    """Ours, the reference, and the product that no way leads around."""
    W, X, y = problem.W, problem.X, problem.y
    basis = torch.linalg.svd(W, full_matrices=False)[0][:, k:].contiguous()
    projections = X.new_empty(len(X), basis.shape[1])

    def published() -> Tensor:
        # The form it is published in wants the label matrix: forming it is part of the price.
        return reference.lip(W, X, reference.one_hot(y, W.shape[1], X.dtype), k)

    return [
        Variant("LIP", lambda: lip(W, X, y, k)),
        Variant("reference", published),
        Variant("floor", lambda: torch.mm(X, basis, out=projections)),
    ]


def one_shot_gates(problem: OneShot, k: int) -> list[Gate]:
    """Ours and the reference in float32 beside the reference in float64."""
    W, X, y = problem.W, problem.X, problem.y
    wide = reference.one_hot(y, W.shape[1], torch.float64)
    expected = reference.lip(W.double(), X.double(), wide, k)
    del wide
    published = reference.lip(W, X, reference.one_hot(y, W.shape[1], X.dtype), k)
    unrepaired = distance(W, expected)
    return [
        Gate("distance", distance(lip(W, X, y, k), expected), DISTANCE, unrepaired),
        Gate("reference distance", distance(published, expected), DISTANCE, unrepaired),
    ]


def one_shot_lip(row: Row, device: torch.device) -> Case:
    """Time of ``lip()``; its memory is measured in processes of its own."""
    # Features and the products of both forms, in float64 for the check.
    require_memory(device, 8.0 * row.n * (2 * row.q + 3 * row.l))
    problem = one_shot(row)
    problem = OneShot(problem.W.to(device), problem.X.to(device), problem.y.to(device))
    return Case(one_shot_gates(problem, row.k), one_shot_calls(problem, row.k))
