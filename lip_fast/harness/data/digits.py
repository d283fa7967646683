"""The data sets, by name.

A data set is asked for as ``name`` or ``name:argument``. All come as float32 features and int64 labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import sklearn.datasets
import sklearn.model_selection

from lip_fast.harness.errors import UserError, unknown_name

__all__ = ["LOADERS", "Dataset", "load"]


@dataclass(frozen=True)
class Dataset:
    """A classification task with clean labels.

    Attributes:
        name: as it was asked for.
        train_features: (n, d) float32.
        train_labels: (n,) int64, clean.
        train_indices: (n,) int64, the rows of the source that make up the training part.
        test_features: (m, d) float32.
        test_labels: (m,) int64.
        class_names: one for each class.
    """

    name: str
    train_features: np.ndarray
    train_labels: np.ndarray
    train_indices: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


def digits(argument: str) -> Dataset:
    """scikit-learn's 1797 handwritten digits, 8 x 8 pixels scaled to [0, 1]; a fifth is for testing.

    The split is stratified and the same for every seed, so that seeds differ by noise and training alone.
    """
    if argument:
        raise UserError(f"data set digits takes no argument, got {argument!r}")
    source = sklearn.datasets.load_digits()
    features = (source.data / 16).astype(np.float32)  # pixels count 0..16
    labels = source.target.astype(np.int64)
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels
    )
    return Dataset(
        name="digits",
        train_features=features[train],
        train_labels=labels[train],
        train_indices=train,
        test_features=features[test],
        test_labels=labels[test],
        class_names=tuple(str(name) for name in source.target_names),
    )


LOADERS: dict[str, Callable[[str], Dataset]] = {"digits": digits}


def load(name: str) -> Dataset:
    """The data set called ``name`` or ``name:argument``.

    Raises:
        UserError: there is no such data set, or its argument is not one it can take.
    """
    kind, _, argument = name.partition(":")
    if kind not in LOADERS:
        raise unknown_name("data set", kind, LOADERS)
    return LOADERS[kind](argument)
