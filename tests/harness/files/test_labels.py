from pathlib import Path

import numpy as np
import pytest

from lip_fast.harness.files.labels import labels_sha256, load_labels, save_labels
from lip_fast.harness.noise import make_noisy
from lip_fast.harness.seeding import stream


def clean_labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 7, 1001)


def test_labels_come_back_from_their_file(tmp_path: Path) -> None:
    clean, indices = clean_labels(), np.arange(1001)[::-1]
    noisy = np.stack([make_noisy("symmetric", clean, 0.4, 7, stream(s, "noise")) for s in (0, 1)])
    save_labels(tmp_path / "labels.npz", [0, 1], indices, clean, noisy)
    labels = load_labels(tmp_path / "labels.npz")
    np.testing.assert_array_equal(labels["seeds"], [0, 1])
    np.testing.assert_array_equal(labels["indices"], indices)
    np.testing.assert_array_equal(labels["clean"], clean)
    np.testing.assert_array_equal(labels["noisy"], noisy)
    assert labels["sha256"].tolist() == [labels_sha256(row) for row in noisy]


def test_changed_labels_are_found_out(tmp_path: Path) -> None:
    clean = clean_labels()
    path = tmp_path / "labels.npz"
    save_labels(path, [4], np.arange(1001), clean, clean[None])
    labels = load_labels(path)
    labels["noisy"][0, 17] += 1
    np.savez(path, **labels)
    with pytest.raises(ValueError, match="labels of seed 4 have hash"):
        load_labels(path)


def test_hash_is_of_little_endian_int64() -> None:
    # sha256 of the eight bytes 01 00 00 00 00 00 00 00.
    expected = "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8"
    for dtype in ("<i8", ">i8", np.int32):
        assert labels_sha256(np.array([1], dtype=dtype)) == expected
