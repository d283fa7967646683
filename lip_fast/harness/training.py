"""The training loop of one network, with or without LIP in the step."""

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import lip_fast
from lip_fast.harness.config import TrainConfig
from lip_fast.harness.data import Dataset
from lip_fast.harness.labels import as_targets
from lip_fast.harness.losses import label_loss
from lip_fast.harness.models import MLP
from lip_fast.harness.seeding import initialisation, order_generator

__all__ = ["Epoch", "Training", "make_lip"]


class Epoch(NamedTuple):
    """What one epoch reports.

    Attributes:
        loss: mean loss over the (noisy) training labels, before each step.
        step_seconds: mean time of ``observe`` (where LIP is on) and ``optimizer.step``.
    """

    loss: float
    step_seconds: float


class Training:
    """One network in training; the same settings, data, labels and seed give the same bits.

    Initialisation and batches depend on the seed alone, so that runs with and without LIP are pairs.

    Args:
        config: the settings.
        dataset: the data.
        labels: (n,) int64 training labels to learn from, or (n, l) uint8 candidate sets.
        seed: of initialisation and batches.
        in_step: apply LIP in the optimizer step.

    Raises:
        ValueError: settings of LIP that do not fit the head.
    """

    def __init__(
        self, config: TrainConfig, dataset: Dataset, labels: np.ndarray, seed: int, *, in_step: bool
    ) -> None:
        self._features = torch.from_numpy(dataset.train_features)
        self._labels = as_targets(labels)
        self._batch_size = config.batch_size
        self._order = order_generator(seed)
        with initialisation(seed):
            self.model = MLP(dataset.train_features.shape[1], config.hidden, len(dataset.class_names))
        self._optimizer = _make_optimizer(config, self.model)
        self.lip = make_lip(config, self.model.head, seed) if in_step else None
        if self.lip is not None:
            self.lip.attach(self._optimizer)

    def run_epoch(self) -> Epoch:
        """Pass once over the training data in a fresh order."""
        batches = torch.randperm(len(self._labels), generator=self._order).split(self._batch_size)
        loss_sum, seconds = 0.0, 0.0
        for rows in batches:
            loss, step_seconds = self._step(self._features[rows], self._labels[rows])
            loss_sum += loss * len(rows)
            seconds += step_seconds
        return Epoch(loss_sum / len(self._labels), seconds / len(batches))

    def _step(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        self._optimizer.zero_grad()
        features = self.model.features(x)
        loss = label_loss(self.model.head(features), y)
        loss.backward()
        start = time.perf_counter()
        if self.lip is not None:
            self.lip.observe(features, y)
        self._optimizer.step()
        seconds = time.perf_counter() - start
        return loss.item(), seconds


def make_lip(config: TrainConfig, head: torch.nn.Linear, seed: int) -> lip_fast.LIP:
    """LIP for a head, with the run's settings.

    Raises:
        ValueError: settings that do not fit the head.
    """
    return lip_fast.LIP(
        head,
        config.rank,
        tail_rank=config.tail_rank,
        tail=config.tail,
        rest=config.rest,
        every=config.every,
        start=config.start,
        decay=config.decay,
        clip=config.clip,
        seed=seed,
    )


def _make_optimizer(config: TrainConfig, model: MLP) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
