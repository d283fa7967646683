"""Features that some other network computed, in a NumPy archive."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lip_fast.cli.errors import UserError
from lip_fast.harness.data.dataset import Dataset
from lip_fast.harness.files.reading import checked_features, checked_labels, read_npz

__all__ = ["read_embeddings"]

REQUIRED = ("train_features", "train_labels", "test_features", "test_labels")
CLEAN = "train_clean_labels"


def read_embeddings(path: Path) -> Dataset:
    """An archive with ``train_features`` (n, d), ``train_labels`` (n,), ``test_features``, ``test_labels``.

    Features stay as they are. ``train_labels`` are the labels that the archive comes with, right or wrong;
    where it also has ``train_clean_labels``, those are the clean ones.

    Raises:
        UserError: the file is missing or damaged, or its arrays are not these or do not fit each other.
    """
    arrays = read_npz(path, partial(_wanted, path))
    train = checked_features(path, "train_features", arrays["train_features"])
    test = checked_features(path, "test_features", arrays["test_features"])
    if train.shape[1] != test.shape[1]:
        raise UserError(
            f"expected test_features of {path} with {train.shape[1]} columns as train_features, "
            f"found {test.shape[1]}"
        )
    rows = {name: len(train) for name in ("train_labels", CLEAN)} | {"test_labels": len(test)}
    labels = {name: checked_labels(path, name, arrays[name], rows[name]) for name in rows if name in arrays}
    classes = _number_of_classes(path, labels)
    return Dataset(
        name=path.stem,
        train_features=train,
        train_labels=labels.get(CLEAN, labels["train_labels"]),
        train_indices=np.arange(len(train)),
        test_features=test,
        test_labels=labels["test_labels"],
        class_names=tuple(map(str, range(classes))),
        # Nobody says that they are right: what is trained on is what the file holds.
        given_labels=labels["train_labels"],
    )


def _wanted(path: Path, names: Sequence[str]) -> list[str]:
    if missing := [key for key in REQUIRED if key not in names]:
        raise UserError(
            f"expected {', '.join(REQUIRED)} in {path}, found no {' and no '.join(missing)}"
            f" among {', '.join(names) or 'nothing'}"
        )
    return [key for key in (*REQUIRED, CLEAN) if key in names]


def _number_of_classes(path: Path, labels: Mapping[str, np.ndarray]) -> int:
    """One more than the largest label.

    Raises:
        UserError: there is one class alone, or most classes have no sample, as after damage to one label.
    """
    used = np.unique(np.concatenate(list(labels.values())))
    classes = int(used[-1]) + 1
    if classes < 2:
        raise UserError(f"expected at least two classes in {path}, found {classes}")
    if 2 * len(used) < classes:
        name = max(labels, key=lambda name: labels[name].max())
        row = labels[name].argmax()
        raise UserError(
            f"expected class indices 0 to l - 1 in {path}, most of them with samples; found {len(used)} of "
            f"{classes} classes with samples, and the largest, {classes - 1}, in row {row} of {name}: mend "
            "it, or number the classes of all labels anew by np.unique(labels, return_inverse=True)[1]"
        )
    return classes
