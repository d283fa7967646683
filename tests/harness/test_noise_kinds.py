import numpy as np
import pytest

from lip_fast.harness.data import Dataset
from lip_fast.harness.noise import NOISES, make_noisy
from lip_fast.harness.seeding import stream

CLASSES, ROWS, RATE = 5, 10_000, 0.3


def clean_labels() -> np.ndarray:
    return np.random.default_rng(1).permutation(np.arange(ROWS) % CLASSES)


def transitions(clean: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """(l, l): share of each class that has each label."""
    matrix = np.zeros((CLASSES, CLASSES))
    np.add.at(matrix, (clean, noisy), 1)
    return matrix / matrix.sum(1, keepdims=True)


def noisy_labels(kind: str, seed: int = 0, similar: np.ndarray | None = None) -> np.ndarray:
    return make_noisy(kind, clean_labels(), RATE, CLASSES, stream(seed, "noise"), similar)


def test_none_changes_nothing() -> None:
    np.testing.assert_array_equal(noisy_labels("none"), clean_labels())


def test_transitions_of_symmetric_noise() -> None:
    expected = np.full((CLASSES, CLASSES), RATE / (CLASSES - 1))
    np.fill_diagonal(expected, 1 - RATE)
    # 2000 rows of a class: the deviation of a share of 0.3 is 0.010.
    np.testing.assert_allclose(transitions(clean_labels(), noisy_labels("symmetric")), expected, atol=0.05)


@pytest.mark.parametrize("kind", ["pair", "asymmetric"])
def test_transitions_to_the_next_class_are_exact(kind: str) -> None:
    expected = (1 - RATE) * np.eye(CLASSES) + RATE * np.roll(np.eye(CLASSES), 1, axis=1)
    np.testing.assert_allclose(transitions(clean_labels(), noisy_labels(kind)), expected, atol=1e-12)


def test_transitions_to_the_similar_class_are_exact() -> None:
    similar = np.array([0, 3, 2, 1, 0])  # classes 0 and 2 are mistaken for none
    expected = (1 - RATE) * np.eye(CLASSES) + RATE * np.eye(CLASSES)[similar]
    noisy = noisy_labels("asymmetric", similar=similar)
    np.testing.assert_allclose(transitions(clean_labels(), noisy), expected, atol=1e-12)
    np.testing.assert_array_equal(noisy_labels("pair", similar=similar), noisy_labels("pair"))


def test_asymmetric_digits_are_the_usual_confusions(digits: Dataset) -> None:
    clean = digits.train_labels
    noisy = make_noisy("asymmetric", clean, 0.5, 10, stream(0, "noise"), digits.similar_classes)
    wrong = noisy != clean
    pairs = {(int(a), int(b)) for a, b in zip(clean[wrong], noisy[wrong], strict=True)}
    assert pairs == {(2, 7), (3, 8), (5, 6), (6, 5), (7, 1)}


def test_candidate_sets_hold_the_truth_and_others_at_the_rate() -> None:
    clean, candidates = clean_labels(), noisy_labels("partial")
    assert candidates.shape == (ROWS, CLASSES)
    assert candidates.dtype == np.uint8
    assert candidates[np.arange(ROWS), clean].all()
    shares = np.stack([candidates[clean == c].mean(0) for c in range(CLASSES)])
    expected = np.full((CLASSES, CLASSES), RATE)
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(shares, expected, atol=0.05)  # five deviations of a share


@pytest.mark.parametrize("kind", [kind for kind in NOISES if kind != "none"])
def test_same_seed_same_labels_and_another_seed_others(kind: str) -> None:
    np.testing.assert_array_equal(noisy_labels(kind), noisy_labels(kind))
    assert (noisy_labels(kind) != noisy_labels(kind, seed=1)).any()


@pytest.mark.parametrize("kind", list(NOISES))
def test_rate_zero_leaves_the_truth_alone(kind: str) -> None:
    clean = clean_labels()
    noisy = make_noisy(kind, clean, 0.0, CLASSES, stream(0, "noise"))
    np.testing.assert_array_equal(np.eye(CLASSES)[clean] if noisy.ndim == 2 else clean, noisy)


@pytest.mark.parametrize("kind", list(NOISES))
def test_a_class_without_rows(kind: str) -> None:
    noisy = make_noisy(kind, np.array([0, 2, 2]), 0.5, 4, stream(0, "noise"))
    assert len(noisy) == 3
