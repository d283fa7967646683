"""Partial-label sets in MATLAB files: each sample has a set of candidates, one of which is right."""

from pathlib import Path

import numpy as np

from lip_fast.cli.errors import UserError
from lip_fast.harness.data.dataset import Dataset
from lip_fast.harness.data.matlab import matlab_matrices
from lip_fast.harness.files.reading import checked_features, reading, real_matrix
from lip_fast.harness.seeding import stream

__all__ = ["read_partial_labels"]

KEYS = ("data", "partial_target", "target")


def read_partial_labels(path: Path) -> Dataset:
    """A file with ``data`` (n, d), ``partial_target`` and ``target`` (l, n) of zeros and ones.

    Matrices may be sparse, and lie either way round. There is no test part: half of the rows are for testing,
    drawn by each seed anew. Features are standardised by mean and deviation of each over the training part.

    Raises:
        UserError: the file is missing or damaged, or its matrices are not these or do not fit each other.
    """
    with reading(path, "a MATLAB file (version 7 or older)"):
        content = matlab_matrices(path.read_bytes(), KEYS)
    if missing := [key for key in KEYS if key not in content]:
        raise UserError(f"expected {', '.join(KEYS)} in {path}, found no {' and no '.join(missing)}")
    data, partial, target = (real_matrix(path, key, content[key]) for key in KEYS)
    data, partial, target = _oriented(path, data, partial, target)
    features = checked_features(path, "data", data)
    for key, matrix in (("partial_target", partial), ("target", target)):
        if not ((matrix == 0) | (matrix == 1)).all():
            raise UserError(f"expected {key} of {path} to be zeros and ones, found other values")
    if not (partial.any(1)).all():
        row = partial.any(1).argmin()
        raise UserError(f"expected a candidate for each row in partial_target of {path}, row {row} has none")
    counts = (target != 0).sum(1)
    if not (counts == 1).all():
        row = (counts != 1).argmax()
        raise UserError(f"expected one class for each row in target of {path}, row {row} has {counts[row]}")
    rows, classes = partial.shape
    if rows < 2 or classes < 2:
        raise UserError(
            f"expected at least 2 rows and 2 classes in {path}, found {rows} rows and {classes} classes"
        )
    labels, candidates = target.argmax(1), partial.astype(np.uint8)

    def split(seed: int) -> Dataset:
        order = stream(seed, "split").permutation(rows)
        train, test = np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])
        train_features, test_features = _standardised(features[train], features[test])
        return Dataset(
            name=path.stem,
            train_features=train_features,
            train_labels=labels[train],
            train_indices=train,
            test_features=test_features,
            test_labels=labels[test],
            class_names=tuple(map(str, range(classes))),
            given_labels=candidates[train],
            split=split,
        )

    return split(0)


def _oriented(
    path: Path, data: np.ndarray, partial: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices with one row for each sample; where a square one leaves it open, as published."""
    for features in (data, data.T):
        for turn in (True, False):
            candidates = partial.T if turn else partial
            if len(candidates) != len(features):
                continue
            for classes in (target.T, target) if turn else (target, target.T):
                if classes.shape == candidates.shape:
                    return features, candidates, classes
    raise UserError(
        f"expected data (n, d) with partial_target and target (l, n) in {path}, "
        f"found {data.shape}, {partial.shape} and {target.shape}"
    )


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each column by its mean and deviation over ``train``, float32; constant columns become zero."""
    wide = train.astype(np.float64)  # squares of large float32 values overflow
    mean, deviation = wide.mean(0), wide.std(0)
    # Rounding leaves a constant column a tiny deviation, which would blow up other values of the test part.
    scale = np.where(deviation > 1e-6 * np.abs(wide).max(0), deviation, np.inf)
    with np.errstate(over="ignore"):  # an outlier of the test part may be larger than float32 can say
        test_features = ((test - mean) / scale).astype(np.float32)
    return ((wide - mean) / scale).astype(np.float32), np.nan_to_num(test_features)
