"""Early stopping and repairs, scored beside the plain training."""

from torch import nn

from lip_fast.harness.data import Dataset
from lip_fast.harness.runs.experiment import run_seed
from lip_fast.harness.runs.records import Record
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training import loop
from lip_fast.harness.training.evaluation import Scores

SMALL = {"epochs": 20, "hidden": (24,), "seeds": 1, "lr": 0.01, "batch_size": 128}


def silent(method: str, accuracy: float) -> None:
    pass


def test_early_stopping_by_hand() -> None:
    plain, stopped = Record(), Record()
    found = []
    for epoch, validation in enumerate([0.3, 0.5, 0.4, 0.5, 0.1]):
        plain.score(Scores(epoch / 10, validation, epoch / 100), nn.Identity())
        plain.singular_values = [float(epoch)]
        stopped.follow(plain)
        found.append((plain.chosen_epoch, stopped.test_accuracy[-1], stopped.singular_values))
    # Of equals the latest is taken; what came before stays as it was told.
    assert found == [(0, 0.0, [0.0]), (1, 0.1, [1.0]), (1, 0.1, [1.0]), (3, 0.3, [3.0]), (3, 0.3, [3.0])]
    assert stopped.validation == [0.3, 0.5, 0.5, 0.5, 0.5]
    assert stopped.memorised == [0.0, 0.01, 0.01, 0.03, 0.03]
    assert stopped.chosen_epoch == 4  # of itself the last is as good as any


def test_early_stopping_is_the_plain_network_of_its_best_epoch(digits: Dataset) -> None:
    records = run_seed(
        TrainConfig(**SMALL, methods=("plain", "early-stop", "in-step")), digits, 0, silent
    ).records
    assert list(records) == ["plain", "early-stop", "in-step"]
    plain, stopped = records["plain"], records["early-stop"]
    assert plain.chosen_epoch is not None
    assert plain.chosen_epoch < 19
    assert stopped.test_accuracy[-1] == plain.test_accuracy[plain.chosen_epoch] != plain.test_accuracy[-1]
    assert stopped.test_accuracy[0] == plain.test_accuracy[0]
    assert (stopped.train_loss, stopped.step_seconds) == (plain.train_loss, plain.step_seconds)
    assert stopped.repair_seconds == []


def test_it_needs_no_linear_head(digits: Dataset) -> None:
    settings = {"algorithm": "pl-knn", "model": "linear", "methods": ("early-stop",)}
    record = run_seed(TrainConfig(**settings, samples=300), digits, 0, silent).records["early-stop"]
    assert len(record.test_accuracy) == 1
    assert record.singular_values == []


def test_repairs_of_the_best_epochs_are_those_of_all_epochs(digits: Dataset) -> None:
    methods = ("plain", "post-hoc", "ridge")
    every, best = (
        run_seed(TrainConfig(**SMALL, methods=methods, repair_epochs=which), digits, 0, silent).records
        for which in ("all", "best")
    )
    plain = every["plain"].validation
    scored = [v == max(plain[: epoch + 1]) for epoch, v in enumerate(plain)]
    assert not all(scored)
    assert best["plain"].validation == plain
    for method in methods[1:]:
        for name in ("test_accuracy", "validation", "memorised"):
            whole, some = getattr(every[method], name), getattr(best[method], name)
            assert some == [v if s or v is whole[-1] else None for v, s in zip(whole, scored, strict=True)]
        assert len(best[method].repair_seconds) == sum(scored[:-1]) + 1
        assert best[method].singular_values == every[method].singular_values
    assert best["post-hoc"].path == every["post-hoc"].path


def test_statistics_are_taken_once_for_all_repairs_of_an_epoch(digits: Dataset, monkeypatch) -> None:
    taken: list[int] = []
    statistics_of = loop.statistics_of
    monkeypatch.setattr(loop, "statistics_of", lambda *a: (taken.append(1), statistics_of(*a))[1])
    config = TrainConfig(**{**SMALL, "epochs": 2}, methods=("plain", "post-hoc", "ridge"))
    run_seed(config, digits, 0, silent)
    assert len(taken) == 2
