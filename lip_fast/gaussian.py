"""The Gaussian head: linear discriminant analysis with a penalised scatter, from sums over the rows.

Wrong labels that do not depend on the features scale the canonical correlations c of features and labels by
about 1 - rate. Bayes' rule for Gaussian classes weighs a direction by c / (1 - c^2), least squares by c: the
former gives more of its weight to the directions in which the classes are well told apart.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lip_fast.linear_path import Branch, LinearPath, LinearWeight, check_alphas, never, placed
from lip_fast.moments import Centred, eigen
from lip_fast.sharded.collectives import explained
from lip_fast.sharded.layout import Sharding
from lip_fast.validation import check_number, check_sequence

__all__ = ["gaussian_head", "gaussian_path", "spread"]

# By how much the labels of a row may miss 1 on average: those of a softmax in bfloat16 do by up to 4e-3 each.
_UNIT = 1e-3
# A class with less than this share of the rows has none: they have faded, or are rounding.
_FADED = 1e-12
# Up to this many times what is rounding a penalty leaves it open whether the scatter is singular.
_SMALL = 1e3
# Relative to the weight: differences between classes below it are what float32 rounded.
_ROUNDED = 1e-6
# Of the canonical correlations on a path: beyond it c / (1 - c^2) would leave one direction all the weight.
_MOST = 0.99


def gaussian_head(
    rows: Centred, alpha: float, noise_rate: float, dtype: torch.dtype, sharding: Sharding | None
) -> LinearWeight:
    """The head of :meth:`lip_fast.LabelStatistics.gaussian`.

    Args:
        rows: what they say about their means.
        alpha: penalty, in mean eigenvalues of G.
        noise_rate: share of labels that are replaced by random ones.
        dtype: of the head.
        sharding: of the classes, where each process has some of them.
    """
    (alpha,), (noise_rate,) = check_alphas([alpha], "alpha"), _check_rates([noise_rate])
    _check_labels(rows, sharding)
    kappa = 1 / (1 - noise_rate)
    counts, least = _counts(rows), rows.unresolved()
    penalty = alpha * rows.G.diagonal().mean()
    G = rows.G + penalty * torch.eye(len(rows.G), dtype=rows.G.dtype, device=rows.G.device)
    means = kappa * _class_means(rows, counts)
    # Scaled on both sides, so that the product is symmetric.
    D = means * counts.sqrt()
    S = G - _total(D @ D.mT, sharding)
    L, info = torch.linalg.cholesky_ex(S)
    smallest = L.diagonal().square().min()
    if not int(info) and bool(penalty < _SMALL * least):
        # The pivots may be far above the smallest eigenvalue.
        smallest = torch.linalg.eigvalsh(S)[0]
    if int(info) or not bool(smallest > least):
        raise ValueError(_why_singular(rows.G, G, D / kappa, alpha, noise_rate, least, sharding))
    W = rows.rows * torch.cholesky_solve(means, L)
    bias = torch.log(counts / rows.rows) - (means * W).sum(0) / 2 - rows.mean_x @ W
    head = LinearWeight(W.mT.contiguous(), torch.where(counts > 0, bias, never(bias.dtype)))
    return placed(head.to(dtype), sharding)


def gaussian_path(
    rows: Centred,
    alphas: Sequence[float],
    noise_rates: Sequence[float],
    dtype: torch.dtype,
    sharding: Sharding | None,
) -> LinearPath:
    """The heads of :meth:`lip_fast.LabelStatistics.gaussian_path`; arguments as of :func:`gaussian_head`."""
    alphas, noise_rates = check_alphas(alphas), _check_rates(noise_rates)
    _check_labels(rows, sharding)
    eigenvalues, V = rows.eigen
    least = rows.unresolved(eigenvalues)
    counts = _counts(rows)
    means = V.mT @ _class_means(rows, counts)
    kappas = 1 / (1 - torch.tensor(noise_rates, dtype=means.dtype, device=means.device))
    prior = torch.log(counts / rows.rows)
    branches = []
    for alpha in alphas:
        penalised = eigenvalues + alpha * eigenvalues.mean()
        scale = torch.where(penalised > least, penalised.rsqrt(), 0)
        freedom = float((eigenvalues * scale.square()).sum() / rows.rows)
        # Columns whose squared lengths are the canonical correlations, squared.
        U, c2 = _left(scale[:, None] * means * counts.sqrt(), sharding)
        found = ((c2 - freedom) / (1 - freedom)).clamp(min=0) if freedom < 1 else torch.zeros_like(c2)
        c = (kappas[:, None] * found.sqrt()).clamp(max=_MOST)
        ratio = torch.where(c2 > 0, c / c2.sqrt(), 0)
        P = V @ (scale[:, None] * U)
        scores = U.mT @ (scale[:, None] * means)
        # m_c^T w_c of the class means as these correlations have them.
        quadratic = rows.rows * (ratio.square() / (1 - c.square())) @ scores.square()
        at_mean = torch.where(counts > 0, prior - quadratic / 2, never(dtype))
        weights = ratio / (1 - c.square())
        branches.append(
            Branch(P.to(dtype), (rows.rows * scores).to(dtype), weights.to(dtype), at_mean.to(dtype))
        )
    pairs = tuple((alpha, rate) for alpha in alphas for rate in noise_rates)
    return LinearPath(pairs, tuple(branches), rows.mean_x, sharding)


def spread(rows: Centred, M: Tensor) -> float:
    """How far the logits X M^T of a head lie apart.

    Args:
        rows: what they say about their means.
        M: (l, q), whole.

    Returns:
        Their root mean square over rows and classes, each logit taken from the mean of its class over the
        rows and from the mean of its row over the classes: what predictions depend on.
    """
    M = M.double()

    def energy(M: Tensor) -> float:
        return max(float(((M @ rows.G) * M).sum() / (rows.rows * len(M))), 0)

    apart = energy(M - M.mean(0))
    return math.sqrt(apart) if apart > _ROUNDED**2 * energy(M) else 0.0


def _counts(rows: Centred) -> Tensor:
    """(l,) rows of each class, 0 of one that has next to none."""
    return torch.where(rows.mass > _FADED * rows.rows, rows.mass, 0)


def _class_means(rows: Centred, counts: Tensor) -> Tensor:
    """(q, l) means of the classes, 0 of those without rows, as ``rows`` has the features."""
    return torch.where(counts > 0, rows.C / counts, 0)


def _left(M: Tensor, sharding: Sharding | None) -> tuple[Tensor, Tensor]:
    """Left singular vectors and squared singular values of a matrix of which processes have columns."""
    if sharding is None and M.shape[1] < len(M):
        U, S, _ = torch.linalg.svd(M, full_matrices=False)
        return U, S.square()
    # As many columns as rows, or not all of them here.
    squared, U = eigen(_total(M @ M.mT, sharding))
    return U, squared


def _total(part: Tensor, sharding: Sharding | None) -> Tensor:
    """The sum over the classes of all processes of what each has of its own; a collective."""
    for group in () if sharding is None else sharding.shards:
        with explained():
            dist.all_reduce(part, group=group)
    return part


def _check_rates(noise_rates: Sequence[float]) -> list[float]:
    check_sequence("noise_rates", noise_rates)
    if not len(noise_rates):
        raise ValueError("expected at least one noise_rate, got none")
    for rate in noise_rates:
        check_number("noise_rate", rate)
        if not 0 <= rate < 1:
            raise ValueError(f"expected noise_rate in [0, 1), got {rate}")
    return [float(rate) for rate in noise_rates]


def _check_labels(rows: Centred, sharding: Sharding | None) -> None:
    """ValueError where the labels are no weights that sum to 1 in each row."""
    n, mass = float(rows.rows), rows.mass
    negative = torch.where(mass < 0, -mass, 0).sum()
    total, negative = _total(torch.stack([mass.sum(), negative]), sharding).tolist()
    if negative > _UNIT * n or abs(total - n) > _UNIT * n:
        raise ValueError(
            f"expected labels whose weights sum to 1 in each row, got {total / n:.4g} on average"
            + (" and classes of negative weight" if negative > _UNIT * n else "")
            + ": divide candidate sets by their sizes, Y / Y.sum(1, keepdim=True), and leave out rows "
            "without any"
        )


def _why_singular(
    scatter: Tensor,
    G: Tensor,
    D: Tensor,
    alpha: float,
    noise_rate: float,
    least: Tensor,
    sharding: Sharding | None,
) -> str:
    """What to change where the penalised scatter G less kappa^2 D D^T is not positive definite."""
    if not bool(scatter.diagonal().sum() > least):
        return "expected features that differ from row to row, got constant ones"
    if not bool(torch.isfinite(G).all()):
        return f"expected an alpha with which the scatter stays finite, got {alpha:g}"
    L, info = torch.linalg.cholesky_ex(G)
    if noise_rate and not int(info) and bool(L.diagonal().square().min() > least):
        whitened = torch.linalg.solve_triangular(L, D, upper=False)
        most = 1 - float(_left(whitened, sharding)[1].max().clamp(min=0).sqrt())
        if most > 0:
            return (
                f"expected noise_rate below {math.floor(1000 * most) / 1000:g}, with which the scatter "
                f"within the classes stays positive definite, got {noise_rate:g}: lower it, or raise alpha"
            )
    return (
        "expected features that do not depend on each other within the classes, or a penalty on those that "
        f"do, got a singular scatter with alpha={alpha:g}: raise alpha"
    )
