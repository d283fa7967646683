"""What the checks of the ops raise.

A check is a plain condition in the file of its op; what is here is called after it has failed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "COMPUTED",
    "SEEDS",
    "bad_step",
    "elsewhere",
    "expected",
    "not_a_matrix",
    "not_columns_of_a_kind",
    "wrong_dtype",
    "wrong_shape",
]

COMPUTED = (torch.float32, torch.float64)
"""What products and decompositions are computed in."""
SEEDS = range(1 << 63)


def expected(what: str, got: object) -> ValueError:
    """What was expected, and what was got instead; of a tensor, its shape."""
    return ValueError(f"expected {what}, got {tuple(got.shape) if isinstance(got, Tensor) else got}")


def wrong_dtype(what: str, X: Tensor) -> TypeError:
    """Of a tensor whose dtype is not the one that ``what`` ends with."""
    return TypeError(f"expected {what}, got {X.dtype}")


def wrong_shape(name: str, X: Tensor, shape: Sequence[int]) -> ValueError:
    """Of a tensor that has another shape."""
    return expected(f"{name} of shape {tuple(shape)}", X)


def elsewhere(name: str, X: Tensor, beside: str, device: torch.device) -> ValueError:
    """Of a tensor that is not on the device of the operand ``beside`` it."""
    return expected(f"{name} on {device}, where {beside} is", str(X.device))


def not_a_matrix(name: str, X: Tensor, dtypes: Sequence[torch.dtype] | None = None) -> Exception:
    """Of a tensor that is no matrix, no floating-point one, or none in one of ``dtypes``."""
    if X.dim() != 2:
        return expected(f"{name} to be a matrix", f"shape {tuple(X.shape)}")
    if not X.is_floating_point():
        return wrong_dtype(f"{name} in a floating-point dtype", X)
    return wrong_dtype(f"{name} in one of {tuple(dtypes or ())}", X)


def not_columns_of_a_kind(A: Tensor, B: Tensor, r: int) -> Exception:
    """Of factors A and B that are not two matrices of one computed dtype with r columns each."""
    if A.dim() != 2 or A.dtype not in COMPUTED:
        return not_a_matrix("A", A, COMPUTED)
    if B.dim() != 2 or B.dtype != A.dtype:
        return not_a_matrix("B", B, (A.dtype,))
    return expected(f"A and B with {r} columns", f"{tuple(A.shape)} and {tuple(B.shape)}")


def bad_step(step: Tensor, seed: int, beside: str, device: torch.device) -> Exception:
    """Of a step that is no () int64 on the device of the operand ``beside`` it, or of its seed."""
    if step.dtype != torch.int64:
        return wrong_dtype("a step in torch.int64", step)
    if step.dim():
        return expected("a step of shape ()", step)
    if seed not in SEEDS:
        return expected("a seed in 0..2^63 - 1", seed)
    return elsewhere("a step", step, beside, device)
