"""The training loop of one network, with or without LIP."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import lip_fast
from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import Algorithm, Task
from lip_fast.harness.algorithms.features import features_of, label_weights, statistics_of
from lip_fast.harness.data.augmentation import AUGMENTATIONS
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.models import make_model
from lip_fast.harness.seeding import BatchOrder, initialisation, torch_stream
from lip_fast.harness.settings.train import REPAIRS, TrainConfig
from lip_fast.harness.training.lip import make_lip, repaired_weight
from lip_fast.harness.training.processes import ALONE, Processes

__all__ = ["DivergedError", "Epoch", "Training"]

# To time a step on CUDA the process waits for the device: one step in this many is timed. It is a prime,
# for LIP that acts on each N-th step (``every``) would otherwise act in all timed steps, or in none.
_TIMED = 17


class DivergedError(Exception):
    """A loss or a weight is no longer finite, or too large for its dtype."""


class Epoch(NamedTuple):
    """What one epoch reports.

    Attributes:
        loss: mean loss over the (noisy) training labels, before each step; None of an algorithm without
            steps.
        step_seconds: mean time of what an optimizer step takes, LIP with it.
        lip_seconds: what LIP takes of that: the observation, and its part of the step; for LIP once an epoch
            its time, divided by the steps; 0 without LIP.
    """

    loss: float | None
    step_seconds: float
    lip_seconds: float


class Training:
    """One network in training; the same settings, task and seed give the same bits.

    Initialisation and batches depend on the seed alone, so that runs with and without LIP are pairs.

    Args:
        config: the settings.
        task: what is learned, on the device to train on.
        algorithm: the class of the algorithm.
        image_shape: (channels, height, width) of a row of features; None where they are no images.
        method: "in-step" applies LIP in the optimizer step, "per-epoch" after each epoch, all else nowhere.
        held_out: samples that no step sees; LIP after each epoch may choose its rank by their labels.
        processes: those that train the network together. All make it, and call its methods at the same time.

    Attributes:
        model: the network.
        algorithm: the algorithm, with its state.
        lip: LIP in the step; None elsewhere.
        rank: directions that LIP kept after the last epoch; None where it does not act then.
        epoch: complete epochs.

    Raises:
        UserError: the model does not fit the data.
        ValueError: settings of LIP that do not fit the head.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        algorithm: type[Algorithm],
        image_shape: tuple[int, int, int] | None,
        method: str,
        held_out: Rows,
        processes: Processes = ALONE,
    ) -> None:
        self._config, self._task, self._method = config, task, method
        self._processes = processes
        self._image_shape, self._held_out = image_shape, held_out
        self._order = BatchOrder(task.seed, len(task.features))
        with initialisation(task.seed):
            self.model = make_model(
                config.model,
                inputs=task.features.shape[1],
                image_shape=image_shape,
                hidden=config.hidden,
                classes=task.classes,
            )
        self.model.to(task.features.device)
        # All processes drew from the same seed, but on another machine the bits may differ.
        processes.copy_from_first_([*self.model.parameters(), *self.model.buffers()])
        self._optimizer = _make_optimizer(config, self.model)
        self.algorithm = algorithm(task)
        self._base_start = self._base_end = 0.0
        self.lip: lip_fast.LIP | None = None
        self.rank: int | None = None
        if method == "in-step":
            steps = len(_batches(torch.arange(len(task.features)), config.batch_size))
            self.lip = make_lip(
                config, self.model.head, task.seed, epoch_steps=steps, data_group=processes.group
            )
            # Hooks run in the order in which they came: these two enclose the base step alone.
            self._optimizer.register_step_post_hook(self._base_ends)
            self.lip.attach(self._optimizer)
            self._optimizer.register_step_pre_hook(self._base_starts)
        repaired = method == "per-epoch" or (method == "plain" and any(m in REPAIRS for m in config.methods))
        self._collects = repaired and config.statistics == "passing"
        self.epoch = 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        """Set what is summed over the epoch under way to 0: steps, losses, seconds, statistics."""
        self._batch, self._timed = 0, 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._task.features.device)
        self._seconds = self._lip_seconds = self._collect_seconds = 0.0
        self._collected: lip_fast.LabelStatistics | None = None
        if self._collects:
            weight, group = self.model.head.weight, self._processes.group
            self._collected = lip_fast.LabelStatistics.for_head(weight, data_group=group)

    def run_epoch(self, on_step: Callable[[], None] = lambda: None) -> Epoch:
        """Pass once over the training data in a fresh order, or end the pass that was loaded.

        Args:
            on_step: called after each step; :meth:`state_dict` is whole then.

        Raises:
            DivergedError: numbers are not finite, or larger than float32 has.
            UserError: a batch has one sample, and batch normalisation needs more.
        """
        self.model.train()
        with _explaining():
            if self.algorithm.WHOLE:
                start = time.perf_counter()
                self.algorithm.fit(self.model)
                self._processes.copy_from_first_(self.model.parameters())
                epoch = Epoch(None, time.perf_counter() - start, 0.0)
            else:
                epoch = self._pass(on_step)
            self.algorithm.end_epoch(self.model)
        if self._collected is not None:
            self._passed = self._collected, self._collect_seconds / self._timed * self._batch
        self.epoch += 1
        self._begin_epoch()
        return epoch

    def _pass(self, on_step: Callable[[], None]) -> Epoch:
        order = self._order.epoch(self.epoch).to(self._task.features.device)
        batches = _batches(order, self._config.batch_size)
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        for rows in batches[self._batch :]:
            self._loss_sum += self._step(rows).double() * len(rows)
            self._batch += 1
            on_step()
        # Running statistics are of each process's own parts of the batches: all take those of the first.
        self._processes.copy_from_first_(self.model.buffers())
        lip_seconds = self._lip_seconds / max(self._timed, 1)
        if self._method == "per-epoch":
            start = self._now()
            self._apply_once()
            self._processes.copy_from_first_([self.model.head.weight])
            lip_seconds = (self._now() - start) / len(batches)
            lip_seconds += self._collect_seconds / max(self._timed, 1)
        step_seconds = self._seconds / max(self._timed, 1)
        if self._method == "per-epoch":
            step_seconds += lip_seconds
        return Epoch(self._loss_sum.item() / len(order), step_seconds, lip_seconds)

    def _learning_rate(self) -> float:
        if self._config.schedule == "cosine":
            return self._config.lr * (1 + math.cos(math.pi * self.epoch / self._task.epochs)) / 2
        return self._config.lr

    def _step(self, rows: Tensor) -> Tensor:
        """Take one step; returns the loss before it, on the device."""
        self._optimizer.zero_grad()
        self.algorithm.before_forward(self.model)
        alone = self._processes.size == 1
        features, loss = self._backward(rows) if alone else self._backward_together(rows)
        self.algorithm.before_step(self.model)
        timed = not loss.is_cuda or self._batch % _TIMED == 0
        if self._collected is not None:
            start = self._now() if timed else 0.0
            weights = label_weights(self._task.targets[self._processes.part(rows)])
            self._collected.update(features.detach(), weights)
            self._collect_seconds += self._now() - start if timed else 0.0
        start = self._now() if timed else 0.0
        if self.lip is not None:
            self.lip.observe(features, self._task.targets[self._processes.part(rows)])
        self._optimizer.step()
        if timed:
            seconds = self._now() - start
            self._timed += 1
            self._seconds += seconds
            if self.lip is not None:
                self._lip_seconds += seconds - (self._base_end - self._base_start)
        return loss

    def _backward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradient of the mean loss over this process's part of ``rows``.

        Returns:
            the features that the head saw, and the mean loss.
        """
        features = self.model.features(self._inputs(rows))
        loss = self.algorithm.loss(self.model.head(features), self._processes.part(rows))
        loss.backward()
        return features, loss.detach()

    def _backward_together(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradient of the mean loss over ``rows`` together with the other processes.

        Losses are means over rows, so that gradients weighted by the sizes of the parts sum up to that of the
        whole.

        Returns:
            the features that the head saw of this process's part, and the mean loss over ``rows``.
        """
        own = self._processes.part(rows)
        weights = list(self.model.parameters())
        head = self.model.head.weight
        if len(own):
            features, mean = self._backward(rows)
            share = len(own) / len(rows)
            gradients = [torch.zeros_like(w) if w.grad is None else w.grad.mul_(share) for w in weights]
            mean = mean * share
        else:  # this process has no row of the batch
            features, mean = head.new_empty(0, head.shape[1]), head.new_zeros(())
            gradients = [torch.zeros_like(w) for w in weights]
        table = self.algorithm.table()
        if table is None:
            self._processes.sum_([*gradients, mean])
        else:
            # The loss sets rows of this table; each row of the batch was set by one process alone.
            moved = table.new_zeros(len(rows), *table.shape[1:])
            self._processes.part(moved).copy_(table[own])
            self._processes.sum_([*gradients, mean, moved])
            table[rows] = moved
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return features, mean

    def _inputs(self, rows: Tensor) -> Tensor:
        """What the network is shown of this process's part of ``rows``."""
        change = AUGMENTATIONS[self._config.augment]
        if change is None:
            return self._task.features[self._processes.part(rows)]
        assert self._image_shape is not None  # checked with the settings
        # Drawn from seed, epoch and batch alone: a resumed run draws the same, and so does each process.
        generator = torch_stream(self._task.seed, "augmentation", self.epoch, self._batch)
        images = self._task.features[rows].view(-1, *self._image_shape)
        return self._processes.part(change(images, generator).flatten(1))

    def _apply_once(self) -> None:
        held_out = Rows(features_of(self.model, self._held_out.X), self._held_out.Y)
        head = self.model.head
        statistics = self.statistics()[0] if self._collected is None else self._collected
        weight, self.rank = repaired_weight(self._config, head, statistics, held_out)
        with torch.no_grad():
            head.weight.copy_(weight)

    def statistics(self) -> tuple[lip_fast.LabelStatistics, float]:
        """Label statistics of what the head sees of the training data, after an epoch, and their time.

        They are of a pass now, or of what passed in the steps of the epoch (``statistics`` of the settings).
        """
        if self._collects:
            return self._passed
        task, start = self._task, self._now()
        found = statistics_of(self.model, task.features, task.targets, self.model.head.weight.dtype)
        return found, self._now() - start

    def _now(self) -> float:
        if self._task.features.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _base_starts(self, *arguments: Any) -> None:
        if not self._task.features.is_cuda or self._batch % _TIMED == 0:
            self._base_start = self._now()

    def _base_ends(self, *arguments: Any) -> None:
        if not self._task.features.is_cuda or self._batch % _TIMED == 0:
            self._base_end = self._now()

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-exact continuation needs, between any two steps.

        As in torch, model and optimizer give their own tensors: save or copy them before the next step.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "lip": None if self.lip is None else self.lip.state_dict(),
            "epoch": self.epoch,
            "batch": self._batch,
            "timed": self._timed,
            "loss_sum": self._loss_sum.item(),
            "seconds": self._seconds,
            "lip_seconds": self._lip_seconds,
            "collected": None if self._collected is None else self._collected.state_dict(),
            "collect_seconds": self._collect_seconds,
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
        self.algorithm.load_state_dict(state["algorithm"])
        if self.lip is not None:
            self.lip.load_state_dict(state["lip"])
        self.epoch, self._batch, self._timed = state["epoch"], state["batch"], state["timed"]
        self._loss_sum.fill_(state["loss_sum"])
        self._seconds, self._lip_seconds = state["seconds"], state["lip_seconds"]
        if self._collected is not None:
            # Only states of earlier versions, which knew no such settings, are without these entries.
            self._collected.load_state_dict(state["collected"])
            self._collect_seconds = state["collect_seconds"]


@contextmanager
def _explaining() -> Iterator[None]:
    """Turn errors of torch and LIP that the user can put right into those of :meth:`Training.run_epoch`."""
    try:
        yield
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        raise DivergedError(str(error)) from error
    except UserError:  # is a ValueError too, and says already what is wrong
        raise
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise UserError(
                f"expected batches of at least 2 samples for a network that normalises them: {error}"
            ) from error
        # LIP raises ValueError for weights and features that are not finite.
        raise DivergedError(str(error)) from error


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """The rows of each step; a single last row joins the step before, for batch normalisation needs two."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
