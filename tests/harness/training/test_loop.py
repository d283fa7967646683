import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import lip_fast
from lip_fast import reference
from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS
from lip_fast.harness.algorithms.features import features_of, statistics_of
from lip_fast.harness.data import Dataset
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.models import MLP, Network
from lip_fast.harness.repairs.posthoc import repaired_head
from lip_fast.harness.runs.experiment import run_seed
from lip_fast.harness.runs.plan import plan_of, trained_methods
from lip_fast.harness.seeding import BatchOrder, initialisation
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training import problem as problems
from lip_fast.harness.training.evaluation import Evaluator
from lip_fast.harness.training.loop import Training
from lip_fast.harness.training.problem import Problem

SMALL = {"epochs": 2, "hidden": (32, 16), "seeds": 1}


def problem_of(dataset: Dataset, seed: int = 0, **settings: object) -> Problem:
    """All training samples are learned from: nothing is held out."""
    config = TrainConfig(**SMALL | {"holdout_fraction": 0} | settings)
    return Problem(config, dataset, seed, ALGORITHMS["cross-entropy"], config.epochs)


def fresh(dataset: Dataset, method: str, seed: int = 0, **settings: object) -> Training:
    problem = problem_of(dataset, seed, **settings)
    return problem.training(problem.learned(None), method)


def trained(dataset: Dataset, method: str, seed: int = 0, **settings: object) -> Training:
    training = fresh(dataset, method, seed, **settings)
    for _ in range(2):
        training.run_epoch()
    return training


def rows_of(features: np.ndarray, labels: np.ndarray) -> Rows:
    return Rows(torch.from_numpy(features), torch.from_numpy(labels))


def seen_by(model: Network, rows: Rows) -> Rows:
    return Rows(features_of(model, rows.X), rows.Y)


