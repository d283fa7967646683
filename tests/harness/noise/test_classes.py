import numpy as np
import pytest

from lip_fast.harness.noise import make_noisy
from lip_fast.harness.seeding import stream


def clean_labels(n: int = 1001, classes: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, classes, n)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 0.999])
@pytest.mark.parametrize("classes", [2, 7])
def test_symmetric_flips_exactly_the_rounded_share(rate: float, classes: int) -> None:
    clean = clean_labels(classes=classes)
    noisy = make_noisy("symmetric", clean, rate, classes, stream(0, "noise"))
    assert (noisy != clean).sum() == round(rate * len(clean))
    assert noisy.dtype == np.int64
    assert noisy.min() >= 0
    assert noisy.max() < classes


def test_symmetric_draws_every_other_class_alike() -> None:
    clean = np.full(60_000, 3)
    noisy = make_noisy("symmetric", clean, 0.5, 7, stream(0, "noise"))
    counts = np.bincount(noisy[noisy != clean], minlength=7)
    # 30000 draws from 6 classes: standard deviation 65, so 5 of them are 325.
    assert counts[3] == 0
    assert abs(counts[[0, 1, 2, 4, 5, 6]] - 5000).max() < 325


def test_noise_leaves_the_clean_labels_alone() -> None:
    clean = clean_labels()
    before = clean.copy()
    make_noisy("symmetric", clean, 0.4, 7, stream(0, "noise"))
    np.testing.assert_array_equal(clean, before)


def test_same_seed_same_noise_and_another_seed_another() -> None:
    clean = clean_labels()
    first, again, other = (make_noisy("symmetric", clean, 0.4, 7, stream(s, "noise")) for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_streams_of_one_seed_differ_by_purpose() -> None:
    assert stream(0, "noise").integers(2**62) != stream(0, "order").integers(2**62)
