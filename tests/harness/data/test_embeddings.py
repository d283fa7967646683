from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.damage import check_valid, survives
from harness.sample_files import embeddings, write_npz

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import load


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_as_they_are(tmp_path: Path, compressed: bool) -> None:
    source = embeddings()
    dataset = load(str(write_npz(tmp_path / "faces.npz", compressed=compressed)))
    check_valid(dataset)
    for key, values in source.items():
        np.testing.assert_array_equal(getattr(dataset, key), values)
    assert (dataset.name, dataset.class_names) == ("faces", ("0", "1", "2"))
    # Nobody said that they are clean.
    np.testing.assert_array_equal(dataset.given_labels, source["train_labels"])


def test_clean_labels_make_the_others_wrong_ones(tmp_path: Path) -> None:
    source = embeddings()
    clean = source["train_labels"].astype(np.uint8)
    noisy = (clean + 1) % 3
    dataset = load(str(write_npz(tmp_path / "a.npz", train_labels=noisy, train_clean_labels=clean)))
    np.testing.assert_array_equal(dataset.train_labels, clean)
    np.testing.assert_array_equal(dataset.given_labels, noisy)


def with_label(value: int, row: int = 7) -> np.ndarray:
    labels = embeddings()["train_labels"].copy()
    labels[row] = value
    return labels


def with_value(value: float) -> np.ndarray:
    features = embeddings()["test_features"].astype(np.float64)
    features[4, 2] = value
    return features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "found no test_labels among train_features"),
        ({"test_features": np.ones((30, 6))}, "with 5 columns as train_features, found 6"),
        ({"test_features": np.ones(30)}, r"to be a matrix with rows and columns, found \(30,\)"),
        ({"test_features": np.ones((30, 1, 5, 5))}, r"found \(30, 1, 5, 5\): flatten images, or take what a"),
        ({"train_labels": np.array([1, "a"] * 30, object)}, "train_labels of .* found Python objects: rows"),
        ({"test_features": np.ones((0, 5))}, r"to be a matrix with rows and columns, found \(0, 5\)"),
        ({"test_features": with_value(np.inf)}, "finite in float32, found inf in row 4"),
        ({"test_features": with_value(1e39)}, r"finite in float32, found 1e\+39 in row 4"),
        ({"test_features": np.full((30, 5), "x")}, "array of real numbers, found <U1"),
        ({"train_labels": np.zeros(59, int)}, "train_labels of .* to hold 60 labels, found 59"),
        (
            {"train_labels": np.full(60, -1)},
            "train_labels of .*a.npz to be class indices from 0 on, found -1 in row 0, and others in 59 more "
            "rows: leave out rows without a label",
        ),
        ({"train_labels": with_label(-1)}, "class indices from 0 on, found -1 in row 7: leave out"),
        ({"train_labels": np.full(60, 2**63, np.uint64)}, "from 0 on, found 9223372036854775808 in row 0"),
        (
            {"train_labels": with_label(500)},
            "found 4 of 501 classes with samples, and the largest, 500, in row 7 of train_labels: mend it",
        ),
        ({"train_labels": with_label(2**62)}, r"found 4 of \d+ classes with samples, .* in row 7"),
        (
            {"test_labels": np.arange(30) % 3 + 10},
            "6 of 13 classes .*, and the largest, 12, in row 2 of test",
        ),
        ({"train_labels": np.zeros(60)}, r"vector of integers, found float64 .*labels.astype\(int\)"),
        ({"train_labels": np.zeros((60, 1), int)}, r"found int64 of shape \(60, 1\); .* labels.ravel\(\)"),
        ({"train_labels": np.eye(60)}, r"found float64 of shape \(60, 60\); .* labels.argmax\(1\)"),
        ({"train_labels": np.full(60, "cat")}, r"found <U3 of shape \(60,\); names .* return_inverse=True"),
        ({"train_clean_labels": np.zeros(61, int)}, "train_clean_labels of .* 60 labels, found 61"),
        (
            {"train_labels": np.zeros(60, int), "test_labels": np.zeros(30, int)},
            "at least two classes in .*, found 1",
        ),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(UserError, match=message):
        load(str(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load(str(tmp_path / "nowhere.npz"))
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(UserError, match="holds a single array"):
        load(str(tmp_path / "a.npz"))
    (tmp_path / "b.npz").touch()
    with pytest.raises(UserError, match=r"expected a NumPy .npz archive, .*b.npz is empty"):
        load(str(tmp_path / "b.npz"))


def test_a_class_may_be_without_samples(tmp_path: Path) -> None:
    source = embeddings()
    path = write_npz(tmp_path / "a.npz", train_labels=source["train_labels"] + 1, test_labels=np.full(30, 1))
    dataset = load(str(path))
    assert len(dataset.class_names) == 4
    assert dataset.counts().tolist() == [0, 20, 20, 20]


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files(tmp_path: Path, compressed: bool) -> None:
    path = write_npz(tmp_path / "a.npz", compressed=compressed)
    assert survives(path, lambda: load(str(path))) > 20
