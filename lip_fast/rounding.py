"""What is computed in which format, and how small a singular value has to be to say nothing."""

import torch
from torch import Tensor

__all__ = ["compute_dtype", "negligible"]

# The bound of the worst case, max(l, q) eps, is meant for sums of that length taken one by one. Those of a
# step are summed in blocks, and in float64 from block to block: the singular values of a float32 weight are
# off by 3e-7 of the largest for 4096 classes as for a million (measured), while the bound, at 8 million,
# exceeds 1 and nothing would ever be refitted. It is taken for a weight of this many rows at most.
_LONGEST = 4096


def negligible(l: int, q: int, dtype: torch.dtype) -> float:
    """The share of the largest singular value of a weight (l, q) up to which another is taken for rounding.

    Args:
        l: rows.
        q: columns.
        dtype: float32 or float64, of the products.
    """
    return min(max(l, q), _LONGEST) * torch.finfo(dtype).eps


def compute_dtype(X: Tensor) -> torch.dtype:
    """What is computed in, as the optimizers of torch do: float32 for every narrower format too."""
    return torch.float64 if X.dtype == torch.float64 else torch.float32
