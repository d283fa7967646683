"""Wrong labels: how they are made, and the file that keeps the ones used."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

__all__ = ["NOISES", "labels_sha256", "load_labels", "make_noisy", "save_labels"]


def symmetric(labels: np.ndarray, rate: float, classes: int, generator: np.random.Generator) -> np.ndarray:
    """Give ``round(rate * n)`` rows, drawn without replacement, a uniformly drawn other class.

    Args:
        labels: (n,) int64 clean class indices.
        rate: share of wrong labels, 0 <= rate < 1.
        classes: number of classes, at least 2.
        generator: source of all randomness.

    Returns:
        (n,) int64 noisy labels, a new array.
    """
    rows = generator.choice(len(labels), round(rate * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[rows] = (labels[rows] + generator.integers(1, classes, len(rows))) % classes
    return noisy


NOISES: dict[str, Callable[[np.ndarray, float, int, np.random.Generator], np.ndarray]] = {
    "symmetric": symmetric,
}


def make_noisy(
    kind: str, labels: np.ndarray, rate: float, classes: int, generator: np.random.Generator
) -> np.ndarray:
    """Noisy labels (n,) int64 of the kind named, one of ``NOISES``; arguments as :func:`symmetric`."""
    return NOISES[kind](labels, rate, classes, generator)


def labels_sha256(labels: np.ndarray) -> str:
    """SHA-256 (hex) of labels as little-endian int64, the same on every machine."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


def save_labels(
    path: Path, seeds: Sequence[int], indices: np.ndarray, clean: np.ndarray, noisy: np.ndarray
) -> None:
    """Write the labels of a run as npz: seeds, indices, clean, noisy and sha256 (one for each seed).

    Args:
        path: file to write.
        seeds: the s seeds.
        indices: (n,) int64 rows of the data set that make up the training part.
        clean: (n,) int64 clean labels of those rows.
        noisy: (s, n) int64 labels trained on.
    """
    np.savez_compressed(
        path,
        seeds=np.asarray(seeds, dtype=np.int64),
        indices=indices,
        clean=clean,
        noisy=noisy,
        sha256=np.array([labels_sha256(row) for row in noisy]),
    )


def load_labels(path: Path) -> dict[str, np.ndarray]:
    """Read what :func:`save_labels` wrote.

    Raises:
        ValueError: a row of ``noisy`` does not have the hash stored beside it.
    """
    with np.load(path, allow_pickle=False) as file:
        labels = dict(file)
    for seed, row, expected in zip(labels["seeds"], labels["noisy"], labels["sha256"], strict=True):
        if (found := labels_sha256(row)) != expected:
            raise ValueError(f"{path}: labels of seed {seed} have hash {found}, not {expected}")
    return labels
