import numpy as np
import pytest

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset, load


def test_digits_have_the_shapes_and_types_they_promise(digits: Dataset) -> None:
    n, m = len(digits.train_labels), len(digits.test_labels)
    assert (n, m) == (1437, 360)
    assert digits.train_features.shape == (n, 64)
    assert digits.test_features.shape == (m, 64)
    for features in (digits.train_features, digits.test_features):
        assert features.dtype == np.float32
        assert (features.min(), features.max()) == (0, 1)
    for labels in (digits.train_labels, digits.test_labels, digits.train_indices):
        assert labels.dtype == np.int64
    assert digits.class_names == tuple("0123456789")
    assert digits.image_shape == (1, 8, 8)
    assert digits.with_training_rows(np.arange(5)).image_shape == (1, 8, 8)


def test_indices_lead_back_to_the_source(digits: Dataset) -> None:
    import sklearn.datasets

    source = sklearn.datasets.load_digits()
    np.testing.assert_array_equal(source.target[digits.train_indices], digits.train_labels)
    np.testing.assert_array_equal(
        (source.data[digits.train_indices] / 16).astype(np.float32), digits.train_features
    )


def test_no_test_sample_is_trained_on(digits: Dataset) -> None:
    train = {row.tobytes() for row in digits.train_features}
    assert not any(row.tobytes() in train for row in digits.test_features)


def test_split_is_stratified(digits: Dataset) -> None:
    train = np.bincount(digits.train_labels) / len(digits.train_labels)
    test = np.bincount(digits.test_labels) / len(digits.test_labels)
    assert abs(train - test).max() < 0.002  # half a sample of 360


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "digit",
            "unknown data set 'digit': known are digits, digit-pairs, digit-triples, fashion-mnist, cifar10; "
            "the nearest is 'digits'",
        ),
        ("", "unknown data set ''"),
        ("digits:8", "data set digits takes no argument, got '8'"),
    ],
)
def test_unknown_data_set(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(name)
