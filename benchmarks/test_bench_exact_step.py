"""One step on the exact path in AdamW against the reference's, which decomposes the weight in full."""

from typing import Any

import pytest
import torch

from benchmarks import steps
from benchmarks.gates import Gate, distance, require
from benchmarks.problems import step
from benchmarks.rows import row
from benchmarks.timing import Peer, measure
from lip_fast import reference

ROUNDS = {"exact-1000x2048": 16, "exact-100x512": 150, "exact-10x512": 300}

# Ours was 3e-8 away; without LIP it is 1e-3 to 1e-2.
DISTANCE = 1e-5
# The reference's float32 decomposition of 1000 neighbouring singular values was up to 2e-5 away.
REFERENCE_DISTANCE = 1e-4


@pytest.mark.parametrize("key", ROUNDS)
def test_exact_step(benchmark: Any, key: str) -> None:
    size = row(key)
    benchmark.extra_info["row"] = key
    problem = step(size)
    ours = steps.LIPStep(problem, size, "keep")
    state = ours.state()

    base = steps.BaseStep(problem, state)
    peer = steps.ReferenceStep(problem, size, state, "keep")
    for variant in (base, peer, ours):
        variant.prepare()
        variant()
    M, X = base.weight.double(), base.X.double()
    Y = reference.one_hot(base.y, size.l, torch.float64)
    expected = reference.lip_step(M, X, Y, size.k, rest="keep")
    without = distance(M, expected)
    require(
        benchmark,
        [
            Gate("distance", distance(ours.weight, expected), DISTANCE, without),
            Gate("reference distance", distance(peer.weight, expected), REFERENCE_DISTANCE, without),
        ],
    )

    measure(benchmark, ours, {"reference": Peer(peer)}, rounds=ROUNDS[key])
    ours.require_applied()
