"""One-shot ``lip()`` on class indices against the published form: time and extra peak memory."""

from typing import Any

import pytest
import torch

import lip_fast
from benchmarks.fresh_process import one_shot_seconds
from benchmarks.peak_memory import extra_peaks
from benchmarks.rows import row
from benchmarks.running import require
from lip_fast.bench.one_shot import one_shot_floors, one_shot_gates
from lip_fast.bench.problems import one_shot
from lip_fast.bench.timing import summary

ROUNDS = 25


@pytest.mark.parametrize("key", ["one-shot"])
def test_one_shot(benchmark: Any, key: str) -> None:
    size = row(key)
    benchmark.extra_info["row"] = size.key
    problem = one_shot(size)
    require(benchmark, one_shot_gates(problem, size.k))
    benchmark.extra_info["floors_us"] = one_shot_floors(size, torch.device("cpu"))
    benchmark.extra_info["extra_peak_bytes"] = extra_peaks(size)

    seconds = one_shot_seconds(size, 1 if benchmark.disabled else ROUNDS)
    results = {name: summary(times) for name, times in seconds.items()}
    benchmark.extra_info["ours"] = results.pop("ours")
    benchmark.extra_info["peers"] = results
    # The entry's own statistics are those of this process, where the comparison would not be fair.
    benchmark.pedantic(lip_fast.lip, (problem.W, problem.X, problem.y, size.k), rounds=1)
