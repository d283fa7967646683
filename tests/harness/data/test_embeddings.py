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
    assert (dataset.name, dataset.class_names, dataset.given_labels) == ("faces", ("0", "1", "2"), None)


def test_clean_labels_make_the_others_wrong_ones(tmp_path: Path) -> None:
    source = embeddings()
    clean = source["train_labels"].astype(np.uint8)
    noisy = (clean + 1) % 3
    dataset = load(str(write_npz(tmp_path / "a.npz", train_labels=noisy, train_clean_labels=clean)))
    np.testing.assert_array_equal(dataset.train_labels, clean)
    np.testing.assert_array_equal(dataset.given_labels, noisy)


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
        ({"test_features": np.ones((0, 5))}, r"to be a matrix with rows and columns, found \(0, 5\)"),
        ({"test_features": with_value(np.inf)}, "finite in float32, found another value in row 4"),
        ({"test_features": with_value(1e39)}, "finite in float32, found another value in row 4"),
        ({"test_features": np.full((30, 5), "x")}, "array of real numbers, found <U1"),
        ({"train_labels": np.zeros(59, int)}, "train_labels of .* to hold 60 labels, found 59"),
        ({"train_labels": np.full(60, -1)}, "found -1 in row 0"),
        ({"train_labels": np.full(60, 2**63, np.uint64)}, "classes 0 to 89, found 9223372036854775808"),
        ({"train_labels": np.zeros(60)}, "vector of integers, found float64"),
        ({"train_labels": np.zeros((60, 1), int)}, r"vector of integers, found int64 of shape \(60, 1\)"),
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
    with pytest.raises(UserError, match="cannot be read"):
        load(str(write_npz(tmp_path / "b.npz", train_features=np.array([{}], dtype=object))))


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files(tmp_path: Path, compressed: bool) -> None:
    path = write_npz(tmp_path / "a.npz", compressed=compressed)
    assert survives(path, lambda: load(str(path))) > 20
