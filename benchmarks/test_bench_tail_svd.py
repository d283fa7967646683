"""The exact decomposition of a head of few classes: the native kernel beside plain torch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gates import Gate, distance, require
from benchmarks.problems import step
from benchmarks.rows import ROWS, row
from benchmarks.timing import Call, Peer, measure
from lip_fast.backends.default.tail_svd import tail_svd as default_tail_svd
from lip_fast.backends.native import library
from lip_fast.backends.native.tail_svd import tail_svd

ROUNDS = 400
# float32 was 3e-7 away; a tail that lacks its largest direction is 5e-1 away.
DISTANCE = 1e-5

pytestmark = pytest.mark.skipif(library.cpu() is None, reason=f"no CPU extension: {library.problems()}")


@pytest.mark.parametrize("key", [row.key for row in ROWS if row.kind == "tail-svd"])
def test_tail_svd(benchmark: Any, key: str) -> None:
    size = row(key)
    benchmark.extra_info["row"] = key
    M, k = step(size).M, size.k
    A, S, Bh = torch.linalg.svd(M.double(), full_matrices=False)

    def tail(A: Tensor, S: Tensor, B: Tensor, *rest: Tensor) -> Tensor:
        return A.double() * S[k:].double() @ B.double().mT

    exact = A[:, k:] * S[k:] @ Bh[k:]
    short = distance(A[:, k + 1 :] * S[k + 1 :] @ Bh[k + 1 :], exact)
    require(
        benchmark,
        [
            Gate("distance", distance(tail(*tail_svd(M, k)), exact), DISTANCE, short),
            Gate("default distance", distance(tail(*default_tail_svd(M, k)), exact), DISTANCE, short),
        ],
    )
    peers = {"default": Peer(Call(lambda: default_tail_svd(M, k)))}
    measure(benchmark, Call(lambda: tail_svd(M, k)), peers, rounds=ROUNDS)
