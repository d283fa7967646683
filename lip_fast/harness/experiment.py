"""One comparison: every method on the same data, noise, initialisation and batches."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from lip_fast.harness.config import CHOOSING, METHODS, REPAIRS, TrainConfig
from lip_fast.harness.data import Dataset
from lip_fast.harness.data.reading import explain_error
from lip_fast.harness.errors import UserError
from lip_fast.harness.evaluation import Evaluator, Scores
from lip_fast.harness.labels import training_labels
from lip_fast.harness.models import MLP
from lip_fast.harness.noise import labels_sha256
from lip_fast.harness.posthoc import Rows, repaired_head
from lip_fast.harness.seeding import initialisation, stream
from lip_fast.harness.training import Training, make_lip

__all__ = [
    "Keep",
    "Record",
    "SeedResult",
    "as_plain",
    "check_fits",
    "check_labels",
    "epochs_done",
    "restoring",
    "run_seed",
    "trained_methods",
]

# Is told after each step, and after all that belongs to an epoch (True), that the state of a seed can be had.
Keep = Callable[[Callable[[], dict[str, Any]], bool], None]


class _DivergedError(Exception):
    """A network is no longer finite."""


@dataclass
class Record:
    """What one method did with one seed; lists have one entry for each epoch.

    Attributes:
        test_accuracy: fraction of the test part classified right.
        memorised: fraction of the wrong training labels that are predicted; None without wrong labels.
        train_loss: mean loss on the noisy labels.
        step_seconds: mean time of an optimizer step, with all that LIP does for it.
        repair_seconds: time of one repair after the training; empty for a method that trains.
        singular_values: of the head in the end, descending.
        rank: directions LIP kept in the end; None without LIP.
        lip: counters of LIP in the step, see :meth:`lip_fast.LIP.stats`; empty for the other methods.
    """

    test_accuracy: list[float] = field(default_factory=list)
    memorised: list[float | None] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    repair_seconds: list[float] = field(default_factory=list)
    singular_values: list[float] = field(default_factory=list)
    rank: int | None = None
    lip: dict[str, int | None] = field(default_factory=dict)

    def score(self, scores: Scores, head: nn.Linear) -> None:
        """Append one epoch's scores, and note the head they belong to."""
        self.test_accuracy.append(scores.test_accuracy)
        self.memorised.append(scores.memorised)
        self.singular_values = torch.linalg.svdvals(head.weight.detach()).tolist()


@dataclass(frozen=True)
class SeedResult:
    """All methods of one seed.

    Attributes:
        seed: of noise, initialisation and batches.
        labels: (n,) int64 training labels learned from, or (n, l) uint8 candidate sets.
        records: by method, in the order of ``METHODS``.
    """

    seed: int
    labels: np.ndarray
    records: dict[str, Record]


def check_fits(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse settings of LIP that do not fit the head, and labels that do not fit the data, at once.

    Raises:
        UserError: with LIP's own message, or what is wrong with the labels.
    """
    for seed in range(config.seeds):
        training_labels(config.noise, config.noise_rate, dataset.for_seed(seed), seed)
    try:
        with initialisation(seed=0):  # the global random state stays as it is
            head = nn.Linear(config.hidden[-1], len(dataset.class_names))
        make_lip(config, head, seed=0)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def trained_methods(config: TrainConfig) -> list[str]:
    """The methods that need a training of their own: repairs share the plain one."""
    wanted = {"plain" if method in REPAIRS else method for method in config.methods}
    return [method for method in METHODS if method in wanted]


def as_plain(records: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """Records by method as plain values, for JSON and checkpoints; copies."""
    return {method: dataclasses.asdict(record) for method, record in records.items()}


def epochs_done(state: Mapping[str, Any]) -> int:
    """The epochs of all trainings that are behind a state of :func:`run_seed`."""
    return sum(len(state["records"][method]["train_loss"]) for method in METHODS if method not in REPAIRS)


def check_labels(seed: int, labels: np.ndarray, sha256: str) -> None:
    """UserError where the labels of a seed are not those with this hash, with which the run began."""
    if (found := labels_sha256(labels)) != sha256:
        raise UserError(
            f"expected labels of seed {seed} with hash {sha256[:12]}, with which the run began, "
            f"found {found[:12]}"
        )


@contextmanager
def restoring(what: str) -> Iterator[None]:
    """Turn what goes wrong while a saved state is read into one line for the user.

    Raises:
        UserError: the block met a state that does not fit, or raised this itself.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"expected {what} to fit these settings and this version of lip_fast: {explain_error(error)}"
        ) from error


