"""What a network knows: test accuracy, and how many wrong labels it has learned by heart."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lip_fast.harness.data import Dataset
from lip_fast.harness.models import MLP

__all__ = ["Evaluator", "Scores"]


class Scores(NamedTuple):
    """Fractions in [0, 1].

    Attributes:
        test_accuracy: on the test part, whose labels are clean.
        memorised: share of the wrongly labelled training samples for which the network predicts that
            wrong label, or one of the wrong candidates; None where there are none.
    """

    test_accuracy: float
    memorised: float | None


class Evaluator:
    """Scores heads on a network's features; clean labels serve here and nowhere else.

    Args:
        dataset: the data.
        labels: (n,) int64 training labels learned from, or (n, l) uint8 candidate sets.
    """

    def __init__(self, dataset: Dataset, labels: np.ndarray) -> None:
        if labels.ndim == 2:  # the wrong candidates of each sample
            wrong_labels = labels.astype(bool)
            wrong_labels[np.arange(len(labels)), dataset.train_labels] = False
            wrong = wrong_labels.any(1)
        else:
            wrong_labels, wrong = labels, labels != dataset.train_labels
        self._test_x = torch.from_numpy(dataset.test_features)
        self._test_y = torch.from_numpy(dataset.test_labels)
        self._wrong_x = torch.from_numpy(dataset.train_features[wrong])
        self._wrong_y = torch.from_numpy(wrong_labels[wrong])

    @torch.no_grad()
    def __call__(self, model: MLP, head: nn.Linear) -> Scores:
        """Score ``head`` on the features of ``model``; ``model.head`` scores the network itself."""

        def agreement(x: torch.Tensor, y: torch.Tensor) -> float:
            predicted = head(model.features(x)).argmax(1)
            hits = predicted == y if y.ndim == 1 else y.gather(1, predicted[:, None])
            return hits.double().mean().item()

        memorised = agreement(self._wrong_x, self._wrong_y) if len(self._wrong_y) else None
        return Scores(agreement(self._test_x, self._test_y), memorised)
