"""Numbers of handwritten digits, and random features of any data."""

import numpy as np
import pytest

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import load


@pytest.mark.parametrize(("name", "length"), [("digit-pairs", 2), ("digit-triples", 3)])
def test_a_number_is_its_digits_beside_each_other(name: str, length: int) -> None:
    data, digits = load(name), load("digits")
    assert data.train_features.shape == (20000, 64 * length)
    assert data.image_shape == (1, 8, 8 * length)
    assert data.class_names[7] == "7".zfill(length)
    assert len(data.class_names) == 10**length
    images = {"train": data.train_features, "test": data.test_features}
    labels = {"train": data.train_labels, "test": data.test_labels}
    own = {
        "train": dict(zip(map(bytes, digits.train_features), digits.train_labels, strict=True)),
        "test": dict(zip(map(bytes, digits.test_features), digits.test_labels, strict=True)),
    }
    for part in ("train", "test"):
        for image, label in zip(images[part][:200], labels[part][:200], strict=True):
            halves = image.reshape(8, length, 8).transpose(1, 0, 2).reshape(length, 64)
            read = [own[part][bytes(np.ascontiguousarray(half))] for half in halves]
            assert int("".join(map(str, read))) == label
    again = load(name)
    assert np.array_equal(again.train_features, data.train_features)


@pytest.mark.parametrize("name", ["digit-pairs:2", "digit-triples:x"])
def test_numbers_take_no_argument(name: str) -> None:
    with pytest.raises(UserError, match="takes no argument"):
        load(name)


def test_random_features_are_the_same_in_every_run() -> None:
    given, data, again = load("digits"), load("digits", "random-relu:50"), load("digits", "random-relu:50")
    assert data.train_features.shape == (len(given.train_features), 50)
    assert data.test_features.shape == (len(given.test_features), 50)
    assert data.train_features.dtype == np.float32
    assert data.image_shape is None
    assert np.array_equal(data.train_features, again.train_features)
    assert np.array_equal(data.train_labels, given.train_labels)
    assert np.isclose(np.square(data.train_features).mean(), 1, rtol=1e-4)
    assert 0.2 < (data.train_features == 0).mean() < 0.8


@pytest.mark.parametrize(
    "features", ["random-relu", "random-relu:0", "random-relu:-3", "random-relu:x", "pca", ""]
)
def test_other_features_are_refused(features: str) -> None:
    with pytest.raises(UserError, match="expected --features given or random-relu:WIDTH"):
        load("digits", features)
