"""An optimizer's update with the products of the power step, for any rule, in plain torch."""

import torch
from torch import Tensor

from lip_fast import host
from lip_fast.backends.default.rebuild_ import DROPPED_BITS, stochastic_round
from lip_fast.rounding import compute_dtype
from lip_fast.rules import Updated
from lip_fast.rules.rule import write


def update_sketch_(updated: Updated, V: Tensor, write_weight: bool) -> Tensor:
    """Y (l, m). See :func:`lip_fast.ops.update_sketch_`."""
    M, grad, state, how, (grad_scale, found_inf) = updated
    skip, dtype = _skipped(found_inf), compute_dtype(M)
    if skip is True:
        return _first_product(M, V)
    if grad_scale is not None:
        write(grad, grad.to(dtype) / grad_scale.to(dtype), skip)
    how.advance(M, grad, state, skip)
    new = _computed(updated, skip)
    if write_weight:
        write(M, new, skip)
        new = M
    return _first_product(new, V)


def update_project(updated: Updated, Y: Tensor) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.update_project`."""
    return project(_computed(updated, _skipped(updated.scaling.found_inf)), Y)


def update_rebuild_(
    updated: Updated, A: Tensor, s: Tensor, B: Tensor, ok: Tensor, step: Tensor, accumulate: bool, seed: int
) -> Tensor:
    """In place. See :func:`lip_fast.ops.update_rebuild_`."""
    M, on_host, skip = updated.M, ok.device.type in host.READABLE, _skipped(updated.scaling.found_inf)
    if skip is True:
        return torch.zeros_like(ok)
    if on_host and not bool(ok):
        write(M, _computed(updated, skip), skip)
        return ok.clone()
    new = (A * s) @ B.mT
    base = None
    if accumulate:
        base = _computed(updated, skip)
        new = base + new
    if M.dtype in DROPPED_BITS:
        new = stochastic_round(new, M.dtype, step, seed)
        # Only float16 can overflow here: its range is far smaller than that of the sums.
        ok = ok & torch.isfinite(new).all()
    if not (on_host and bool(ok)):
        base = _computed(updated, skip) if base is None else base
        new = torch.where(ok, new.to(M.dtype), base.to(M.dtype))
    write(M, new, skip)
    return ok & ~skip if isinstance(skip, Tensor) else ok.clone()


def update_one_read_(updated: Updated, V: Tensor, write_weight: bool) -> tuple[Tensor, Tensor]:
    """Y (l, m), Z (q, m): one op after the other, each by the kernel that serves it here.

    See :func:`lip_fast.ops.update_one_read_`.
    """
    operands = updated.operands()
    Y = torch.ops.lip_fast.update_sketch_(*operands, V, write_weight)
    if write_weight:
        return Y, torch.ops.lip_fast.project(updated.M, Y)
    return Y, torch.ops.lip_fast.update_project(*operands, Y)


def project(M: Tensor, Y: Tensor) -> Tensor:
    """Z = M^T Y (q, m) in the dtype of Y, columns contiguous. See :func:`lip_fast.ops.project`."""
    return (Y.mT @ M.to(Y.dtype)).contiguous().mT


def _first_product(M: Tensor, V: Tensor) -> Tensor:
    """Y = M V (l, m) in the dtype of V, columns contiguous."""
    return (V.mT @ M.to(V.dtype).mT).contiguous().mT


def _skipped(found_inf: Tensor | None) -> Tensor | bool:
    """Whether nothing may be written: on the host where that is free, else () bool."""
    if found_inf is None:
        return False
    return bool(found_inf != 0) if found_inf.device.type in host.READABLE else found_inf != 0


def _computed(updated: Updated, skip: Tensor | bool) -> Tensor:
    """M' in the dtype of the computation; M where ``skip``."""
    M, grad, state, how, _ = updated
    old = M.to(compute_dtype(M))
    if skip is True:
        return old
    new = how.updated(M, grad, state)
    return torch.where(skip, old, new) if isinstance(skip, Tensor) else new
