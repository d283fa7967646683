"""One warm truncated step in AdamW against its floor and against decompositions from torch."""

from typing import Any

import pytest
import torch

from benchmarks import steps
from benchmarks.gates import Gate, distance, excess, require, values
from benchmarks.problems import step
from benchmarks.rows import row
from benchmarks.timing import Peer, measure
from lip_fast import reference

# The basis is warm after a few steps; the timing should see none of the first.
WARM_STEPS = 20
# Rounds of ours, and how seldom the full decomposition takes part: it is 60 times slower at 1000 x 2048.
ROUNDS = {
    "truncated-1000x2048": (150, 12),
    "truncated-100x512": (300, 3),
    "truncated-10x512": (400, 1),
}

# Bounds in the middle, on a logarithmic scale, between what was measured and what a wrong answer gives.
# Distance of the weights: at most 6e-5 measured (a subspace iteration is not exact), 1.6e-2 without a refit.
DISTANCE = 5e-4
# Excess over the best truncation: at most 4e-4 measured, 3e-2 to 8e-1 with the basis of one step before.
EXCESS = 3e-3
# Singular values: at most 6e-5 s_1 measured, 2e-2 s_1 without a refit.
VALUES = 5e-4
# A full decomposition in float32: at most 2e-6 measured.
FLOAT32 = 1e-4


@pytest.mark.parametrize("key", ROUNDS)
def test_truncated_step(benchmark: Any, key: str) -> None:
    size = row(key)
    benchmark.extra_info["row"] = key
    assert size.tail_rank is not None
    problem, kept = step(size), size.k + size.tail_rank
    ours = steps.LIPStep(problem, size, "drop")
    for _ in range(WARM_STEPS):
        ours.prepare()
        ours()
    state = ours.state()

    # Every variant from one state through one step, and the reference on what the base step makes of it.
    base = steps.BaseStep(problem, state)
    full = steps.NaiveStep(problem, size, state, steps.full_svd)
    low_rank = steps.NaiveStep(problem, size, state, steps.low_rank(size))
    for variant in (base, full, low_rank, ours):
        variant.prepare()
        variant()
    M, X = base.weight.double(), base.X.double()
    Y = reference.one_hot(base.y, size.l, torch.float64)
    expected = reference.lip_step(M, X, Y, size.k, size.tail_rank, rest="drop")
    unrefitted = reference.lip_step(M, X, Y, kept, 0, rest="drop")
    far, far_values = distance(unrefitted, expected), values(unrefitted, expected)
    stale = excess(state.M, M, kept)
    require(
        benchmark,
        [
            Gate("distance", distance(ours.weight, expected), DISTANCE, far),
            Gate("reconstruction", excess(ours.weight, M, kept), EXCESS, stale),
            Gate("values", values(ours.weight, expected), VALUES, far_values),
            Gate("full SVD distance", distance(full.weight, expected), FLOAT32, far),
            Gate("svd_lowrank distance", distance(low_rank.weight, expected), DISTANCE, far),
        ],
    )

    rounds, every = ROUNDS[key]
    measure(
        benchmark,
        ours,
        {
            "base step": Peer(base),
            "three products": Peer(steps.Products(state, size)),
            "full SVD": Peer(full, every),
            "svd_lowrank": Peer(low_rank),
        },
        rounds=rounds,
        sums={"floor": ("base step", "three products")},
    )
    ours.require_applied()
