"""One warm truncated step of AdamW and of SGD against its floor and its peers."""

from typing import Any

import pytest
import torch

from benchmarks.rows import ROWS, row
from benchmarks.running import run
from lip_fast.bench.truncated_step import truncated_step

SECONDS = 8


@pytest.mark.parametrize("key", [row.key for row in ROWS if row.kind == "truncated"])
def test_truncated_step(benchmark: Any, key: str) -> None:
    size = row(key)
    run(benchmark, size, lambda: truncated_step(size, torch.device("cpu")), seconds=SECONDS)
