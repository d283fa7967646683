"""Damaged copies of files: cut short, and with flipped bits."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset


def damaged(content: bytes, seed: int, cuts: int = 25, flips: int = 60) -> Iterator[bytes]:
    """Copies cut at many lengths, and copies with 1 to 8 flipped bits, most of them near the start."""
    generator = np.random.default_rng(seed)
    lengths = {0, 1, len(content) - 1, *generator.integers(0, len(content), cuts).tolist()}
    yield from (content[:length] for length in sorted(lengths))
    for _ in range(flips):
        copy = bytearray(content)
        # Headers are where damage does most.
        size = min(len(content), generator.choice([200, 2000, len(content)]))
        for place in generator.integers(0, size, generator.integers(1, 9)):
            copy[place] ^= 1 << int(generator.integers(8))
        yield bytes(copy)


def survives(path: Path, read: Callable[[], object], seed: int = 0, **sizes: int) -> int:
    """Read every damaged copy of ``path``; returns how many were refused.

    Any exception but UserError, and any data set that is none, fails the test.
    """
    original, refused = path.read_bytes(), 0
    try:
        for content in damaged(original, seed, **sizes):
            path.write_bytes(content)
            try:
                result = read()
            except UserError:
                refused += 1
            else:
                if isinstance(result, Dataset):
                    check_valid(result)
    finally:
        path.write_bytes(original)
    return refused


def check_valid(dataset: Dataset) -> None:
    """What every data set promises."""
    classes = len(dataset.class_names)
    assert classes >= 2
    for features, labels in (
        (dataset.train_features, dataset.train_labels),
        (dataset.test_features, dataset.test_labels),
    ):
        assert features.dtype == np.float32
        assert features.ndim == 2
        assert np.isfinite(features).all()
        assert labels.dtype == np.int64
        assert labels.shape == (len(features),)
        assert len(labels) >= 1
        assert labels.min() >= 0
        assert labels.max() < classes
    assert dataset.train_features.shape[1] == dataset.test_features.shape[1] >= 1
    assert dataset.train_indices.shape == dataset.train_labels.shape
    if dataset.given_labels is not None:
        assert len(dataset.given_labels) == len(dataset.train_labels)
        if dataset.given_labels.ndim == 2:
            assert dataset.given_labels.shape[1] == classes
            assert dataset.given_labels.any(1).all()
