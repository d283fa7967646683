"""The solver of small square problems, warm and cold, beside LAPACK's decompositions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.rows import ROWS, row
from benchmarks.running import run
from lip_fast.backends.native.small_svd import small_svd
from lip_fast.bench.cases import Case, require_native
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.timing import Variant

SECONDS = 1
# How far the matrix is from the one whose decomposition a warm start knows.
CHANGE = 1e-2
# float32 was at most 1e-6 off; the factors of the last matrix are 1e-2, its singular values 1e-3.
DISTANCE = 1e-5


def _product(U: Tensor, S: Tensor, V: Tensor, *rest: Tensor) -> Tensor:
    return U.double() * S.double() @ V.double().mT


def _case(m: int) -> Case:
    require_native(torch.device("cpu"))
    g = torch.Generator().manual_seed(m)
    U, V = (torch.linalg.qr(torch.randn(m, m, generator=g, dtype=torch.float64))[0] for _ in range(2))
    s = torch.linspace(10, 0.5, m, dtype=torch.float64)
    last = U * s @ V.mT
    noise = torch.randn(m, m, generator=g, dtype=torch.float64)
    T = (last + CHANGE * noise * last.norm() / noise.norm()).float()
    H, start, exact = T.mT @ T, V.float(), T.double()

    warm, cold = small_svd(T, start), small_svd(T)
    stale = distance(_product(warm[0], warm[1], start), exact)
    values = torch.linalg.svdvals(exact)
    gates = [
        Gate("distance", distance(_product(*warm), exact), DISTANCE, stale),
        Gate("cold distance", distance(_product(*cold), exact), DISTANCE, stale),
        Gate("values", distance(warm[1], values), DISTANCE, distance(s, values)),
    ]
    variants = [
        Variant("warm", lambda: small_svd(T, start)),
        Variant("cold", lambda: small_svd(T)),
        Variant("linalg.svd", lambda: torch.linalg.svd(T)),
        Variant("linalg.eigh", lambda: torch.linalg.eigh(H)),
    ]
    return Case(gates, variants, facts={"sweeps": {"warm": int(warm[3]), "cold": int(cold[3])}})


@pytest.mark.parametrize("key", [row.key for row in ROWS if row.kind == "small-svd"])
def test_small_svd(benchmark: Any, key: str) -> None:
    size = row(key)
    run(benchmark, size, lambda: _case(size.l), seconds=SECONDS)
