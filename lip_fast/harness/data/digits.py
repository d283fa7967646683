"""scikit-learn's handwritten digits."""

import numpy as np
import sklearn.datasets
import sklearn.model_selection

from lip_fast.cli.errors import UserError
from lip_fast.harness.data.dataset import Dataset
from lip_fast.harness.files.reading import class_map

__all__ = ["digits"]

# The usual confusions of handwritten digits (Patrini et al. 2017, arXiv:1609.03683).
CONFUSIONS = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}


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
        similar_classes=class_map(CONFUSIONS, 10),
        image_shape=(1, 8, 8),
    )
