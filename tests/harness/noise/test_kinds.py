import hashlib

import numpy as np
import pytest

from lip_fast.harness.data import Dataset
from lip_fast.harness.noise import NOISES, make_noisy
from lip_fast.harness.seeding import stream

CLASSES, ROWS, RATE = 5, 10_000, 0.3
SIMILAR = np.array([0, 3, 2, 1, 0])  # classes 0 and 2 are mistaken for none
SETS = ("partial", "competitor")


def clean_labels() -> np.ndarray:
    return np.random.default_rng(1).permutation(np.arange(ROWS) % CLASSES)


def row_features() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((ROWS, 6)).astype(np.float32)


def transitions(clean: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """(l, l): share of each class that has each label, or has it among its candidates."""
    chosen = noisy if noisy.ndim == 2 else np.eye(CLASSES)[noisy]
    return np.stack([chosen[clean == c].mean(0) for c in range(CLASSES)])


def noisy_labels(kind: str, seed: int = 0, similar: np.ndarray | None = None) -> np.ndarray:
    return make_noisy(kind, clean_labels(), RATE, CLASSES, stream(seed, "noise"), similar, row_features())


def assert_shares(found: np.ndarray, expected: np.ndarray, count: int = ROWS // CLASSES) -> None:
    """Shares among ``count`` rows are theirs in theory, within five standard deviations."""
    assert (abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / count) + 1e-12).all()


@pytest.mark.parametrize(
    ("kind", "similar", "expected"),
    [
        ("none", None, "28bfecb5a34b798c8d8839bace762484ad0d6eaac6a5960d9c8412282cfaf09e"),
        ("symmetric", None, "8f5fd8e3fd5748893721f982f2551f96557bdcf00773a2ae7abe9cb2a7a9319d"),
        ("asymmetric", None, "e1993a4d9f66cf1b79559cb9a0bae977dde5461aa410be5fed4691a2ecd968d9"),
        ("asymmetric", SIMILAR, "dabeb13d81ef5b5a92e11542384f531d8138188e937d11b244b15f5b344b3a28"),
        ("pair", SIMILAR, "e1993a4d9f66cf1b79559cb9a0bae977dde5461aa410be5fed4691a2ecd968d9"),
        ("partial", None, "65e935e7e6fdbc66b1b33c3e29de37b1156db0e3c5442388193fe01ede770180"),
        ("instance", None, "56f15b90af90b02e5fc398bcff449772549d207f556b1aeff770431530033dda"),
        ("competitor", SIMILAR, "5ccfd8ce6aebd68a582bb148b1584263d0d10d0d370a91b67322b504969a2dfb"),
    ],
)
def test_a_seed_gives_the_labels_it_always_gave(kind: str, similar: np.ndarray | None, expected: str) -> None:
    noisy = noisy_labels(kind, similar=similar)
    assert hashlib.sha256(noisy.astype("<i8").tobytes()).hexdigest() == expected


def test_none_changes_nothing() -> None:
    np.testing.assert_array_equal(noisy_labels("none"), clean_labels())


def test_transitions_of_symmetric_noise() -> None:
    expected = np.full((CLASSES, CLASSES), RATE / (CLASSES - 1))
    np.fill_diagonal(expected, 1 - RATE)
    found = transitions(clean_labels(), noisy_labels("symmetric"))
    assert_shares(found, expected)
    # The rate over all rows is exact.
    assert np.trace(found) / CLASSES == pytest.approx(1 - RATE, abs=1e-12)


@pytest.mark.parametrize("kind", ["pair", "asymmetric"])
def test_transitions_to_the_next_class_are_exact(kind: str) -> None:
    expected = (1 - RATE) * np.eye(CLASSES) + RATE * np.roll(np.eye(CLASSES), 1, axis=1)
    np.testing.assert_allclose(transitions(clean_labels(), noisy_labels(kind)), expected, atol=1e-12)


def test_transitions_to_the_similar_class_are_exact() -> None:
    expected = (1 - RATE) * np.eye(CLASSES) + RATE * np.eye(CLASSES)[SIMILAR]
    noisy = noisy_labels("asymmetric", similar=SIMILAR)
    np.testing.assert_allclose(transitions(clean_labels(), noisy), expected, atol=1e-12)
    np.testing.assert_array_equal(noisy_labels("pair", similar=SIMILAR), noisy_labels("pair"))


def test_asymmetric_digits_are_the_usual_confusions(digits: Dataset) -> None:
    clean = digits.train_labels
    noisy = make_noisy("asymmetric", clean, 0.5, 10, stream(0, "noise"), digits.similar_classes)
    wrong = noisy != clean
    pairs = {(int(a), int(b)) for a, b in zip(clean[wrong], noisy[wrong], strict=True)}
    assert pairs == {(2, 7), (3, 8), (5, 6), (6, 5), (7, 1)}


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("similar", [None, SIMILAR], ids=["next", "similar"])
def test_candidate_sets_hold_the_truth_and_others_at_the_rate(kind: str, similar: np.ndarray | None) -> None:
    clean, candidates = clean_labels(), noisy_labels(kind, similar=similar)
    assert candidates.shape == (ROWS, CLASSES)
    assert candidates.dtype == np.uint8
    assert candidates.max() == 1
    assert candidates[np.arange(ROWS), clean].all()
    if kind == "partial":
        expected = np.full((CLASSES, CLASSES), RATE)
    else:
        competitors = [1, 2, 3, 4, 0] if similar is None else [1, 3, 3, 1, 0]
        expected = RATE * np.eye(CLASSES)[competitors]
    np.fill_diagonal(expected, 1)
    assert_shares(transitions(clean, candidates), expected)


def test_wrong_candidates_come_one_without_another() -> None:
    sizes = np.bincount(noisy_labels("partial").sum(1), minlength=CLASSES + 1) / ROWS
    # One more than a binomial number of four.
    expected = [0, *(np.array([1, 4, 6, 4, 1]) * RATE ** np.arange(5) * (1 - RATE) ** np.arange(4, -1, -1))]
    assert_shares(sizes, np.array(expected), ROWS)


@pytest.mark.parametrize("kind", [kind for kind in NOISES if kind != "none"])
def test_same_seed_same_labels_and_another_seed_others(kind: str) -> None:
    np.testing.assert_array_equal(noisy_labels(kind), noisy_labels(kind))
    assert (noisy_labels(kind) != noisy_labels(kind, seed=1)).any()


@pytest.mark.parametrize("kind", list(NOISES))
def test_what_noise_is_made_from_is_left_alone(kind: str) -> None:
    clean, similar, features = clean_labels(), SIMILAR.copy(), row_features()
    noisy = make_noisy(kind, clean, RATE, CLASSES, stream(0, "noise"), similar, features)
    assert not np.shares_memory(noisy, clean)
    np.testing.assert_array_equal(clean, clean_labels())
    np.testing.assert_array_equal(similar, SIMILAR)
    np.testing.assert_array_equal(features, row_features())
    assert noisy.dtype == (np.uint8 if kind in SETS else np.int64)


@pytest.mark.parametrize("kind", list(NOISES))
def test_rate_zero_leaves_the_truth_alone(kind: str) -> None:
    clean = clean_labels()
    noisy = make_noisy(kind, clean, 0.0, CLASSES, stream(0, "noise"), None, row_features())
    np.testing.assert_array_equal(np.eye(CLASSES)[clean] if noisy.ndim == 2 else clean, noisy)


@pytest.mark.parametrize("kind", list(NOISES))
def test_a_class_without_rows(kind: str) -> None:
    features = np.zeros((3, 2), dtype=np.float32)
    noisy = make_noisy(kind, np.array([0, 2, 2]), 0.5, 4, stream(0, "noise"), None, features)
    assert len(noisy) == 3


@pytest.mark.parametrize("kind", [kind for kind in NOISES if kind != "instance"])
def test_other_noise_needs_no_features(kind: str) -> None:
    noisy = make_noisy(kind, clean_labels(), RATE, CLASSES, stream(0, "noise"))
    np.testing.assert_array_equal(noisy, noisy_labels(kind))
