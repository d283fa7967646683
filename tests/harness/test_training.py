import numpy as np
import pytest
import torch
from torch import nn

import lip_fast
from lip_fast import reference
from lip_fast.harness import experiment
from lip_fast.harness.config import TrainConfig
from lip_fast.harness.data import Dataset
from lip_fast.harness.errors import UserError
from lip_fast.harness.evaluation import Evaluator
from lip_fast.harness.experiment import check_fits, run_seed, trained_methods
from lip_fast.harness.models import MLP
from lip_fast.harness.noise import make_noisy
from lip_fast.harness.posthoc import Rows, repaired_head
from lip_fast.harness.seeding import initialisation, stream
from lip_fast.harness.training import Training

SMALL = {"epochs": 2, "hidden": (32, 16), "seeds": 1}


def noisy_labels(dataset: Dataset, seed: int = 0) -> np.ndarray:
    return make_noisy("symmetric", dataset.train_labels, 0.4, 10, stream(seed, "noise"))


def trained(dataset: Dataset, *, in_step: bool, seed: int = 0, **settings: object) -> Training:
    training = Training(
        TrainConfig(**SMALL | settings), dataset, noisy_labels(dataset), seed, in_step=in_step
    )
    for _ in range(2):
        training.run_epoch()
    return training


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_same_seed_same_bits_and_another_seed_another(digits: Dataset, in_step: bool, optimizer: str) -> None:
    first, again, other = (
        trained(digits, in_step=in_step, seed=seed, optimizer=optimizer).model for seed in (0, 0, 1)
    )
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_methods_start_alike_and_see_the_same_batches(digits: Dataset) -> None:
    labels = noisy_labels(digits)
    plain, lip = (
        Training(TrainConfig(**SMALL), digits, labels, 0, in_step=in_step) for in_step in (False, True)
    )
    assert same_weights(plain.model, lip.model)
    # LIP that never acts leaves no trace but in the batches, were they others.
    assert same_weights(
        trained(digits, in_step=False).model, trained(digits, in_step=True, start=10**6).model
    )


def test_lip_in_the_step_acts_and_changes_the_head(digits: Dataset) -> None:
    training = trained(digits, in_step=True, rank=4)
    assert training.lip is not None
    assert training.lip.stats()["applied"] == training.lip.stats()["steps"] == 2 * 23
    assert not same_weights(trained(digits, in_step=False).model.head, training.model.head)


def test_training_learns(digits: Dataset) -> None:
    training = Training(TrainConfig(), digits, digits.train_labels, 0, in_step=False)
    losses = [training.run_epoch().loss for _ in range(5)]
    assert losses[-1] < losses[0] / 2
    scores = Evaluator(digits, digits.train_labels)(training.model, training.model.head)
    assert scores.test_accuracy > 0.9
    assert scores.memorised is None  # no label is wrong


def test_global_random_state_is_left_alone(digits: Dataset) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    config = TrainConfig(**SMALL)
    check_fits(config, digits)
    run_seed(config, digits, 0, lambda method, accuracy: None)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize(("rank", "kept"), [(3, 3), (0.25, 3), ("auto", None)])
def test_repaired_head_is_the_papers(digits: Dataset, rank: int | float | str, kept: int | None) -> None:
    model = trained(digits, in_step=False).model.double()
    labels = noisy_labels(digits)
    wide = Dataset(**{**vars(digits), "train_features": digits.train_features.astype(np.float64)})
    before = model.head.weight.clone()
    rows = Rows(wide.train_features, labels)
    head, k = repaired_head("post-hoc", TrainConfig(rank=rank), model, rows, None)
    assert 0 < k < 10
    assert kept in (k, None)
    with torch.no_grad():
        expected = reference.lip(
            model.head.weight.T,
            model.features(torch.from_numpy(wide.train_features)),
            reference.one_hot(torch.from_numpy(labels), 10, torch.float64),
            k,
            bias=model.head.bias,
        ).T
    torch.testing.assert_close(head.weight, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(head.weight, before)
    assert torch.equal(model.head.weight, before)


def test_evaluator_counts_right_and_memorised(digits: Dataset) -> None:
    with initialisation(0):
        model = MLP(64, [8], 10)
    labels = digits.train_labels.copy()
    labels[:100] = (labels[:100] + 1) % 10
    evaluate = Evaluator(digits, labels)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(10) == 4)  # says 4, whatever comes
    scores = evaluate(model, model.head)
    assert scores.test_accuracy == pytest.approx((digits.test_labels == 4).mean())
    assert scores.memorised == pytest.approx((labels[:100] == 4).mean())


