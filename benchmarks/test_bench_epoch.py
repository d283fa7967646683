"""An epoch of the harness beside the loop that one would write by hand, and with LIP in the step."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.rows import ROWS, row
from benchmarks.running import run
from lip_fast.bench.cases import Case
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Variant
from lip_fast.harness.data import Dataset
from lip_fast.harness.runs.plan import plan_of
from lip_fast.harness.seeding import BatchOrder
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training.problem import Problem

SECONDS = 30
TEST = 10_000
# Both loops do the same arithmetic on the same batches: what is left is nothing.
DISTANCE = 1e-7


def images(n: int, d: int, l: int) -> Dataset:
    """Random rows in the sizes of Fashion-MNIST: what is in them makes no difference to the time."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((n + TEST, d), dtype=np.float32)
    Y = generator.integers(0, l, n + TEST)
    names = tuple(map(str, range(l)))
    return Dataset("images", X[:n], Y[:n], np.arange(n), X[n:], Y[n:], names)


def _epoch(size: Row) -> Case:
    dataset = images(size.n, 28 * 28, size.l)
    config = TrainConfig(noise="symmetric", holdout_fraction=0, methods=("plain",), threads=None, start=0)
    plan = plan_of(config, dataset)
    problem = Problem(config, dataset, 0, plan.algorithm, plan.epochs)
    task, evaluate = problem.learned(None), problem.evaluator()
    plain, in_step = (problem.training(task, method) for method in ("plain", "in-step"))
    fresh = problem.training(task, "plain").model
    body, head = copy.deepcopy(fresh.body), copy.deepcopy(fresh.head)
    model = nn.Sequential(body, head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    order, test = BatchOrder(0, size.n), torch.from_numpy(dataset.test_features)
    labels, epoch = torch.from_numpy(dataset.test_labels), 0

    def by_hand() -> float:
        nonlocal epoch
        for rows in order.epoch(epoch).split(config.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(task.features[rows]), task.targets[rows]).backward()
            optimizer.step()
        epoch += 1
        with torch.no_grad():
            return float((model(test).argmax(1) == labels).float().mean())

    def of_harness(training: Any) -> object:
        training.run_epoch()
        return evaluate(evaluate.look(training.model), training.model.head)

    def weight(module: nn.Module) -> Tensor:
        return nn.utils.parameters_to_vector(module.parameters()).detach()

    by_hand(), of_harness(plain)
    expected = weight(model).double()
    far = distance(weight(fresh), expected)
    variants = [
        Variant("harness", lambda: of_harness(plain)),
        Variant("by hand", by_hand),
        Variant("LIP in the step", lambda: of_harness(in_step)),
    ]

    def unrepaired() -> str | None:
        stats = in_step.lip.stats() if in_step.lip is not None else {}
        right = stats.get("applied") and not stats["skipped"]
        return None if right else f"LIP did not act on every step: {stats}"

    gate = Gate("distance", distance(weight(plain.model), expected), DISTANCE, far)
    return Case([gate], variants, after=unrepaired)


@pytest.mark.parametrize("key", [row.key for row in ROWS if row.kind == "epoch"])
def test_epoch(benchmark: Any, key: str) -> None:
    size = row(key)
    run(benchmark, size, lambda: _epoch(size), seconds=SECONDS)
