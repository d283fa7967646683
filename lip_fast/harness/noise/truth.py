"""Clean labels and what else the noise is made from."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Truth", "next_class"]


@dataclass(frozen=True)
class Truth:
    """Clean labels, and what kinds of noise may depend on beside them.

    Attributes:
        labels: (n,) int64 clean class indices.
        classes: number of classes l, at least 2.
        similar: (l,) int64, what each class is mistaken for, itself where it is mistaken for none.
        features: (n, d) float32, what the rows look like; None where the noise does not look at them.
    """

    labels: np.ndarray
    classes: int
    similar: np.ndarray
    features: np.ndarray | None = None


def next_class(classes: int) -> np.ndarray:
    """(classes,) int64: the class after each, after the last the first."""
    return (np.arange(classes) + 1) % classes
