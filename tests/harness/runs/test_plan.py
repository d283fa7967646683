import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset
from lip_fast.harness.runs.plan import plan_of, trained_methods
from lip_fast.harness.settings.train import CHOOSING, METHODS, REPAIRS, TrainConfig

# No images, and two classes.
VECTORS = Dataset(
    "vectors",
    np.zeros((40, 5), np.float32),
    np.arange(40) % 2,
    np.arange(40),
    np.zeros((10, 5), np.float32),
    np.arange(10) % 2,
    ("a", "b"),
)


def refusal(dataset: Dataset, settings: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        plan_of(TrainConfig(**settings), dataset)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"algorithm": "proden"},
            "expected an algorithm that learns from one label for each sample, one of cross-entropy, gce",
        ),
        ({"algorithm": "proden"}, "got proden"),
        (
            {"algorithm": "elr", "noise": "partial"},
            "expected an algorithm that learns from candidate sets, one of",
        ),
        ({"algorithm": "elr", "noise": "partial"}, "got elr"),
        (
            {"algorithm": "linear-ridge", "model": "linear"},
            "expected no method in-step, per-epoch with --algorithm linear-ridge: it takes no steps",
        ),
        (
            {"algorithm": "linear-ridge", "model": "linear", "methods": ("per-epoch", "in-step", "ridge")},
            "expected no method per-epoch, in-step with",
        ),
        (
            {"algorithm": "pl-knn", "noise": "partial", "model": "linear", "methods": ("plain", "post-hoc")},
            "expected no method post-hoc with --algorithm pl-knn: it has no linear head",
        ),
        (
            {"algorithm": "pl-knn", "noise": "partial", "model": "linear", "methods": REPAIRS},
            "expected no method post-hoc, ridge, gaussian, gaussian+trained, auto with",
        ),
        (
            {"algorithm": "linear-ridge", "methods": ("plain",)},
            "expected --model linear with --algorithm linear-ridge, which trains no network, got mlp",
        ),
        (
            {"algorithm": "linear-ridge", "model": "linear", "methods": ("plain",), "statistics": "passing"},
            "expected --statistics separate with --algorithm linear-ridge, which takes no steps, got passing",
        ),
        ({"augment": "crop-flip"}, "expected --augment none, for vectors has no images, got crop-flip"),
        ({"model": "cnn"}, "expected images for model cnn, got vectors of 5 features"),
        ({"samples": 41}, "expected --samples of at most the 40 there are, got 41"),
        ({"samples": 3}, "expected --holdout-fraction to leave samples on both sides, got 0.1 of 3"),
        ({"holdout_fraction": 0.999}, "got 0.999 of 40"),
        ({"rank": 3}, "rank"),
        ({"rank_afterwards": 3}, "rank"),
        ({"rank_afterwards": "most"}, "most"),
        ({"noise": "own"}, "expected data that come with wrong labels for --noise own, got vectors"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_the_data_is_refused(settings: dict[str, Any], expected: str) -> None:
    assert expected in refusal(VECTORS, settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        *(
            ({"methods": (method,), "holdout_fraction": 0}, f"above 0 for {method}, which choose by held-out")
            for method in CHOOSING
        ),
        ({"options": {"q": 0.5}}, "expected --options none with --algorithm auto, got {'q': 0.5}"),
        (
            {"algorithm": "gce", "options": {"p": 0.5}},
            "unknown option of GCE 'p': known are q; the nearest is",
        ),
        ({"algorithm": "gce", "options": {"q": 2.0}}, "expected option q of GCE"),
        ({"algorithm": "cross-entropy", "options": {"q": 2.0}}, "takes no options, got q"),
        ({"model": "mpl"}, "unknown model 'mpl'"),
        ({"model": "mpl"}, "the nearest is 'mlp'"),
        ({"algorithm": "erl"}, "the nearest is 'elr'"),
        ({"methods": ("plain", "perepoch")}, "unknown method 'perepoch'"),
        ({"methods": ("plain", "perepoch")}, "the nearest is 'per-epoch'"),
        ({"schedule": "cosinus"}, "the nearest is 'cosine'"),
        ({"statistics": "past"}, "unknown value of --statistics 'past': known are separate, passing"),
        ({"repair_epochs": "beast"}, "unknown value of --repair-epochs 'beast': known are all, best"),
        ({"augment": "crop"}, "unknown augmentation 'crop'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"first_seed": -1}, "expected --first-seed at least 0, got -1"),
        ({"first_seed": 2**63 - 2, "seeds": 3}, f"expected --first-seed with seeds up to {2**63 - 1}"),
        ({"threads": 100_000}, "expected --threads at most 1024, got 100000"),
        ({"samples": 1}, "expected --samples at least 2, got 1"),
        ({"clean_per_class": 0}, "expected --clean-per-class at least 1, got 0"),
        ({"holdout_fraction": 1.0}, "expected --holdout-fraction in [0, 1), got 1.0"),
        ({"methods": ()}, "expected --methods at least one, got ()"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_itself_is_refused(settings: dict[str, Any], expected: str) -> None:
    assert expected in refusal(VECTORS, settings)


def test_a_device_that_is_not_there(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(VECTORS, {"device": "cuda"}) == "expected a CUDA device for --device cuda, found none"
    assert plan_of(TrainConfig(), VECTORS).epochs == 60


def test_the_labels_of_every_seed_are_looked_at() -> None:
    def split(seed: int) -> Dataset:
        labels = np.full(40, 0) if seed < 2 else None
        return dataclasses.replace(VECTORS, given_labels=labels, split=split)

    dataset = dataclasses.replace(VECTORS, split=split)
    assert plan_of(TrainConfig(noise="own", seeds=2), dataset).epochs_of_seed == 180
    assert "for --noise own" in refusal(dataset, {"noise": "own", "seeds": 3})
    assert "for --noise own" in refusal(dataset, {"noise": "own", "seeds": 1, "first_seed": 2})


@pytest.mark.parametrize(
    ("settings", "trained", "epochs"),
    [
        ({}, ["plain", "in-step", "per-epoch"], 3 * 60),
        ({"methods": ("ridge",)}, ["plain"], 60),
        ({"methods": ("ridge", "per-epoch", "in-step")}, ["plain", "in-step", "per-epoch"], 3 * 60),
        ({"methods": ("in-step",), "epochs": 7}, ["in-step"], 7),
        ({"algorithm": "confident-learning"}, ["plain", "in-step", "per-epoch"], (3 + 5) * 60),
        (
            {"algorithm": "confident-learning", "options": {"folds": 3}, "epochs": 4, "methods": ("plain",)},
            ["plain"],
            (1 + 3) * 4,
        ),
        ({"algorithm": "linear-ridge", "model": "linear", "methods": ("plain", "auto")}, ["plain"], 1),
    ],
)
def test_trainings_and_their_epochs(settings: dict[str, Any], trained: list[str], epochs: int) -> None:
    config = TrainConfig(**settings)
    plan = plan_of(config, VECTORS)
    assert list(plan.trained) == trained_methods(config) == trained
    assert plan.epochs_of_seed == epochs


def test_what_labels_call_for() -> None:
    assert plan_of(TrainConfig(), VECTORS).algorithm.TITLE == "cross entropy"
    sets = dataclasses.replace(VECTORS, given_labels=np.ones((40, 2), np.uint8))
    assert plan_of(TrainConfig(), sets).algorithm.TITLE == "CC"


def test_every_method_fits_what_trains_a_network() -> None:
    assert list(plan_of(TrainConfig(methods=tuple(METHODS)), VECTORS).trained) == [
        "plain", "in-step", "per-epoch"
    ]  # fmt: skip
