"""Truncated decompositions of a moved weight: time and error, on spectra easy and hard."""

from typing import Any

import pytest
import torch

from benchmarks.decomposition_rows import DECOMPOSITION_ROWS, spectrum_of
from benchmarks.decompositions import decomposition
from benchmarks.rows import row
from benchmarks.running import run

# Four samples of each of 24 peers, however slow, make it ten.
SECONDS = 3
# Rows, columns and rank where nothing is timed.
SMALL = 60, 80, 8


@pytest.mark.parametrize("key", [row.key for row in DECOMPOSITION_ROWS])
def test_decomposition(benchmark: Any, key: str) -> None:
    size = row(key)
    l, q, k = SMALL if benchmark.disabled else (size.l, size.q, size.k)
    cpu = torch.device("cpu")
    run(benchmark, size, lambda: decomposition(spectrum_of(size), l, q, k, cpu), seconds=SECONDS)
