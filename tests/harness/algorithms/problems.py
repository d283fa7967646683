"""Small tasks for the algorithms, and what their losses are checked against."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lip_fast.harness.algorithms import ALGORITHMS, Algorithm, Task
from lip_fast.harness.models import MLP
from lip_fast.harness.seeding import initialisation


def make_task(
    targets: Any,
    features: Tensor | None = None,
    *,
    classes: int = 3,
    seed: int = 0,
    clean_rows: Any = (),
    clean_labels: Any = (),
    options: Mapping[str, float] = {},
) -> Task:
    targets = torch.as_tensor(targets)
    features = torch.zeros(len(targets), 2) if features is None else features
    clean = (torch.as_tensor(x, dtype=torch.int64) for x in (clean_rows, clean_labels))
    return Task(features, targets, classes, 1, seed, *clean, options)


def make(name: str, targets: Any, **options: float) -> Algorithm:
    return ALGORITHMS[name](make_task(targets, options=options))


def make_network(inputs: int = 2, hidden: int = 16, classes: int = 3, seed: int = 0) -> MLP:
    with initialisation(seed):
        return MLP(inputs, [hidden], classes)


def softmax(Z: np.ndarray) -> np.ndarray:
    P = np.exp(Z - Z.max(1, keepdims=True))
    return P / P.sum(1, keepdims=True)


def assert_loss_is(
    algorithm: Algorithm, Z: np.ndarray, rows: list[int], formula: Callable[[np.ndarray], float]
) -> None:
    """The loss of logits ``Z`` is that of the formula, and its gradient that of the formula's differences."""
    logits = torch.tensor(Z, dtype=torch.float64, requires_grad=True)
    loss = algorithm.loss(logits, torch.tensor(rows))
    assert loss.shape == ()
    (gradient,) = torch.autograd.grad(loss, logits)
    # What algorithms remember of rows is float32.
    np.testing.assert_allclose(loss.item(), formula(Z), rtol=1e-6, atol=1e-6)
    expected, h = np.empty_like(Z), 1e-5
    for place in np.ndindex(Z.shape):
        step = np.zeros_like(Z)
        step[place] = h
        expected[place] = (formula(Z + step) - formula(Z - step)) / (2 * h)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5, atol=1e-7)


# Three rows of logits over three classes, and labels of four rows.
Z = np.array([[1.0, -0.5, 0.3], [0.2, 2.0, -1.0], [-3.0, 0.0, 1.5]])
LABELS = [2, 0, 1, 0]
CANDIDATES = [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
# The rows of the task that Z belongs to.
ROWS = [3, 0, 1]


def blobs(n: int = 150, wrong: float = 0.3, seed: int = 0) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Features (n, 2) of three well separated classes, their labels, and the labels with wrong ones."""
    generator = np.random.default_rng(seed)
    clean = generator.integers(3, size=n)
    centres = np.array([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    X = centres[clean] + 0.4 * generator.standard_normal((n, 2))
    noisy = clean.copy()
    rows = generator.choice(n, round(wrong * n), replace=False)
    noisy[rows] = (clean[rows] + generator.integers(1, 3, len(rows))) % 3
    return torch.tensor(X, dtype=torch.float32), clean, noisy


def candidates_of(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """(n, 3) float32: the label, and each other class for 3 of 10 rows."""
    Y = np.random.default_rng(seed).random((len(labels), 3)) < 0.3
    Y[np.arange(len(labels)), labels] = True
    return Y.astype(np.float32)


def take_step(algorithm: Algorithm, model: MLP, rows: Tensor, lr: float = 0.1) -> None:
    """What the training loop does with a batch, by plain gradient descent."""
    model.train()
    model.zero_grad()
    algorithm.before_forward(model)
    algorithm.loss(model(algorithm.task.features[rows]), rows).backward()
    algorithm.before_step(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight -= lr * weight.grad
