"""A step of LIPAdamW against AdamW and the three products; and against AdamW where LIP has nothing to do."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.rows import ROWS, row
from benchmarks.running import run
from lip_fast import reference
from lip_fast.bench import steps
from lip_fast.bench.cases import Case, require_memory
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.problems import LEARNING_RATE, step
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Variant
from lip_fast.optim import LIPAdamW

# The basis is warm after a few steps; the timing should see none of the first.
WARM_STEPS, LARGE_WARM_STEPS = 20, 5
# Values of a head that no cache holds, where a step takes a tenth of a second: fewer steps and gradients, and
# none to fill the caches.
LARGE = 1 << 24
SECONDS, PLAIN_SECONDS = 8, 1
LARGE_BATCHES = 2
# Rows of a large head where nothing is timed.
UNTIMED_ROWS = 2000

# In the middle, on a logarithmic scale: at most 6e-5 measured, 1e-2 without a refit.
DISTANCE = 5e-4


def _lip_step(M: Tensor, X: Tensor, y: Tensor, size: Row) -> tuple[Tensor, float]:
    """The step of the reference in float64, and how far off the weight without a refit is.

    A factor with orthonormal columns stays outside: with M = Q R the step is Q times that on R, labels Y Q.
    Of a tall weight R is small.
    """
    assert size.tail_rank is not None
    M, X = M.double(), X.double()
    l, q = M.shape
    R, Y = M, reference.one_hot(y, l, torch.float64)
    tall = l > 4 * q
    if tall:
        R = torch.linalg.cholesky(M.mT @ M).mT
        Y = torch.linalg.solve_triangular(R, M[y], upper=True, left=False)
    expected = reference.lip_step(R, X, Y, size.k, size.tail_rank, rest=size.rest)
    unrefitted = reference.lip_step(R, X, Y, size.k + size.tail_rank, 0, rest=size.rest)
    without = distance(unrefitted, expected)
    if tall:
        expected = M @ torch.linalg.solve_triangular(R, expected, upper=True)
    return expected, without


def _optimizer_step(size: Row, *, disabled: bool) -> Case:
    large = size.l * size.q > LARGE
    if large and disabled:
        size = dataclasses.replace(size, l=UNTIMED_ROWS, q=size.q // 4)
    require_memory(torch.device("cpu"), 4.0 * size.l * size.q * 20)
    problem = step(size, LARGE_BATCHES) if large else step(size)
    ours = steps.OptimizerStep(problem, size)
    for _ in range(LARGE_WARM_STEPS if large else WARM_STEPS):
        ours.prepare()
        ours()
    state = ours.state()
    base = steps.BaseStep(problem, size, state)
    for variant in (base, ours):
        variant.prepare()
        variant()
    expected, without = _lip_step(base.weight, base.X, base.y, size)
    gates = [Gate("distance", distance(ours.weight, expected), DISTANCE, without)]
    variants = [
        ours.variant("inside the optimizer"),
        base.variant("base step"),
        Variant("three products", steps.Products(state, size)),
    ]
    sums = {"floor": ("base step", "three products")}
    floors = steps.step_floors(size, torch.device("cpu"))
    return Case(gates, variants, floors=floors, sums=sums, after=ours.skipped)


@pytest.mark.parametrize("key", [row.key for row in ROWS if row.kind == "optimizer"])
def test_optimizer_step(benchmark: Any, key: str) -> None:
    size = row(key)
    disabled = bool(benchmark.disabled)
    run(benchmark, size, lambda: _optimizer_step(size, disabled=disabled), seconds=SECONDS)


def _network(size: Row) -> nn.Module:
    """Linear layers with biases, each with the gradient of a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(size.q, size.q) for _ in range(size.n - 1)]
        network = nn.Sequential(*layers, nn.Linear(size.q, size.l))
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    return network


def _values(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def _plain_step(size: Row) -> Case:
    network, other = _network(size), _network(size)
    ours = LIPAdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
    base = torch.optim.AdamW(other.parameters(), lr=LEARNING_RATE, fused=True)
    before = _values(network)
    for _ in range(3):
        ours.step()
        base.step()
    expected = _values(other).double()
    # The same bits.
    gates = [Gate("distance", distance(_values(network), expected), 0, distance(before, expected))]
    return Case(gates, [Variant("LIPAdamW", ours.step), Variant("base step", base.step)])


@pytest.mark.parametrize("key", [row.key for row in ROWS if row.kind == "plain-optimizer"])
def test_optimizer_without_lip(benchmark: Any, key: str) -> None:
    size = row(key)
    run(benchmark, size, lambda: _plain_step(size), seconds=PLAIN_SECONDS)
