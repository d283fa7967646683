"""Whether one method does better than another on the same seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import scipy.stats

__all__ = ["Difference", "holm", "paired_difference"]

# Of confidence intervals.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences.

    Attributes:
        mean: of one minus the other.
        sd: sample standard deviation of the differences; None of a single pair.
        low: lower end of the 95% confidence interval of the mean, by Student's t; None likewise, and where
            all differences are equal: accuracies are counts, and such ties say nothing of a spread.
        high: its upper end.
        p: two-sided p-value of a paired t-test; None of a single pair. Where all differences are equal, that
            of their signs alone: 1 where none differs, else 2^(1 - pairs).
        pairs: how many.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    pairs: int


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The differences ``ours - theirs`` pair by pair.

    Raises:
        ValueError: none, or not as many of one as of the other.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"expected as many values on both sides, got {len(ours)} and {len(theirs)}")
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, pairs = statistics.fmean(differences), len(differences)
    if pairs == 1:
        return Difference(mean, None, None, None, None, pairs)
    sd = statistics.stdev(differences)
    # Accuracies are fractions of few samples: exact ties are common, and rounding must not make them differ.
    if sd <= 1e-12:
        return Difference(mean, 0.0, None, None, 1.0 if abs(mean) <= 1e-12 else 2.0 ** (1 - pairs), pairs)
    error = sd / math.sqrt(pairs)
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, pairs - 1)) * error
    p = 2 * float(scipy.stats.t.sf(abs(mean) / error, pairs - 1))
    return Difference(mean, sd, mean - half, mean + half, p, pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): the chance of any false one stays below each level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
