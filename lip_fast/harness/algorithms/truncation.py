"""Spectral truncation: the head reads the leading directions of the features alone."""

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms.features import statistics_of
from lip_fast.harness.algorithms.label_loss import LabelLoss
from lip_fast.harness.models import Network

__all__ = ["SpectralTruncation"]


class SpectralTruncation(LabelLoss):
    """Cross entropy (CC for candidate sets), then M P P^T in the place of the head's weight M.

    P (q, d) are the d leading eigenvectors of X^T X, with X the network's features of the training rows, not
    centred. The bias stays. The network's own head is left as it is.

    Source: Wang 2026, "The Malignant Tail: Spectral Segregation of Label Noise in Over-Parameterized
    Networks" (arXiv:2603.02293v1; withdrawn by its author since), which does it once, after training.

    Options:
        components: d, a whole number; 0, the default, for as many as there are classes (q if that is less).
    """

    TITLE = "spectral truncation"
    OPTIONS: ClassVar = {"components": 0}

    @classmethod
    def check(cls, options: Mapping[str, float]) -> None:
        """See the class."""
        d = float(options["components"])
        cls.expect("components", d, "a whole number of at least 0", d.is_integer() and d >= 0)

    def classifier(self, model: Network) -> nn.Linear:
        """The truncated head, a new one.

        Raises:
            UserError: more components than features.
        """
        q, d = model.head.in_features, int(self.options["components"])
        if d > q:
            raise UserError(f"expected option components of {self.TITLE} up to {q}, the features, got {d}")
        statistics = statistics_of(model, self.task.features, self.task.targets)
        P = statistics.truncate(d or min(self.task.classes, q))
        head = copy.deepcopy(model.head)
        with torch.no_grad():
            head.weight.copy_(head.weight.double() @ P @ P.mT)
        return head
