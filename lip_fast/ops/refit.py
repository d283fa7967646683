"""Singular values refitted to the labels."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.ops.checks import COMPUTED, elsewhere, expected, wrong_shape
from lip_fast.ops.label_sums import Sums
from lip_fast.ops.op import Op

__all__ = ["Refit", "refit"]


class Refit(NamedTuple):
    """Refitted singular values, whether they can be used, and how many were limited."""

    s: Tensor
    ok: Tensor
    clipped: Tensor


def _check(
    S: Tensor, numerator: Tensor, denominator: Tensor, energy: Tensor, ok: Tensor, rank: int, *guards: float
) -> None:
    vectors = (("S", S, 1), ("a numerator", numerator, 1), ("a denominator", denominator, 1))
    for name, X, dims in (*vectors, ("energy", energy, 0), ("ok", ok, 0)):
        if X.dim() != dims:
            raise expected(f"{name} of shape {'(n,)' if dims else '()'}", X)
        if X.device != S.device:
            raise elsewhere(name, X, "S", S.device)
    if denominator.shape != numerator.shape:
        raise wrong_shape("a denominator", denominator, numerator.shape)
    r = numerator.shape[0]
    if rank < 0 or rank + r > S.shape[0]:
        raise expected(f"rank + {r} refitted values within the {S.shape[0]} singular values", f"rank {rank}")


def _outputs(S: Tensor, numerator: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return S.new_empty(len(numerator)), torch.empty_like(rest[2]), S.new_empty((), dtype=torch.int64)


def _can_native(
    S: Tensor, numerator: Tensor, denominator: Tensor, energy: Tensor, ok: Tensor, *settings: float
) -> bool:
    return (
        numerator.dtype == denominator.dtype == energy.dtype == torch.float64
        and S.dtype in COMPUTED
        and ok.dtype == torch.bool
    )


_OP = Op(
    "refit(Tensor S, Tensor numerator, Tensor denominator, Tensor energy, Tensor ok, int rank,"
    " float tolerance, bool clip) -> (Tensor, Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    default="default.refit",
    kernels=(
        Kernel("native.refit", "cpu", can=_can_native, reason="one call for a loop in Python"),
        Kernel("native.refit", "cuda", can=_can_native, reason="does not wait for the device"),
    ),
)


def refit(S: Tensor, sums: Sums, ok: Tensor, *, rank: int, tolerance: float, clip: bool) -> Refit:
    """Singular values refitted to the labels, with the guards of training.

    s_i* = numerator_i / denominator_i for the r directions below ``rank``, except where the batch puts no
    more than 1e-6 of its energy on the direction, or s_i <= tolerance s_1: those keep s_i.

    Args:
        S: (t,) singular values, descending.
        sums: of the directions rank..rank+r-1.
        ok: () bool, whether the step can still be taken.
        rank: number of kept directions.
        tolerance: singular values up to this share of s_1 count as rounding, usually max(l, q) eps.
        clip: limit s_i* to [-s_rank, s_rank] ([-s_1, s_1] where rank = 0): one small batch can ask for
            several s_1, which the next step would keep as principal.

    Returns:
        s (r,) in the dtype of ``S``; ok () bool, False too where a sum is not finite or the values are too
        large to be multiplied out; clipped () int64, how many were limited.
    """
    return Refit(*_OP(S, sums.numerator, sums.denominator, sums.energy, ok, rank, tolerance, clip))
