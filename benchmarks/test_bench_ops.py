"""Every op at every shape and in every format: the dispatched call beside each of its kernels."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.op_cases import forget, op_case
from benchmarks.op_rows import OP_ROWS
from benchmarks.rows import row
from benchmarks.running import run

SECONDS = 0.25
# Values of the largest weight that each variant is run on where nothing is timed.
MOST_VALUES = 1 << 17
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    """The last weight does not lie beside what comes after."""
    yield
    forget()


@pytest.mark.parametrize("key", [row.key for row in OP_ROWS])
def test_op(benchmark: Any, key: str) -> None:
    size = row(key)
    if benchmark.disabled and size.l * size.q > MOST_VALUES:
        pytest.skip("nothing is timed: the large problem is left out")
    run(benchmark, size, lambda: op_case(size, CPU), seconds=SECONDS)