NOTHING = Rows(torch.empty(0, 16), torch.empty(0, dtype=torch.int64))


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("method", ["plain", "in-step", "per-epoch"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_same_seed_same_bits_and_another_seed_another(digits: Dataset, method: str, optimizer: str) -> None:
    first, again, other = (trained(digits, method, seed, optimizer=optimizer).model for seed in (0, 0, 1))
    assert same_weights(first, again)
    assert not same_weights(first, other)


@pytest.mark.parametrize("samples", [None, 100])
def test_every_sample_is_trained_on_or_held_out(samples: int | None) -> None:
    config = TrainConfig(samples=samples, holdout_fraction=0.2)
    parts = [problems.split(config, 150, seed) for seed in (0, 0, 1)]
    for kept, held in parts:
        total = samples or 150
        assert (len(kept), len(held)) == (0.8 * total, 0.2 * total)
        together = np.concatenate([kept, held])
        assert len(np.unique(together)) == total
        assert set(together) <= set(range(150))
        assert (np.diff(kept) > 0).all()
        assert (np.diff(held) > 0).all()
    np.testing.assert_array_equal(parts[0][1], parts[1][1])
    assert set(parts[0][1]) != set(parts[2][1])


def test_methods_start_alike_and_see_the_same_batches(digits: Dataset) -> None:
    plain, lip, epoch = (fresh(digits, method) for method in ("plain", "in-step", "per-epoch"))
    assert same_weights(plain.model, lip.model)
    assert same_weights(plain.model, epoch.model)
    # LIP that never acts leaves no trace but in the batches, were they others.
    assert same_weights(trained(digits, "plain").model, trained(digits, "in-step", start=10**6).model)


def test_lip_in_the_step_acts_and_changes_the_head(digits: Dataset) -> None:
    training = trained(digits, "in-step", rank=4, start=0)
    assert training.lip is not None
    assert training.lip.stats()["applied"] == training.lip.stats()["steps"] == 2 * 23
    assert not same_weights(trained(digits, "plain").model.head, training.model.head)


def test_lip_in_the_step_starts_with_the_second_epoch(digits: Dataset) -> None:
    plain, training = fresh(digits, "plain"), fresh(digits, "in-step", rank=4)
    for each in (plain, training):
        each.run_epoch()
    assert training.lip is not None
    assert training.lip.stats()["applied"] == 0
    assert same_weights(plain.model, training.model)
    training.run_epoch()
    assert training.lip.stats()["applied"] == 23


def test_lip_each_epoch_is_lip_of_the_plain_head_then(digits: Dataset) -> None:
    plain, each = fresh(digits, "plain"), fresh(digits, "per-epoch", rank_afterwards=4)
    plain.run_epoch()
    epoch = each.run_epoch()
    assert same_weights(plain.model.body, each.model.body)
    rows = torch.from_numpy(digits.train_features), torch.from_numpy(problem_of(digits).labels)
    with torch.no_grad():
        statistics = statistics_of(plain.model, *rows, torch.float32)
        expected = lip_fast.lip(plain.model.head.weight.T, statistics, k=4, bias=plain.model.head.bias).T
    assert torch.equal(each.model.head.weight, expected)
    assert 0 < epoch.lip_seconds < epoch.step_seconds
    assert each.rank == 4


@pytest.mark.parametrize("fraction", [0, 0.2])
def test_the_rank_of_auto_is_chosen_by_the_hold_out(digits: Dataset, fraction: float) -> None:
    settings = {"epochs": 30, "holdout_fraction": fraction, "rank_afterwards": "auto"}
    config = TrainConfig(**SMALL | settings)
    problem = problem_of(digits, **settings)
    training = problem.training(problem.learned(None), "plain")
    for _ in range(30):
        training.run_epoch()
    seen = problem.evaluator().look(training.model)
    statistics, _ = training.statistics()
    head, rank = repaired_head("post-hoc", config, training.model.head, statistics, seen.held)
    weight, bias = training.model.head.weight.detach(), training.model.head.bias
    path = lip_fast.lip_path(weight.T, statistics, bias=bias)
    if fraction == 0:
        assert rank == lip_fast.select_rank(path)
    else:
        scores = {}
        with torch.no_grad():
            for k in range(11):
                logits = seen.held.X @ path.weight(k) + bias
                scores[k] = (logits.argmax(1) == seen.held.Y).double().mean().item()
        assert rank == max(scores, key=lambda k: (scores[k], k))
    assert torch.equal(head.weight, path.weight(rank).T)


@pytest.mark.parametrize("method", ["plain", "per-epoch"])
def test_statistics_of_what_passed(digits: Dataset, method: str) -> None:
    settings = {"statistics": "passing", "methods": ("gaussian",), "rank_afterwards": 4}
    training, expected = fresh(digits, method, **settings), lip_fast.LabelStatistics(16, 10)
    labels, order = torch.from_numpy(problem_of(digits).labels), BatchOrder(0, 1437)
    heads: list[torch.Tensor] = []

    def see(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        heads.append(inputs[0].detach())

    hook = training.model.head.register_forward_pre_hook(see)
    before: list[torch.Tensor] = []
    training.run_epoch(lambda: before.append(training.model.head.weight.detach().clone()))
    hook.remove()
    for features, rows in zip(heads, order.epoch(0).split(64), strict=True):
        expected.update(features, labels[rows])
    found, seconds = training.statistics()
    torch.testing.assert_close(found.G, expected.G)
    torch.testing.assert_close(found.C, expected.C)
    assert found.rows == 1437
    assert seconds > 0
    # Others than of a pass afterwards, for the network has changed meanwhile.
    separate = statistics_of(training.model, torch.from_numpy(digits.train_features), labels)
    assert not torch.allclose(found.C, separate.C, rtol=0.01)
    if method == "per-epoch":
        weight = lip_fast.lip(before[-1].T, expected, k=4, bias=training.model.head.bias).T
        torch.testing.assert_close(training.model.head.weight.detach(), weight)


def test_of_fixed_features_both_kinds_of_statistics_are_alike(digits: Dataset) -> None:
    settings = {"model": "linear", "methods": ("plain", "gaussian", "ridge")}
    separate, passing = (
        run_seed(TrainConfig(**SMALL | settings, statistics=which), digits, 0, lambda *_: None).records
        for which in ("separate", "passing")
    )
    for method in ("gaussian", "ridge"):
        # The last is of no direction: the rows of the weight sum to nothing.
        both = (which[method].singular_values[:-1] for which in (passing, separate))
        assert next(both) == pytest.approx(next(both), rel=1e-4)
        assert len(passing[method].repair_seconds) == 2


def test_times_of_lip_are_part_of_the_step(digits: Dataset) -> None:
    plain, lip = (fresh(digits, method).run_epoch() for method in ("plain", "in-step"))
    assert plain.lip_seconds == 0 < plain.step_seconds
    assert 0 < lip.lip_seconds < lip.step_seconds


def test_training_learns(digits: Dataset) -> None:
    problem = problem_of(digits, **dataclasses.asdict(TrainConfig(noise="none", holdout_fraction=0)))
    training = problem.training(problem.learned(None), "plain")
    losses = [training.run_epoch().loss for _ in range(5)]
    assert losses[-1] < losses[0] / 2
    evaluate = problem.evaluator()
    scores = evaluate(evaluate.look(training.model), training.model.head)
    assert scores.test_accuracy > 0.9
    assert scores.memorised is None  # no label is wrong
    assert scores.validation is None  # none is held out


def test_the_rate_of_a_cosine_goes_down_to_nothing_after_the_last_epoch(digits: Dataset) -> None:
    training = fresh(digits, "plain", schedule="cosine", epochs=4, lr=0.1, batch_size=2000)
    rates = []
    for _ in range(4):
        training.run_epoch()
        rates.append(training.state_dict()["optimizer"]["param_groups"][0]["lr"])
    assert rates == pytest.approx([0.1, 0.1 * (2 + 2**0.5) / 4, 0.05, 0.1 * (2 - 2**0.5) / 4])


def test_a_sample_left_over_joins_the_batch_before(digits: Dataset) -> None:
    training = fresh(digits, "plain", samples=129, model="cnn")  # batch normalisation needs two
    seen: list[int] = []
    training.run_epoch(lambda: seen.append(training.state_dict()["batch"]))
    assert seen == [1, 2]


def test_augmentation_changes_what_is_learned_and_nothing_else(digits: Dataset) -> None:
    settings = {"model": "cnn", "samples": 200}
    plain, changed, again = (
        trained(digits, "plain", augment=augment, **settings).model
        for augment in ("none", "crop-flip", "crop-flip")
    )
    assert same_weights(changed, again)
    assert not same_weights(plain, changed)


def test_global_random_state_is_left_alone(digits: Dataset) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    config = TrainConfig(**SMALL)
    plan_of(config, digits)
    run_seed(config, digits, 0, lambda method, accuracy: None)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize(("rank", "kept"), [(3, 3), (0.25, 3), ("auto", None)])
def test_repaired_head_is_the_papers(digits: Dataset, rank: int | float | str, kept: int | None) -> None:
    model = trained(digits, "plain").model.double()
    labels = problem_of(digits).labels
    rows = rows_of(digits.train_features.astype(np.float64), labels)
    before = model.head.weight.clone()
    head, k = repaired_head(
        "post-hoc", TrainConfig(rank_afterwards=rank), model.head, statistics_of(model, *rows), NOTHING
    )
    assert 0 < k < 10
    assert kept in (k, None)
    with torch.no_grad():
        expected = reference.lip(
            model.head.weight.T,
            model.features(rows.X),
            reference.one_hot(rows.Y, 10, torch.float64),
            k,
            bias=model.head.bias,
        ).T
    torch.testing.assert_close(head.weight, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(head.weight, before)
    assert torch.equal(model.head.weight, before)


def test_evaluator_counts_right_memorised_and_held_out(digits: Dataset) -> None:
    with initialisation(0):
        model = MLP(64, [8], 10)
    clean, labels = digits.train_labels, digits.train_labels.copy()
    labels[:100] = (labels[:100] + 1) % 10
    train, held = slice(0, 1000), slice(1000, None)
    labels[1000:1100] = 4
    evaluate = Evaluator(
        rows_of(digits.train_features[train], labels[train]),
        rows_of(digits.train_features[held], labels[held]),
        rows_of(digits.test_features, digits.test_labels),
        torch.from_numpy(clean[train]),
    )
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(10) == 4)  # says 4, whatever comes
    scores = evaluate(evaluate.look(model), model.head)
    assert scores.test_accuracy == pytest.approx((digits.test_labels == 4).mean())
    assert scores.memorised == pytest.approx((labels[:100] == 4).mean())
    assert scores.validation == pytest.approx((labels[1000:] == 4).mean())


def test_seed_result_has_one_entry_for_each_epoch_and_method(digits: Dataset) -> None:
    seen: list[str] = []
    methods = ("plain", "in-step", "post-hoc")
    config = TrainConfig(**SMALL, rank=6, rank_afterwards=6, methods=methods)
    result = run_seed(config, digits, 3, lambda method, accuracy: seen.append(method))
    assert seen == ["plain"] * 2 + ["in-step"] * 2
    assert tuple(result.records) == methods
    for method, record in result.records.items():
        assert [len(values) for values in (record.test_accuracy, record.memorised)] == [2, 2]
        assert [len(values) for values in (record.train_loss, record.step_seconds)] == [2, 2]
        assert [len(values) for values in (record.validation, record.lip_seconds)] == [2, 2]
        assert None not in record.validation
        assert len(record.singular_values) == 10
        assert record.rank == (None if method == "plain" else 6)
        assert len(record.repair_seconds) == (2 if method == "post-hoc" else 0)
        assert bool(record.path) == (method == "post-hoc")
    assert (
        result.records["in-step"].lip["applied"] == 21
    )  # the second epoch, of 1293: the others are held out
    assert (result.labels != digits.train_labels).sum() == round(0.4 * 1437)


def test_afterwards_shares_the_plain_training(digits: Dataset) -> None:
    alone = TrainConfig(**SMALL, methods=("post-hoc",))
    assert trained_methods(alone) == ["plain"]
    assert trained_methods(TrainConfig()) == ["plain", "in-step", "per-epoch"]
    record = run_seed(alone, digits, 0, lambda method, accuracy: None).records["post-hoc"]
    both = run_seed(TrainConfig(**SMALL), digits, 0, lambda method, accuracy: None).records
    assert record.test_accuracy == both["post-hoc"].test_accuracy
    assert record.train_loss == both["plain"].train_loss


def test_no_method_learns_from_clean_labels(digits: Dataset, monkeypatch) -> None:
    labels = problem_of(digits).labels
    monkeypatch.setattr(problems, "training_labels", lambda *arguments: labels)
    methods = ("plain", "in-step", "per-epoch", "post-hoc", "ridge", "auto")
    config = TrainConfig(**SMALL, rank=4, rank_afterwards=4, methods=methods)
    lie = Dataset(**{**vars(digits), "train_labels": (digits.train_labels + 1) % 10})
    told_truth, told_lie = (
        run_seed(config, dataset, 0, lambda method, accuracy: None).records for dataset in (digits, lie)
    )
    assert list(told_truth) == list(methods)
    for method in methods:
        assert told_truth[method].validation == told_lie[method].validation
        assert told_truth[method].test_accuracy == told_lie[method].test_accuracy
        assert told_truth[method].singular_values == told_lie[method].singular_values
        assert told_truth[method].memorised != told_lie[method].memorised  # these are for scoring


@pytest.mark.parametrize("method", ["plain", "in-step", "per-epoch", "post-hoc"])
def test_divergence_is_the_users_to_put_right(digits: Dataset, method: str) -> None:
    config = TrainConfig(**SMALL, methods=(method,), optimizer="sgd", lr=1e9)
    with pytest.raises(UserError, match="training diverged with --lr"):
        run_seed(config, digits, 0, lambda method, accuracy: None)


@pytest.mark.parametrize("settings", [{}, {"algorithm": "confident-learning", "options": {"folds": 2}}])
def test_a_rate_beyond_float32_is_divergence(digits: Dataset, settings: dict) -> None:
    config = TrainConfig(**SMALL, methods=("plain",), lr=1e300, **settings)
    with pytest.raises(UserError, match="training diverged with --lr"):
        run_seed(config, digits, 0, lambda method, accuracy: None)


def test_all_methods_hold_the_same_samples_out_of_every_training(digits: Dataset) -> None:
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
    # What a method is compared with does not change what it does.
    alone = dataclasses.replace(config, methods=("plain",))
    assert (
        run_seed(alone, digits, 0, lambda method, accuracy: None).records["plain"].test_accuracy
        == result.records["plain"].test_accuracy
    )


def test_held_out_samples_choose_and_nothing_else(digits: Dataset) -> None:
    model, labels = trained(digits, "plain").model, problem_of(digits).labels
    rows, held = (
        seen_by(model, rows_of(digits.train_features[part], labels[part]))
        for part in (slice(0, 1000), slice(1000, None))
    )
    statistics = lip_fast.LabelStatistics(16, 10).update(*rows)
    head, rank = repaired_head("ridge", TrainConfig(), model.head, statistics, held)
    with torch.no_grad():
        report = lip_fast.repair(model.head, statistics, "ridge", tuple(held))
        assert torch.equal(head.weight, report.head.weight)
        agreement = (head(held.X).argmax(1) == held.Y).double().mean()
    assert rank is None
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
