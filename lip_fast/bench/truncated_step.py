"""A warm truncated step against its floor, and against the same step on decompositions from torch."""

import torch

from lip_fast import reference
from lip_fast.bench import steps
from lip_fast.bench.cases import Case, Skip, require_memory
from lip_fast.bench.gates import Gate, distance, excess, values
from lip_fast.bench.problems import step
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Variant

__all__ = ["truncated_step"]

# The basis is warm after a few steps; the timing should see none of the first.
WARM_STEPS = 20

# Bounds in the middle, on a logarithmic scale, between what was measured and what a wrong answer gives.
# Distance of the weights: at most 6e-5 measured (a subspace iteration is not exact), 1.6e-2 without a refit.
DISTANCE = 5e-4
# Excess over the best truncation: at most 4e-4 measured, 3e-2 to 8e-1 with the basis of one step before.
EXCESS = 3e-3
# Singular values: at most 6e-5 s_1 measured, 2e-2 s_1 without a refit.
VALUES = 5e-4
# A full decomposition in float32: at most 2e-6 measured.
FLOAT32 = 1e-4
# A truncation in float32: at most 1.3e-6 measured; the weight that is truncated is 3e-5 to 4e-3 away.
TRUNCATION = 5e-6


def truncated_step(row: Row, device: torch.device) -> Case:
    """The plug-in on AdamW or SGD, and its peers, each checked through one step from the same state."""
    assert row.tail_rank is not None
    require_memory(device, steps.STEP_BYTES * row.l * row.q)
    problem, kept = step(row, device=device), row.k + row.tail_rank
    ours, inside = steps.LIPStep(problem, row), steps.OptimizerStep(problem, row)
    for warming in (ours, inside):
        for _ in range(WARM_STEPS):
            warming.prepare()
            warming()
    state = ours.state()

    base = steps.BaseStep(problem, row, state)
    full = steps.NaiveStep(problem, row, state, steps.full_svd)
    low_rank = steps.NaiveStep(problem, row, state, steps.low_rank(row))
    composed = steps.NaiveStep(problem, row, state, steps.WarmStart(row, state.M))
    for variant in (base, full, low_rank, composed, ours, inside):
        variant.prepare()
        variant()
    M, X = base.weight.double(), base.X.double()
    Y = reference.one_hot(base.y, row.l, torch.float64)
    expected = reference.lip_step(M, X, Y, row.k, row.tail_rank, rest=row.rest)
    unrefitted = reference.lip_step(M, X, Y, kept, 0, rest=row.rest)
    far, far_values = distance(unrefitted, expected), values(unrefitted, expected)
    gates = [
        Gate("distance", distance(ours.weight, expected), DISTANCE, far),
        Gate("reconstruction", excess(ours.weight, M, kept), EXCESS, excess(state.M, M, kept)),
        Gate("values", values(ours.weight, expected), VALUES, far_values),
        Gate("inside distance", distance(inside.weight, expected), DISTANCE, far),
        Gate("composed distance", distance(composed.weight, expected), DISTANCE, far),
        Gate("svd_lowrank distance", distance(low_rank.weight, expected), DISTANCE, far),
        Gate("full SVD distance", distance(full.weight, expected), FLOAT32, far),
    ]
    variants = [
        ours.variant("LIP"),
        base.variant("base step"),
        Variant("three products", steps.Products(state, row)),
        inside.variant("inside the optimizer"),
        composed.variant("composed"),
        low_rank.variant("svd_lowrank"),
        full.variant("full SVD"),
    ]
    skipped = {}
    try:
        truncating, alone = steps.TruncatingStep(problem, row), steps.BaseStep(problem, row)
        for variant in (truncating, alone):
            variant.prepare()
            variant()
        M = alone.weight.double()
        truncated = reference.lip_step(M, X, Y, kept, 0, rest="drop")
        without = distance(M, truncated)
        gates.append(Gate("torchao distance", distance(truncating.weight, truncated), TRUNCATION, without))
        variants.append(truncating.variant("torchao"))
    except Skip as reason:
        skipped["torchao"] = str(reason)

    def after() -> str | None:
        return ours.skipped() or inside.skipped()

    sums = {"floor": ("base step", "three products")}
    floors = steps.step_floors(row, device)
    return Case(gates, variants, floors=floors, skipped=skipped, sums=sums, after=after)
