"""One warm truncated step of AdamW and of SGD against its floor and its peers."""

from typing import Any

import pytest
import torch

from benchmarks.rows import ROWS, row
from benchmarks.running import run
from lip_fast.bench.truncated_step import truncated_step

# Of a large head, in which a full decomposition takes a quarter of a second, and of others.
LARGE, SECONDS, FEW_SECONDS = 1 << 18, 8, 3


@pytest.mark.parametrize("key", [row.key for row in ROWS if row.kind == "truncated"])
def test_truncated_step(benchmark: Any, key: str) -> None:
    size = row(key)
    seconds = SECONDS if size.l * size.q > LARGE else FEW_SECONDS
    run(benchmark, size, lambda: truncated_step(size, torch.device("cpu")), seconds=seconds)
