from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from harness.damage import check_valid, survives
from harness.sample_files import SHARED, partial_labels, write_mat

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset, load
from lip_fast.harness.data.matlab import matlab_matrices


def whole(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training part, and those of the test part."""
    rows = np.arange(len(dataset.train_labels) + len(dataset.test_labels))
    return dataset.train_indices, np.setdiff1d(rows, dataset.train_indices)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("turned", [(), ("partial_target", "target"), ("data",)], ids=str)
def test_every_layout_gives_the_same(
    tmp_path: Path, sparse: bool, compressed: bool, turned: tuple[str, ...]
) -> None:
    source = partial_labels()
    changes = {key: source[key].T for key in turned}
    path = write_mat(tmp_path / "a.mat", sparse=sparse, compressed=compressed, **changes)
    dataset = load(str(path))
    check_valid(dataset)
    train, test = whole(dataset)
    assert (len(train), len(test)) == (20, 20)
    np.testing.assert_array_equal(dataset.train_labels, source["target"].argmax(0)[train])
    np.testing.assert_array_equal(dataset.test_labels, source["target"].argmax(0)[test])
    np.testing.assert_array_equal(dataset.given_labels, source["partial_target"].T[train])
    mean, deviation = source["data"][train].mean(0), source["data"][train].std(0)
    np.testing.assert_allclose(dataset.train_features, (source["data"][train] - mean) / deviation, atol=1e-5)
    np.testing.assert_allclose(dataset.test_features, (source["data"][test] - mean) / deviation, atol=1e-5)


def test_each_seed_splits_anew_and_always_alike(tmp_path: Path) -> None:
    dataset = load(str(write_mat(tmp_path / "a.mat")))
    first, again, other = (dataset.for_seed(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train_indices, again.train_indices)
    np.testing.assert_array_equal(first.train_features, again.train_features)
    assert (first.train_indices != other.train_indices).any()
    np.testing.assert_array_equal(dataset.for_seed(0).train_indices, dataset.train_indices)


def test_constant_columns_become_zero(tmp_path: Path) -> None:
    data = partial_labels()["data"]
    data[:, 2] = 0.1
    dataset = load(str(write_mat(tmp_path / "a.mat", data=data)))
    assert (dataset.train_features[:, 2] == 0).all()
    assert (dataset.test_features[:, 2] == 0).all()


def changed(key: str, row: int, column: int, value: float) -> dict[str, np.ndarray]:
    matrix = partial_labels()[key]
    matrix[row, column] = value
    return {key: matrix}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, "expected data, partial_target, target in .*, found no target"),
        ({"data": np.ones((39, 6))}, r"found \(39, 6\), \(4, 40\) and \(4, 40\)"),
        ({"target": np.ones((5, 40))}, r"found \(40, 6\), \(4, 40\) and \(5, 40\)"),
        (
            changed("data", 3, 1, np.nan),
            "expected data of .* finite in float32, found .* in row 3",
        ),
        (changed("data", 3, 1, 1e200), "expected data of .* finite in float32, found .* in row 3"),
        (changed("partial_target", 1, 5, 0.5), "expected partial_target of .* zeros and ones"),
        ({"partial_target": np.eye(4, 40)}, "expected a candidate for each row .*, row 4 has none"),
        ({"target": np.ones((4, 40))}, "expected one class for each row in target of .*, row 0 has 4"),
        ({"data": "text"}, "expected a matrix of numbers, found an array of class 4"),
        ({"data": {"a": 1}}, "expected a matrix of numbers, found an array of class 2"),
        ({"data": np.ones((40, 6)) * 1j}, "expected a real matrix, found a complex one"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_mat(tmp_path / "a.mat", **changes)
    with pytest.raises(UserError, match=message):
        load(str(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.mat cannot be read: No such file"):
        load(str(tmp_path / "nowhere.mat"))
    (tmp_path / "folder.mat").mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load(str(tmp_path / "folder.mat"))
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    with pytest.raises(UserError, match=r"version 1.0 \(save with -v7\), found 2.0"):
        load(str(tmp_path / "a.mat"))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_damaged_files(tmp_path: Path, sparse: bool, compressed: bool) -> None:
    path = write_mat(tmp_path / "a.mat", sparse=sparse, compressed=compressed)
    assert survives(path, lambda: load(str(path)), cuts=50, flips=200) > 50


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f4", "f8", "?"])
def test_every_type_of_number_is_read(tmp_path: Path, dtype: str) -> None:
    values = {"a": np.arange(6).reshape(2, 3).astype(dtype), "other": np.ones((1, 1)), "b": np.ones((1, 1))}
    scipy.io.savemat(tmp_path / "a.mat", values)
    read = matlab_matrices((tmp_path / "a.mat").read_bytes(), ("a", "b"))
    assert sorted(read) == ["a", "b"]
    np.testing.assert_array_equal(read["a"], values["a"])


@pytest.mark.parametrize(
    ("name", "rows", "features", "classes"), [("lost", 1122, 108, 16), ("MSRCv2", 1758, 48, 23)]
)
def test_real_sets(name: str, rows: int, features: int, classes: int) -> None:
    path = SHARED / f"{name}.mat"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    dataset = load(str(path))
    check_valid(dataset)
    assert len(dataset.class_names) == classes
    assert dataset.train_features.shape == (rows // 2, features)
    assert len(dataset.test_labels) == rows - rows // 2
    assert dataset.given_labels is not None
    assert dataset.given_labels[np.arange(rows // 2), dataset.train_labels].all()
    expected = scipy.io.loadmat(path)
    read = matlab_matrices(path.read_bytes(), ("data", "partial_target", "target"))
    np.testing.assert_array_equal(read["data"], expected["data"])
    for key in ("partial_target", "target"):
        np.testing.assert_array_equal(read[key], expected[key].toarray())
