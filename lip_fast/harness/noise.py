"""Wrong labels: how they are made, and the file that keeps the ones used."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lip_fast.harness.data.reading import reading
from lip_fast.harness.errors import UserError

__all__ = ["NOISES", "labels_sha256", "load_labels", "make_noisy", "save_labels"]

KEYS = ("seeds", "indices", "clean", "noisy", "sha256")


def none(
    labels: np.ndarray, rate: float, classes: int, generator: np.random.Generator, similar: np.ndarray
) -> np.ndarray:
    """The clean labels, whatever the rate."""
    return labels.copy()


def symmetric(
    labels: np.ndarray, rate: float, classes: int, generator: np.random.Generator, similar: np.ndarray
) -> np.ndarray:
    """Give ``round(rate * n)`` rows, drawn without replacement, a uniformly drawn other class."""
    rows = generator.choice(len(labels), round(rate * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[rows] = (labels[rows] + generator.integers(1, classes, len(rows))) % classes
    return noisy


def asymmetric(
    labels: np.ndarray, rate: float, classes: int, generator: np.random.Generator, similar: np.ndarray
) -> np.ndarray:
    """Give ``round(rate * n_c)`` of the n_c rows of each class c the class ``similar[c]``.

    Classes that are similar to none keep their labels, so the rate over all rows may be lower.
    """
    noisy = labels.copy()
    for c in range(classes):
        rows = np.flatnonzero(labels == c)
        noisy[generator.choice(rows, round(rate * len(rows)), replace=False)] = similar[c]
    return noisy


def pair(
    labels: np.ndarray, rate: float, classes: int, generator: np.random.Generator, similar: np.ndarray
) -> np.ndarray:
    """Give ``round(rate * n_c)`` of the n_c rows of each class c the class after it, the last the first."""
    return asymmetric(labels, rate, classes, generator, _next_class(classes))


def partial(
    labels: np.ndarray, rate: float, classes: int, generator: np.random.Generator, similar: np.ndarray
) -> np.ndarray:
    """Candidate sets (n, l) uint8: the true class, and each other one with probability ``rate``."""
    candidates = (generator.random((len(labels), classes)) < rate).astype(np.uint8)
    candidates[np.arange(len(labels)), labels] = 1
    return candidates


NOISES: dict[str, Callable[[np.ndarray, float, int, np.random.Generator, np.ndarray], np.ndarray]] = {
    "none": none,
    "symmetric": symmetric,
    "asymmetric": asymmetric,
    "pair": pair,
    "partial": partial,
}


def make_noisy(
    kind: str,
    labels: np.ndarray,
    rate: float,
    classes: int,
    generator: np.random.Generator,
    similar: np.ndarray | None = None,
) -> np.ndarray:
    """Wrong labels made from clean ones.

    Args:
        kind: one of ``NOISES``.
        labels: (n,) int64 clean class indices.
        rate: share of wrong labels, or probability of a wrong candidate, 0 <= rate < 1.
        classes: number of classes l, at least 2.
        generator: source of all randomness.
        similar: (l,) int64, what each class is mistaken for in asymmetric noise; None for the next class.

    Returns:
        a new array: (n,) int64 labels, or (n, l) uint8 candidate sets for ``"partial"``.
    """
    similar = _next_class(classes) if similar is None else similar
    return NOISES[kind](labels, rate, classes, generator, similar)


def _next_class(classes: int) -> np.ndarray:
    return (np.arange(classes) + 1) % classes


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
