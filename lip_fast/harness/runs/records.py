"""The measurements of a run: one record for each seed and method."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lip_fast.harness.training.evaluation import Scores

__all__ = ["Record", "SeedResult", "as_plain"]


@dataclass
class Record:
    """What one method did with one seed; lists have one entry for each epoch.

    Attributes:
        test_accuracy: fraction of the test part classified right; None of an epoch after which the plain
            network was not repaired (``repair_epochs``), which the last never is.
        validation: fraction of the held-out samples whose label, wrong as it may be, is predicted; None
            without any, and likewise.
        memorised: fraction of the wrong training labels that are predicted; None without wrong labels, and
            likewise.
        train_loss: mean loss on the noisy labels; None of an algorithm without steps.
        step_seconds: mean time of an optimizer step, with all that LIP does for it.
        lip_seconds: LIP's part of that.
        repair_seconds: time of each repair, what it computes itself and what the label statistics take that
            it shares with the other repairs of the epoch; empty for a method that trains.
        singular_values: of the head in the end, descending; empty where there is no linear head.
        rank: directions LIP kept in the end; None without LIP.
        lip: counters of LIP in the step, see :meth:`lip_fast.LIP.stats`; empty for the other methods.
        path: of "post-hoc", what each rank would have given in the end, see
            :func:`lip_fast.harness.repairs.posthoc.rank_path`; empty for the other methods.
    """

    test_accuracy: list[float | None] = field(default_factory=list)
    validation: list[float | None] = field(default_factory=list)
    memorised: list[float | None] = field(default_factory=list)
    train_loss: list[float | None] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    lip_seconds: list[float] = field(default_factory=list)
    repair_seconds: list[float] = field(default_factory=list)
    singular_values: list[float] = field(default_factory=list)
    rank: int | None = None
    lip: dict[str, int | None] = field(default_factory=dict)
    path: dict[str, Any] = field(default_factory=dict)

    @property
    def chosen_epoch(self) -> int | None:
        """The scored epoch that agrees best with held-out labels, from 0, the latest of equals.

        None without a hold-out.
        """
        scored = [(v, epoch) for epoch, v in enumerate(self.validation) if v is not None]
        return max(scored)[1] if scored else None

    def score(self, scores: Scores, classifier: nn.Module) -> None:
        """Append one epoch's scores, and note the head they belong to."""
        self.test_accuracy.append(scores.test_accuracy)
        self.validation.append(scores.validation)
        self.memorised.append(scores.memorised)
        if isinstance(classifier, nn.Linear):
            self.singular_values = torch.linalg.svdvals(classifier.weight.detach()).tolist()

    def skip(self) -> None:
        """Note an epoch after which nothing was scored."""
        self.test_accuracy.append(None)
        self.validation.append(None)
        self.memorised.append(None)

    def follow(self, plain: "Record") -> None:
        """Append what plain training has of its chosen epoch, as early stopping would take it by now.

        Called after each epoch of ``plain``: of the head it keeps what the chosen epoch had.
        """
        epoch = plain.chosen_epoch
        assert epoch is not None  # the settings refuse early stopping without a hold-out
        for name in ("test_accuracy", "validation", "memorised"):
            getattr(self, name).append(getattr(plain, name)[epoch])
        if epoch + 1 == len(plain.validation):
            self.singular_values = list(plain.singular_values)


@dataclass(frozen=True)
class SeedResult:
    """All methods of one seed.

    Attributes:
        seed: of noise, initialisation and batches.
        labels: (n,) int64 labels of the training part, or (n, l) uint8 candidate sets.
        records: by method, in the order of ``METHODS``.
    """

    seed: int
    labels: np.ndarray
    records: dict[str, Record]


def as_plain(records: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """Records by method as plain values, for JSON and checkpoints; copies."""
    return {method: dataclasses.asdict(record) for method, record in records.items()}
