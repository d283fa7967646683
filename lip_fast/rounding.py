"""What is computed in which format, and how small a singular value has to be to say nothing."""

import torch
from torch import Tensor

__all__ = ["compute_dtype", "negligible"]

# What a decomposition makes of directions that a weight lacks: measured at most 4 (float64, LAPACK) and 3
# (float32) eps of the largest singular value, from 30 x 40 to a million classes; the rounding of the weight
# itself adds less than one. The bound of the worst case, max(l, q) eps, is meant for sums of that length
# taken one by one: at 1000 x 2048 it is more than a tail regrows in a step of a learning rate of 1e-5, so
# that LIP would do nothing there, and at 8 million classes it exceeds 1.
_ROUNDING = 8


def negligible(dtype: torch.dtype) -> float:
    """The share of the largest singular value up to which another is taken for rounding.

    Args:
        dtype: float32 or float64, of the products.
    """
    return _ROUNDING * torch.finfo(dtype).eps


def compute_dtype(X: Tensor) -> torch.dtype:
    """What is computed in, as the optimizers of torch do: float32 for every narrower format too."""
    return torch.float64 if X.dtype == torch.float64 else torch.float32
