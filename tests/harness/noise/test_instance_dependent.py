import math

import numpy as np
import pytest

from lip_fast.harness.noise import instance_dependent, make_noisy
from lip_fast.harness.seeding import stream

CLASSES, WIDTH = 4, 3


def made(labels: np.ndarray, features: np.ndarray, rate: float = 0.4, seed: int = 0) -> np.ndarray:
    return make_noisy("instance", labels, rate, CLASSES, stream(seed, "noise"), None, features)


def problem(rows: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    features = scale * generator.standard_normal((rows, WIDTH))
    return generator.integers(0, CLASSES, rows), features.astype(np.float32)


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def mean_rate(rate: float) -> float:
    """Mean of a normal distribution of deviation 0.1 cut to [0, 1]."""
    low, high = -rate / 0.1, (1 - rate) / 0.1
    density = [math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in (low, high)]
    return rate + 0.1 * (density[0] - density[1]) / (normal_cdf(high) - normal_cdf(low))


def test_labels_are_those_of_the_algorithm_as_printed() -> None:
    labels, features = problem(300)
    generator = stream(7, "noise")
    flip_rates = instance_dependent._flip_rates(0.4, 300, generator)
    draws = generator.random(300)
    W = [generator.standard_normal((WIDTH, CLASSES)) for _ in range(CLASSES)]
    expected = []
    for x, y, q, draw in zip(features, labels, flip_rates, draws, strict=True):
        weights = [
            0.0 if k == y else math.exp(float(x.astype(np.float64) @ W[y][:, k])) for k in range(CLASSES)
        ]
        chances = [1 - q if k == y else q * w / sum(weights) for k, w in enumerate(weights)]
        expected.append(next(k for k in range(CLASSES) if draw < sum(chances[: k + 1])))
    np.testing.assert_array_equal(made(labels, features, seed=7), expected)


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.9])
def test_flip_rates_are_normal_and_cut(rate: float) -> None:
    count = 20_000
    drawn = np.sort(instance_dependent._flip_rates(rate, count, stream(0, "noise")))
    assert drawn[0] >= 0
    assert drawn[-1] <= 1
    low, high = normal_cdf(-rate / 0.1), normal_cdf((1 - rate) / 0.1)
    theory = np.array([(normal_cdf((q - rate) / 0.1) - low) / (high - low) for q in drawn])
    # Dvoretzky, Kiefer and Wolfowitz: further off with a chance of one in a million.
    bound = math.sqrt(math.log(2 / 1e-6) / (2 * count))
    assert abs(theory - np.arange(1, count + 1) / count).max() < bound


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4, 0.6, 0.9])
def test_the_share_of_wrong_labels_is_the_mean_flip_rate(rate: float) -> None:
    labels, features = problem(20_000)
    share = (made(labels, features, rate) != labels).mean()
    expected = mean_rate(rate)
    # Five standard deviations of a share of 20000.
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 20_000)
    assert abs(expected - rate) < (0.03 if rate in (0.1, 0.9) else 0.006)


def test_transitions_are_the_softmax_of_features_and_a_matrix_of_the_class() -> None:
    rows = 40_000
    labels, features = problem(rows)
    generator = stream(0, "noise")
    generator.random(2 * rows)
    noisy = made(labels, features)
    for c in range(CLASSES):
        scores = features[labels == c] @ generator.standard_normal((WIDTH, CLASSES))
        weights = np.exp(scores) * (np.arange(CLASSES) != c)
        expected = mean_rate(0.4) * (weights / weights.sum(1, keepdims=True)).mean(0)
        expected[c] = 1 - mean_rate(0.4)
        found = np.bincount(noisy[labels == c], minlength=CLASSES) / len(scores)
        # Five standard deviations; chances that differ from row to row only make them smaller.
        assert (abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / len(scores))).all()


def test_rows_that_look_alike_flip_alike_and_others_do_not() -> None:
    copies = 6000
    looks = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=np.float32)
    noisy = made(np.zeros(3 * copies, dtype=np.int64), np.tile(looks, (copies, 1)))
    first, other, again = (np.bincount(noisy[k::3], minlength=CLASSES) / copies for k in range(3))
    # A difference of two shares of 6000 has a deviation of at most sqrt(2 / 4 / 6000) = 0.009.
    assert abs(first - again).max() < 5 * 0.009
    assert abs(first - other)[1:].max() > 0.1
    assert abs(first - other)[0] < 5 * 0.009  # how often, unlike whereto, does not depend on looks


def test_classes_have_matrices_of_their_own() -> None:
    features = np.ones((12_000, WIDTH), dtype=np.float32)
    noisy = made(np.arange(12_000) % 2, features)
    first, second = (np.bincount(noisy[k::2], minlength=CLASSES)[2:] / 6000 for k in range(2))
    assert abs(first / first.sum() - second / second.sum()).max() > 0.1


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30, 3e38])
def test_features_of_any_size(scale: float) -> None:
    labels, features = problem(2000)
    noisy = made(labels, (np.sign(features) * scale).astype(np.float32))
    assert noisy.min() >= 0
    assert noisy.max() < CLASSES
    # Five standard deviations of a share of 2000.
    assert abs((noisy != labels).mean() - 0.4) < 5 * math.sqrt(0.24 / 2000)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, features = problem(500)
    whole = made(labels, features)
    monkeypatch.setattr(instance_dependent, "BLOCK", 10)
    np.testing.assert_array_equal(made(labels, features), whole)


def test_a_draw_that_rounding_leaves_above_all_chances() -> None:
    chances = np.array([[0.25, 0.0, 0.75 - 1e-9, 0.0]])
    for draw, expected in ((0.0, 0), (0.25, 0), (0.3, 2), (np.nextafter(1, 0), 2)):
        assert instance_dependent._drawn(chances, np.array([draw])) == [expected]
    assert instance_dependent._drawn(np.array([[0.0, 0.6, 0.4, 0.0]]), np.array([0.0])) == [1]


def test_there_must_be_features() -> None:
    with pytest.raises(ValueError, match="instance-dependent noise needs features, got None"):
        make_noisy("instance", np.zeros(3, dtype=np.int64), 0.4, CLASSES, stream(0, "noise"))
