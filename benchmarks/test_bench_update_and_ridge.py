"""Label statistics streamed over a million rows against their products, and heads that are made of them."""

from typing import Any

import pytest
import torch

from benchmarks.rows import row
from benchmarks.running import run
from lip_fast import LabelStatistics
from lip_fast.bench.cases import Case, shared_floors
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Variant

# Rows of one batch of the stream: what a loader of embeddings hands out. The same batches come again and
# again, so that a million rows need no more memory than these.
BATCH = 8192
BATCHES = 4
# Sums of 8192 float32 products, added up in float64.
DISTANCE = 1e-6
# Normal equations in float64, of a Gram matrix in float32 products.
RIDGE_DISTANCE = 1e-4


def _batches(q: int, l: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(BATCH, q, generator=g) + 0.1, torch.randint(l, (BATCH,), generator=g))
        for _ in range(BATCHES)
    ]


def _streamed(size: Row) -> Case:
    batches = _batches(size.q, size.l)
    rounds = round(size.n / BATCH)

    expected = torch.zeros(size.q, size.q + size.l, dtype=torch.float64)
    for X, y in batches:
        Y = torch.nn.functional.one_hot(y, size.l).double()
        expected += X.double().mT @ torch.cat([X.double(), Y], 1)
    statistics = LabelStatistics(size.q, size.l).update(batches)
    got = torch.cat([statistics.G[:-1, :-1], statistics.C[:-1]], 1)
    once = LabelStatistics(size.q, size.l).update(batches[:-1])
    control = distance(torch.cat([once.G[:-1, :-1], once.C[:-1]], 1), expected)
    gates = [Gate("distance", distance(got, expected), DISTANCE, control)]

    def ours() -> None:
        LabelStatistics(size.q, size.l).update(batches[i % BATCHES] for i in range(rounds))

    def products() -> None:
        # Class indices need no product with the labels.
        G = torch.zeros(size.q, size.q)
        for i in range(rounds):
            X = batches[i % BATCHES][0]
            G.addmm_(X.mT, X)

    # The features are read, and half of their Gram matrix is multiplied.
    lowest = shared_floors(torch.device("cpu")).of(4.0 * size.n * size.q, 1.0 * size.n * size.q**2)
    return Case(gates, [Variant("update", ours), Variant("products", products)], floors=lowest)


@pytest.mark.parametrize("key", ["statistics"])
def test_statistics(benchmark: Any, key: str) -> None:
    size = row(key)
    run(benchmark, size, lambda: _streamed(size), seconds=30)


def _ridge(size: Row) -> Case:
    X, y = _batches(size.q, size.l)[0]
    statistics = LabelStatistics(size.q, size.l).update(X, y)
    alphas = [10.0**e for e in torch.linspace(-2, 5, size.k).tolist()]
    Y = torch.nn.functional.one_hot(y, size.l).double()
    centred = X.double() - X.double().mean(0)
    G, C = centred.mT @ centred, centred.mT @ (Y - Y.mean(0))
    identity = torch.eye(size.q, dtype=torch.float64)

    def solve(alpha: float = alphas[-1]) -> torch.Tensor:
        return torch.linalg.solve(G + alpha * identity, C).mT

    def path(count: int) -> torch.Tensor:
        members = statistics.ridge_path(alphas[-count:])
        return torch.stack([members[i].M for i in range(count)])

    expected = torch.stack([solve(alpha) for alpha in alphas])
    control = distance(torch.stack([solve(2 * alpha) for alpha in alphas]), expected)
    gates = [Gate("distance", distance(path(size.k), expected), RIDGE_DISTANCE, control)]
    variants = [
        Variant("path", lambda: path(size.k)),
        Variant("one alpha", lambda: path(1)),
        Variant("solve", solve),
    ]
    return Case(gates, variants)


@pytest.mark.parametrize("key", ["ridge-path"])
def test_ridge_path(benchmark: Any, key: str) -> None:
    size = row(key)
    run(benchmark, size, lambda: _ridge(size), seconds=4)


def _gaussian(size: Row) -> Case:
    X, y = _batches(size.q, size.l)[0]
    statistics = LabelStatistics(size.q, size.l).update(X, y)
    centred = X.double() - X.double().mean(0)
    G, counts = centred.mT @ centred, y.bincount(minlength=size.l).double()
    means = (centred.mT @ torch.nn.functional.one_hot(y, size.l).double()) / counts
    identity = torch.eye(size.q, dtype=torch.float64)

    def head(alpha: float) -> torch.Tensor:
        S = G + alpha * G.diagonal().mean() * identity - means * counts @ means.mT
        return len(X) * torch.cholesky_solve(means, torch.linalg.cholesky(S)).mT

    def solve() -> torch.Tensor:
        return torch.cholesky_solve(means, torch.linalg.cholesky(G))

    gates = [
        Gate(
            "distance",
            distance(statistics.gaussian().M, head(0.3)),
            RIDGE_DISTANCE,
            distance(head(0.6), head(0.3)),
        )
    ]
    return Case(gates, [Variant("gaussian", statistics.gaussian), Variant("solve", solve)])


@pytest.mark.parametrize("key", ["gaussian"])
def test_gaussian(benchmark: Any, key: str) -> None:
    size = row(key)
    run(benchmark, size, lambda: _gaussian(size), seconds=4)
