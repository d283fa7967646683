"""Wrong labels that depend on what a row looks like."""

import numpy as np
import scipy.special
import scipy.stats

from lip_fast.harness.noise.truth import Truth

__all__ = ["instance"]

# Standard deviation of the flip rates of rows round the asked one (Xia et al. 2020, algorithm 2, step 1).
DEVIATION = 0.1
# Numbers of a block of rows that is float64: 32 MiB.
BLOCK = 2**22


def instance(truth: Truth, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Flip each row at its own rate, to a class that its features choose.

    Xia et al. 2020, Part-dependent Label Noise (arXiv:2006.07836), algorithm 2. The flip rate q of a row is
    drawn from a normal distribution of mean ``rate`` and deviation 0.1, cut to [0, 1]. Each class c has a
    standard normal matrix W_c (d, l); a row x of class c goes to another class with the probabilities
    q softmax(x W_c), the softmax over the other classes, and stays with 1 - q. As in the paper, x is what
    the network is trained on, whatever its scale: the longer the rows, the nearer the softmax is to one
    class.

    The mean of the cut distribution is the rate within 0.0005 from 0.3 to 0.7, higher below (0.129 for 0.1)
    and lower above (0.871 for 0.9). A rate of 0, which it would make 0.08, leaves the labels clean.

    Raises:
        ValueError: there are no features.
    """
    if truth.features is None:
        raise ValueError("instance-dependent noise needs features, got None")
    if rate == 0:
        return truth.labels.copy()
    rows, classes = len(truth.labels), truth.classes
    flip_rates = _flip_rates(rate, rows, generator)
    draws = generator.random(rows)
    noisy = truth.labels.copy()
    for c in range(classes):
        # Drawn one at a time, and for classes without rows too: l of them may be large.
        W = generator.standard_normal((truth.features.shape[1], classes))
        mine = np.flatnonzero(truth.labels == c)
        for block in np.array_split(mine, max(1, len(mine) * len(W) // BLOCK)):
            chances = _chances(truth.features[block], W, c, flip_rates[block])
            noisy[block] = _drawn(chances, draws[block])
    return noisy


def _flip_rates(rate: float, rows: int, generator: np.random.Generator) -> np.ndarray:
    """(rows,): draws from N(rate, DEVIATION^2) cut to [0, 1]."""
    low, high = (0 - rate) / DEVIATION, (1 - rate) / DEVIATION
    # From uniform draws, for how SciPy's own draws use a generator is not promised to stay.
    draws = generator.random(rows)
    flip_rates: np.ndarray = scipy.stats.truncnorm.ppf(draws, low, high, loc=rate, scale=DEVIATION)
    return flip_rates


def _chances(X: np.ndarray, W: np.ndarray, own: int, flip_rates: np.ndarray) -> np.ndarray:
    """(n, l): with which probability rows X (n, d) of class ``own`` get each class."""
    scores = X.astype(np.float64) @ W
    scores[:, own] = -np.inf
    chances: np.ndarray = flip_rates[:, None] * scipy.special.softmax(scores, axis=1)
    chances[:, own] = 1 - flip_rates
    return chances


def _drawn(chances: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(n,) int64: the class that a draw from [0, 1) falls to in each row of ``chances`` (n, l)."""
    ends = chances.cumsum(1)
    # Divided by the last sum: rounding may leave it below 1, and a draw may lie above it.
    drawn: np.ndarray = (draws[:, None] >= ends / ends[:, -1:]).sum(1)
    return drawn
