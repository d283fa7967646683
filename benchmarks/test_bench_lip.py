"""One-shot ``lip()`` on class indices against the published form: time and extra peak memory."""

from typing import Any

import torch

import lip_fast
from benchmarks.fresh_process import one_shot_seconds
from benchmarks.gates import Gate, distance, require
from benchmarks.peak_memory import VARIANTS, extra_peak
from benchmarks.problems import one_shot
from benchmarks.rows import row
from benchmarks.timing import summary
from lip_fast import reference

ROUNDS = 25
# float32 sums over 50000 samples; the reference itself in float32 is about as far from float64.
DISTANCE = 1e-5


def test_one_shot(benchmark: Any) -> None:
    size = row("one-shot")
    benchmark.extra_info["row"] = size.key
    problem = one_shot(size)
    W, X, y, k = problem.W, problem.X, problem.y, size.k

    def published() -> torch.Tensor:
        # The form it is published in wants the label matrix: forming it is part of the price.
        return reference.lip(W, X, reference.one_hot(y, size.l, X.dtype), k)

    def ours() -> torch.Tensor:
        return lip_fast.lip(W, X, y, k)

    wide = reference.one_hot(y, size.l, torch.float64)
    expected = reference.lip(W.double(), X.double(), wide, k)
    del wide
    unrepaired = distance(W, expected)
    require(
        benchmark,
        [
            Gate("distance", distance(ours(), expected), DISTANCE, unrepaired),
            Gate("reference distance", distance(published(), expected), DISTANCE, unrepaired),
        ],
    )
    benchmark.extra_info["extra_peak_bytes"] = {name: extra_peak(name) for name in VARIANTS}

    seconds = one_shot_seconds(1 if benchmark.disabled else ROUNDS)
    results = {name: summary(times) for name, times in seconds.items()}
    benchmark.extra_info["ours"] = results.pop("ours")
    benchmark.extra_info["peers"] = results
    # The entry's own statistics are those of this process, where the comparison would not be fair.
    benchmark.pedantic(ours, rounds=1)
