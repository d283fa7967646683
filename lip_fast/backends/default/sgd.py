"""SGD's update with the products of the power step; M' is a function of M, the gradient and the buffer."""

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


def sgd_sketch_(
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
    write_weight: bool,
) -> Tensor:
    """Y (l, m). See :func:`lip_fast.ops.sgd_sketch_`."""
    skip, dtype = skipped(found_inf), compute_dtype(M)
    if skip is True:
        return first_product(M, V)
    unscaled(grad, grad_scale, skip, dtype)
    if momentum_buffer is not None:
        direction = _direction(M, grad, weight_decay, maximize)
        if not first:
            direction = momentum * momentum_buffer.to(dtype) + (1 - dampening) * direction
        write(momentum_buffer, direction, skip)
    new = _updated(M, grad, momentum_buffer, lr, skip, momentum, weight_decay, nesterov, maximize)
    if write_weight:
        write(M, new, skip)
        new = M
    return first_product(new, V)


def sgd_project(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    Y: Tensor,
    lr: Tensor,
    found_inf: Tensor | None,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.sgd_project`."""
    skip = skipped(found_inf)
    new = _updated(M, grad, momentum_buffer, lr, skip, momentum, weight_decay, nesterov, maximize)
    return second_product(new, Y)


def sgd_rebuild_(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    lr: Tensor,
    step: Tensor,
    found_inf: Tensor | None,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    accumulate: bool,
    seed: int,
) -> Tensor:
    """In place. See :func:`lip_fast.ops.sgd_rebuild_`."""
    skip = skipped(found_inf)

    def updated() -> Tensor:
        return _updated(M, grad, momentum_buffer, lr, skip, momentum, weight_decay, nesterov, maximize)

    return rebuild(M, updated, A, s, B, ok, step, skip, accumulate, seed)


def _direction(M: Tensor, grad: Tensor, weight_decay: float, maximize: bool) -> Tensor:
    dtype = compute_dtype(M)
    direction = -grad.to(dtype) if maximize else grad.to(dtype)
    return direction + weight_decay * M.to(dtype) if weight_decay else direction


def _updated(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    skip: Tensor | bool,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> Tensor:
    """M' in the dtype of the computation; M where ``skip``."""
    old = M.to(compute_dtype(M))
    if skip is True:
        return old
    if momentum_buffer is None:
        direction = _direction(M, grad, weight_decay, maximize)
    else:
        direction = momentum_buffer.to(old.dtype)
        if nesterov:
            direction = _direction(M, grad, weight_decay, maximize) + momentum * direction
    new = old - lr.to(old.dtype) * direction
    return torch.where(skip, old, new) if isinstance(skip, Tensor) else new
