"""AdamW's update with the products of the power step; M' is a function of M and the updated state."""

import torch
from torch import Tensor

from lip_fast.backends.default.update import (
    compute_dtype,
    first_product,
    rebuild,
    second_product,
    skipped,
    unscaled,
    write,
)


def adamw_sketch_(
    M: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    V: Tensor,
    lr: Tensor,
    update_count: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    write_weight: bool,
) -> Tensor:
    """Y (l, m). See :func:`lip_fast.ops.adamw_sketch_`."""
    skip, dtype = skipped(found_inf), compute_dtype(M)
    if skip is True:
        return first_product(M, V)
    g = unscaled(grad, grad_scale, skip, dtype)
    if maximize:
        g = -g
    write(exp_avg, torch.lerp(exp_avg.to(dtype), g, 1 - beta1), skip)
    write(exp_avg_sq, beta2 * exp_avg_sq.to(dtype) + (1 - beta2) * g * g, skip)
    if max_exp_avg_sq is not None:
        write(max_exp_avg_sq, torch.maximum(max_exp_avg_sq.to(dtype), exp_avg_sq.to(dtype)), skip)
    new = _updated(
        M, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, update_count, skip, beta1, beta2, eps, weight_decay
    )
    if write_weight:
        write(M, new, skip)
        new = M
    return first_product(new, V)


def adamw_project(
    M: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    Y: Tensor,
    lr: Tensor,
    update_count: Tensor,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.adamw_project`."""
    skip = skipped(found_inf)
    new = _updated(
        M, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, update_count, skip, beta1, beta2, eps, weight_decay
    )
    return second_product(new, Y)


def adamw_rebuild_(
    M: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    lr: Tensor,
    update_count: Tensor,
    step: Tensor,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    accumulate: bool,
    seed: int,
) -> Tensor:
    """In place. See :func:`lip_fast.ops.adamw_rebuild_`."""
    skip = skipped(found_inf)

    def updated() -> Tensor:
        return _updated(
            M, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, update_count, skip, beta1, beta2, eps, weight_decay
        )

    return rebuild(M, updated, A, s, B, ok, step, skip, accumulate, seed)


def _updated(
    M: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    lr: Tensor,
    update_count: Tensor,
    skip: Tensor | bool,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    """M' in the dtype of the computation; M where ``skip``."""
    dtype = compute_dtype(M)
    if skip is True:
        return M.to(dtype)
    # In float64: 1 - beta^n of a first step has lost three digits in float32.
    n, rate = update_count.double(), lr.double()
    step_size = (rate / (1 - beta1**n)).to(dtype)
    correction = (1 - beta2**n).sqrt().to(dtype)
    squares = exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq
    denominator = (squares.to(dtype).sqrt() / correction).add_(eps)
    old = M.to(dtype)
    # One factor, as in torch: what is infinite stays so, where inf - decay * inf is NaN.
    new = old * (1 - rate * weight_decay).to(dtype) if weight_decay else old
    new = new - step_size * exp_avg.to(dtype) / denominator
    return torch.where(skip, old, new) if isinstance(skip, Tensor) else new
