"""One-shot ``lip()`` on class indices against the published form."""

import torch
from torch import Tensor

from lip_fast import reference
from lip_fast.bench.cases import Case, require_memory, shared_floors
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.problems import OneShot, one_shot
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Variant
from lip_fast.functional import lip

__all__ = ["exact_lip", "one_shot_calls", "one_shot_floors", "one_shot_gates", "one_shot_lip"]

# float32 sums over a million samples at most; the reference itself in float32 is about as far from float64.
DISTANCE = 1e-5
# Samples whose features are held in float64 at a time.
BLOCK = 100_000


def one_shot_calls(problem: OneShot, k: int) -> list[Variant]:
    """``lip()``, the reference, and as a floor the projections of X, which every form has to compute."""
    W, X, y = problem.W, problem.X, problem.y
    basis = torch.linalg.svd(W, full_matrices=False)[0][:, k:].contiguous()
    projections = X.new_empty(len(X), basis.shape[1])

    def published() -> Tensor:
        # The published form takes the label matrix, so that its time includes forming that matrix.
        return reference.lip(W, X, reference.one_hot(y, W.shape[1], X.dtype), k)

    return [
        Variant("LIP", lambda: lip(W, X, y, k)),
        Variant("reference", published),
        Variant("floor", lambda: torch.mm(X, basis, out=projections)),
    ]


def one_shot_gates(problem: OneShot, k: int) -> list[Gate]:
    """Ours and the reference in float32 beside the paper in float64."""
    W, X, y = problem.W, problem.X, problem.y
    expected = exact_lip(problem, k)
    published = reference.lip(W, X, reference.one_hot(y, W.shape[1], X.dtype), k)
    unrepaired = distance(W, expected)
    return [
        Gate("distance", distance(lip(W, X, y, k), expected), DISTANCE, unrepaired),
        Gate("reference distance", distance(published, expected), DISTANCE, unrepaired),
    ]


def exact_lip(problem: OneShot, k: int) -> Tensor:
    """``reference.lip`` in float64 (q, l); its sums over the samples in blocks where there are many."""
    X, y, W = problem.X, problem.y, problem.W.double()
    l = W.shape[1]
    if len(X) <= BLOCK:
        return reference.lip(W, X.double(), reference.one_hot(y, l, torch.float64), k)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    kept = U[:, :k] * S[:k] @ Vh[:k]
    numerator, denominator = (W.new_zeros(len(S) - k) for _ in range(2))
    for x, labels in zip(X.split(BLOCK), y.split(BLOCK), strict=True):
        rows = x.double()
        P = rows @ U[:, k:]
        residual = reference.one_hot(labels, l, torch.float64) - rows @ kept
        numerator += (P * (residual @ Vh[k:].mT)).sum(0)
        denominator += P.square().sum(0)
    return kept + U[:, k:] * (numerator / denominator) @ Vh[k:]


def one_shot_floors(row: Row, device: torch.device) -> dict[str, float]:
    """Microseconds to read features and labels, and to project the features on the refitted directions."""
    size = row.n * (4.0 * row.q + 8)
    return shared_floors(device).of(size, 2.0 * row.n * row.q * (min(row.l, row.q) - row.k))


def one_shot_lip(row: Row, device: torch.device) -> Case:
    """Time of ``lip()``; its memory is measured in processes of its own."""
    # Features and the products of both forms, in float64 for the check.
    require_memory(device, 8.0 * row.n * (2 * row.q + 3 * row.l))
    problem = one_shot(row)
    problem = OneShot(problem.W.to(device), problem.X.to(device), problem.y.to(device))
    floors = one_shot_floors(row, device)
    return Case(one_shot_gates(problem, row.k), one_shot_calls(problem, row.k), floors=floors)
