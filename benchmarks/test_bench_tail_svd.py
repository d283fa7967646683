"""The exact decomposition of a head of few classes: the native kernel beside plain torch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.rows import ROWS, row
from benchmarks.running import run
from lip_fast.backends.default.tail_svd import tail_svd as default_tail_svd
from lip_fast.backends.native.tail_svd import tail_svd
from lip_fast.bench.cases import Case, require_native
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.problems import step
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Variant

SECONDS = 1
# float32 was 3e-7 away; a tail that lacks its largest direction is 5e-1 away.
DISTANCE = 1e-5


def _case(size: Row) -> Case:
    require_native(torch.device("cpu"))
    M, k = step(size).M, size.k
    A, S, Bh = torch.linalg.svd(M.double(), full_matrices=False)

    def tail(A: Tensor, S: Tensor, B: Tensor, *rest: Tensor) -> Tensor:
        return A.double() * S[k:].double() @ B.double().mT

    exact = A[:, k:] * S[k:] @ Bh[k:]
    short = distance(A[:, k + 1 :] * S[k + 1 :] @ Bh[k + 1 :], exact)
    gates = [
        Gate("distance", distance(tail(*tail_svd(M, k)), exact), DISTANCE, short),
        Gate("default distance", distance(tail(*default_tail_svd(M, k)), exact), DISTANCE, short),
    ]
    variants = [
        Variant("native", lambda: tail_svd(M, k)),
        Variant("default", lambda: default_tail_svd(M, k)),
    ]
    return Case(gates, variants)


@pytest.mark.parametrize("key", [row.key for row in ROWS if row.kind == "tail-svd"])
def test_tail_svd(benchmark: Any, key: str) -> None:
    size = row(key)
    run(benchmark, size, lambda: _case(size), seconds=SECONDS)
