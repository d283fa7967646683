"""Fashion-MNIST: 70000 images of clothing, 28 x 28 pixels, ten classes."""

from pathlib import Path

import numpy as np

from lip_fast.cli.errors import UserError
from lip_fast.harness.data.dataset import Dataset
from lip_fast.harness.data.idx import read_idx
from lip_fast.harness.data.images import standardised
from lip_fast.harness.files.reading import checked_labels, class_map

__all__ = ["fashion_mnist"]

# Where Debian's package dataset-fashion-mnist puts the files.
FOLDER = "/usr/share/datasets/fashion-mnist"
CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# Zhang and Sabuncu 2018 (arXiv:1805.07836): boot to sneaker, sneaker to sandal, pullover to shirt,
# coat and dress to each other.
CONFUSIONS = {9: 7, 7: 5, 2: 6, 4: 3, 3: 4}


def fashion_mnist(argument: str) -> Dataset:
    """Fashion-MNIST from its four IDX files, standardised over all training pixels together.

    Args:
        argument: the folder; empty for the one of Debian's package dataset-fashion-mnist.

    Raises:
        UserError: a file is missing, damaged, or does not fit the others.
    """
    folder = Path(argument or FOLDER)
    images, labels = zip(_part(folder, "train"), _part(folder, "t10k"), strict=True)
    train, test = images
    height, width = train.shape[1:]
    if test.shape[1:] != (height, width):
        found = " x ".join(map(str, test.shape[1:]))
        raise UserError(f"expected test images of {height} x {width} pixels in {folder}, found {found}")
    train_features, test_features = standardised(*(part.reshape(len(part), -1) for part in images))
    return Dataset(
        name="fashion-mnist",
        train_features=train_features,
        train_labels=labels[0],
        train_indices=np.arange(len(train)),
        test_features=test_features,
        test_labels=labels[1],
        class_names=CLASSES,
        similar_classes=class_map(CONFUSIONS, len(CLASSES)),
        image_shape=(1, height, width),
    )


def _part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, h, w) uint8 and labels (n,) int64 of ``train`` or ``t10k``."""
    images = read_idx(folder, f"{part}-images-idx3-ubyte", 3)
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte", 1)
    path = folder / f"{part}-labels-idx1-ubyte"
    return images, checked_labels(path, "the content", labels, len(images), len(CLASSES))
