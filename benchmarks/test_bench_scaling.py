"""One-shot ``lip()`` over samples, features and classes: time and extra peak memory beside the reference."""

from typing import Any

import pytest
import torch

import lip_fast
from benchmarks.fresh_process import one_shot_seconds
from benchmarks.peak_memory import extra_peaks
from benchmarks.rows import row
from benchmarks.running import require
from benchmarks.scaling_rows import SCALING_ROWS
from lip_fast.bench.cases import Skip, require_memory
from lip_fast.bench.one_shot import one_shot_floors, one_shot_gates
from lip_fast.bench.problems import one_shot
from lip_fast.bench.timing import summary

# At most so many rounds, and none that would begin after so many seconds.
ROUNDS, SECONDS = 7, 2
# Where nothing is timed, larger points would run the same code once more.
SMALLEST = min(SCALING_ROWS, key=lambda row: row.n * row.q * row.l).key


@pytest.mark.parametrize("key", [row.key for row in SCALING_ROWS])
def test_scaling(benchmark: Any, key: str) -> None:
    size = row(key)
    benchmark.extra_info["row"] = size.key
    if benchmark.disabled and key != SMALLEST:
        pytest.skip("nothing is timed: a larger problem for the same code")
    try:
        # Here and in the process that measures: the features and what they are drawn from; labels in every
        # form on the way to the reference.
        require_memory(torch.device("cpu"), 8.0 * size.n * (2 * size.q + 5 * size.l))
    except Skip as reason:
        pytest.skip(str(reason))
    problem = one_shot(size)
    require(benchmark, one_shot_gates(problem, size.k))
    benchmark.extra_info["floors_us"] = one_shot_floors(size, torch.device("cpu"))
    benchmark.extra_info["extra_peak_bytes"] = extra_peaks(size)
    seconds = one_shot_seconds(size, 1 if benchmark.disabled else ROUNDS, SECONDS)
    results = {name: summary(times) for name, times in seconds.items()}
    benchmark.extra_info["ours"] = results.pop("ours")
    benchmark.extra_info["peers"] = results
    # The entry's own statistics are those of this process, where the comparison would not be fair.
    benchmark.pedantic(lip_fast.lip, (problem.W, problem.X, problem.y, size.k), rounds=1)
