"""Wrong labels that depend on the clean ones alone."""

import dataclasses

import numpy as np

from lip_fast.harness.noise.truth import Truth, next_class

__all__ = ["asymmetric", "none", "pair", "symmetric"]


def none(truth: Truth, rate: float, generator: np.random.Generator) -> np.ndarray:
    """The clean labels, whatever the rate."""
    return truth.labels.copy()


def symmetric(truth: Truth, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Give ``round(rate * n)`` rows, drawn without replacement, a uniformly drawn other class."""
    labels, classes = truth.labels, truth.classes
    rows = generator.choice(len(labels), round(rate * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[rows] = (labels[rows] + generator.integers(1, classes, len(rows))) % classes
    return noisy


def asymmetric(truth: Truth, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Give ``round(rate * n_c)`` of the n_c rows of each class c the class ``similar[c]``.

    Classes that are similar to none keep their labels, so the rate over all rows may be lower.
    """
    noisy = truth.labels.copy()
    for c in range(truth.classes):
        rows = np.flatnonzero(truth.labels == c)
        noisy[generator.choice(rows, round(rate * len(rows)), replace=False)] = truth.similar[c]
    return noisy


def pair(truth: Truth, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Give ``round(rate * n_c)`` of the n_c rows of each class c the class after it, the last the first."""
    return asymmetric(dataclasses.replace(truth, similar=next_class(truth.classes)), rate, generator)