def test_seed_result_has_one_entry_for_each_epoch_and_method(digits: Dataset) -> None:
    seen: list[str] = []
    config = TrainConfig(**SMALL, rank=6)
    result = run_seed(config, digits, 3, lambda method, accuracy: seen.append(method))
    assert seen == ["plain"] * 2 + ["in-step"] * 2
    assert list(result.records) == ["plain", "in-step", "post-hoc"]
    for method, record in result.records.items():
        assert [len(values) for values in (record.test_accuracy, record.memorised)] == [2, 2]
        assert [len(values) for values in (record.train_loss, record.step_seconds)] == [2, 2]
        assert len(record.singular_values) == 10
        assert record.rank == (None if method == "plain" else 6)
        assert len(record.repair_seconds) == (2 if method == "post-hoc" else 0)
    assert result.records["in-step"].lip["applied"] == 2 * 23
    assert (result.labels != digits.train_labels).sum() == round(0.4 * 1437)


def test_afterwards_shares_the_plain_training(digits: Dataset) -> None:
    alone = TrainConfig(**SMALL, methods=("post-hoc",))
    assert trained_methods(alone) == ["plain"]
    assert trained_methods(TrainConfig()) == ["plain", "in-step"]
    record = run_seed(alone, digits, 0, lambda method, accuracy: None).records["post-hoc"]
    both = run_seed(TrainConfig(**SMALL), digits, 0, lambda method, accuracy: None).records
    assert record.test_accuracy == both["post-hoc"].test_accuracy
    assert record.train_loss == both["plain"].train_loss


def test_no_method_learns_from_clean_labels(digits: Dataset, monkeypatch) -> None:
    labels = noisy_labels(digits)
    monkeypatch.setattr(experiment, "training_labels", lambda *arguments: labels)
    config = TrainConfig(**SMALL, rank=4)
    lie = Dataset(**{**vars(digits), "train_labels": (digits.train_labels + 1) % 10})
    told_truth, told_lie = (
        run_seed(config, dataset, 0, lambda method, accuracy: None).records for dataset in (digits, lie)
    )
    for method in ("plain", "in-step", "post-hoc"):
        assert told_truth[method].test_accuracy == told_lie[method].test_accuracy
        assert told_truth[method].singular_values == told_lie[method].singular_values
        assert told_truth[method].memorised != told_lie[method].memorised  # these are for scoring


@pytest.mark.parametrize("method", ["plain", "in-step", "post-hoc"])
def test_divergence_is_the_users_to_put_right(digits: Dataset, method: str) -> None:
    config = TrainConfig(**SMALL, methods=(method,), optimizer="sgd", lr=1e9)
    with pytest.raises(UserError, match="training diverged with --lr"):
        run_seed(config, digits, 0, lambda method, accuracy: None)


def test_choosing_repairs_hold_samples_out_of_every_training(digits: Dataset) -> None:
    config = TrainConfig(**SMALL, methods=("plain", "in-step", "ridge", "auto"), holdout_fraction=0.2)
    result = run_seed(config, digits, 0, lambda method, accuracy: None)
    assert list(result.records) == ["plain", "in-step", "ridge", "auto"]
    assert len(result.labels) == len(digits.train_labels)
    # Repairs share the plain training; the in-step one sees the same samples.
    assert result.records["ridge"].train_loss == result.records["plain"].train_loss
    without = run_seed(TrainConfig(**SMALL, methods=("plain",)), digits, 0, lambda method, accuracy: None)
    assert without.records["plain"].train_loss != result.records["plain"].train_loss
    for method in ("ridge", "auto"):
        assert len(result.records[method].test_accuracy) == 2
        assert len(result.records[method].repair_seconds) == 2


def test_held_out_samples_choose_and_nothing_else(digits: Dataset) -> None:
    model = trained(digits, in_step=False).model
    labels = noisy_labels(digits)
    rows = Rows(digits.train_features[:1000], labels[:1000])
    held = Rows(digits.train_features[1000:], labels[1000:])
    head, rank = repaired_head("ridge", TrainConfig(), model, rows, held)
    assert rank is None
    with torch.no_grad():
        features, targets = rows.of(model)
        statistics = lip_fast.LabelStatistics(features.shape[1], 10).update(features, targets)
        report = lip_fast.repair(model.head, statistics, "ridge", held.of(model))
        assert torch.equal(head.weight, report.head.weight)
        held_features, held_targets = held.of(model)
        agreement = (head(held_features).argmax(1) == held_targets).double().mean()
    assert float(agreement) == pytest.approx(max(c.score for c in report.candidates[1:]))


def test_a_ridge_head_on_wrong_labels_is_better_than_the_head_that_learned_them(digits: Dataset) -> None:
    settings = {"epochs": 50, "seeds": 1}  # long enough to learn wrong labels by heart
    config = TrainConfig(**settings, methods=("plain", "ridge"))
    records = run_seed(config, digits, 0, lambda method, accuracy: None).records
    assert records["ridge"].test_accuracy[-1] > records["plain"].test_accuracy[-1] + 0.05


def test_a_hold_out_that_is_empty_is_refused(digits: Dataset) -> None:
    config = TrainConfig(**SMALL, methods=("ridge",), holdout_fraction=1e-6)
    with pytest.raises(UserError, match="samples on both sides, got 1e-06 of 1437"):
        run_seed(config, digits, 0, lambda method, accuracy: None)
