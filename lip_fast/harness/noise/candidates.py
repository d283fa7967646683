"""Candidate sets: several labels for a row, one of which is right."""

import numpy as np

from lip_fast.harness.noise.truth import Truth, next_class

__all__ = ["competitor", "partial"]


def partial(truth: Truth, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Candidate sets (n, l) uint8: the true class, and each other one with probability ``rate``."""
    rows = len(truth.labels)
    candidates = (generator.random((rows, truth.classes)) < rate).astype(np.uint8)
    candidates[np.arange(rows), truth.labels] = 1
    return candidates


def competitor(truth: Truth, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Candidate sets (n, l) uint8: the true class, and with probability ``rate`` its one competitor.

    The competitor is the class that it is mistaken for, the next one where it is mistaken for none. No
    other class is ever a candidate, so ``rate`` is the ambiguity degree epsilon of Cour, Sapp and Taskar
    2011 (Learning from partial labels, JMLR 12, section 3): the largest probability with which a wrong
    class goes along with the true one. It is their hardest setting of one wrong candidate, that of a label
    which co-occurs with the true one: the same wrong class is seen again and again.
    """
    own = np.arange(truth.classes)
    competitors = np.where(truth.similar == own, next_class(truth.classes), truth.similar)
    rows = np.arange(len(truth.labels))
    candidates = np.zeros((len(rows), truth.classes), dtype=np.uint8)
    candidates[rows, truth.labels] = 1
    candidates[rows, competitors[truth.labels]] = generator.random(len(rows)) < rate
    return candidates
