"""Samples with labels, as tensors."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Rows"]


class Rows(NamedTuple):
    """Samples with labels.

    Attributes:
        X: (n, d) float32 inputs of a network, or (n, q) what its head sees of them.
        Y: (n,) int64 class indices, or candidate sets (n, l) float32.
    """

    X: Tensor
    Y: Tensor

    @property
    def size(self) -> int:
        """How many samples n."""
        return len(self.X)
