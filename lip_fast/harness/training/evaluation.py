"""Scores of a network: test accuracy, agreement with held-out labels, wrong labels learned by heart."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lip_fast.harness.algorithms.features import features_of
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.models import Network

__all__ = ["Evaluator", "Scores", "Seen", "agreement"]


class Seen(NamedTuple):
    """What the head of one network sees of the samples.

    Attributes:
        wrong: of the training samples whose label is wrong, (w, q).
        held: of the samples held out, with such labels; there may be none.
        test: of the test part, with clean labels.
    """

    wrong: Tensor
    held: Rows
    test: Rows


class Scores(NamedTuple):
    """Fractions in [0, 1].

    Attributes:
        test_accuracy: on the test part, whose labels are clean.
        validation: of the samples held out, those whose label, wrong as it may be, is predicted, or one of
            the candidates; None where there are none.
        memorised: share of the wrongly labelled training samples for which the network predicts that
            wrong label, or one of the wrong candidates; None where there are none.
    """

    test_accuracy: float
    validation: float | None
    memorised: float | None


class Evaluator:
    """Scores classifiers on a network's features; clean labels serve here and nowhere else.

    Args:
        train: the training part with its labels.
        held: the samples held out, with theirs.
        test: the test part with clean labels, (n,) int64.
        clean: (n,) int64, the clean labels of the training part.
    """

    def __init__(self, train: Rows, held: Rows, test: Rows, clean: Tensor) -> None:
        self._train, self._held, self._test = train, held, test
        if train.Y.ndim == 2:  # the wrong candidates of each sample
            wrong_labels = train.Y.clone()
            wrong_labels.scatter_(1, clean[:, None], 0)
            wrong = wrong_labels.any(1)
        else:
            wrong_labels, wrong = train.Y, train.Y != clean
        self._wrong = wrong.nonzero()[:, 0]
        self._wrong_labels = wrong_labels[self._wrong]

    def look(self, model: Network) -> Seen:
        """Compute the features that the head of ``model`` sees of the samples that are scored."""
        wrong = features_of(model, self._train.X[self._wrong])
        held, test = (Rows(features_of(model, part.X), part.Y) for part in (self._held, self._test))
        return Seen(wrong, held, test)

    @torch.no_grad()
    def __call__(self, seen: Seen, classifier: nn.Module) -> Scores:
        """Score a classifier of features."""
        memorised = None
        if len(self._wrong):
            memorised = agreement(classifier(seen.wrong), self._wrong_labels)
        return Scores(
            agreement(classifier(seen.test.X), seen.test.Y),
            agreement(classifier(seen.held.X), seen.held.Y) if seen.held.size else None,
            memorised,
        )


def agreement(logits: Tensor, targets: Tensor) -> float:
    """Share of the rows whose largest of ``logits`` (n, l) is the target, or one of its candidates."""
    predicted = logits.argmax(1)
    hits = predicted == targets if targets.ndim == 1 else targets.gather(1, predicted[:, None]) > 0
    return hits.double().mean().item()
