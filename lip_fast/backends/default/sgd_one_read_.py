"""The update of SGD with both products: one op after the other, each by the kernel that serves it here."""

import torch
from torch import Tensor


def sgd_one_read_(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    V: Tensor,
    lr: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
    write: bool,
) -> tuple[Tensor, Tensor]:
    """Y (l, m), Z (q, m). See :func:`lip_fast.ops.sgd_one_read_`."""
    Y = torch.ops.lip_fast.sgd_sketch_(
        M,
        grad,
        momentum_buffer,
        V,
        lr,
        grad_scale,
        found_inf,
        momentum,
        dampening,
        weight_decay,
        nesterov,
        maximize,
        first,
        write,
    )
    if write:
        return Y, torch.ops.lip_fast.project(M, Y)
    Z = torch.ops.lip_fast.sgd_project(
        M, grad, momentum_buffer, Y, lr, found_inf, momentum, weight_decay, nesterov, maximize
    )
    return Y, Z
