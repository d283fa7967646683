"""The training loop of one network, with or without LIP in the step."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import lip_fast
from lip_fast.harness.config import TrainConfig
from lip_fast.harness.data import Dataset
from lip_fast.harness.labels import as_targets
from lip_fast.harness.losses import label_loss
from lip_fast.harness.models import MLP
from lip_fast.harness.seeding import BatchOrder, initialisation

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
        self._order = BatchOrder(seed, len(labels))
        with initialisation(seed):
            self.model = MLP(dataset.train_features.shape[1], config.hidden, len(dataset.class_names))
        self._optimizer = _make_optimizer(config, self.model)
        self.lip = make_lip(config, self.model.head, seed) if in_step else None
        if self.lip is not None:
            self.lip.attach(self._optimizer)
        # Complete epochs, and of the one under way the steps taken, with their losses and times.
        self.epoch = 0
        self._batch, self._loss_sum, self._seconds = 0, 0.0, 0.0

    def run_epoch(self, on_step: Callable[[], None] = lambda: None) -> Epoch:
        """Pass once over the training data in a fresh order, or end the pass that was loaded.

        Args:
            on_step: called after each step; :meth:`state_dict` is whole then.
        """
        batches = self._order.epoch(self.epoch).split(self._batch_size)
        for rows in batches[self._batch :]:
            loss, seconds = self._step(self._features[rows], self._labels[rows])
            self._loss_sum += loss * len(rows)
            self._seconds += seconds
            self._batch += 1
            on_step()
        epoch = Epoch(self._loss_sum / len(self._labels), self._seconds / len(batches))
        self.epoch += 1
        self._batch, self._loss_sum, self._seconds = 0, 0.0, 0.0
        return epoch

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

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-exact continuation needs, between any two steps.

        As in torch, model and optimizer give their own tensors: save or copy them before the next step.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "lip": None if self.lip is None else self.lip.state_dict(),
            "epoch": self.epoch,
            "batch": self._batch,
            "loss_sum": self._loss_sum,
            "seconds": self._seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, of a training made with the same arguments.

        Raises:
            KeyError, RuntimeError, ValueError: it is the state of another training.
        """
        if (self.lip is None) != (state["lip"] is None):
            raise ValueError("expected the state of a training with LIP in the step, or without, as this one")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.lip is not None:
            self.lip.load_state_dict(state["lip"])
        self.epoch, self._batch = state["epoch"], state["batch"]
        self._loss_sum, self._seconds = state["loss_sum"], state["seconds"]


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
