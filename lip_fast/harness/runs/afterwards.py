"""What becomes of the plain network without more training: early stopping, and repairs of its head."""

import time
from collections.abc import Mapping

import torch
from torch import nn

from lip_fast.harness.repairs.posthoc import rank_path, repaired_head
from lip_fast.harness.runs.records import Record
from lip_fast.harness.settings.train import OF_PLAIN, REPAIRS, TrainConfig
from lip_fast.harness.training.evaluation import Evaluator, Seen
from lip_fast.harness.training.loop import DivergedError, Training

__all__ = ["Afterwards"]


class Afterwards:
    """The methods of the settings that have no training of their own, scored after epochs of the plain one.

    Early stopping has the scores of the best epoch so far. Repairs are scored on a copy of the head: what
    they give if training stopped there.

    Args:
        config: the settings.
        records: by method, of the plain training and of those methods; they share the losses and times of
            that training.
        evaluate: scores heads.
    """

    def __init__(self, config: TrainConfig, records: Mapping[str, Record], evaluate: Evaluator) -> None:
        self._config, self._records, self._evaluate = config, records, evaluate
        self._repairs = [method for method in REPAIRS if method in config.methods]
        for method in OF_PLAIN:
            for shared in ("train_loss", "step_seconds", "lip_seconds"):
                setattr(records[method], shared, getattr(records["plain"], shared))

    def score(self, training: Training, seen: Seen, *, last: bool) -> None:
        """Score what the plain network gives now; call it after each epoch, when its own scores are there.

        Args:
            training: the plain one.
            seen: what the head sees of the samples.
            last: whether it ends with this epoch; every rank of LIP is scored then.

        Raises:
            DivergedError: weights or features are too large to be summed.
        """
        plain = self._records["plain"]
        if "early-stop" in self._config.methods:
            self._records["early-stop"].follow(plain)
        best = plain.chosen_epoch == len(plain.validation) - 1
        if not self._repairs:
            return
        if last or best or self._config.repair_epochs == "all":
            try:
                self._repair(training, seen, last)
            except ValueError as error:
                raise DivergedError(str(error)) from error
        else:
            for method in self._repairs:
                self._records[method].skip()

    def _repair(self, training: Training, seen: Seen, last: bool) -> None:
        with torch.no_grad():
            head = training.algorithm.classifier(training.model)
        assert isinstance(head, nn.Linear)  # the plan refuses repairs for any other classifier
        statistics, shared = training.statistics()
        for method in self._repairs:
            record = self._records[method]
            start = time.perf_counter()
            repaired, record.rank = repaired_head(method, self._config, head, statistics, seen.held)
            record.repair_seconds.append(shared + time.perf_counter() - start)
            record.score(self._evaluate(seen, repaired), repaired)
            if method == "post-hoc" and last:
                record.path = rank_path(
                    self._config,
                    head,
                    statistics,
                    seen.held,
                    lambda repaired: self._evaluate(seen, repaired)[:2],
                )
