from pathlib import Path

import numpy as np
import pytest
from harness.damage import check_valid, survives
from harness.sample_files import (
    CIFAR10_NAMES,
    PIXELS,
    cifar10_arrays,
    python_2_batch,
    write_cifar10,
    write_fashion_mnist,
    write_idx,
)

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import load
from lip_fast.harness.data.fashion_mnist import FOLDER
from lip_fast.harness.data.idx import read_idx
from lip_fast.harness.data.images import standardised


def test_pixels_are_standardised_by_the_training_part_alone() -> None:
    generator = np.random.default_rng(0)
    train, test = (generator.integers(0, high, (50, 12), dtype=np.uint8) for high in (100, 256))
    features, test_features = standardised(train, test)
    wide = train / 255
    np.testing.assert_allclose(features, (wide - wide.mean()) / wide.std(), atol=1e-6)
    np.testing.assert_allclose(test_features, (test / 255 - wide.mean()) / wide.std(), atol=1e-6)
    assert features.dtype == test_features.dtype == np.float32


def test_images_of_one_colour_stay_finite() -> None:
    features, test_features = standardised(np.full((3, 4), 7, np.uint8), np.full((2, 4), 9, np.uint8))
    assert (features == 0).all()
    assert np.isfinite(test_features).all()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_come_back(tmp_path: Path, suffix: str) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    write_idx(tmp_path / f"a{suffix}", values)
    np.testing.assert_array_equal(read_idx(tmp_path, "a", 3), values)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist(tmp_path: Path, suffix: str) -> None:
    dataset = load(f"fashion-mnist:{write_fashion_mnist(tmp_path, suffix)}")
    check_valid(dataset)
    assert dataset.train_features.shape == (30, 6)
    assert dataset.test_features.shape == (10, 6)
    assert dataset.image_shape == (1, 3, 2)
    pixels = read_idx(tmp_path, "train-images-idx3-ubyte", 3)
    images = dataset.train_features.reshape(30, *dataset.image_shape)
    np.testing.assert_array_equal(images[:, 0].argsort(None, "stable"), pixels.argsort(None, "stable"))
    np.testing.assert_array_equal(dataset.train_labels, np.arange(30) % 10)
    assert dataset.class_names[9] == "ankle boot"


@pytest.mark.skipif(not Path(FOLDER).is_dir(), reason="Fashion-MNIST is not installed")
def test_the_installed_fashion_mnist() -> None:
    dataset = load("fashion-mnist")
    check_valid(dataset)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (60_000, 10_000)
    assert (np.bincount(dataset.train_labels) == 6000).all()
    assert dataset.train_features.mean(dtype=np.float64) == pytest.approx(0, abs=1e-5)
    assert dataset.image_shape == (1, 28, 28)


def test_fashion_mnist_of_parts_that_do_not_fit(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    images = tmp_path / "t10k-images-idx3-ubyte"
    write_idx(images, np.zeros((10, 3, 3)))
    with pytest.raises(UserError, match=r"expected test images of 3 x 2 pixels in .*, found 3 x 3$"):
        load(f"fashion-mnist:{tmp_path}")
    write_idx(images, np.zeros((10, 2, 3)))  # as many pixels, in another shape
    with pytest.raises(UserError, match=r"expected test images of 3 x 2 pixels in .*, found 2 x 3$"):
        load(f"fashion-mnist:{tmp_path}")
    write_idx(images, np.zeros((9, 3, 2)))
    with pytest.raises(UserError, match="to hold 9 labels, found 10"):
        load(f"fashion-mnist:{tmp_path}")
    images.unlink()
    with pytest.raises(UserError, match=r"expected t10k-images-idx3-ubyte or .*\.gz in .*, found neither"):
        load(f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_idx_files(tmp_path: Path, name: str, suffix: str) -> None:
    write_fashion_mnist(tmp_path, suffix)
    assert survives(tmp_path / f"{name}{suffix}", lambda: load(f"fashion-mnist:{tmp_path}")) > 20


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["protocol 2", "protocol 4", "python 2", "binary"])
def test_cifar10(tmp_path: Path, kind: str, inside: bool) -> None:
    folder = tmp_path / f"cifar-10-batches-{'bin' if kind == 'binary' else 'py'}"
    folder.mkdir()
    write_cifar10(folder, binary=kind == "binary", protocol=4 if kind == "protocol 4" else 2)
    arrays = cifar10_arrays(4)
    if kind == "python 2":
        for name, (images, labels) in zip(CIFAR10_NAMES, arrays, strict=True):
            (folder / name).write_bytes(python_2_batch(images, labels))
    dataset = load(f"cifar10:{folder if inside else tmp_path}")
    check_valid(dataset)
    train, test = standardised(np.concatenate([images for images, _ in arrays[:-1]]), arrays[-1][0])
    np.testing.assert_array_equal(dataset.train_features, train)
    np.testing.assert_array_equal(dataset.test_features, test)
    np.testing.assert_array_equal(dataset.train_labels, [c for _, labels in arrays[:-1] for c in labels])
    np.testing.assert_array_equal(dataset.test_labels, arrays[-1][1])
    assert dataset.train_features.shape == (20, PIXELS)
    assert dataset.image_shape == (3, 32, 32)


@pytest.mark.parametrize("kind", ["pickle", "python 2", "binary"])
def test_damaged_batches(tmp_path: Path, kind: str) -> None:
    write_cifar10(tmp_path, binary=kind == "binary", rows=2)
    path = tmp_path / ("data_batch_3.bin" if kind == "binary" else "data_batch_3")
    if kind == "python 2":
        path.write_bytes(python_2_batch(*cifar10_arrays(2)[2]))
    assert survives(path, lambda: load(f"cifar10:{tmp_path}")) > 20


def test_a_batch_that_lost_whole_records(tmp_path: Path) -> None:
    write_cifar10(tmp_path, binary=True)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[: 3 * (PIXELS + 1)])
    with pytest.raises(UserError, match=r"expected 4 images in .* as in data_batch_1.bin, found 3"):
        load(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", "expected the folder of CIFAR-10, as cifar10:FOLDER, got none"),
        ("cifar10:nowhere", r"expected data_batch_1 or data_batch_1.bin in nowhere, found neither"),
        ("fashion-mnist:nowhere", "expected train-images-idx3-ubyte or .* in nowhere, found neither"),
    ],
)
def test_missing_folders(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(name)
