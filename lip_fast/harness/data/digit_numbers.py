"""Numbers of several handwritten digits: many classes with a structure of low rank, without a download."""

import numpy as np

from lip_fast.cli.errors import UserError
from lip_fast.harness.data.dataset import Dataset
from lip_fast.harness.data.digits import digits

__all__ = ["digit_pairs", "digit_triples"]

_TRAIN, _TEST = 20000, 3000


def digit_pairs(argument: str) -> Dataset:
    """The numbers 00 to 99, each of two of scikit-learn's handwritten digits beside each other."""
    return _numbers("digit-pairs", 2, argument)


def digit_triples(argument: str) -> Dataset:
    """The numbers 000 to 999, each of three digits."""
    return _numbers("digit-triples", 3, argument)


def _numbers(name: str, length: int, argument: str) -> Dataset:
    """Images of 8 rows, drawn once for every run; those for testing are made of other digits.

    A class is told by one feature for each digit in each place, 10 ``length`` of them, so that the weight of
    a classifier of 10^length classes that has learned it has about so large a rank.
    """
    if argument:
        raise UserError(f"data set {name} takes no argument, got {argument!r}")
    source = np.random.default_rng(0)
    parts = digits("")
    places = 10 ** np.arange(length - 1, -1, -1)

    def draw(features: np.ndarray, labels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        rows = source.integers(len(labels), size=(n, length))
        images = features[rows].reshape(n, length, 8, 8).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(images).reshape(n, -1), labels[rows] @ places

    train_features, train_labels = draw(parts.train_features, parts.train_labels, _TRAIN)
    test_features, test_labels = draw(parts.test_features, parts.test_labels, _TEST)
    return Dataset(
        name=name,
        train_features=train_features,
        train_labels=train_labels,
        train_indices=np.arange(_TRAIN),
        test_features=test_features,
        test_labels=test_labels,
        class_names=tuple(f"{number:0{length}}" for number in range(10**length)),
        image_shape=(1, 8, 8 * length),
    )
