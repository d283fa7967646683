"""Why accurate models can be learned from wrong labels: subspaces of weights, and how far labels turn them.

Notation of LIP (Si et al. 2025, arXiv:2505.16159): features X (n, q), labels Y (n, l) of zeros and ones, a
weight W (q, l) = U S V^T. The columns of U lie in the space of features, those of V in that of classes.
Everything here is float64 and NumPy.

Two comparisons answer different questions, and each is limited in its own way:

*   **Heads as trained.** Two networks have features of their own, which agree at best as far as their common
    initialisation makes them. Only directions among classes can be compared. Where l <= q those fill all of
    R^l, so that a subspace and its complement turn by the same angle: "the principal subspace is more stable
    than the residual" cannot be seen there, but which i-th directions are kept can.
*   **Ridge heads on shared features**, those of the network that learned from clean labels. This is the
    setting of the paper's theorem: the labels differ and nothing else. Directions among features can be
    compared, and where q > l the residual is free to turn whatever the principal subspace does. It is the
    one to look at first.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg

__all__ = [
    "Ridge",
    "RidgePair",
    "Turn",
    "chance_similarity",
    "directions",
    "label_matrix",
    "largest_gap",
    "residual",
    "similarity",
    "turns",
]


@dataclass(frozen=True)
class RidgePair:
    """Ridge weights of the same features for clean and for wrong labels.

    Attributes:
        W: (q, l), of the clean labels.
        W_noisy: (q, l), of the wrong labels.
        change: ||W_noisy - W||_2, the largest singular value.
        change_bound: what the theorem bounds it by, see :meth:`Ridge.pair`.
    """

    W: np.ndarray
    W_noisy: np.ndarray
    change: float
    change_bound: float


@dataclass(frozen=True)
class Turn:
    """How far wrong labels turn the top-k singular subspaces of a weight, and how far they could.

    Attributes:
        k: dimension of the subspaces.
        features: sine of the largest principal angle between the left subspaces, in R^q.
        classes: the same of the right subspaces, in R^l.
        gap: delta, see :func:`turns`; at 0 or below the theorem says nothing.
        bound: ||W_noisy - W||_2 / delta, which needs the wrong labels; None without a gap.
        theorem: the paper's bound, which needs only the number of wrong entries; None without a gap.
            Above 1 it holds, and says nothing, for no sine is larger.
    """

    k: int
    features: float
    classes: float
    gap: float
    bound: float | None
    theorem: float | None


def label_matrix(labels: np.ndarray, classes: int) -> np.ndarray:
    """(n, classes) float64 of zeros and ones, from (n,) class indices or (n, classes) candidate sets."""
    if labels.ndim == 2:
        return labels.astype(np.float64)
    Y: np.ndarray = np.eye(classes)[labels]
    return Y


def similarity(V: np.ndarray, V_other: np.ndarray) -> np.ndarray:
    """phi(V, V', i, j) = ||V_{:i}^T V'_{:j}||_F^2 / min(i, j), the paper's measure of common subspaces.

    It is the mean squared cosine of the principal angles between the first i and the first j directions: 1
    where the smaller subspace lies in the larger, 0 where they are orthogonal.

    Args:
        V: (d, r) with orthonormal columns, most important first.
        V_other: (d, s), the same.

    Returns:
        (r, s), entry [i - 1, j - 1] is phi of i and j.
    """
    overlap = ((V.T @ V_other) ** 2).cumsum(0).cumsum(1)
    phi: np.ndarray = overlap / np.minimum.outer(
        np.arange(1, V.shape[1] + 1), np.arange(1, V_other.shape[1] + 1)
    )
    return phi


def residual(phi: np.ndarray) -> np.ndarray:
    """phi of what is left beside the first k of r directions: ||V_{k+1:r}^T V'_{k+1:r}||_F^2 / (r - k).

    Args:
        phi: (r, r) of :func:`similarity`, which tells all overlaps.

    Returns:
        (r - 1,), entry k - 1 is of the residuals beside k directions.
    """
    sizes = np.arange(1, len(phi) + 1)
    overlap = phi * np.minimum.outer(sizes, sizes)
    left = overlap[-1, -1] - overlap[-1, :-1] - overlap[:-1, -1] + np.diagonal(overlap)[:-1]
    # Sums of squares, but rounding may leave them a little below 0.
    result: np.ndarray = left.clip(0) / (len(phi) - sizes[:-1])
    return result


def chance_similarity(i: int, j: int, d: int) -> float:
    """What phi of i and j directions is on average for subspaces of R^d drawn at random: max(i, j) / d.

    A random subspace of j dimensions holds j / d of a unit vector's squared length on average, so that
    E ||V_{:i}^T V'_{:j}||_F^2 = i j / d.
    """
    return max(i, j) / d


def largest_gap(s: np.ndarray) -> int:
    """The k in 1..r - 1 with the largest ratio s_k / s_{k+1}; the first of several.

    Args:
        s: (r,) singular values, descending, none of them 0, r >= 2.
    """
    return int(np.argmax(s[:-1] / s[1:])) + 1


class Ridge:
    """Ridge weights (G + lambda I)^-1 X^T Y, G = X^T X, of the same features for any labels.

    The features are centred, which is what an intercept does, and nothing else for the theorem than other
    features. Left as they are, they spend a direction on predicting 1 for the sum over the classes, which
    clean and wrong labels have in common: it would look stable whatever the labels. Where each row has one
    label, what remains are l - 1 directions.

    Args:
        X: (n, q) float64 features, not centred.
        penalty: lambda in units of the mean eigenvalue of G, above 0; so it means the same for features of
            any scale and number.

    Raises:
        ValueError: all features are constant.
    """

    def __init__(self, X: np.ndarray, penalty: float) -> None:
        self._X = X = X - X.mean(0)
        eigenvalues, self._Q = scipy.linalg.eigh(X.T @ X)
        # No eigenvalue is negative, but rounding may leave the least a little below 0.
        self._eigenvalues = eigenvalues.clip(0)
        self.penalty = float(penalty * self._eigenvalues.mean())
        if self.penalty == 0:
            raise ValueError("expected features that are not all constant")

    def weight(self, Y: np.ndarray) -> np.ndarray:
        """(q, l): the weight of labels (n, l)."""
        W: np.ndarray = self._Q @ (
            (self._Q.T @ (self._X.T @ Y)) / (self._eigenvalues + self.penalty)[:, None]
        )
        return W

    def pair(self, Y: np.ndarray, Y_noisy: np.ndarray) -> RidgePair:
        """The weights of clean and of wrong labels, and how far apart they are at most.

        W_noisy - W = (G + lambda I)^-1 X^T E with E = Y_noisy - Y, and so::

            ||W_noisy - W||_2 <= ||(G + lambda I)^-1||_2 ||X||_2 ||E||_2
                              <= sigma_max(X) ||E||_F / (lambda_min(G) + lambda).

        With labels of zeros and ones each wrong entry adds 1 to ||E||_F^2. Where a share p of the n l entries
        is wrong, ||E||_F = sqrt(n l p): the paper's numerator, exactly and not on average. (A row with a
        wrong class in the place of the right one has two wrong entries.)

        Args:
            Y: (n, l) float64 clean labels.
            Y_noisy: (n, l) float64 wrong labels.
        """
        E = Y_noisy - Y
        W, D = self.weight(Y), self.weight(E)
        largest, least = self._eigenvalues[-1], self._eigenvalues[0]
        return RidgePair(
            W=W,
            W_noisy=W + D,
            change=float(np.linalg.norm(D, 2)),
            change_bound=float(np.sqrt(largest) * np.linalg.norm(E) / (least + self.penalty)),
        )


def directions(W: np.ndarray) -> int:
    """The singular directions that W (q, l) has, beside those that are nothing but rounding."""
    # Half of the digits: the solve for a ridge weight loses some of the other half.
    return int(np.linalg.matrix_rank(W, rtol=np.sqrt(np.finfo(np.float64).eps)))


def turns(pair: RidgePair) -> list[Turn]:
    """Angles between the top-k singular subspaces of both weights, and what bounds them.

    For k = 1..r - 1, where r are the :func:`directions` of W.

    The bound is Wedin's sin(theta) theorem (1972) in the spectral norm, for singular subspaces what
    Davis and Kahan's is for eigenspaces. Let U_1, V_1, S_1 be the top k of W, and U'_2, V'_2, S'_2 all but
    the top k of W' = W + D, bases completed, S'_2 with zeros. P = U'_2^T U_1 and Q = V'_2^T V_1 have the
    sines of the largest angles as their norms. From W V_1 = U_1 S_1 and U'_2^T W' = S'_2 V'_2^T::

        P S_1 = U'_2^T (W' - D) V_1 = S'_2 Q   - U'_2^T D V_1
        Q S_1 =                       S'_2^T P - V'_2^T D^T U_1

    As ||P|| s_k <= ||P S_1||, the norms give s_k ||P|| <= s'_{k+1} ||Q|| + ||D V_1|| and
    s_k ||Q|| <= s'_{k+1} ||P|| + ||D^T U_1||. For the larger of both sines::

        max(||P||, ||Q||) <= max(||D V_1||, ||D^T U_1||) / delta <= ||D||_2 / delta,
        delta = s_k(W) - s_{k+1}(W')   where delta > 0.

    D V_1 and D^T U_1 are Wedin's residuals R and S with the parts of W and W' exchanged. The paper's bound is
    this one with ||D||_2 replaced by what :meth:`Ridge.pair` bounds it by::

        sin(theta) <= sigma_max(X) sqrt(n l p) / (delta (lambda_min(X^T X) + lambda)).
    """
    U, s, Vt = np.linalg.svd(pair.W, full_matrices=False)
    U_noisy, s_noisy, Vt_noisy = np.linalg.svd(pair.W_noisy, full_matrices=False)
    found = []
    for k in range(1, directions(pair.W)):
        gap = float(s[k - 1] - s_noisy[k])
        found.append(
            Turn(
                k=k,
                features=_largest_sine(U[:, :k], U_noisy[:, :k]),
                classes=_largest_sine(Vt[:k].T, Vt_noisy[:k].T),
                gap=gap,
                bound=pair.change / gap if gap > 0 else None,
                theorem=pair.change_bound / gap if gap > 0 else None,
            )
        )
    return found


def _largest_sine(A: np.ndarray, B: np.ndarray) -> float:
    return float(np.sin(scipy.linalg.subspace_angles(A, B).max()))
