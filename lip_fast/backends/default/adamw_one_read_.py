"""AdamW's update with both products: one op after the other, each by the kernel that serves it here."""

import torch
from torch import Tensor


def adamw_one_read_(
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
    write: bool,
) -> tuple[Tensor, Tensor]:
    """Y (l, m), Z (q, m). See :func:`lip_fast.ops.adamw_one_read_`."""
    state = (exp_avg, exp_avg_sq, max_exp_avg_sq)
    Y = torch.ops.lip_fast.adamw_sketch_(
        M,
        grad,
        *state,
        V,
        lr,
        update_count,
        grad_scale,
        found_inf,
        beta1,
        beta2,
        eps,
        weight_decay,
        maximize,
        write,
    )
    if write:
        return Y, torch.ops.lip_fast.project(M, Y)
    Z = torch.ops.lip_fast.adamw_project(
        M, *state, Y, lr, update_count, found_inf, beta1, beta2, eps, weight_decay
    )
    return Y, Z
