"""Linear classifiers in families that share one eigendecomposition."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast.moments import Centred
from lip_fast.sharded.layout import Sharding
from lip_fast.validation import check_int, check_number, check_sequence, full_precision

__all__ = [
    "Branch",
    "LinearPath",
    "LinearWeight",
    "check_alphas",
    "never",
    "pcr_path",
    "placed",
    "ridge_path",
]


class LinearWeight(NamedTuple):
    """A linear classifier in the layout of ``nn.Linear``: M (l, q) and bias (l,)."""

    M: Tensor
    bias: Tensor

    def to(self, dtype: torch.dtype) -> "LinearWeight":
        """In another dtype. A class with :func:`never` for a bias has it there too."""
        bias = self.bias.to(dtype)
        return LinearWeight(self.M.to(dtype), bias.where(self.bias != never(self.bias.dtype), never(dtype)))


def never(dtype: torch.dtype) -> float:
    """The bias of a class that no row has: half the lowest value, so that it is never predicted."""
    return torch.finfo(dtype).min / 2


class Branch(NamedTuple):
    """Members of a :class:`LinearPath` that share a basis: M = (V diag(w_i) VC)^T.

    Attributes:
        V: (q, m).
        VC: (m, l).
        w: (members, m) weights of the directions.
        at_mean: (members, l) logits of the mean of the features.
    """

    V: Tensor
    VC: Tensor
    w: Tensor
    at_mean: Tensor


@dataclass(frozen=True, eq=False)
class LinearPath:
    """A family of linear classifiers that share one eigendecomposition; made by
    :class:`lip_fast.LabelStatistics`.

    Attributes:
        parameters: what tells the members apart: alphas, numbers of components, or pairs of an alpha and a
            rate of noise.
    """

    parameters: tuple[Any, ...]
    _branches: tuple[Branch, ...]
    _mean_x: Tensor  # in float64, from which the features are taken before they are rounded
    _sharding: Sharding | None

    def __len__(self) -> int:
        return len(self.parameters)

    def logits(self, X: Tensor) -> Iterator[Tensor]:
        """Predictions X M^T + bias (n, l) of each member in turn, for features X (n, q)."""
        for branch in self._branches:
            P = self._projected(X, branch)
            for w, at_mean in zip(branch.w, branch.at_mean, strict=True):
                yield self._logits(P, w, branch.VC, at_mean)

    # A generator runs in the modes of whoever asks for its next value: each product has its own.
    @full_precision
    @torch.no_grad()
    def _projected(self, X: Tensor, branch: Branch) -> Tensor:
        return (X - self._mean_x).to(branch.V.dtype) @ branch.V

    @full_precision
    @torch.no_grad()
    def _logits(self, P: Tensor, w: Tensor, VC: Tensor, at_mean: Tensor) -> Tensor:
        return self._placed((P * w) @ VC + at_mean, 1)

    @full_precision
    @torch.no_grad()
    def __getitem__(self, i: int) -> LinearWeight:
        """The member of ``parameters[i]``: M (l, q), bias (l,), in the dtype of the statistics.

        Of statistics sharded by class they are DTensors, sharded likewise.
        """
        i = range(len(self))[i]
        for branch in self._branches:
            if i < len(branch.w):
                break
            i -= len(branch.w)
        W = branch.V @ (branch.w[i, :, None] * branch.VC)
        bias = branch.at_mean[i] - self._mean_x @ W.double()
        return placed(LinearWeight(W.mT.contiguous(), bias.to(W.dtype)), self._sharding)

    def _placed(self, part: Tensor, dim: int) -> Tensor:
        return _placed(part, dim, self._sharding)


def placed(weight: LinearWeight, sharding: Sharding | None) -> LinearWeight:
    """A weight of which this process has the rows of its classes, as DTensors where it is sharded."""
    return LinearWeight(*(_placed(part, 0, sharding) for part in weight))


def _placed(part: Tensor, dim: int, sharding: Sharding | None) -> Tensor:
    """A part with the classes of this process along ``dim``, as a DTensor where it is one."""
    if sharding is None:
        return part
    shape = list(part.shape)
    shape[dim] = sharding.shape[0]
    return sharding.as_dtensor(part, tuple(shape), dim)


def ridge_path(
    rows: Centred, alphas: Sequence[float], dtype: torch.dtype, sharding: Sharding | None
) -> LinearPath:
    """Ridge regression for every alpha; see :meth:`lip_fast.LabelStatistics.ridge_path`.

    Args:
        rows: what they say about the means, or as they are for no intercept.
        alphas: penalties.
        dtype: of the members.
        sharding: of the classes, where each process has some of them.
    """
    alphas = check_alphas(alphas)

    def weigh(eigenvalues: Tensor) -> Tensor:
        penalties = torch.tensor(alphas, dtype=eigenvalues.dtype, device=eigenvalues.device)
        penalised = eigenvalues + penalties[:, None]
        return torch.where(penalised > rows.unresolved(eigenvalues), penalised.reciprocal(), 0)

    return _path(rows, alphas, weigh, dtype, sharding)


def check_alphas(alphas: Sequence[float], name: str = "alphas") -> list[float]:
    """Penalties as a list of numbers; TypeError or ValueError, which call them ``name``."""
    check_sequence(name, alphas)
    if not len(alphas):
        raise ValueError("expected at least one alpha, got none")
    for alpha in alphas:
        check_number(name, alpha)
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"expected {name} >= 0 and finite, got {alpha}")
    return [float(alpha) for alpha in alphas]


def pcr_path(
    rows: Centred, components: Sequence[int], dtype: torch.dtype, sharding: Sharding | None
) -> LinearPath:
    """Regression on principal components; see :meth:`lip_fast.LabelStatistics.pcr_path`.

    Args:
        rows: as of :func:`ridge_path`.
        components: numbers of components.
        dtype: of the members.
        sharding: of the classes, where each process has some of them.
    """
    check_sequence("components", components)
    for d in components:
        check_int("components", d, 0, len(rows.G))

    def weigh(eigenvalues: Tensor) -> Tensor:
        inverse = torch.where(eigenvalues > rows.unresolved(eigenvalues), eigenvalues.reciprocal(), 0)
        index = torch.arange(len(eigenvalues), device=eigenvalues.device)
        numbers = torch.tensor(components, device=eigenvalues.device)[:, None]
        return torch.where(index < numbers, inverse, 0)

    return _path(rows, components, weigh, dtype, sharding)


def _path(
    rows: Centred,
    parameters: Sequence[float],
    weigh: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    sharding: Sharding | None,
) -> LinearPath:
    """The heads that ``weigh`` makes of the eigenvalues of G, descending."""
    # In float64: without a penalty what rounding adds to the smallest eigenvalues would count most.
    eigenvalues, V = rows.eigen
    VC, w = (V.mT @ rows.C).to(dtype), weigh(eigenvalues).to(dtype)
    branch = Branch(V.to(dtype), VC, w, rows.mean_y.expand(len(w), -1))
    return LinearPath(tuple(parameters), (branch,), rows.mean_x, sharding)
