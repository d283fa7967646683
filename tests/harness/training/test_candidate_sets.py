"""Training on candidate sets, from the loss to the repaired head."""

import numpy as np
import pytest
import torch

from lip_fast import LabelStatistics, reference
from lip_fast.harness.algorithms import ALGORITHMS
from lip_fast.harness.algorithms.features import label_weights
from lip_fast.harness.algorithms.label_loss import label_loss
from lip_fast.harness.data import Dataset
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.models import MLP
from lip_fast.harness.noise.labels import as_targets, training_labels
from lip_fast.harness.repairs.posthoc import repaired_head
from lip_fast.harness.runs.experiment import run_seed
from lip_fast.harness.seeding import initialisation
from lip_fast.harness.settings.train import METHODS, TrainConfig
from lip_fast.harness.training.evaluation import Evaluator, agreement
from lip_fast.harness.training.problem import Problem

SMALL = {"epochs": 2, "hidden": (32, 16), "seeds": 1, "noise": "partial", "noise_rate": 0.3}


def test_loss_is_the_papers(generator: torch.Generator) -> None:
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    candidates = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]] * 2).double()
    expected = -(logits.softmax(1) * candidates).sum(1).log().mean()
    loss = label_loss(logits, candidates)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_one_candidate_each_is_cross_entropy(generator: torch.Generator) -> None:
    logits = torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    one_hot = torch.nn.functional.one_hot(labels, 4).float()
    torch.testing.assert_close(label_loss(logits, one_hot), label_loss(logits, labels))


def test_loss_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = label_loss(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    loss.backward()
    assert loss.item() == 2e4
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_training_on_sets_learns(digits: Dataset) -> None:
    config = TrainConfig(noise="partial", noise_rate=0.3)
    problem = Problem(config, digits, 0, ALGORITHMS["cc"], config.epochs)
    training = problem.training(problem.learned(None), "plain")
    losses = [training.run_epoch().loss for _ in range(8)]
    assert losses[-1] < losses[0] / 2
    evaluate = problem.evaluator()
    assert evaluate(evaluate.look(training.model), training.model.head).test_accuracy > 0.9


def test_every_method_runs_on_sets(digits: Dataset) -> None:
    result = run_seed(
        TrainConfig(**SMALL, rank=6, rank_afterwards=6, methods=tuple(METHODS)),
        digits,
        0,
        lambda method, accuracy: None,
    )
    assert result.labels.shape == (1437, 10)
    assert result.records["in-step"].lip["applied"] == 21
    assert list(result.records) == list(METHODS)
    for record in result.records.values():
        assert all(0 <= value <= 1 for value in record.validation if value is not None)
        assert all(0 <= value <= 1 for value in record.memorised if value is not None)
    plain, in_step = (result.records[method].singular_values for method in ("plain", "in-step"))
    assert plain != in_step


def test_repaired_head_is_the_papers(digits: Dataset) -> None:
    candidates = training_labels("partial", 0.3, digits, 0)
    with initialisation(0):
        model = MLP(64, [16], 10).double()
    X, Y = torch.from_numpy(digits.train_features.astype(np.float64)), as_targets(candidates)
    with torch.no_grad():
        features = model.features(X)
    weights = Y.double() / Y.sum(1, keepdim=True)
    assert torch.equal(label_weights(Y), weights)
    statistics = LabelStatistics(16, 10).update(features, weights)
    head, k = repaired_head(
        "post-hoc", TrainConfig(rank_afterwards=4), model.head, statistics, Rows(features[:0], Y[:0])
    )
    with torch.no_grad():
        expected = reference.lip(
            model.head.weight.T,
            features,
            weights,
            k,
            bias=model.head.bias,
        ).T
    torch.testing.assert_close(head.weight, expected, rtol=1e-9, atol=1e-9)


def test_memorised_counts_wrong_candidates(digits: Dataset) -> None:
    with initialisation(0):
        model = MLP(64, [8], 10)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(10) == 4)  # says 4, whatever comes
    clean, X = digits.train_labels, torch.from_numpy(digits.train_features)
    test = Rows(torch.from_numpy(digits.test_features), torch.from_numpy(digits.test_labels))

    def memorised(candidates: np.ndarray) -> float | None:
        Y = as_targets(candidates)
        evaluate = Evaluator(Rows(X, Y), Rows(X[:0], Y[:0]), test, torch.from_numpy(clean))
        return evaluate(evaluate.look(model), model.head).memorised

    candidates = np.eye(10, dtype=np.uint8)[clean]
    assert memorised(candidates) is None
    candidates[:100, 4] = 1
    candidates[100:150, 5] = 1
    wrong = np.r_[(clean[:100] != 4), (clean[100:150] != 5)].sum()
    assert memorised(candidates) == pytest.approx((clean[:100] != 4).sum() / wrong)


def test_agreement_with_candidates() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [5.0, 1.0, 1.0], [0.0, 0.0, 9.0], [0.0, 3.0, 1.0]])
    candidates = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    assert agreement(logits, candidates) == 0.5
