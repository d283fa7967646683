"""CIFAR-10: 60000 photographs, 32 x 32 pixels in three colours, ten classes."""

import math
from pathlib import Path

import numpy as np

from lip_fast.cli.errors import UserError
from lip_fast.harness.data.dataset import Dataset
from lip_fast.harness.data.images import standardised
from lip_fast.harness.data.pickled import unpickle_arrays
from lip_fast.harness.files.reading import checked_labels, class_map, reading

__all__ = ["cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Patrini et al. 2017 (arXiv:1609.03683): truck to automobile, bird to airplane, deer to horse, cat and dog
# to each other.
CONFUSIONS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
SHAPE = (3, 32, 32)
PIXELS = math.prod(SHAPE)


def cifar10(argument: str) -> Dataset:
    """CIFAR-10 from its official archive, standardised over all training pixels together.

    Args:
        argument: the folder ``cifar-10-batches-py`` or ``cifar-10-batches-bin``, or the one it lies in.

    Raises:
        UserError: a file is missing, damaged, or does not fit the others.
    """
    if not argument:
        raise UserError("expected the folder of CIFAR-10, as cifar10:FOLDER, got none")
    base = Path(argument)
    folders = (base, base / "cifar-10-batches-py", base / "cifar-10-batches-bin")
    for folder in folders:
        for suffix, read in (("", _read_pickle), (".bin", _read_binary)):
            if (folder / (TRAIN[0] + suffix)).exists():
                parts = [read(folder / (name + suffix)) for name in (*TRAIN, TEST)]
                return _dataset([folder / (name + suffix) for name in (*TRAIN, TEST)], parts)
    raise UserError(f"expected {TRAIN[0]} or {TRAIN[0]}.bin in {base}, found neither")


def _dataset(paths: list[Path], parts: list[tuple[np.ndarray, np.ndarray]]) -> Dataset:
    """The data set made of the images (b, 3072) uint8 and labels (b,) int64 of six files."""
    size = len(parts[0][0])
    for path, (images, _) in zip(paths, parts, strict=True):
        # All batches of CIFAR-10 have as many images: a file with fewer was cut short.
        if len(images) != size:
            raise UserError(f"expected {size} images in {path} as in {paths[0].name}, found {len(images)}")
    features, test_features = standardised(np.concatenate([images for images, _ in parts[:-1]]), parts[-1][0])
    return Dataset(
        name="cifar10",
        train_features=features,
        train_labels=np.concatenate([labels for _, labels in parts[:-1]]),
        train_indices=np.arange(len(features)),
        test_features=test_features,
        test_labels=parts[-1][1],
        class_names=CLASSES,
        similar_classes=class_map(CONFUSIONS, len(CLASSES)),
        image_shape=SHAPE,
    )


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with reading(path, "a batch of CIFAR-10"):
        batch = unpickle_arrays(path.read_bytes())
        missing = {"data", "labels"} - set(batch)
        if missing:
            raise UserError(
                f"expected data and labels in {path}, found no {' and no '.join(sorted(missing))}"
            )
        images, labels = batch["data"], batch["labels"]
        if isinstance(labels, list):
            if not all(type(label) is int for label in labels):
                raise UserError(f"expected labels of {path} to be integers")
            labels = np.array(labels, dtype=np.int64)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (PIXELS,):
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise UserError(f"expected data of {path} as uint8 with {PIXELS} columns, found {found}")
    if not len(images):
        raise UserError(f"expected images in {path}, found none")
    return images, checked_labels(path, "labels", labels, len(images), len(CLASSES))


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with reading(path, "a batch of CIFAR-10"):
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if not len(content) or len(content) % (1 + PIXELS):
        raise UserError(f"expected {path} in records of {1 + PIXELS} bytes, found {len(content)} bytes")
    records = content.reshape(-1, 1 + PIXELS)
    return records[:, 1:], checked_labels(path, "labels", records[:, 0], len(records), len(CLASSES))
