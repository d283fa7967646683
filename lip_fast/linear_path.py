"""Linear classifiers in families that share one eigendecomposition."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast.sharded.layout import Sharding
from lip_fast.validation import full_precision

__all__ = ["LinearPath", "LinearWeight"]


class LinearWeight(NamedTuple):
    """A linear classifier in the layout of ``nn.Linear``: M (l, q) and bias (l,)."""

    M: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class LinearPath:
    """A family of linear classifiers that share one eigendecomposition; made by
    :class:`lip_fast.LabelStatistics`.

    Every member is M = (V diag(w) V^T C)^T with the eigenvectors V of the centred G, its own weights w of the
    directions, and the intercept that fits the means.

    Attributes:
        parameters: what tells the members apart (alphas, numbers of components).
    """

    parameters: tuple[float, ...]
    _V: Tensor
    _VC: Tensor
    _w: Tensor
    _mean_x: Tensor  # in float64, from which the features are taken before they are rounded
    _mean_y: Tensor
    _sharding: Sharding | None

    def __len__(self) -> int:
        return len(self.parameters)

    def logits(self, X: Tensor) -> Iterator[Tensor]:
        """Predictions X M^T + bias (n, l) of each member in turn, for features X (n, q)."""
        P = self._projected(X)
        for w in self._w:
            yield self._logits(P, w)

    # A generator runs in the modes of whoever asks for its next value: each product has its own.
    @full_precision
    @torch.no_grad()
    def _projected(self, X: Tensor) -> Tensor:
        return (X - self._mean_x).to(self._V.dtype) @ self._V

    @full_precision
    @torch.no_grad()
    def _logits(self, P: Tensor, w: Tensor) -> Tensor:
        return self._placed((P * w) @ self._VC + self._mean_y, 1)

    @full_precision
    @torch.no_grad()
    def __getitem__(self, i: int) -> LinearWeight:
        """The member of ``parameters[i]``: M (l, q), bias (l,), in the dtype of the statistics.

        Of statistics sharded by class they are DTensors, sharded likewise.
        """
        W = self._V @ (self._w[i, :, None] * self._VC)
        bias = (self._mean_y - self._mean_x @ W.double()).to(W.dtype)
        return LinearWeight(self._placed(W.mT.contiguous(), 0), self._placed(bias, 0))

    def _placed(self, part: Tensor, dim: int) -> Tensor:
        """A part with the classes of this process along ``dim``, as a DTensor where it is one."""
        if self._sharding is None:
            return part
        shape = list(part.shape)
        shape[dim] = self._sharding.shape[0]
        return self._sharding.as_dtensor(part, tuple(shape), dim)
