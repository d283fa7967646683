"""What the updates of the optimizers share: the two products, the flags, and the one write of the weight."""

from collections.abc import Callable

import torch
from torch import Tensor

from lip_fast import host
from lip_fast.backends.default.rebuild_ import DROPPED_BITS, stochastic_round


def compute_dtype(M: Tensor) -> torch.dtype:
    """What an update computes in, as the optimizers of torch do: float32 for every narrower format too."""
    return torch.float64 if M.dtype == torch.float64 else torch.float32


def skipped(found_inf: Tensor | None) -> Tensor | bool:
    """Whether nothing may be written: on the host where that is free, else () bool."""
    if found_inf is None:
        return False
    return bool(found_inf != 0) if found_inf.device.type in host.READABLE else found_inf != 0


def write(X: Tensor, new: Tensor, skip: Tensor | bool) -> None:
    """X = new in the dtype of X, rounded to nearest, except where ``skip``."""
    if isinstance(skip, Tensor):
        new = torch.where(skip, X, new.to(X.dtype))
    elif skip:
        return
    X.copy_(new)


def unscaled(grad: Tensor, grad_scale: Tensor | None, skip: Tensor | bool, dtype: torch.dtype) -> Tensor:
    """The gradient without the scale, written to ``grad`` and with its rounding, in ``dtype``."""
    if grad_scale is not None:
        write(grad, grad.to(dtype) / grad_scale.to(dtype), skip)
    return grad.to(dtype)


def first_product(M: Tensor, V: Tensor) -> Tensor:
    """Y = M V (l, m) in the dtype of V, columns contiguous."""
    return (V.mT @ M.to(V.dtype).mT).contiguous().mT


def second_product(M: Tensor, Y: Tensor) -> Tensor:
    """Z = M^T Y (q, m) in the dtype of Y, columns contiguous."""
    return (Y.mT @ M.to(Y.dtype)).contiguous().mT


def rebuild(
    M: Tensor,
    updated: Callable[[], Tensor],
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    step: Tensor,
    skip: Tensor | bool,
    accumulate: bool,
    seed: int,
) -> Tensor:
    """Write A diag(s) B^T (+ M') where ``ok``, else M', except where ``skip``; ``updated()`` is M'.

    Returns () bool: whether the factors were written.
    """
    on_host = ok.device.type in host.READABLE
    if skip is True:
        return torch.zeros_like(ok)
    if on_host and not bool(ok):
        write(M, updated(), skip)
        return ok.clone()
    new = (A * s) @ B.mT
    base = None
    if accumulate:
        base = updated()
        new = base + new
    if M.dtype in DROPPED_BITS:
        new = stochastic_round(new, M.dtype, step, seed)
        # Only float16 can overflow here: its range is far smaller than that of the sums.
        ok = ok & torch.isfinite(new).all()
    if not (on_host and bool(ok)):
        base = updated() if base is None else base
        new = torch.where(ok, new.to(M.dtype), base.to(M.dtype))
    write(M, new, skip)
    return ok & ~skip if isinstance(skip, Tensor) else ok.clone()
