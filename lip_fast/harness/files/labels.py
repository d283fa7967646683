"""The file ``labels.npz`` with the labels that a run used, and the hash that identifies labels."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lip_fast.cli.errors import UserError
from lip_fast.harness.files.reading import reading

__all__ = ["labels_sha256", "load_labels", "save_labels"]

KEYS = ("seeds", "indices", "clean", "noisy", "sha256")


def labels_sha256(labels: np.ndarray) -> str:
    """SHA-256 (hex) of labels or candidates as little-endian int64, the same on every machine."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


def save_labels(
    path: Path, seeds: Sequence[int], indices: np.ndarray, clean: np.ndarray, noisy: np.ndarray
) -> None:
    """Write the labels of a run as npz: seeds, indices, clean, noisy and sha256 (one for each seed).

    Args:
        path: file to write.
        seeds: the s seeds.
        indices: (n,) int64 rows of the data set that make up the training part, or (s, n) where each seed
            has its own.
        clean: (n,) or (s, n) int64 clean labels of those rows.
        noisy: (s, n) int64 labels trained on, or (s, n, l) uint8 candidate sets.
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
        UserError: the file is missing or damaged, has other keys or shapes, or a row of ``noisy`` does not
            have the hash stored beside it.
    """
    with reading(path, "the labels.npz of a run"), path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile) or (set(KEYS) - set(archive.files)):
            found = getattr(archive, "files", ["a single array"])
            raise UserError(f"expected {', '.join(KEYS)} in {path}, found {', '.join(found) or 'nothing'}")
        labels = {key: archive[key] for key in KEYS}
    for key in ("seeds", "indices", "clean", "noisy"):
        if labels[key].dtype.kind not in "ui":
            raise UserError(f"expected {key} of {path} to be integers, found {labels[key].dtype}")
    seeds, indices, clean, noisy = (labels[key] for key in KEYS[:-1])
    if not (
        seeds.ndim == 1
        and noisy.ndim in (2, 3)
        and len(noisy) == len(seeds)
        and indices.shape == clean.shape
        and clean.shape in (noisy.shape[:2], noisy.shape[1:2])
        and labels["sha256"].shape == seeds.shape
    ):
        shapes = ", ".join(f"{key} {labels[key].shape}" for key in KEYS)
        raise UserError(f"expected labels of as many seeds and rows in {path}, found {shapes}")
    for seed, row, expected in zip(seeds, noisy, labels["sha256"], strict=True):
        if (found := labels_sha256(row)) != expected:
            raise UserError(f"{path}: labels of seed {seed} have hash {found}, not {expected}")
    return labels