def run_seed(
    config: TrainConfig,
    dataset: Dataset,
    seed: int,
    on_epoch: Callable[[str, float], None],
    *,
    state: Mapping[str, Any] | None = None,
    keep: Keep = lambda state, epoch: None,
) -> SeedResult:
    """Train and score every method of the settings.

    Repairs are scored at each epoch, on a copy of the plain network's head: what they give if training
    stopped there.

    Args:
        config: the settings.
        dataset: the data; a part for testing is split off by the seed where they have none.
        seed: of noise, initialisation and batches.
        on_epoch: called after each epoch with the method in training and its test accuracy.
        state: what ``keep`` could have, to go on from; what was trained then is not trained again.
        keep: called with a function that gives the state: the scores so far, and the training under way. It
            is to be saved, or copied, before the next step.

    Raises:
        UserError: training diverged, the labels cannot be had, or the state is of other settings or labels.
    """
    dataset = dataset.for_seed(seed)
    labels = training_labels(config.noise, config.noise_rate, dataset, seed)
    kept, held = _hold_out(config, len(labels), seed)
    trained = dataset.with_training_rows(kept)
    rows = Rows(trained.train_features, labels[kept])
    held_out = Rows(dataset.train_features[held], labels[held])
    evaluate = Evaluator(trained, rows.labels)
    records = {method: Record() for method in METHODS}
    if state is not None:
        with restoring("the saved state"):
            check_labels(seed, labels, state["labels_sha256"])
            saved = copy.deepcopy(state["records"])  # the lists grow from here
            records = {method: Record(**saved[method]) for method in METHODS}
    repairs = [method for method in REPAIRS if method in config.methods]
    for method in repairs:
        # It shares the plain training, and so what is known of it.
        records[method].train_loss = records["plain"].train_loss
        records[method].step_seconds = records["plain"].step_seconds
    for method in trained_methods(config):
        if len(records[method].train_loss) == config.epochs:
            continue
        training = Training(config, trained, rows.labels, seed, in_step=method == "in-step")
        if state is not None and state["method"] == method:
            with restoring("the saved state"):
                training.load_state_dict(state["training"])
        state_of = partial(_state, labels_sha256(labels), records, method, training)
        for epoch in range(training.epoch, config.epochs):
            try:
                _run_epoch(training, records[method], evaluate, partial(keep, state_of, False))
                for repair in repairs if method == "plain" else ():
                    _repair(repair, config, training.model, rows, held_out, records[repair], evaluate)
            except _DivergedError as error:
                raise UserError(
                    f"training diverged with --lr {config.lr}, epoch {epoch + 1} of {METHODS[method]}, "
                    f"seed {seed}: {error}"
                ) from error
            on_epoch(method, records[method].test_accuracy[-1])
            keep(state_of, True)
    return SeedResult(
        seed, labels, {method: records[method] for method in METHODS if method in config.methods}
    )


def _state(sha256: str, records: Mapping[str, Record], method: str, training: Training) -> dict[str, Any]:
    return {
        "labels_sha256": sha256,
        "records": as_plain(records),
        "method": method,
        "training": training.state_dict(),
    }


def _run_epoch(training: Training, record: Record, evaluate: Evaluator, on_step: Callable[[], None]) -> None:
    epoch = training.run_epoch(on_step)
    model = training.model
    if not math.isfinite(epoch.loss) or not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise _DivergedError(f"expected a finite loss and weights, got a mean loss of {epoch.loss}")
    record.train_loss.append(epoch.loss)
    record.step_seconds.append(epoch.step_seconds)
    record.score(evaluate(model, model.head), model.head)
    if training.lip is not None:
        record.lip = training.lip.stats()
        record.rank = record.lip["rank"]


def _hold_out(config: TrainConfig, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, each in order; none are where no method chooses by them.

    Raises:
        UserError: a part would be empty.
    """
    if not any(method in CHOOSING for method in config.methods):
        return np.arange(samples), np.arange(0)
    count = round(config.holdout_fraction * samples)
    if not 0 < count < samples:
        raise UserError(
            "expected --holdout-fraction to leave samples on both sides, "
            f"got {config.holdout_fraction} of {samples}"
        )
    order = stream(seed, "holdout").permutation(samples)
    return np.sort(order[count:]), np.sort(order[:count])


def _repair(
    method: str,
    config: TrainConfig,
    model: MLP,
    rows: Rows,
    held_out: Rows,
    record: Record,
    evaluate: Evaluator,
) -> None:
    start = time.perf_counter()
    try:
        head, record.rank = repaired_head(method, config, model, rows, held_out)
    except ValueError as error:  # weights or features too large to be summed
        raise _DivergedError(str(error)) from error
    record.repair_seconds.append(time.perf_counter() - start)
    record.score(evaluate(model, head), head)
