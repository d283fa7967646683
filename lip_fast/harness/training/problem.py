"""The samples of one seed: which are trained on, held out and tested on, with which labels."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS, Algorithm, Task, resolved
from lip_fast.harness.algorithms.features import features_of
from lip_fast.harness.data import Dataset
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.noise.labels import as_targets, training_labels
from lip_fast.harness.seeding import stream
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training.evaluation import Evaluator
from lip_fast.harness.training.loop import DivergedError, Training
from lip_fast.harness.training.processes import ALONE, Processes

__all__ = ["Problem", "split"]


class Problem:
    """The samples and labels of one seed, on the device: what is trained on, held out and tested on.

    Args:
        config: the settings.
        dataset: the data.
        seed: of split, noise and hold-out.
        algorithm: that is to learn them.
        epochs: passes over the data of each training.
        processes: those that train together, see :class:`Training`.

    Attributes:
        labels: (n,) int64 labels of the training part, or (n, l) uint8 candidate sets.

    Raises:
        UserError: the labels cannot be had, or too few samples are left.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        seed: int,
        algorithm: type[Algorithm],
        epochs: int,
        processes: Processes = ALONE,
    ) -> None:
        self._config, self._seed, self._processes = config, seed, processes
        self._algorithm, self._epochs = algorithm, epochs
        dataset = self._dataset = dataset.for_seed(seed)
        self.labels = training_labels(config.noise, config.noise_rate, dataset, seed)
        self._device = torch.device(device_of(config))
        kept, held = split(config, len(self.labels), seed)
        self._train, self._held = self._rows(kept), self._rows(held)
        self._clean = torch.from_numpy(dataset.train_labels[kept]).to(self._device)

    def _rows(self, rows: np.ndarray) -> Rows:
        features = self._dataset.train_features
        # Where all rows are taken, the features are not copied: they may be most of the memory.
        chosen = features if len(rows) == len(features) else features[rows]
        return Rows(torch.from_numpy(chosen).to(self._device), as_targets(self.labels[rows]).to(self._device))

    def evaluator(self) -> Evaluator:
        """An evaluator that scores networks on these samples."""
        test = Rows(
            torch.from_numpy(self._dataset.test_features).to(self._device),
            torch.from_numpy(self._dataset.test_labels).to(self._device),
        )
        return Evaluator(self._train, self._held, test, self._clean)

    def learned(self, chosen: Tensor | None) -> Task:
        """The task of the rows that are trained on."""
        rows = (
            torch.arange(self._train.size, device=self._device) if chosen is None else chosen.to(self._device)
        )
        train = self._train if chosen is None else Rows(self._train.X[rows], self._train.Y[rows])
        clean_rows = self._clean_rows(rows)
        return Task(
            features=train.X,
            targets=train.Y,
            classes=len(self._dataset.class_names),
            epochs=self._epochs,
            seed=self._seed,
            clean_rows=clean_rows,
            clean_labels=self._clean[rows][clean_rows],
            options=self._config.options,
        )

    def _clean_rows(self, rows: Tensor) -> Tensor:
        """A few rows of each class, by their clean labels; none for an algorithm that may not look."""
        if not self._algorithm.USES_CLEAN:
            return torch.empty(0, dtype=torch.int64, device=self._device)
        clean = self._clean[rows].cpu().numpy()
        order = stream(self._seed, "clean").permutation(len(clean))
        taken = [order[clean[order] == c][: self._config.clean_per_class] for c in np.unique(clean)]
        return torch.from_numpy(np.sort(np.concatenate(taken))).to(self._device)

    def training(self, task: Task, method: str) -> Training:
        """A fresh network on ``task``, see :class:`Training`."""
        return Training(
            self._config,
            task,
            self._algorithm,
            self._dataset.image_shape,
            method,
            self._held,
            self._processes,
        )

    def choose_rows(self, on_epoch: Callable[[float], None]) -> Tensor | None:
        """The rows that the algorithm wants to train on; None for all."""
        algorithm = self._algorithm
        options = algorithm.checked_options(self._config.options)
        cross_predict = partial(self._cross_predict, on_epoch=on_epoch)
        chosen = algorithm.choose_rows(self._train.Y, len(self._dataset.class_names), options, cross_predict)
        chosen = None if chosen is None else chosen.cpu()
        return self._processes.from_first(lambda: chosen)

    def _cross_predict(self, folds: int, *, on_epoch: Callable[[float], None]) -> Tensor:
        """Probabilities (n, l) of each row by a network that was not trained on it."""
        whole, config = self.learned(None), dataclasses.replace(self._config, options={})
        rows = len(whole.features)
        if folds > rows:
            raise UserError(f"expected at most as many folds as the {rows} training samples, got {folds}")
        fold = torch.from_numpy(stream(self._seed, "folds").permutation(rows) % folds).to(self._device)
        name = resolved("auto", candidates=whole.targets.ndim == 2)
        result = torch.empty(rows, whole.classes, dtype=torch.float64, device=self._device)
        for i in range(folds):
            inside, outside = (fold != i).nonzero()[:, 0], (fold == i).nonzero()[:, 0]
            task = dataclasses.replace(
                whole, features=whole.features[inside], targets=whole.targets[inside], options={}
            )
            training = Training(
                config,
                task,
                ALGORITHMS[name],
                self._dataset.image_shape,
                "plain",
                self._held,
                self._processes,
            )
            diverged = f"training diverged with --lr {config.lr} on {folds - 1} of {folds} folds"
            for _ in range(self._epochs):
                try:
                    training.run_epoch()
                except DivergedError as error:
                    raise UserError(f"{diverged}: {error}") from error
                on_epoch(math.nan)
            with torch.no_grad():
                logits = training.model.head(features_of(training.model, whole.features[outside]))
            if not bool(logits.isfinite().all()):
                raise UserError(diverged)
            result[outside] = logits.double().softmax(1)
        return result.cpu()


def split(config: TrainConfig, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, each in order.

    Raises:
        UserError: there are fewer samples than are asked for, or a part would be empty.
    """
    rows = np.arange(samples)
    if config.samples is not None:
        if config.samples > samples:
            raise UserError(f"expected --samples of at most the {samples} there are, got {config.samples}")
        rows = stream(seed, "subset").permutation(samples)[: config.samples]
    count = round(config.holdout_fraction * len(rows))
    if config.holdout_fraction > 0 and not 0 < count < len(rows):
        raise UserError(
            "expected --holdout-fraction to leave samples on both sides, "
            f"got {config.holdout_fraction} of {len(rows)}"
        )
    order = rows[stream(seed, "holdout").permutation(len(rows))]
    return np.sort(order[count:]), np.sort(order[:count])


def device_of(config: TrainConfig) -> str:
    """The device that the settings ask for."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"
