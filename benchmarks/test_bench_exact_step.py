"""One step on the exact path of AdamW and of SGD against the reference's."""

from typing import Any

import pytest
import torch

from benchmarks.rows import ROWS, row
from benchmarks.running import run
from lip_fast.bench.exact_step import exact_step

SECONDS = 5


@pytest.mark.parametrize("key", [row.key for row in ROWS if row.kind == "exact"])
def test_exact_step(benchmark: Any, key: str) -> None:
    size = row(key)
    run(benchmark, size, lambda: exact_step(size, torch.device("cpu")), seconds=SECONDS)
