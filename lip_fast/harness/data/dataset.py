"""A data set, as every reader returns it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Dataset"]


@dataclass(frozen=True)
class Dataset:
    """A classification task with clean labels.

    Attributes:
        name: as messages and titles call it.
        train_features: (n, d) float32, finite.
        train_labels: (n,) int64, clean; of a source that does not say which labels are, those it has.
        train_indices: (n,) int64, the rows of the source that make up the training part.
        test_features: (m, d) float32, finite.
        test_labels: (m,) int64.
        class_names: one for each class, at least two.
        given_labels: the labels that the training part comes with and that may be wrong, (n,) int64 class
            indices or (n, l) uint8 candidate sets; None where it comes with clean labels alone.
        similar_classes: (l,) int64, the class that each class is mistaken for in asymmetric noise, itself
            where it is mistaken for none; None for the next class.
        image_shape: (channels, height, width) of the images that the rows of the features are, in that order;
            None where they are no images.
        split: gives the data set in the split of a seed; None where training and test part are fixed.
    """

    name: str
    train_features: np.ndarray
    train_labels: np.ndarray
    train_indices: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    given_labels: np.ndarray | None = None
    similar_classes: np.ndarray | None = None
    image_shape: tuple[int, int, int] | None = None
    split: "Callable[[int], Dataset] | None" = dataclasses.field(default=None, repr=False)

    def for_seed(self, seed: int) -> "Dataset":
        """The data set as a repetition uses it: split by its seed, where the source has no test part."""
        return self if self.split is None else self.split(seed)

    def counts(self) -> np.ndarray:
        """(l,) int64: the samples of each class in the training part, by its clean labels."""
        return np.bincount(self.train_labels, minlength=len(self.class_names))

    def with_training_rows(self, rows: np.ndarray) -> "Dataset":
        """The data set with these rows of its training part only, in the split it is in."""
        return dataclasses.replace(
            self,
            train_features=self.train_features[rows],
            train_labels=self.train_labels[rows],
            train_indices=self.train_indices[rows],
            given_labels=None if self.given_labels is None else self.given_labels[rows],
            split=None,
        )
